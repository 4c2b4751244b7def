"""Large arrays that several tasks hold: written once, mapped by each task.

Rows of arguments often hold one array again and again. Each task would get a copy of it through its
worker's channel. Here the memory of an array that recurs is written to a block, and tasks are sent
the block's descriptor. A worker maps it privately, so a task may write to its array, as it may to a
copy. An array recurs if the engine knows so, or when a second task has the same object.

An object's identity is enough only where the input of a call stays as it is while the call runs.
The arrays of all other tasks, and those that an earlier call had, are compared with what was
written: see kept_arrays.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from parmap.backends.processes.kept_arrays import KeptArrays, known_to_recur, large_array
from parmap.backends.processes.protocol import BroadcastKey, Frame
from parmap.backends.processes.shared_memory import Block, Slot
from parmap.transport.payload import Payload

__all__ = ["Recurring"]


class _Seen(NamedTuple):
    """An array that a task of the call had."""

    array: Callable[[], Any]  # gives it; None once it is gone, and its number may be another's
    slot: Slot | None  # once it has recurred


class _OfCall(NamedTuple):
    """What the tasks of one call have had.

    Parameters
    ----------
    known : frozenset of int
        The numbers (`id`) of arrays that are known to recur, which live as long as the call.
    seen : dict of int to _Seen
        Those that a task had, by their numbers.
    """

    known: frozenset[int]
    seen: dict[int, _Seen]


class Recurring:
    """What the tasks of each call that runs have had, and those of no such call.

    There is no lock: one thread sends the tasks of a call, and ends it; each change is one step.

    Attributes
    ----------
    calls : dict of int to _OfCall or None
        By the keys of the calls' specs; who drops a spec drops what is here.
    kept : KeptArrays
        The arrays of tasks whose arguments may have changed since the task before.
    """

    def __init__(self) -> None:
        self.calls: dict[int, _OfCall | None] = {}
        self.kept = KeptArrays()

    def frames(self, args: tuple[Any, ...], frames: Sequence[Frame]) -> Sequence[Frame]:
        """Put slots in the places of arrays that an earlier task had.

        Parameters
        ----------
        args : tuple
            The arguments of the task.
        frames : sequence of frame
            The task's, which view the caller's arrays.
        """
        known = args[1].known if len(args) > 1 and type(args[1]) is Payload else None
        recur = None
        if known is not None and type(args[0]) is not BroadcastKey:  # a spec that is carried: few
            recur = known()
        elif known is not None:
            had = self._of_call(args[0].key, known)
            if had is not None:
                return [self._frame_of_call(had, frame) for frame in frames]
        return self.kept.frames(frames, recur or frozenset())

    def _of_call(self, call: int, known: Callable[[], frozenset[int] | None]) -> _OfCall | None:
        if call not in self.calls:
            recur = known()
            self.calls[call] = None if recur is None else _OfCall(recur, {})
        return self.calls[call]

    def _frame_of_call(self, had: _OfCall, frame: Frame) -> Frame:
        array = large_array(frame)
        if array is None:
            return frame
        assert isinstance(frame, memoryview)
        before = had.seen.get(id(array))
        if before is not None and before.array() is not array:
            before = None
        slot = None if before is None else before.slot
        if slot is None and (before is not None or known_to_recur(array, frame, had.known)):
            try:
                slot = self._slot(frame)
            except OSError:  # no memory for it, or no descriptor: by the channel, then
                return frame
        had.seen[id(array)] = _Seen(weakref.ref(array), slot)
        return frame if slot is None else slot

    def _slot(self, frame: memoryview) -> Slot:
        """Write an array, unless an earlier call has had it as it is."""
        (found,) = self.kept.frames([frame])
        return found if isinstance(found, Slot) else Slot(Block([frame]), frame.nbytes)
