"""The tasks that an executor has taken and not resolved yet: its end waits for them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

__all__ = ["PendingFutures"]


class PendingFutures:
    """What PEP 3148 asks of an executor's ``shutdown``, kept in one place.

    Has no lock, for a finalizer may cancel a task, and so take it out of `_futures`, in any thread
    and at any step. Each change is a single step, and their order keeps the invariant: of a future
    that is added while another thread closes, either `close` finds it, or `add` finds `_closed`; if
    both do, it has failed, and `close` need not wait for it.

    Parameters
    ----------
    end : callable
        What to call, once, when the executor is closed and all its tasks are resolved.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self._ends = [True]  # who takes it out calls `end`
        self._ender: int | None = None  # the identifier of that thread
        self._futures: set[Future[Any]] = set()
        self._closed = False
        # Taken until the end; who closes again waits for it, but a finalizer within `end` does not.
        # A lock, not an event: Ctrl-C may strike in the middle of an event's `set`.
        self._over = threading.Lock()
        self._over.acquire()

    def add(self, future: Future[Any]) -> None:
        """Take a task.

        Raises
        ------
        RuntimeError
            If the executor is closed.
        """
        try:
            self._futures.add(future)
            future.add_done_callback(self._futures.discard)
            if self._closed:
                error = RuntimeError("cannot schedule new futures after shutdown")
                future.set_exception(error)  # `close` may wait for it
                raise error  # noqa: TRY301
        except BaseException:
            # Ctrl-C: nobody gets this future, and `close` must not wait for it.
            future.cancel()
            self._futures.discard(future)
            raise

    def close(self, *, wait: bool, cancel: bool, resolver: int | None = None) -> None:
        """Take no more; `end` when all is resolved: before this returns, if so told.

        Parameters
        ----------
        wait : bool
            Whether to wait.
        cancel : bool
            Whether to cancel first what can be.
        resolver : int, optional
            The identifier of the thread that resolves futures. It does not wait, for it would wait
            for itself: a callback may close the executor.
        """
        wait = wait and resolver != threading.get_ident()
        self._closed = True
        futures = self._futures.copy()
        for future in futures if cancel else ():
            future.cancel()
        if wait:
            self._finish(futures)
            # Not from inside of `end` itself, where a finalizer may close once more.
            if self._ender != threading.get_ident():
                with self._over:
                    return
        elif self._ends:
            threading.Thread(target=self._finish, args=(futures,), name="parmap-end").start()

    def _finish(self, futures: set[Future[Any]]) -> None:
        right: list[bool] = []
        try:
            # One call, so that Ctrl-C finds the right in one place or the other.
            right.extend(itertools.islice(iter(self._ends.pop, None), 1))
            self._ender = threading.get_ident()
            wait([future for future in futures if not future.cancelled()])
        except IndexError:  # another thread has it
            return
        except BaseException:
            # Ctrl-C: then nobody wants the results, but the end must come all the same.
            for future in futures if right else ():
                future.cancel()
            raise
        finally:
            if right:
                try:
                    self._end()
                finally:
                    self._over.release()
