"""Loaded first in the local workers of Dask: they end when the process that started them does.

Without it they notice that their scheduler is gone, and then try for half a minute to tell it
that they leave.
"""

from __future__ import annotations

import os
import threading

__all__ = ["VARIABLE"]

# Where a worker finds the descriptor of its end of a pipe, which nobody ever writes to.
VARIABLE = "PARMAP_LEASH"


def _wait(descriptor: int) -> None:
    os.read(descriptor, 1)
    os._exit(1)


if VARIABLE in os.environ:
    _end = int(os.environ.pop(VARIABLE))  # not for the worker's own children
    threading.Thread(target=_wait, args=(_end,), name="parmap-leash", daemon=True).start()
