"""What the engine tells those who watch a call: plain values, in the order things happen.

An observer is a callable that takes one event. It runs in the thread of the call, so it
should be quick; an error that it raises ends the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from parmap.errors import Failure, WorkerDied

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


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A call begins; ``total`` elements are known to come, or None."""

    label: str
    total: int | None
    workers: int


@dataclass(frozen=True, slots=True)
class ChunkSent:
    """A chunk of ``size`` elements, the first at ``index``, was handed to the backend."""

    index: int
    size: int


@dataclass(frozen=True, slots=True)
class ChunkFinished:
    """A chunk came back: ``done`` elements have results, after ``seconds`` in the worker."""

    index: int
    done: int
    seconds: float
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class ElementFailed:
    """An element failed for good."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class ElementRetried:
    """An element failed and will run again."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker died in the middle of a chunk; what it had in hand will run again."""

    death: WorkerDied


@dataclass(frozen=True, slots=True)
class CallFinished:
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
