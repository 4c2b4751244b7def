"""What a task may know of where it runs, and what a worker notes for its pool.

One context variable says which frame a piece of code runs in: a session that it entered,
or a task that it is part of. Plans read it to find the plan in force; a task that runs in
the caller's own thread (plan ``sequential``) must hide the caller's session, or an inner
call would find the outer plan again.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from parmap import cores

__all__ = [
    "BEGUN",
    "BLOCK",
    "NOTES",
    "TIMES",
    "Inside",
    "Task",
    "Worker",
    "begin_forked_worker",
    "blocks",
    "frame",
    "here",
    "kept",
    "left",
    "session",
    "threaded",
    "worker",
]


class Task(NamedTuple):
    """The frame of code that runs as part of a task.

    Parameters
    ----------
    nested : tuple, default ()
        The plans left to it, outermost first.
    """

    nested: tuple[Any, ...] = ()


frame: ContextVar[Any] = ContextVar("parmap.frame", default=None)

# The sessions whose `with` blocks are open in this process, whatever the thread, in the order in
# which they were entered.
blocks: list[Any] = []

# Called with the plan of each block that was left, if tasks of it may have opened others.
left: list[Callable[[Any], None]] = []

# Called once in a worker that a backend has forked, before its first task.
begin_forked_worker: list[Callable[[], None]] = []


class _Here(threading.local):
    """What a thread has had."""

    plan = False  # one of its own: it has entered a block


here = _Here()

# Whether other threads of this process run tasks, too: then what is global is shared, also
# for a call inside of the task that itself stays in its thread.
threaded: ContextVar[bool] = ContextVar("parmap.threaded", default=False)


# The key of the session that a task belongs to; of those that nest in one thread, the outermost.
session: ContextVar[Any] = ContextVar("parmap.session", default=None)

# What functions have computed once in this worker, by the keys of sessions: see
# `parmap.worker.once`. Here, so that a session's end need not load that.
kept: dict[Any, dict[Any, Any]] = {}


class Inside:
    """Runs a block as part of a task.

    A class, and not a generator: that takes twice as many calls, for each chunk.

    Parameters
    ----------
    nested : tuple
        The plans left to the block.
    threaded : bool, default False
        Whether other threads of this process run tasks, too.
    cores : int, optional
        How many cores it may use. Default: as many as before.
    key : tuple, optional
        The key of its session.
    """

    __slots__ = ("_before", "_cores", "_key", "_nested", "_threaded")

    def __init__(
        self,
        nested: tuple[Any, ...],
        *,
        threaded: bool = False,
        cores: int | None = None,
        key: Any = None,
    ) -> None:
        self._nested, self._threaded, self._cores, self._key = nested, threaded, cores, key

    def __enter__(self) -> None:
        self._before = (
            frame.set(Task(self._nested)),
            threaded.set(True) if self._threaded else None,
            None if self._cores is None else cores.share.set(self._cores),
            session.set(self._key) if self._key and session.get() is None else None,
        )

    def __exit__(self, *error: object) -> None:
        here, among, share, key = self._before
        if key is not None:
            session.reset(key)
        if share is not None:
            cores.share.reset(share)
        if among is not None:
            threaded.reset(among)
        frame.reset(here)


# A worker's notes, in bytes: the position of the element that runs; how far its chunk has begun
# (`parmap.backends.processes.recall`); and, where elements have a time limit, the times of a block
# of so many (`parmap.worker.watchdog`).
BLOCK = 1024
BEGUN = 4 * 8
TIMES = 8 * (2 + BLOCK)
NOTES = 8 + BEGUN + TIMES


class Worker:
    """A process as a worker: set up once by its pool, before the first task.

    Parameters
    ----------
    is_worker : bool, default False
        Whether this process is one; then the environment chooses no plan in it.
    slot : memoryview of `NOTES` bytes, optional
        The notes, which the pool shares.
    words : int, optional
        The descriptor that takes what the interpreter writes when it dies.
    begun : Begun, optional
        What says which elements of a chunk may begin; see `Chunk.number`.
    """

    def __init__(
        self,
        *,
        is_worker: bool = False,
        slot: memoryview | None = None,
        words: int | None = None,
        begun: Any = None,
    ) -> None:
        self.is_worker, self.begun = is_worker, begun
        self._slot = memoryview(bytearray(8)) if slot is None else slot
        self._words = words

    def note(self, position: int) -> None:
        """Write down which element of the chunk runs now; -1 for none."""
        struct.pack_into("q", self._slot, 0, position)

    @property
    def times(self) -> memoryview[float] | None:
        """The times in the notes; None where no pool shares them."""
        return self._slot[8 + BEGUN :].cast("d") if len(self._slot) == NOTES else None

    @property
    def words(self) -> int:
        """The descriptor for crash reports: the pool's, else the standard error's."""
        return sys.__stderr__.fileno() if self._words is None else self._words  # type: ignore[union-attr]


# Replaced as a whole by a pool's child; read at each use, so never imported by name.
worker = Worker()
