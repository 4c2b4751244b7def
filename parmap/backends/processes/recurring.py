"""Large arrays that several tasks of one call hold: written once, mapped by each task.

Rows of arguments often hold one array again and again. Each task would get a copy of it through its
worker's channel. Here the memory of an array that recurs is written to a block, and tasks are sent
the block's descriptor. A worker maps it privately, so a task may write to its array, as it may to a
copy. An array recurs if the engine knows so, or when a second task has the same object.

An object's identity is enough only where the input of a call stays as it is while the call runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from parmap.backends.processes.protocol import Frame
from parmap.backends.processes.shared_memory import Block, Slot
from parmap.transport.arrays import array_type
from parmap.transport.payload import Known
from parmap.transport.shared import is_large

__all__ = ["Recurring"]


class _Seen(NamedTuple):
    """An array that a task of the call had."""

    array: Callable[[], Any]  # gives it; None once it is gone, and its number may be another's
    block: Block | None  # once it has recurred


# An array that has not been met yet, but is known to recur; so it is alive.
_KNOWN = _Seen(lambda: None, None)


class Recurring:
    """What the tasks of each call that runs have had.

    There is no lock: one thread sends the tasks of a call, and ends it; each change is one step.

    Attributes
    ----------
    calls : dict of int to dict or None
        By the keys of the calls' specs; who drops a spec drops what is here.
    """

    def __init__(self) -> None:
        self.calls: dict[int, dict[int, _Seen] | None] = {}

    def frames(self, call: int, frames: Sequence[Frame], known: Known) -> Sequence[Frame]:
        """Put slots in the places of arrays that an earlier task of the call had.

        Parameters
        ----------
        call : int
            The key of the call's spec.
        frames : sequence of frame
            A task's, which view the caller's arrays.
        known : Known
            What is known of the call.
        """
        if call not in self.calls:
            recur = None if known is None else known()
            self.calls[call] = None if recur is None else dict.fromkeys(recur, _KNOWN)
        seen = self.calls[call]
        return frames if seen is None else [self._frame(seen, frame) for frame in frames]

    def _frame(self, seen: dict[int, _Seen], frame: Frame) -> Frame:
        if type(frame) is not memoryview:
            return frame
        array = frame.obj
        if type(array) is not array_type() or not is_large(array):
            return frame
        before = seen.get(id(array))
        if before is None or (before is not _KNOWN and before.array() is not array):
            seen[id(array)] = _Seen(weakref.ref(array), None)
            return frame
        block = before.block
        if block is None:
            try:
                block = Block([frame])
            except OSError:  # no memory for it, or no descriptor: by the channel, then
                return frame
            seen[id(array)] = _Seen(weakref.ref(array), block)
        return Slot(block, frame.nbytes)
