"""What runs again, and what fails: each element ends in one result or one failure."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import NoReturn

from parmap.engine.chunks import ChunkPlan, InFlight
from parmap.engine.protocols import ResultBuffer
from parmap.engine.settings import Settings
from parmap.errors import SerializationError, TaskTimeout, WorkerDied
from parmap.failures import Failure
from parmap.observe import events
from parmap.transport.error_payload import pack_error, unpack_error
from parmap.transport.messages import Location
from parmap.transport.payload import PackedError
from parmap.untouched import is_a

__all__ = ["Recovery", "RetryQueue", "after_death"]


class RetryQueue:
    """The chunks that must run again: at once, or after a pause.

    Attributes
    ----------
    now : deque of ChunkPlan
        Those that may go at once, in their order.
    later : list of (float, int, ChunkPlan)
        Those that pause: a heap. With each, the time (`time.monotonic`) when it is due, and the
        index of its element.
    """

    def __init__(self) -> None:
        self.now: deque[ChunkPlan] = deque()
        self.later: list[tuple[float, int, ChunkPlan]] = []

    @property
    def due(self) -> float | None:
        """The time (`time.monotonic`) of the next one of `later`; None if there is none."""
        return self.later[0][0] if self.later else None

    def put_first(self, chunk_plans: Sequence[ChunkPlan]) -> None:
        """Put chunks before all others, in their order."""
        self.now.extendleft(reversed(chunk_plans))

    def put_later(self, index: int, chunk_plan: ChunkPlan, pause: float) -> None:
        """Put the chunk of one element, which is due after so many seconds."""
        heapq.heappush(self.later, (time.monotonic() + pause, index, chunk_plan))

    def next(self, below: int | None) -> ChunkPlan | None:
        """Take the next chunk that may go now; pass over those from the index `below` on."""
        while self.later and self.later[0][0] <= time.monotonic():
            self.now.append(heapq.heappop(self.later)[2])
        while self.now:
            chunk_plan = self.now.popleft()
            if below is None or min(chunk_plan.indices) < below:
                return chunk_plan
        return None

    def drop_later(self, index: int) -> None:
        """Drop the chunks of `later` from that index on; `next` passes over those of `now`."""
        self.later = [entry for entry in self.later if entry[1] < index]
        heapq.heapify(self.later)


class Recovery:
    """Decides for each element that failed: it runs again, or it fails for good.

    Which error does a call raise when several elements fail? The one that the built-in ``map``
    would meet first: the lowest index. A failure at index *i* therefore stops all that comes
    after *i* at once, but what comes before it, and may fail yet, runs on.

    Parameters
    ----------
    settings : Settings
        Which errors are retried, and what a failure does to the call.
    buffer : ResultBuffer
        Takes a failure in the place of a result.
    retries : RetryQueue
        Takes what runs again.
    in_flight : InFlight
        The chunks to stop where the call fails before them.
    noted : bool
        See `after_death`.

    Attributes
    ----------
    failures : list of Failure
        Elements that failed for good, in the order of their failing.
    end : (int, Failure or Exception), optional
        Where and why the call fails: the lowest index so far.
    """

    def __init__(
        self,
        settings: Settings,
        buffer: ResultBuffer,
        retries: RetryQueue,
        in_flight: InFlight,
        *,
        noted: bool,
    ) -> None:
        self._settings, self._buffer, self._noted = settings, buffer, noted
        self._retries, self._in_flight = retries, in_flight
        self.failures: list[Failure] = []
        self.end: tuple[int, Failure | Exception] | None = None

    def unsendable(self, chunk_plan: ChunkPlan, error: SerializationError) -> None:
        """Find out which element of a chunk cannot travel: send them one by one."""
        if chunk_plan.size > 1:
            self._retries.put_first(chunk_plan.parts(*range(1, chunk_plan.size)))
        else:
            self.failed(chunk_plan, 0, pack_error(error, crosses=False), Location.here())

    def died(self, chunk_plan: ChunkPlan, death: WorkerDied) -> None:
        """Run again what a dead worker had in hand, and fail the element that killed it."""
        for tell in self._settings.observers:
            tell(events.WorkerLost(death))
        offset, again = after_death(chunk_plan, death, noted=self._noted)
        self._retries.put_first(again)
        if offset is None:
            return
        error: Exception = death
        if death.timed_out:
            error = TaskTimeout(
                f"it ran longer than timeout={self._settings.timeout:g} s, and was stopped here:\n"
                f"{death.last_words}"
            )
        packed = PackedError(error, death.last_words)
        here = Location.here()
        self.failed(chunk_plan, offset, packed, Location(death.host or here.host, death.pid))

    def failed(
        self, chunk_plan: ChunkPlan, offset: int, packed: PackedError, location: Location
    ) -> None:
        """Retry an element that failed, or fail it for good."""
        settings, index = self._settings, chunk_plan.indices[offset]
        error = unpack_error(packed)
        failure = Failure(
            error, index, packed.traceback, location.host, location.pid, settings.label
        )
        if is_a(error, KeyboardInterrupt):
            # It may be the user's own, and always means the whole call.
            failure.reraise()
        count = chunk_plan.attempts + 1
        if settings.retries.applies(error, count):
            again = chunk_plan.part(offset, offset + 1)._replace(attempts=count)
            self._retries.put_later(index, again, settings.retries.delay(count))
            for tell in settings.observers:
                tell(events.ElementRetried(failure))
            return
        self.failures.append(failure)
        for tell in settings.observers:
            tell(events.ElementFailed(failure))
        if settings.errors == "raise":
            self.end_at(index, failure)
        else:
            self._buffer.fail(index, failure)

    def end_at(self, index: int, why: Failure | Exception) -> None:
        """Note where the call fails, and stop all that comes after that place."""
        if self.end is None or index <= self.end[0]:
            self.end = (index, why)
            self._retries.drop_later(index)
            self._in_flight.abandon(index)

    def raise_end(self) -> NoReturn:
        """Raise the error of the element, or of the input, at which the call fails."""
        assert self.end is not None
        why = self.end[1]
        # The loop's frames hold the failures, and an error's traceback holds the frames:
        # break the circle, or all of it would stay until the garbage collector comes round.
        self.end = None
        self.failures.clear()
        if isinstance(why, Failure):
            why.reraise()
        raise why


# An element is failed once this many workers died while it ran. A death of the worker's own
# doing (a fault, an exit) happens again if the element is at fault, so two prove it. A kill
# from outside may hit an innocent element twice by chance, and hitting it four times is as
# good as never: with kills of one worker in four, and one element in ten running, 1 in 40^3.
_OWN_DEATHS = 2
_OUTSIDE_DEATHS = 4
# A chunk of which nobody noted which element ran is cut into so many, each a task of its own:
# a death there costs seconds, a task milliseconds.
_PARTS = 16


def after_death(
    chunk_plan: ChunkPlan, death: WorkerDied, *, noted: bool = True
) -> tuple[int | None, list[ChunkPlan]]:
    """Decide what follows when a worker died while it had a chunk.

    Parameters
    ----------
    chunk_plan : ChunkPlan
        What the worker had in hand. All its results are lost.
    death : WorkerDied
        How it died; its `position` says at which element, where that was noted.
    noted : bool, default True
        Whether workers note which element they run when they are told to be careful. Where
        they do not, careful chunks must run alone: that is what proves them guilty.

    Returns
    -------
    offset : int or None
        The element of the chunk that is at fault, which must not run again.
    again : list of ChunkPlan
        What to run again: together with the one at fault, all elements of the chunk.
    """
    if not noted and not chunk_plan.chunk.careful:
        return None, _apart(chunk_plan)
    if death.timed_out and death.position is None and not chunk_plan.chunk.careful:
        return None, [chunk_plan.careful()]  # the watchdog rang, and no element had had its time
    offset = _located(chunk_plan, death)
    if offset is None:
        return None, _apart(chunk_plan) if chunk_plan.chunk.careful else [chunk_plan.careful()]
    deaths = chunk_plan.deaths + death.times
    limit = _OUTSIDE_DEATHS if death.from_outside else _OWN_DEATHS
    before, after = (
        chunk_plan.parts(offset)[:-1] if offset else [],
        chunk_plan.part(offset + 1, chunk_plan.size),
    )
    others = [part for part in (*before, after) if part.size]
    if death.timed_out or deaths >= limit:
        return offset, others
    suspect = chunk_plan.part(offset, offset + 1)._replace(
        attempts=chunk_plan.attempts, deaths=deaths
    )
    return None, [suspect if noted else suspect.careful(), *others]


def _apart(chunk_plan: ChunkPlan) -> list[ChunkPlan]:
    """Cut a chunk into careful ones, so that in the end each element is alone."""
    if chunk_plan.size == 1:
        return [chunk_plan.careful()]  # its history stays with it
    size = math.ceil(chunk_plan.size / _PARTS)
    return [part.careful() for part in chunk_plan.parts(*range(size, chunk_plan.size, size))]


def _located(chunk_plan: ChunkPlan, death: WorkerDied) -> int | None:
    if chunk_plan.size == 1:
        return 0
    position = death.position
    if position is None or not 0 <= position < chunk_plan.size:
        return None
    return position
