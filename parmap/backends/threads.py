"""Plan ``threads``: the standard library's thread pool."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from parmap.backends.mapping import mapped
from parmap.engine.protocols import Backend
from parmap.engine.traits import Traits
from parmap.failures import PoolBroken
from parmap.plans.plan import Plan

if TYPE_CHECKING:
    from parmap.transport.messages import CoreShare

__all__ = ["Threads"]


class ThreadExecutor(ThreadPoolExecutor, Backend):
    """A thread pool that says how many workers it has, and why its setup failed.

    Parameters
    ----------
    workers : int
        How many threads.
    setup : callable or None
        Run in each thread before its first task. The standard library's pool would log its
        error and tell the tasks only that the pool is broken.
    """

    def __init__(self, workers: int, setup: Callable[[], object] | None) -> None:
        self._setup: Any = setup
        self._why: BaseException | None = None
        initializer = self._set_up if setup else None
        super().__init__(workers, thread_name_prefix="parmap", initializer=initializer)
        self.workers = self.per_node = workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a thread run the task, once it is set up."""
        if self._setup is None:
            return super().submit(fn, *args, **kwargs)
        self._check()
        return super().submit(self._run, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; end the threads when all that were taken are done.

        The standard library's cancels what waits, and tells nobody: whoever waits for such a future
        waits for ever.
        """
        super().shutdown(wait=False)
        while cancel_futures:
            try:
                item = self._work_queue.get_nowait()
            except queue.Empty:
                break
            if item is not None:  # a thread is to end; it is told again below
                item.future.cancel()
                item.future.set_running_or_notify_cancel()
        super().shutdown(wait=wait, cancel_futures=cancel_futures)

    def _set_up(self) -> None:
        try:
            self._setup()
        except BaseException as error:  # noqa: BLE001 - told to the tasks
            self._why = error

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._check()
        return fn(*args, **kwargs)

    def _check(self) -> None:
        if self._why is not None:
            why = f"setup= failed in a worker: {type(self._why).__name__}: {self._why}"
            raise PoolBroken(why) from self._why

    def map(
        self,
        fn: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Map as `concurrent.futures.Executor.map` of Python 3.14; threads need no chunks."""
        size = min(chunksize, 1)  # less is refused
        return mapped(self, fn, iterables, timeout=timeout, chunksize=size, buffersize=buffersize)


@dataclass(frozen=True, kw_only=True)
class Threads(Plan):
    """Threads of this process: for work that releases the GIL, or waits.

    Tasks see the caller's own objects; nothing is copied. A thread cannot be stopped from
    outside, so an element that runs is always let finish.
    """

    name: ClassVar[str] = "threads"
    traits: ClassVar[Traits] = Traits(shares_memory=True)

    def core_share(self, workers: int) -> CoreShare | None:
        """Share the cores out; the threads are the pool's own."""
        own = super().core_share(workers)
        return None if own is None else own._replace(kept=True)

    def start(self) -> Executor:
        """Start the pool; its threads start as tasks come."""
        return ThreadExecutor(self.count(), self.initializer)
