"""Large arrays that several calls of a session send: written once, and compared before each use.

A script that makes calls one by one often passes the same array to each, or a function that holds
it. Between two calls the script may change that array. So the same object is only a reason to look:
the array's bytes are compared with those of the block that holds what it was, which takes half as
long as to write them.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from parmap.backends.processes.protocol import Frame, size
from parmap.backends.processes.shared_memory import Block, Slot
from parmap.transport.arrays import array_type, owner_of
from parmap.transport.shared import LARGE

__all__ = ["KeptArrays", "known_to_recur", "large_array"]

# Of all that is kept; the blocks of the last task are kept in any case.
_ROOM = 1 << 30  # bytes
_MOST = 64  # arrays that have a block, and so a descriptor; and as many that have none yet
# After a block that no second task could use, an array is sent up to so often before the next.
_LONGEST = 64


class _Place(NamedTuple):
    """Where an array lies, as long as its owner lives."""

    owner: int  # by its `id`
    start: int
    nbytes: int


def large_array(frame: Frame) -> Any:
    """Return the large plain array that a frame views, all of it; None for another frame.

    Pickling makes a new array of one in Fortran's order, or of times, for the same memory. So this
    is the array that owns it, if that has no more.
    """
    if type(frame) is not memoryview or frame.nbytes < LARGE:
        return None
    array: Any = frame.obj
    if type(array) is not array_type() or array.nbytes != frame.nbytes:
        return None
    owner, _ = owner_of(array)
    return owner if owner.nbytes == array.nbytes else array


def known_to_recur(array: Any, frame: memoryview, known: frozenset[int]) -> bool:
    """Tell whether the array of a frame is known by its `id`, or by that of its view."""
    return id(array) in known or id(frame.obj) in known


class _Kept:
    """An array that a task has had.

    Several threads may use one at a time: then an array may be written twice, or sent once more.

    Parameters
    ----------
    place : _Place
        Where the task's array lies.

    Attributes
    ----------
    owner : weakref or None
        The array that owns the memory, once there is a block: so that goes when the array does.
        Before that there is none, as an array cannot be resized in place while it has one.
    """

    __slots__ = ("_block", "_left", "_useful", "_wait", "owner", "place")

    def __init__(self, place: _Place) -> None:
        self.place = place
        self.owner: weakref.ref[Any] | None = None
        self._block: Block | None = None
        self._useful = False  # whether a second task had the block
        # How often it is sent before it is written; and how often next time.
        self._left = self._wait = 1

    @property
    def size(self) -> int:
        """How many bytes are kept for it."""
        return 0 if self._block is None else self.place.nbytes

    def current(self, frame: memoryview, *, recurs: bool) -> Block | None:
        """Return a block that holds what the array holds now; None if it is to be sent.

        An array that `recurs` is known to be needed again.
        """
        block = self._block
        if block is not None:
            if block.holds(frame, self.place.start):
                self._useful, self._wait = True, 1
                return block
            self.drop(gone=False)
        if self._left and not recurs:
            self._left -= 1
            return None
        self._block = block = Block([frame])
        return block

    def drop(self, *, gone: bool) -> None:
        """Drop the block: the array has changed, or is `gone`, and another may lie in its place."""
        # Else one that changes before each call would be written for nothing each time.
        self._wait = 1 if self._useful else min(2 * self._wait, _LONGEST)
        self._left = 0 if self._useful and not gone else self._wait
        self._useful, self._block, self.owner = False, None, None


class KeptArrays:
    """The blocks of arrays that the tasks of a session have had.

    There is no lock, since an array may end in any thread, at any time: each change is one step.
    """

    def __init__(self) -> None:
        self._kept: dict[_Place, _Kept] = {}

    def frames(
        self, frames: Sequence[Frame], recur: frozenset[int] = frozenset()
    ) -> Sequence[Frame]:
        """Put slots in the places of arrays that earlier tasks had, and that are as they were.

        Parameters
        ----------
        frames : sequence of frame
            A task's, which view the caller's arrays.
        recur : frozenset of int, default empty
            The numbers (`id`) of arrays that are known to recur.
        """
        used: set[_Place] = set()
        sent = [self._frame(frame, used, recur) for frame in frames]
        if used:
            self._trim(used)
        return sent

    def shared(self, frames: Sequence[Frame]) -> Sequence[Frame]:
        """Do so for what all tasks of a call read; not for too many, or too large ones, to keep."""
        large = [size(frame) for frame in frames if large_array(frame) is not None]
        few = len(large) <= _MOST and sum(large) <= _ROOM
        return self.frames(frames) if large and few else frames

    def forget(self, place: _Place, owner: weakref.ref[Any]) -> None:
        """Forget the block of an array that is gone, unless another is in its place."""
        kept = self._kept.get(place)
        if kept is not None and kept.owner is owner:
            kept.drop(gone=True)

    def clear(self) -> None:
        """Forget all arrays."""
        self._kept.clear()

    def _frame(self, frame: Frame, used: set[_Place], recur: frozenset[int]) -> Frame:
        array = large_array(frame)
        if array is None:
            return frame
        assert isinstance(frame, memoryview)
        owner, start = owner_of(array)
        place = _Place(id(owner), start, frame.nbytes)
        if place in used:  # by another object; a message has each block once
            return frame
        used.add(place)
        kept = self._kept.pop(place, None) or _Kept(place)
        self._kept[place] = kept  # the last one now
        try:
            block = kept.current(frame, recurs=known_to_recur(array, frame, recur))
        except OSError:  # no memory for it, or no descriptor: by the channel, then
            block = None
        if block is None:
            return frame
        if kept.owner is None or kept.owner() is not owner:
            # A weak reference to this, or it would refer to itself through each array's end.
            gone = functools.partial(_gone, weakref.ref(self), place)
            kept.owner = weakref.ref(owner, gone)
        return Slot(block, frame.nbytes)

    def _trim(self, used: set[_Place]) -> None:
        """Forget the arrays that were used least recently, where there are too many."""
        counts, size = [0, 0], 0
        for kept in reversed(list(self._kept.values())):
            counts[kept.size > 0] += 1
            size += kept.size
            full = counts[kept.size > 0] > _MOST or (kept.size and size > _ROOM)
            if full and kept.place not in used:
                self._kept.pop(kept.place, None)
                size -= kept.size


def _gone(arrays: weakref.ref[KeptArrays], place: _Place, owner: weakref.ref[Any]) -> None:
    here = arrays()
    if here is not None:
        here.forget(place, owner)
