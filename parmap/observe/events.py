"""What the engine tells those who watch a call: plain values, in the order things happen.

An observer is a callable that takes one event. It runs in the thread of the call, so it
should be quick; an error that it raises ends the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from parmap.errors import WorkerDied
from parmap.failures import Failure

__all__ = [
    "CallFinished",
    "CallStarted",
    "ChunkFinished",
    "ChunkSent",
    "ElementFailed",
    "ElementRetried",
    "Event",
    "Observer",
    "WorkerLost",
]


class CallStarted(NamedTuple):
    """A call begins; ``total`` elements are known to come, or None."""

    label: str
    total: int | None
    workers: int


class ChunkSent(NamedTuple):
    """A chunk of ``size`` elements, the first at ``index``, was handed to the backend."""

    index: int  # type: ignore[assignment]  # in place of the method of tuples
    size: int


class ChunkFinished(NamedTuple):
    """A chunk came back: ``done`` elements have results, after ``seconds`` in the worker."""

    index: int  # type: ignore[assignment]  # in place of the method of tuples
    done: int
    seconds: float
    host: str
    pid: int


class ElementFailed(NamedTuple):
    """An element failed for good."""

    failure: Failure


class ElementRetried(NamedTuple):
    """An element failed and will run again."""

    failure: Failure


class WorkerLost(NamedTuple):
    """A worker died in the middle of a chunk; what it had in hand will run again."""

    death: WorkerDied


class CallFinished(NamedTuple):
    """The call is over: by its end, by an error, or because its iterator was closed."""


Event: TypeAlias = (
    CallStarted
    | ChunkSent
    | ChunkFinished
    | ElementFailed
    | ElementRetried
    | WorkerLost
    | CallFinished
)
Observer: TypeAlias = Callable[[Event], None]
