"""An executor that somebody else runs: used, never closed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from parmap.engine.site import Traits
from parmap.errors import ParmapError, PlanError
from parmap.plans import Plan
from parmap.worker.values import Budget

__all__ = ["Adopted"]


class Guest(Executor):
    """Passes tasks on to an executor of the user's."""

    def __init__(self, host: Executor, workers: int) -> None:
        self._host, self.workers = host, workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit to the user's executor."""
        try:
            return self._host.submit(fn, *args, **kwargs)
        except BrokenExecutor as error:
            raise ParmapError(
                f"the adopted {type(self._host).__name__} is broken ({error}), and only its owner "
                "can replace it. parmap's own plan 'processes' survives the death of a worker"
            ) from error

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Do nothing: the executor belongs to the user."""


@dataclass(frozen=True, kw_only=True)
class Adopted(Plan):
    """A running `concurrent.futures.Executor` as a plan: ``parmap.plan(executor)``.

    Parameters
    ----------
    adopted : concurrent.futures.Executor
        Used for tasks; never shut down by parmap.
    workers : int, optional
        How many tasks it runs at once. Default: what it says of itself, else
        `available_cores`.
    """

    adopted: Executor = field()

    name: ClassVar[str] = "adopted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.setup is not None:
            raise PlanError(
                "an adopted executor's workers run already: give setup= to the executor itself, "
                "as its initializer"
            )

    def facts(self, executor: Executor) -> Traits:  # noqa: ARG002
        """Tell whether its tasks see the caller's memory."""
        return Traits(shares_memory=isinstance(self.adopted, ThreadPoolExecutor))

    def count(self) -> int:
        """Ask the executor, where it keeps the number under the standard library's name."""
        known = getattr(self.adopted, "_max_workers", None)
        return known if self.workers is None and isinstance(known, int) else super().count()

    def budget(self, workers: int) -> Budget | None:
        """Share the cores out; the workers are the user's, and get their numbers back."""
        own = super().budget(workers)
        return None if own is None else replace(own, lent=True)

    def start(self) -> Executor:
        """Wrap the executor, so that shutting down leaves it open."""
        return Guest(self.adopted, self.count())
