"""The one loop: pull, cut, submit, order, retry, cancel.

One thread at a time runs it; futures land in a queue from whatever thread resolves them. So
the loop needs no lock: all of its state is touched by that one thread alone. `Call.results`
waits in the caller's thread. `Call.steps` never waits: `parmap.engine.waiting` waits for it,
in a thread or in an event loop.

Which error does a call raise when several elements fail? The one that the built-in ``map``
would meet first: the lowest index. A failure at index *i* therefore stops all that comes
after *i* at once, but what comes before it, and may fail yet, runs on.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future
from queue import Empty, SimpleQueue
from typing import Any

from parmap.engine.callspec import spec_for
from parmap.engine.chunks import ChunkPlan
from parmap.engine.memory_load import weight
from parmap.engine.protocols import OpenSession
from parmap.engine.recovery import after_death
from parmap.engine.results import ResultBuffer, buffer_for
from parmap.engine.settings import Settings
from parmap.engine.source import Cutter, Feed
from parmap.engine.unseeded import Unseeded
from parmap.errors import SerializationError, SessionClosed, TaskTimeout, WorkerDied
from parmap.failures import Failure
from parmap.observe import events
from parmap.transport.error_payload import pack_error, unpack_error
from parmap.transport.generators import Noticing
from parmap.transport.messages import Location, Outcome
from parmap.transport.payload import PackedError, Payload
from parmap.untouched import is_a

__all__ = ["TURN", "Call", "Settings"]

# The longest wait of a thread in one turn, in seconds. Python hears of Ctrl-C when a wait ends: a
# signal that comes just as the main thread begins to wait does not end that wait.
TURN = 1.0
# Chunks in the backend's hands, per worker: one that runs and one that waits for it.
_DEPTH = 2


class Call:
    """One parallel map at work: made, iterated once, and over.

    Parameters
    ----------
    backend : OpenSession
        Where chunks run.
    fn : callable
        The user's function.
    feed : Feed
        Its arguments.
    settings : Settings
        How to run it.
    star : bool, default False
        Whether the feed's one column holds argument tuples.
    buffer : ResultBuffer, optional
        Where results go. Default: one that gives them in order, or as they come.
    functions : sequence of callable, optional
        The user's functions that `fn` stands for. Default: `fn` itself.

    Attributes
    ----------
    failures : list of Failure
        Elements that failed for good, in the order of their failing.
    """

    def __init__(
        self,
        backend: OpenSession,
        fn: Callable[..., Any],
        feed: Feed,
        settings: Settings,
        *,
        star: bool = False,
        buffer: ResultBuffer | None = None,
        functions: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self._backend, self._settings, self._feed = backend, settings, feed
        self._unseeded = Unseeded(
            functions or (fn,),
            backend.traits,
            streams=settings.root is not None,
            alone=settings.window is None and feed.total is not None,
        )
        self._spec = spec_for(
            backend,
            fn,
            star=star,
            stop=settings.errors == "raise" and not settings.retries.times,
            timeout=settings.timeout,
            root=settings.root,
            hints=self._unseeded.hints,
            constants=feed.constants,
        )
        self._again: deque[ChunkPlan] = deque()
        self._later: list[tuple[float, int, ChunkPlan]] = []  # a heap: when, index, what
        self._flying: dict[Future[Outcome], ChunkPlan] = {}
        self._landed: SimpleQueue[Future[Outcome]] = SimpleQueue()
        self._end: tuple[int, Failure | Exception] | None = None  # where and why the call fails
        self._buffer = buffer or buffer_for(ordered=settings.ordered)
        self._blind = not backend.traits.sees_deaths
        self.failures: list[Failure] = []

    def results(self) -> Generator[list[Any], None, None]:
        """Run the call; give the results in lists, as they become ready.

        Raises
        ------
        Exception
            What an element raised (``errors="raise"``), or the input's own error.
        """
        return self._run(waits=True)

    def steps(self, landed: SimpleQueue[Future[Outcome]]) -> Generator[list[Any], None, None]:
        """Run the call as `results` does, but yield an empty list instead of waiting.

        Parameters
        ----------
        landed : queue.SimpleQueue
            Receives each future once it is resolved. After an empty list, the next step has
            something to do when this queue is not empty, or when the time is `due`.
        """
        self._landed = landed
        return self._run(waits=False)

    @property
    def due(self) -> float | None:
        """The time (`time.monotonic`) of the next retry; None if none is planned."""
        return self._later[0][0] if self._later else None

    def _run(self, *, waits: bool) -> Generator[list[Any], None, None]:
        backend, workers = self._backend, self._backend.workers
        policy = self._settings.policy.paced(backend.traits.round_trip)
        cutter = self._feed.cutter(policy, workers, lists=backend.traits.shares_memory)
        with Noticing() as found:
            broadcast = backend.broadcast(self._spec, self._feed.total)
        try:
            self._tell(events.CallStarted, self._settings.label, self._feed.total, workers)
            self._unseeded.packed(found)
            moved = True
            while self._flying or self._later or moved:
                self._fill(cutter, broadcast)
                moved = False
                for values in self._buffer.ready():
                    moved = True  # the window has room again
                    yield values
                if self._flying or self._later:
                    while not waits and self._still():
                        yield []
                    moved = self._wait(cutter) or moved
            self._conclude()
        finally:
            self._abandon(self._flying)
            backend.drop(broadcast)
            self._tell(events.CallFinished)

    def _fill(self, cutter: Cutter, broadcast: Any) -> None:
        """Hand out chunks until the backend has enough; what has landed is looked at first."""
        flying, most = self._flying, _DEPTH * self._backend.workers
        while len(flying) < most and (not flying or self._landed.empty()):
            if self._blind and flying and self._suspects():
                break
            chunk_plan = self._next(cutter)
            if chunk_plan is None:
                break
            self._send(chunk_plan, broadcast)

    def _suspects(self) -> bool:
        """Whether one that may kill its worker is out, or next: it runs alone where nobody sees."""
        first = self._again[0].chunk.careful if self._again else False
        return first or any(chunk_plan.chunk.careful for chunk_plan in self._flying.values())

    def _still(self) -> bool:
        """Whether nothing has landed, and no retry is due."""
        due = self.due
        return self._landed.empty() and (due is None or due > time.monotonic())

    def _wait(self, cutter: Cutter) -> bool:
        """Wait until a chunk lands, and take it in, or until one may be retried; for one turn."""
        patience = TURN
        if self._later:
            left = self._later[0][0] - time.monotonic()
            patience = min(max(0.0, left), TURN)
        try:
            landed = self._landed.get(timeout=patience)
        except Empty:
            return False
        self._absorb(landed, cutter)
        return True

    def _next(self, cutter: Cutter) -> ChunkPlan | None:
        below = self._end[0] if self._end else None
        while self._later and self._later[0][0] <= time.monotonic():
            self._again.append(heapq.heappop(self._later)[2])
        while self._again:
            again = self._again.popleft()
            if below is None or min(again.indices) < below:
                return again
        chunk_plan = cutter.next(self._room(cutter), below)
        if cutter.broken is not None and below is None:
            self._end = cutter.broken
        return chunk_plan

    def _room(self, cutter: Cutter) -> int:
        window = self._settings.window
        if window is None:
            return sys.maxsize
        # A share of the window, so that one large chunk does not take it from the others.
        workers = self._backend.workers
        share = max(1, window // (_DEPTH * workers))
        taken, released = cutter.taken, self._buffer.released
        room = min(share, window - (taken - released))
        load = self._feed.load
        if load is None:
            return room
        return min(room, load.room(taken, released, chunk_plans=_DEPTH * workers, least=workers))

    def _send(self, chunk_plan: ChunkPlan, broadcast: Any) -> None:
        chunk = chunk_plan.chunk
        if self._spec.root is not None:
            chunk = chunk._replace(indices=chunk_plan.indices)
        try:
            send = self._backend.run_remote if chunk_plan.keep else self._backend.send
            with Noticing() as found:
                future = send(broadcast, chunk)
        except SerializationError as error:
            self._unsendable(chunk_plan, error)
            return
        self._flying[future] = chunk_plan
        future.add_done_callback(self._landed.put)
        self._tell(events.ChunkSent, chunk_plan.indices[0], chunk_plan.size)
        if found:
            self._unseeded.sent(found, chunk_plan.indices)

    def _unsendable(self, chunk_plan: ChunkPlan, error: SerializationError) -> None:
        """Find out which element of a chunk cannot travel: send them one by one."""
        if chunk_plan.size > 1:
            self._again.extendleft(reversed(chunk_plan.parts(*range(1, chunk_plan.size))))
        else:
            self._fail(chunk_plan, 0, pack_error(error, crosses=False), Location.here())

    def _absorb(self, future: Future[Outcome], cutter: Cutter) -> None:
        """Take in what came of a chunk."""
        chunk_plan = self._flying.pop(future, None)
        if chunk_plan is None:  # abandoned meanwhile
            return
        try:
            error = future.exception()
        except CancelledError:
            raise SessionClosed(
                "the session was closed in the middle of this call, by another thread or task"
            ) from None
        if isinstance(error, WorkerDied):
            self._bury(chunk_plan, error)
        elif error is not None:
            raise error
        else:
            self._unload(chunk_plan, future.result(), cutter)

    def _unload(self, chunk_plan: ChunkPlan, outcome: Outcome, cutter: Cutter) -> None:
        """Take in the results of a chunk."""
        try:
            values = outcome.unpacked()
        except SerializationError as error:
            self._unsendable(chunk_plan, error)
            return
        if len(values):
            cutter.learn(len(values), outcome.seconds)
            if self._feed.load is not None:
                packed = outcome.values
                size = packed.size if type(packed) is Payload else weight(values)
                self._feed.load.came(len(values), size)
        if outcome.moves:
            self._unseeded.hear(outcome.moves, cutter.taken)
        done = self._sort_out(chunk_plan, outcome, values, cutter)
        facts = (outcome.seconds, outcome.location.host, outcome.location.pid)
        self._tell(events.ChunkFinished, chunk_plan.indices[0], done, *facts)

    def _sort_out(
        self, chunk_plan: ChunkPlan, outcome: Outcome, values: list[Any], cutter: Cutter
    ) -> int:
        """Shelve what succeeded, fail or retry what failed; count the former."""
        start = done = 0
        for element_error in outcome.element_errors:
            done += self._shelve(chunk_plan, start, element_error.offset, values)
            self._fail(chunk_plan, element_error.offset, element_error.error, outcome.location)
            start = element_error.offset + 1
        ran = max(start, len(values))
        done += self._shelve(chunk_plan, start, ran, values)
        if ran < chunk_plan.size:
            # Its time was over; or it failed, but in another order the rest may yet have to run.
            cutter.take_back(chunk_plan.part(ran, chunk_plan.size))
        return done

    def _shelve(self, chunk_plan: ChunkPlan, start: int, stop: int, values: list[Any]) -> int:
        if start < stop:
            whole = stop - start == chunk_plan.size
            self._buffer.put(
                chunk_plan.indices[start:stop], values if whole else values[start:stop]
            )
        return stop - start

    def _bury(self, chunk_plan: ChunkPlan, death: WorkerDied) -> None:
        """Run again what a dead worker had in hand, and fail the element that killed it."""
        self._tell(events.WorkerLost, death)
        offset, again = after_death(chunk_plan, death, noted=not self._blind)
        self._again.extendleft(reversed(again))
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
        self._fail(chunk_plan, offset, packed, Location(death.host or here.host, death.pid))

    def _fail(
        self, chunk_plan: ChunkPlan, offset: int, packed: PackedError, location: Location
    ) -> None:
        """Retry an element that failed, or fail it for good."""
        index = chunk_plan.indices[offset]
        error = unpack_error(packed)
        failure = Failure(
            error, index, packed.traceback, location.host, location.pid, self._settings.label
        )
        if is_a(error, KeyboardInterrupt):
            # It may be the user's own, and always means the whole call.
            failure.reraise()
        failed = chunk_plan.attempts + 1
        if self._settings.retries.applies(error, failed):
            again = chunk_plan.part(offset, offset + 1)._replace(attempts=failed)
            due = time.monotonic() + self._settings.retries.delay(failed)
            heapq.heappush(self._later, (due, index, again))
            self._tell(events.ElementRetried, failure)
            return
        self.failures.append(failure)
        self._tell(events.ElementFailed, failure)
        if self._settings.errors == "raise":
            self._end_at(index, failure)
        else:
            self._buffer.fail(index, failure)

    def _end_at(self, index: int, why: Failure) -> None:
        """Note where the call fails, and stop all that comes after that place."""
        if self._end is not None and self._end[0] < index:
            return
        self._end = (index, why)
        self._later = [entry for entry in self._later if entry[1] < index]
        heapq.heapify(self._later)
        self._abandon(
            {
                f: chunk_plan
                for f, chunk_plan in self._flying.items()
                if min(chunk_plan.indices) > index
            }
        )

    def _abandon(self, flying: dict[Future[Outcome], ChunkPlan]) -> None:
        for future, chunk_plan in list(flying.items()):
            del self._flying[future]
            if not future.cancel():
                self._backend.abandon(future, chunk_plan.chunk)

    def _conclude(self) -> None:
        if self._end is None:
            return
        why = self._end[1]
        # The loop's frames hold the failures, and an error's traceback holds the frames:
        # break the circle, or all of it would stay until the collector comes round.
        self._end = None
        self.failures.clear()
        if isinstance(why, Failure):
            why.reraise()
        raise why

    def _tell(self, event: Callable[..., events.Event], *facts: Any) -> None:
        for observer in self._settings.observers:
            observer(event(*facts))
