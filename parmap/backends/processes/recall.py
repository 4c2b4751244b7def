"""Recall elements that a worker has not begun.

The worker runs a chunk in parts. Before each part it writes in its notes how far it goes; the
parent writes there how far it may go. Each does so only while it holds the system's lock on these
bytes. So an element is begun by the worker, or recalled, and never both. The system releases the
lock of a process that dies; a worker that is stopped while it holds the lock keeps its elements.
"""

from __future__ import annotations

import os
import struct
import time

from parmap.backends.processes.system_unix import lock, unlocker
from parmap.worker.context import BEGUN

__all__ = ["Begun", "recall"]

# The chunk's number; how many elements are begun; how many may be; when the last part began.
_STATE = struct.Struct("qqqd")
# A part that has run for longer, in seconds, is at a slow element: parts are made to be shorter.
_SLOW = 0.003
_AT = 8  # in the notes
assert _STATE.size == BEGUN


class Begun:
    """The worker's end: which elements of its chunk it has begun.

    Parameters
    ----------
    notes : int
        The descriptor of the notes.
    memory : memoryview
        The notes.
    """

    def __init__(self, notes: int, memory: memoryview) -> None:
        self._notes, self._memory = notes, memory
        self._unlock = unlocker(notes, _AT, BEGUN)

    def begin(self, chunk: int, size: int, stop: int) -> int:
        """Begin the next part of a chunk.

        Parameters
        ----------
        chunk : int
            Its number.
        size : int
            How many elements it has.
        stop : int
            Before which of them the part shall end.

        Returns
        -------
        int
            Before which it must end. It is empty if the rest was recalled.
        """
        try:
            lock(self._notes, _AT, BEGUN)
            other, _, end, _ = _STATE.unpack_from(self._memory, _AT)
            end = end if other == chunk else size
            stop = min(stop, end)
            _STATE.pack_into(self._memory, _AT, chunk, stop, end, time.monotonic())
        finally:  # an interrupt may come before the first line
            self._unlock()
        return stop


def recall(notes: int, chunk: int, *, only_slow: bool) -> tuple[int, bool] | None:
    """Recall what a worker has not begun of its chunk, where it is at a slow element; else half.

    Parameters
    ----------
    notes : int
        The descriptor of its notes.
    chunk : int
        The chunk's number.
    only_slow : bool
        Whether to leave the chunk alone otherwise.

    Returns
    -------
    tuple of (int, bool) or None
        How many elements stay with the worker, and whether it is at a slow one. None where nothing
        is recalled: the worker has not come to this chunk, or is at the lock.
    """
    unlock = unlocker(notes, _AT, BEGUN)
    try:
        if not lock(notes, _AT, BEGUN, waits=False):
            return None
        other, begun, end, since = _STATE.unpack(os.pread(notes, BEGUN, _AT))
        slow = time.monotonic() - since > _SLOW
        if other != chunk or (only_slow and not slow):
            return None
        end = begun if slow else begun + (end - begun) // 2
        os.pwrite(notes, _STATE.pack(chunk, begun, end, since), _AT)
    finally:  # Ctrl-C may come before the first line
        unlock()
    return int(end), slow
