"""Loaded first in the local workers of Dask: they end when the process that started them does.

Without it they notice that their scheduler is gone, and then try for half a minute to tell it
that they leave.
"""

from __future__ import annotations

import os
import threading
from typing import Any

__all__ = ["PROMPT", "VARIABLE"]

# Where a worker finds the descriptor of its end of a pipe, which nobody ever writes to.
VARIABLE = "PARMAP_LEASH"
# Dask holds each message back for 2 to 10 ms, in order to send many at once. Ours are few:
# with this, in seconds, a small call takes 8 ms there and back instead of 15.
PROMPT = 0.0005


def _wait(descriptor: int) -> None:
    os.read(descriptor, 1)
    os._exit(1)


if VARIABLE in os.environ:
    _end = int(os.environ.pop(VARIABLE))  # not for the worker's own children
    threading.Thread(target=_wait, args=(_end,), name="parmap-leash", daemon=True).start()


def dask_setup(worker: Any) -> None:
    """Have the worker send what it has to say at once; called by Dask."""
    worker.batched_stream.interval = PROMPT
