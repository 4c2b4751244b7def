"""Tasks of a backend of joblib that run, and that nobody waits for any more."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

__all__ = ["CancelledTasks"]

# Seconds that a task has to end by itself: about what it costs to start its worker anew.
_GRACE = 1.0


class CancelledTasks:
    """Waits for the end of cancelled tasks, in a thread, and tells if it does not come.

    Parameters
    ----------
    late : callable
        Is told how many tasks run on after a while, and says whether all is over now.
    """

    def __init__(self, late: Callable[[int], bool]) -> None:
        self._late = late
        # A task may be cancelled by the collector: nothing but a queue is safe there.
        self._news: SimpleQueue[Any] = SimpleQueue()
        self._jobs: deque[tuple[float, weakref.ref[Any]]] = deque()  # each with when it is late
        self._thread = threading.Thread(target=self._run, name="parmap-joblib", daemon=True)
        self._thread.start()

    def hearing(self, job: Any) -> Callable[[Future[Any]], None]:
        """Make the callback that a task's future needs.

        Parameters
        ----------
        job : concurrent.futures.Future or multiprocessing.pool.AsyncResult
            What joblib has for the task. It is not kept, for it keeps the future.
        """
        known, news = weakref.ref(job), self._news

        def hear(future: Future[Any]) -> None:
            theirs = known()
            if future.cancelled() and theirs is not None and not _revoked(theirs):
                news.put(known)

        return hear

    def look(self) -> None:
        """Ask at once whether all is over."""
        self._news.put(self)

    def end(self) -> None:
        """End the watch."""
        self._news.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            patience = max(0.0, self._jobs[0][0] - time.monotonic()) if self._jobs else None
            try:
                news = self._news.get(timeout=patience)
            except Empty:
                news = self
            if news is None:
                return
            if news is not self:
                self._jobs.append((time.monotonic() + _GRACE, news))
            elif self._late(self._running()):
                return

    def _running(self) -> int:
        """Count those that run; they have another while, then."""
        again = time.monotonic() + _GRACE
        self._jobs = deque((again, known) for _, known in self._jobs if _runs(known()))
        return len(self._jobs)


def _revoked(job: Any) -> bool:
    """Take a task back, if it has not begun, and that can be told."""
    return isinstance(job, Future) and job.cancel()


def _runs(job: Any) -> bool:
    if job is None:  # it has ended, so that nobody has it any more
        return False
    return not (job.done() if isinstance(job, Future) else job.ready())
