"""Plan ``threads``: the standard library's thread pool."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

from parmap.engine.site import Traits
from parmap.plans import Plan

__all__ = ["Threads"]


class ThreadExecutor(ThreadPoolExecutor):
    """A thread pool that says how many workers it has."""

    @property
    def workers(self) -> int:
        """How many threads run tasks at once."""
        return self._max_workers


@dataclass(frozen=True, kw_only=True)
class Threads(Plan):
    """Threads of this process: for work that releases the GIL, or waits.

    Tasks see the caller's own objects; nothing is copied. A thread cannot be stopped from
    outside, so an element that runs is always let finish.
    """

    name: ClassVar[str] = "threads"
    traits: ClassVar[Traits] = Traits(shares_memory=True)

    def start(self) -> Executor:
        """Start the pool; its threads start as tasks come."""
        return ThreadExecutor(
            self.count(), thread_name_prefix="parmap", initializer=self.initializer
        )
