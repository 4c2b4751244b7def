"""Plan ``sequential``: every task runs at once, in the caller's thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from parmap.engine.traits import Traits
from parmap.errors import SessionClosed
from parmap.plans import Plan

if TYPE_CHECKING:
    from parmap.worker.values import Budget

__all__ = ["Sequential"]


class SequentialExecutor(Executor):
    """Runs a task inside `submit`."""

    workers = 1

    def __init__(self) -> None:
        self._open = True

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the task; give its finished future."""
        if not self._open:
            raise SessionClosed("cannot schedule new futures after shutdown")
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the future's; a KeyboardInterrupt goes through
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Take no more tasks."""
        self._open = False


@dataclass(frozen=True, kw_only=True)
class Sequential(Plan):
    """One after the other, in this thread: the plan to debug on, and the oracle of all others.

    ``workers`` is always 1, and may be given only as such. Native libraries keep all their
    threads, unless ``threads_per_worker`` is a number.
    """

    name: ClassVar[str] = "sequential"
    traits: ClassVar[Traits] = Traits(shares_memory=True, same_thread=True)

    def count(self) -> int:
        """One worker: the caller."""
        return 1

    def budget(self, workers: int) -> Budget | None:
        """Give the caller's own; limit its libraries only where a number asks for that."""
        if not isinstance(self.threads_per_worker, int):
            return None
        own = super().budget(workers)
        return None if own is None else replace(own, lent=True)

    def start(self) -> Executor:
        """Run ``setup`` here; give the executor."""
        if self.initializer:
            self.initializer()
        return SequentialExecutor()
