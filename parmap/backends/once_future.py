"""A future that several threads may want to resolve."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

from parmap.engine.callbacks import resolve

__all__ = ["OnceFuture", "resolver_of"]


class OnceFuture:
    """A task's future: one thread has the result, another hears of a death, a third cancels.

    Attributes
    ----------
    future : concurrent.futures.Future
        The first who comes resolves it.
    """

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        # Not by a method of this object: a future keeps its callbacks, and so would keep itself,
        # and its result, until the collector comes round.
        self._right = right = _Right()
        # Who waits for a cancelled future wakes only when it is told so: here, at once.
        self.future.add_done_callback(lambda future: future.cancelled() and right.take(future))

    def resolve(self, value: Any, error: BaseException | None = None) -> None:
        """Resolve the future, unless somebody else has, or it was cancelled."""
        if not self._right.take(self.future):
            return
        resolve(self.future, value, error)

    def run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Resolve it by a call in this thread: from now on it cannot be cancelled."""
        if not self._right.take(self.future):
            return
        try:
            value = fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - it is the future's
            resolve(self.future, error=error)
        else:
            resolve(self.future, value)


def resolver_of(pool: object) -> int | None:
    """Give the identifier of the thread in which a pool of processes resolves futures.

    That of `concurrent.futures` and of loky has one, and that of multiprocessing another; of
    other pools nothing is known.
    """
    names = ("_executor_manager_thread", "_result_handler")
    threads = [getattr(pool, name, None) for name in names]
    return next((thread.ident for thread in threads if isinstance(thread, Thread)), None)


class _Right:
    """The right to resolve a future, which one thread takes."""

    def __init__(self) -> None:
        # Whoever gets it out has the right: one step, so no lock. A finalizer may cancel the
        # future in the very thread that takes it.
        self._right = [True]

    def take(self, future: Future[Any]) -> bool:
        """Take it; False for all but the first, and for a future that is cancelled."""
        try:
            self._right.pop()
            # The second who asks this of a future gets an error.
            return future.set_running_or_notify_cancel()
        except IndexError:
            return False
        except BaseException:
            # Ctrl-C, in the thread that cancels: whoever resolves it next wakes the waiters.
            if not (future.running() or wait([future], 0).done):
                self._right.append(True)
            raise
