"""The tasks that an executor has taken and not resolved yet: its end waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

__all__ = ["Outstanding"]


class Outstanding:
    """What PEP 3148 asks of an executor's ``shutdown``, kept in one place.

    Invariant, under `_lock`: nothing is added once `_closed`.

    Parameters
    ----------
    end : callable
        What to call, once, when the executor is closed and all its tasks are resolved.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._futures: set[Future[Any]] = set()
        self._closed = False
        self._over = threading.Event()

    def add(self, future: Future[Any]) -> None:
        """Take a task.

        Raises
        ------
        RuntimeError
            If the executor is closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._futures.add(future)
        future.add_done_callback(self._discard)

    def close(self, *, wait: bool, cancel: bool) -> None:
        """Take no more; `end` when all is resolved: before this returns, if so told.

        Parameters
        ----------
        wait : bool
            Whether to wait.
        cancel : bool
            Whether to cancel first what can be.
        """
        with self._lock:
            first, self._closed = not self._closed, True
            futures = list(self._futures)
        for future in futures if cancel else ():
            future.cancel()
        if first and wait:
            self._finish(futures)
        elif first:
            threading.Thread(target=self._finish, args=(futures,), name="parmap-end").start()
        elif wait:
            self._over.wait()

    def _finish(self, futures: list[Future[Any]]) -> None:
        try:
            wait([future for future in futures if not future.cancelled()])
        except BaseException:
            # Ctrl-C: then nobody wants the results, but the end must come all the same.
            for future in futures:
                future.cancel()
            raise
        finally:
            try:
                self._end()
            finally:
                self._over.set()

    def _discard(self, future: Future[Any]) -> None:
        with self._lock:
            self._futures.discard(future)
