"""A plan at work: the executor, and what the engine needs to use it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Any, Protocol, TypeVar

from parmap.engine.chunking import Auto
from parmap.engine.cutting import Source
from parmap.engine.loop import Call, Settings
from parmap.engine.retry import Retry
from parmap.engine.single import single
from parmap.engine.site import Traits
from parmap.errors import SerializationError, SessionClosed
from parmap.worker.parcel import Parcel, pack
from parmap.worker.run import run_chunk
from parmap.worker.values import Chunk, Embedded, Job, Origin, Outcome

__all__ = ["Session", "Startable"]

R = TypeVar("R")


class Startable(Protocol):
    """What a session needs of a plan."""

    @property
    def nested(self) -> tuple[Any, ...]:
        """The plans for calls inside tasks."""

    def facts(self) -> Traits:
        """Give the facts about the place."""

    def start(self) -> Executor:
        """Start the workers."""

    def count(self) -> int:
        """Settle how many workers there are, where the executor does not say."""


class Session:
    """A plan at work: its executor, and what parmap needs to use it.

    Made by entering a plan; ends with the ``with`` block.

    Attributes
    ----------
    plan : Plan
        What was entered.
    executor : concurrent.futures.Executor
        Where tasks run.
    """

    # A key for each embedded job: a worker that serves several callers must not mix them up.
    _keys = itertools.count()

    def __init__(self, plan: Startable, outer: object = None) -> None:
        self.plan, self.outer = plan, outer
        self.traits = plan.facts()
        self.executor: Any = plan.start()
        self._closed = False
        self._pid = os.getpid()

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        # Any PEP 3148 executor will do; one whose number of workers changes says so itself.
        known = getattr(self.executor, "workers", None)
        return int(self.plan.count() if known is None else known)

    @property
    def nested(self) -> tuple[Any, ...]:
        """The plans for calls made inside the tasks."""
        return self.plan.nested

    @property
    def dashboard(self) -> str | None:
        """The address of a page that shows the workers, where the plan has one."""
        return getattr(self.executor, "dashboard", None)

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Start one call in a worker, as `parmap.submit` does in the current session."""
        self.check()
        return single(self, fn, args, kwargs)

    def map(self, fn: Callable[..., R], /, *iterables: Iterable[Any]) -> list[R]:
        """Map like the built-in; for every library that takes ``pool.map`` or ``workers=``."""
        self.check()
        settings = Settings(
            Auto(), errors="raise", retries=Retry(0), timeout=None, label="", observers=()
        )
        return list(
            itertools.chain.from_iterable(Call(self, fn, Source(iterables), settings).results())
        )

    def place(self, job: Job) -> Any:
        """Put a job where every worker reaches it."""
        self.check()
        if self.traits.shares_memory:
            return job
        if self.traits.places:
            return self.executor.put(job)
        origin = Origin()
        return Embedded((origin.host, origin.pid, next(self._keys)), pack(job, ""))

    def send(self, placed: Any, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run a chunk of a placed job."""
        self.check()
        travels = chunk if self.traits.shares_memory else _packed(chunk)
        return self.executor.submit(run_chunk, placed, travels)  # type: ignore[no-any-return]

    def drop(self, placed: Any) -> None:
        """Forget a placed job."""
        if self.traits.places and not self._closed:
            self.executor.drop(placed)

    def abandon(self, future: Future[Outcome], chunk: Chunk) -> None:
        """Stop a chunk that nobody waits for any more, as far as the place can."""
        if self.traits.shares_memory:
            # map() reads this very list as it goes: emptied, it ends after the element
            # that runs now, which nothing can stop in a thread.
            chunk.columns[0].clear()  # type: ignore[attr-defined]
        elif self.traits.abandons:
            self.executor.abandon(future)

    def check(self) -> None:
        """Refuse work after the end.

        Raises
        ------
        SessionClosed
            If the session is over, or belongs to the process that this one was forked from.
        """
        if self._closed:
            raise SessionClosed(
                f"the session of {self.plan} is over: its `with` block has ended. "
                "Enter the plan again"
            )
        if self._pid != os.getpid():
            raise SessionClosed(
                f"the session of {self.plan} belongs to process {self._pid}, of which this one "
                f"({os.getpid()}) is a fork: enter a plan of its own here"
            )

    def close(self, *, cancel: bool = False) -> None:
        """End the session; wait for what was submitted. An adopted executor stays open.

        Parameters
        ----------
        cancel : bool, default False
            Whether to cancel what has not begun.
        """
        if self._closed:
            return
        self._closed = True
        if self._pid == os.getpid():
            self.executor.shutdown(wait=True, cancel_futures=cancel)

    def __repr__(self) -> str:
        """Show the plan and whether the session is open."""
        return f"<Session of {self.plan}: {'closed' if self._closed else 'open'}>"


def _packed(chunk: Chunk) -> Parcel:
    try:
        return pack(chunk, "chunk")
    except SerializationError:
        if len(chunk) == 1:  # then name the argument rather than its place in the chunk
            pack(tuple(column[0] for column in chunk.columns), "args")
        raise
