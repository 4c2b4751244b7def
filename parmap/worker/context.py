"""What a task may know of where it runs, and what a worker notes for its pool.

One context variable says which frame a piece of code runs in: a session that it entered,
or a task that it is part of. Plans read it to find the plan in force; a task that runs in
the caller's own thread (plan ``sequential``) must hide the caller's session, or an inner
call would find the outer plan again.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from parmap import cores as cores_

__all__ = ["Task", "Worker", "frame", "task", "threaded", "worker"]


class Task(NamedTuple):
    """The frame of code that runs as part of a task.

    Parameters
    ----------
    nested : tuple, default ()
        The plans left to it, outermost first.
    """

    nested: tuple[Any, ...] = ()


frame: ContextVar[Any] = ContextVar("parmap.frame", default=None)

# Whether other threads of this process run tasks, too: then what is global is shared, also
# for a call inside of the task that itself stays in its thread.
threaded: ContextVar[bool] = ContextVar("parmap.threaded", default=False)


@contextmanager
def task(
    nested: tuple[Any, ...], *, threaded: bool = False, cores: int | None = None
) -> Iterator[None]:
    """Run the block as part of a task, which may use so many cores."""
    here = frame.set(Task(nested))
    among = _threaded.set(threaded or _threaded.get())
    share = cores_.share.set(cores_.share.get() if cores is None else cores)
    try:
        yield
    finally:
        cores_.share.reset(share)
        _threaded.reset(among)
        frame.reset(here)


_threaded = threaded


class Worker:
    """A process as a worker: set up once by its pool, before the first task.

    Parameters
    ----------
    is_worker : bool, default False
        Whether this process is one; then the environment chooses no plan in it.
    slot : writable buffer of 8 bytes, optional
        Where `note` writes; the pool shares it.
    words : int, optional
        The descriptor that takes what the interpreter writes when it dies.
    """

    def __init__(
        self,
        *,
        is_worker: bool = False,
        slot: memoryview | MutableSequence[int] | None = None,
        words: int | None = None,
    ) -> None:
        self.is_worker = is_worker
        self._slot = bytearray(8) if slot is None else slot
        self._words = words

    def note(self, position: int) -> None:
        """Write down which element of the chunk runs now; -1 for none."""
        struct.pack_into("q", self._slot, 0, position)  # type: ignore[arg-type]

    @property
    def words(self) -> int:
        """The descriptor for last words: the pool's, else the standard error's."""
        return sys.__stderr__.fileno() if self._words is None else self._words  # type: ignore[union-attr]


# Replaced as a whole by a pool's child; read at each use, so never imported by name.
worker = Worker()
