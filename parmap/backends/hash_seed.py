"""One seed of strings' hashes for all workers that are interpreters of their own.

The order of a set of strings follows it. Without a seed in common, the order depends on the worker.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

__all__ = ["VARIABLE", "hash_seed"]

VARIABLE = "PYTHONHASHSEED"
_BYTES = 4  # as many as Python takes


def hash_seed(environ: Mapping[str, str]) -> str:
    """Give the seed that is set in an environment; else one for all sessions of this process."""
    given = environ.get(VARIABLE)
    return _own() if given in (None, "", "random") else str(given)


@functools.cache
def _own() -> str:
    return str(int.from_bytes(os.urandom(_BYTES), "little"))
