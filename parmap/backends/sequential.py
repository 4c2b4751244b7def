"""Plan ``sequential``: every task runs at once, in the caller's thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from parmap.engine.traits import Traits
from parmap.plans.plan import Plan

if TYPE_CHECKING:  # it is the plan of a script until that names another: see parmap.plans.plan
    from concurrent.futures import Executor

    from parmap.transport.messages import CoreShare

__all__ = ["Sequential"]


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

    def core_share(self, workers: int) -> CoreShare | None:
        """Give the caller's own; limit its libraries only where a number asks for that."""
        if not isinstance(self.threads_per_worker, int):
            return None
        return super().core_share(workers)

    def start(self) -> Executor:
        """Run ``setup`` here; give the executor."""
        if self.initializer:
            self.initializer()
        from parmap.backends.inline import SequentialExecutor

        return SequentialExecutor()
