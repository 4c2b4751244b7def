"""The tasks that an executor has taken and not resolved yet: its end waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

__all__ = ["Outstanding"]


class Outstanding:
    """What PEP 3148 asks of an executor's ``shutdown``, kept in one place.

    Has no lock, for a finalizer may cancel a task, and so call `_discard`, in any thread and at
    any step. Each change is a single step, and their order keeps the invariant: of a future that
    is added while another thread closes, either `close` finds it, or `add` finds `_closed`; if
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
        self._over = threading.Event()  # set once; who closes again waits for it, under no lock

    def add(self, future: Future[Any]) -> None:
        """Take a task.

        Raises
        ------
        RuntimeError
            If the executor is closed.
        """
        self._futures.add(future)
        if self._closed:
            self._futures.discard(future)
            error = RuntimeError("cannot schedule new futures after shutdown")
            future.set_exception(error)  # `close` may wait for it
            raise error
        future.add_done_callback(self._futures.discard)

    def close(self, *, wait: bool, cancel: bool) -> None:
        """Take no more; `end` when all is resolved: before this returns, if so told.

        Parameters
        ----------
        wait : bool
            Whether to wait.
        cancel : bool
            Whether to cancel first what can be.
        """
        self._closed = True
        futures = self._futures.copy()
        for future in futures if cancel else ():
            future.cancel()
        try:
            self._ends.pop()
        except IndexError:
            # Not from inside of `end` itself, where a finalizer may close once more.
            if wait and self._ender != threading.get_ident():
                self._over.wait()
            return
        if wait:
            self._finish(futures)
        else:
            threading.Thread(target=self._finish, args=(futures,), name="parmap-end").start()

    def _finish(self, futures: set[Future[Any]]) -> None:
        self._ender = threading.get_ident()
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
