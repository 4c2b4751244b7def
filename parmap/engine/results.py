"""What came of chunks: taken in, and kept until its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from parmap.engine.chunks import ChunkPlan, Recalls
from parmap.engine.memory_load import Load, weight
from parmap.engine.protocols import ResultBuffer
from parmap.engine.recovery import Recovery
from parmap.engine.source import Cutter
from parmap.engine.unseeded import Unseeded
from parmap.errors import SerializationError, SessionClosed, WorkerDied
from parmap.failures import Failure
from parmap.observe import events
from parmap.transport.messages import Outcome, whole_outcome
from parmap.transport.payload import Payload

__all__ = ["Collector", "buffer_for"]


class Collector:
    """Takes in what came of chunks, and passes each part of it on.

    Parameters
    ----------
    cutter : Cutter
        Hears what chunks took, and takes back the elements that did not run.
    buffer : ResultBuffer
        Takes the results.
    recovery : Recovery
        Takes the failures.
    unseeded : Unseeded
        Hears of random generators that moved.
    load : Load or None
        Hears what results weigh.
    observers : sequence of callable
        Hear of each chunk.
    """

    def __init__(
        self,
        cutter: Cutter,
        buffer: ResultBuffer,
        recovery: Recovery,
        unseeded: Unseeded,
        *,
        load: Load | None,
        observers: Sequence[events.Observer],
    ) -> None:
        self._cutter, self._buffer, self._recovery = cutter, buffer, recovery
        self._unseeded, self._load, self._observers = unseeded, load, observers

    def take_back(self, recalls: Recalls | None) -> None:
        """Take back what a worker has not begun, if that is due."""
        taken = recalls.take_back() if recalls else None
        if taken is not None:
            chunk_plan, slow = taken
            self._cutter.take_back(chunk_plan, slow=slow)

    def take(self, chunk_plan: ChunkPlan, future: Future[Outcome]) -> None:
        """Take in a chunk whose future is resolved.

        Raises
        ------
        SessionClosed
            If the future was cancelled.
        Exception
            What else went wrong with the whole chunk, other than its worker's death.
        """
        try:
            error = future.exception()
        except CancelledError:
            raise SessionClosed(
                "the session was closed in the middle of this call, by another thread or task"
            ) from None
        if isinstance(error, WorkerDied):
            self._recovery.died(chunk_plan, error)
        elif error is not None:
            raise error
        else:
            outcome: Any = future.result()
            if type(outcome) is tuple:
                outcome = whole_outcome(outcome)
            self._unload(chunk_plan, outcome)

    def _unload(self, chunk_plan: ChunkPlan, outcome: Outcome) -> None:
        """Take in the results of a chunk."""
        try:
            values = outcome.unpacked()
        except SerializationError as error:
            self._recovery.unsendable(chunk_plan, error)
            return
        slow = False
        if len(values):
            slow = self._cutter.learn(len(values), outcome.seconds)
            if self._load is not None:
                packed = outcome.values
                size = packed.size if type(packed) is Payload else weight(values)
                self._load.came(len(values), size)
        if outcome.moves:
            self._unseeded.hear(outcome.moves, self._cutter.taken)
        done, ran = self._sort_out(chunk_plan, outcome, values)
        if ran < chunk_plan.size:
            # Its time was over; or it failed, but in another order the rest may yet have to run.
            self._cutter.take_back(chunk_plan.part(ran, chunk_plan.size), slow=slow)
        facts = (outcome.seconds, outcome.location.host, outcome.location.pid)
        for tell in self._observers:
            tell(events.ChunkFinished(chunk_plan.indices[0], done, *facts))

    def _sort_out(
        self, chunk_plan: ChunkPlan, outcome: Outcome, values: list[Any]
    ) -> tuple[int, int]:
        """Buffer what succeeded, fail or retry what failed; count the former, and both."""
        start = done = 0
        for element_error in outcome.element_errors:
            offset = element_error.offset
            done += self._put(chunk_plan, start, offset, values)
            self._recovery.failed(chunk_plan, offset, element_error.error, outcome.location)
            start = offset + 1
        ran = max(start, len(values))
        done += self._put(chunk_plan, start, ran, values)
        return done, ran

    def _put(self, chunk_plan: ChunkPlan, start: int, stop: int, values: list[Any]) -> int:
        if start < stop:
            whole = stop - start == chunk_plan.size
            self._buffer.put(
                chunk_plan.indices[start:stop], values if whole else values[start:stop]
            )
        return stop - start


def buffer_for(*, ordered: bool) -> ResultBuffer:
    """Make a buffer that gives results in the input's order, or as they come."""
    return _Ordered() if ordered else _Unordered()


class _Ordered:
    def __init__(self) -> None:
        self.released = 0
        self._waiting: dict[int, list[Any]] = {}  # by the first index

    def put(self, indices: Sequence[int], values: list[Any]) -> None:
        if isinstance(indices, range):
            self._waiting[indices.start] = values
        else:
            for index, value in zip(indices, values, strict=True):
                self._waiting[index] = [value]

    def fail(self, index: int, failure: Failure) -> None:
        self._waiting[index] = [failure]

    def ready(self) -> Iterator[list[Any]]:
        while (values := self._waiting.pop(self.released, None)) is not None:
            self.released += len(values)
            yield values


class _Unordered:
    def __init__(self) -> None:
        self.released = 0
        self._waiting: deque[list[Any]] = deque()

    def put(self, indices: Sequence[int], values: list[Any]) -> None:  # noqa: ARG002
        self._waiting.append(values)

    def fail(self, index: int, failure: Failure) -> None:  # noqa: ARG002
        self._waiting.append([failure])

    def ready(self) -> Iterator[list[Any]]:
        while self._waiting:
            values = self._waiting.popleft()
            self.released += len(values)
            yield values
