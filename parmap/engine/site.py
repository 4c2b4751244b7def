"""What the engine asks of a place where chunks run."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from parmap.worker.values import Budget, Chunk, Job, Outcome

__all__ = ["Site", "Traits"]


@dataclass(frozen=True, slots=True)
class Traits:
    """Facts about a place.

    Parameters
    ----------
    shares_memory : bool, default False
        Tasks see the caller's own objects: nothing is packed.
    same_thread : bool, default False
        Tasks run in the caller's own thread, inside ``submit``.
    same_host : bool, default True
        Workers run on the caller's machine.
    threaded : bool, default False
        Several tasks may run at once in one process, so that what is global there is shared.
        True also where memory is shared and tasks leave the caller's thread.
    replaces_workers : bool, default False
        A worker process that ends is replaced, and what it had in hand can be run again.
    sees_deaths : bool, default False
        The executor learns how a worker ended, and what it had noted: at which element it was,
        and whether it ended itself because that ran too long.
    round_trip : float, default 0.001
        Seconds that a small task takes there and back, about.
    places : bool, default False
        The executor has ``put(value) -> reference`` and ``drop(reference)``.
    keeps : bool, default False
        The executor has ``keep(made, fn, *args)``, which leaves the result with the workers,
        and gives a future of ``made(reference)``.
    abandons : bool, default False
        The executor has ``abandon(future)``, which stops a task that runs.
    copies : bool, default False
        ``submit`` copies the arguments before it returns, and a worker sends a result before
        it runs anything else: so both may refer to arrays in place.
    """

    shares_memory: bool = False
    same_thread: bool = False
    same_host: bool = True
    threaded: bool = False
    replaces_workers: bool = False
    sees_deaths: bool = False
    round_trip: float = 0.001
    places: bool = False
    keeps: bool = False
    abandons: bool = False
    copies: bool = False


class Site(Protocol):
    """A running place, as the engine sees it; `parmap.Session` is one."""

    @property
    def workers(self) -> int:
        """How many chunks run at once; may change."""

    @property
    def traits(self) -> Traits:
        """Facts about the place."""

    @property
    def budget(self) -> Budget | None:
        """What each worker may use of its node."""

    @property
    def nested(self) -> tuple[Any, ...]:
        """The plans for calls inside the tasks."""

    def place(self, job: Job, chunks: int | None = None) -> Any:
        """Put a job where every worker reaches it; the handle is for `send` and `drop`.

        It is for at most so many chunks, if that is known.
        """

    def send(self, placed: Any, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run a chunk of a placed job."""

    def keep(self, placed: Any, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run a chunk of one element, whose result stays there."""

    def drop(self, placed: Any) -> None:
        """Forget a placed job."""

    def abandon(self, future: Future[Outcome], chunk: Chunk) -> None:
        """Stop a chunk that nobody waits for any more, as far as the place can."""
