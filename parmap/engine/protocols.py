"""What the engine asks of a place where chunks run."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol

from parmap.engine.callbacks import Callbacks
from parmap.engine.traits import Traits
from parmap.transport.messages import CallSpec, Chunk, CoreShare, Outcome

__all__ = ["Backend"]


class Backend(Protocol):
    """A running place, as the engine sees it; `parmap.Session` is one."""

    @property
    def workers(self) -> int:
        """How many chunks run at once; may change."""

    @property
    def traits(self) -> Traits:
        """Facts about the place."""

    @property
    def core_share(self) -> CoreShare | None:
        """What each worker may use of its node."""

    @property
    def nested(self) -> tuple[Any, ...]:
        """The plans for calls inside the tasks."""

    @property
    def callbacks(self) -> Callbacks:
        """What runs the callbacks of single calls."""

    def broadcast(self, spec: CallSpec, chunks: int | None = None, *, waits: bool = True) -> Any:
        """Put a job where every worker reaches it; the handle is for `send` and `drop`.

        It is for at most so many chunks, if that is known. A caller that `waits` for them must
        not be the thread that hears of their ends.
        """

    def send(self, broadcast: Any, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run a chunk of a placed job."""

    def run_remote(self, broadcast: Any, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run a chunk of one element, whose result stays there."""

    def drop(self, broadcast: Any) -> None:
        """Forget a placed job."""

    def abandon(self, future: Future[Outcome], chunk: Chunk) -> None:
        """Stop a chunk that nobody waits for any more, as far as the place can."""
