"""The one loop: pull, cut, submit, wait, give results.

One thread at a time runs it; futures land in a queue from whatever thread resolves them. So
the loop needs no lock: all of its state is touched by that one thread alone. `Call.results`
waits in the caller's thread. `Call.steps` never waits: `parmap.engine.waiting` waits for it,
in a thread or in an event loop.

What comes back is taken in by `parmap.engine.results`. What becomes of failures, and which one
the call raises, is decided by `parmap.engine.recovery`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from parmap.engine.callspec import spec_for
from parmap.engine.chunks import ChunkPlan, InFlight, Sent
from parmap.engine.protocols import OpenSession, ResultBuffer
from parmap.engine.recovery import Recovery, RetryQueue
from parmap.engine.results import Collector, buffer_for
from parmap.engine.settings import Settings
from parmap.engine.source import Cutter, Feed
from parmap.engine.unseeded import Unseeded
from parmap.errors import SerializationError
from parmap.failures import Failure
from parmap.observe import events
from parmap.transport.generators import Noticing
from parmap.transport.messages import Outcome

__all__ = ["TURN", "Call", "Settings"]

# The longest wait of a thread in one turn, in seconds. Python hears of Ctrl-C when a wait ends: a
# signal that comes just as the main thread begins to wait does not end that wait.
TURN = 1.0
# Chunks in the session's hands, per worker: one that runs and one that waits for it.
_DEPTH = 2


class Call:
    """One parallel map at work: made, iterated once, and over.

    Parameters
    ----------
    session : OpenSession
        Where chunks run.
    fn : callable
        The user's function.
    feed : Feed
        Its arguments.
    settings : Settings
        How to run it.
    buffer : ResultBuffer, optional
        Where results go. Default: one that gives them in order, or as they come.
    functions : sequence of callable, optional
        The user's functions that `fn` stands for. Default: `fn` itself.
    """

    def __init__(
        self,
        session: OpenSession,
        fn: Callable[..., Any],
        feed: Feed,
        settings: Settings,
        *,
        buffer: ResultBuffer | None = None,
        functions: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self._session, self._settings, self._feed = session, settings, feed
        self._unseeded = Unseeded(
            functions or (fn,),
            session.traits,
            streams=settings.root is not None,
            alone=settings.window is None and feed.total is not None,
        )
        hints, constants = self._unseeded.hints, feed.constants
        self._spec = spec_for(
            session, fn, settings, hints=hints, constants=constants, functions=functions
        )
        self._buffer = buffer or buffer_for(ordered=settings.ordered)
        self._in_flight, self._retries = InFlight(session), RetryQueue()
        self._recovery = Recovery(
            settings, self._buffer, self._retries, self._in_flight, noted=session.traits.sees_deaths
        )

    @property
    def failures(self) -> list[Failure]:
        """Elements that failed for good, in the order of their failing."""
        return self._recovery.failures

    def results(self, sent: Sent | None = None) -> Generator[list[Any], None, None]:
        """Run the call; give the results in lists, as they become ready.

        Raises
        ------
        Exception
            What an element raised (``errors="raise"``), or the input's own error.
        """
        if sent:  # chunks that are on their way already
            self._in_flight.take_over(sent)
        return self._run(waits=True)

    def steps(self, landed: SimpleQueue[Future[Outcome]]) -> Generator[list[Any], None, None]:
        """Run the call as `results` does, but yield an empty list instead of waiting.

        Each future that is resolved lands in the queue. After an empty list, the next step has
        something to do when the queue is not empty, or when the time is `due`.
        """
        self._in_flight.landed = landed
        return self._run(waits=False)

    @property
    def due(self) -> float | None:
        """The time (`time.monotonic`) when there is something to do though no chunk lands."""
        recalls, full = self._in_flight.recalls, self._full
        times = (None if full else self._retries.due, recalls.due if recalls else None)
        return min((when for when in times if when is not None), default=None)

    @property
    def _full(self) -> bool:
        """Whether the session has as many chunks as it gets."""
        return len(self._in_flight.chunk_plans) >= _DEPTH * self._session.workers

    def _run(self, *, waits: bool) -> Generator[list[Any], None, None]:
        session, workers = self._session, self._session.workers
        policy = self._settings.policy.paced(session.traits.round_trip)
        cutter = self._feed.cutter(policy, workers, session.traits)
        # The load is asked for after the cutter is made: one that takes all the input ends it.
        load, observers = self._feed.load, self._settings.observers
        collector = Collector(
            cutter, self._buffer, self._recovery, self._unseeded, load=load, observers=observers
        )
        flying, retries = self._in_flight.chunk_plans, self._retries
        with Noticing() as found:
            broadcast = session.broadcast(self._spec, self._feed.total, known=self._feed.known)
        try:
            for tell in observers:
                tell(events.CallStarted(self._settings.label, self._feed.total, workers))
            self._unseeded.packed(found)
            moved = True
            while flying or retries.later or moved:
                self._fill(cutter, broadcast)
                moved = False
                for values in self._buffer.ready():
                    moved = True  # the window has room again
                    yield values
                if flying or retries.later:
                    while not waits and self._still():
                        yield []
                    moved = self._wait(collector) or moved
            if self._recovery.end is not None:
                self._recovery.raise_end()
        finally:
            self._in_flight.abandon()
            session.drop(broadcast)
            for tell in observers:
                tell(events.CallFinished())

    def _fill(self, cutter: Cutter, broadcast: Any) -> None:
        """Hand out chunks until the session has enough; what has landed is looked at first."""
        flying, landed = self._in_flight.chunk_plans, self._in_flight.landed
        most = _DEPTH * self._session.workers
        blind = not self._session.traits.sees_deaths
        while len(flying) < most and (not flying or landed.empty()):
            if blind and flying and self._suspects():
                break
            chunk_plan = self._next(cutter)
            if chunk_plan is None:
                break
            self._send(chunk_plan, broadcast)

    def _suspects(self) -> bool:
        """Whether one that may kill its worker is out, or next: it runs alone where nobody sees."""
        again, flying = self._retries.now, self._in_flight.chunk_plans.values()
        first = again[0].chunk.careful if again else False
        return first or any(chunk_plan.chunk.careful for chunk_plan in flying)

    def _still(self) -> bool:
        """Whether nothing has landed, and nothing else is due."""
        due = self.due
        return (due is None or due > time.monotonic()) and self._in_flight.landed.empty()

    def _wait(self, collector: Collector) -> bool:
        """Wait until a chunk lands, and take it in, or until something else is due; for a turn."""
        due = self.due if self._in_flight.recalls or self._retries.later else None
        patience = TURN if due is None else max(0.0, min(TURN, due - time.monotonic()))
        if not patience:
            collector.take_back(self._in_flight.recalls)
        try:
            landed = self._in_flight.landed.get(timeout=patience)
        except Empty:
            return False
        chunk_plan = self._in_flight.chunk_plans.pop(landed, None)
        if chunk_plan is not None:  # else it was abandoned meanwhile
            collector.take(chunk_plan, landed)
        return True

    def _next(self, cutter: Cutter) -> ChunkPlan | None:
        end, window = self._recovery.end, self._settings.window
        below = None if end is None else end[0]
        if self._retries.now or self._retries.later:  # most calls retry nothing
            again = self._retries.next(below)
            if again is not None:
                return again
        room = sys.maxsize if window is None else self._room(cutter, window)
        chunk_plan = cutter.next(room, below)
        if cutter.broken is not None and below is None:
            self._recovery.end_at(*cutter.broken)
        return chunk_plan

    def _room(self, cutter: Cutter, window: int) -> int:
        """How many elements may be cut now: the call holds so many, and so many bytes."""
        # A share of the window, so that one large chunk does not take it from the others.
        workers = self._session.workers
        share = max(1, window // (_DEPTH * workers))
        taken, released = cutter.taken, self._buffer.released
        room = min(share, window - (taken - released))
        load = self._feed.load
        if load is None:
            return room
        return min(room, load.room(taken, released, chunks=_DEPTH * workers, least=workers))

    def _send(self, chunk_plan: ChunkPlan, broadcast: Any) -> None:
        chunk = chunk_plan.chunk
        if self._spec.root is not None:
            chunk = chunk._replace(indices=chunk_plan.indices)
        try:
            with Noticing() as found:
                send = self._session.run_remote if chunk_plan.keep else self._session.send
                self._in_flight.add(send(broadcast, chunk), chunk_plan, chunk)
        except SerializationError as error:
            self._recovery.unsendable(chunk_plan, error)
            return
        for tell in self._settings.observers:
            tell(events.ChunkSent(chunk_plan.indices[0], chunk_plan.size))
        if found:
            self._unseeded.sent(found, chunk_plan.indices)
