"""Time each element of a call with a time limit; end a worker whose element hangs.

A thread in C that needs no GIL writes down where the element hangs, and ends the process. The pool
tells this death by those words. It is one thread for the process, and a fork does not have it: so
it is stopped around each fork, or the fork would for ever wait for it when it stops it.

To start that thread takes as long as a hundred small elements. So elements run in blocks, all in
C, and the thread is started rarely: it gives each element its limit, and an eighth more. If
a block takes much longer than the ones before it, the thread may ring though no element has had
its limit. The notes of the worker say so, and its pool has the chunk run again, one by one.
"""

from __future__ import annotations

import faulthandler
import itertools
import operator
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from parmap.worker import context

__all__ = ["Blocks", "start", "stop"]

# As parts of the limit: by how much the thread may ring too late, and how long a block may take.
_SLACK, _LONG = 1 / 8, 1 / 64

# When the process is to end, and where to write; None while no element is timed.
_armed: tuple[float, int] | None = None


def start(limit: float, words: int) -> None:
    """Have the process end after `limit` seconds, with its crash report to a descriptor."""
    global _armed  # noqa: PLW0603 - the process has one
    # One that would ring in centuries is refused by the system, and not needed.
    limit = min(limit, threading.TIMEOUT_MAX)
    _armed = time.monotonic() + limit, words
    faulthandler.dump_traceback_later(limit, exit=True, file=words)


def stop() -> None:
    """Let the process live."""
    global _armed  # noqa: PLW0603 - as above
    faulthandler.cancel_dump_traceback_later()
    _armed = None


class Blocks:
    """The elements of a chunk that have a time limit, in blocks that run in C.

    Each element is timed. If the worker dies, the pool reads in the worker's notes, in this order:
    the position of the block's first element; the time by which an element must have begun, to
    have used up its limit when the thread rings; when the block began; and when each element of
    it ended.

    Parameters
    ----------
    calls : iterator
        Runs an element with each step.
    limit : float
        Seconds.
    ends : bool
        Whether the process may end, for its pool hears of it and starts another.

    Attributes
    ----------
    size : int
        How many elements the next block has, at most: twice as many as the one before, as long as
        that takes little of the limit.
    """

    def __init__(self, calls: Iterator[Any], limit: float, *, ends: bool) -> None:
        self._calls, self._limit, self._ends = calls, limit, ends
        notes = context.worker.times if ends else None
        self._times = _zeros() if notes is None else notes
        self._rings = -1.0  # when the thread is to be started anew
        self.size = 1

    def run(self, position: int, size: int, values: list[Any]) -> None:
        """Run a block of elements, and add their values.

        Parameters
        ----------
        position : int
            Of the first of them in the chunk.
        size : int
            How many there are.
        values : list
            Takes their values. If one raises, those before it are there.
        """
        times = self._times
        if self._ends:
            context.worker.note(-1)  # until the notes are of this block
        times[1 : size + 2] = _ZEROS[: size + 1]
        began = time.monotonic()
        if self._ends and began >= self._rings:
            self._start(began)
        times[1] = began
        if self._ends:
            context.worker.note(position)
        # `compress` takes an element's value, and then asks its selector, which notes the time.
        ends = map(times.__setitem__, range(2, size + 2), iter(time.monotonic, None))
        values.extend(
            itertools.compress(itertools.islice(self._calls, size), map(operator.not_, ends))
        )
        took = time.monotonic() - began
        if took < self._limit * _LONG / 2:
            self.size = min(2 * self.size, context.BLOCK)
        elif took > self._limit * _LONG:
            self.size = max(1, self.size // 2)

    def late(self, position: int, count: int) -> list[tuple[int, float]]:
        """Give which of a block's first elements took too long, and how long each did.

        Parameters
        ----------
        position : int
            Of the first of them in the chunk.
        count : int
            How many there are.
        """
        times = self._times
        if times[count + 1] - times[1] <= self._limit:  # all of them together
            return []
        durations = map(operator.sub, times[2 : count + 2], times[1 : count + 1])
        return [(at, took) for at, took in enumerate(durations, position) if took > self._limit]

    def close(self) -> None:
        """Let the process live, and note that nothing runs."""
        if self._ends:
            context.worker.note(-1)
            self._times[1] = 0.0
            stop()

    def _start(self, now: float) -> None:
        # A block begins before half of the slack is over, and mostly ends before all of it is.
        slack = self._limit * _SLACK
        self._times[0], self._rings = now + slack, now + slack / 2
        start(self._limit + slack, context.worker.words)


def _zeros() -> memoryview[float]:
    return memoryview(bytearray(context.TIMES)).cast("d")


_ZEROS = _zeros()


def _pause() -> None:
    if _armed is not None:
        faulthandler.cancel_dump_traceback_later()


def _go_on() -> None:
    if _armed is not None:
        end, words = _armed
        # It takes no 0: what is over already is so in a moment.
        faulthandler.dump_traceback_later(max(1e-3, end - time.monotonic()), exit=True, file=words)


def _forget() -> None:
    global _armed  # noqa: PLW0603 - as above
    _armed = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause, after_in_parent=_go_on, after_in_child=_forget)
