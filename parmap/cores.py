"""How many cores this process may use."""

from __future__ import annotations

import os

__all__ = ["available_cores"]


def available_cores() -> int:
    """Count the cores that this process may use.

    Returns
    -------
    int
        The smaller of the machine's cores and those in the process's affinity mask;
        at least 1.

    Examples
    --------
    >>> import parmap
    >>> parmap.available_cores() >= 1
    True
    """
    machine = os.cpu_count() or 1
    # Only Linux and the BSDs have affinity masks; macOS and Windows lack the call.
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    return max(1, min(machine, affinity))
