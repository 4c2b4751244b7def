"""Until when a worker must have stopped its task, or left."""

from __future__ import annotations

import time

from parmap.backends.processes.handles import Task, Worker

__all__ = ["Deadlines"]


class Deadlines:
    """The workers that must stop or leave, and when. They change under the task queue's lock.

    Attributes
    ----------
    entries : list of (float, Worker, Task or None)
        When it is too late for a worker, and the task that it is to stop; None if it is to leave.
        The pool's thread reads these without the lock: whoever adds one wakes it afterwards, and
        that thread alone takes them out.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[float, Worker, Task | None]] = []

    def add(self, seconds: float, worker: Worker) -> None:
        """Give a worker so many seconds from now to end its task; or to leave, if it has none."""
        self.entries.append((time.monotonic() + seconds, worker, worker.task))

    @property
    def patience(self) -> float | None:
        """Seconds until the first is too late, or None."""
        first = min((when for when, _, _ in self.entries), default=None) if self.entries else None
        return None if first is None else max(0.0, first - time.monotonic())

    def passed(self) -> list[tuple[float, Worker, Task | None]]:
        """Take out the entries that are too late by now."""
        now = time.monotonic()
        late = [entry for entry in self.entries if entry[0] <= now]
        for entry in late:  # one by one: a finalizer may add some in between
            self.entries.remove(entry)
        return late
