"""A place in virtual time, for the real engine and the real policies.

The engine blocks at one point only: where it waits for the next chunk to land. Here that point
advances a clock instead, so that thousands of workers need no machine, and a run gives the same
figures each time. No function of a user runs: what an element costs comes from a formula or a
table, and a chunk's time is a difference of two sums.
"""

import bisect
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty
from types import SimpleNamespace
from unittest import mock

import numpy as np

from parmap.backends.processes import recall
from parmap.engine import chunks, loop
from parmap.engine.loop import Call, Settings
from parmap.engine.policies import Policy
from parmap.engine.retry import Retry
from parmap.engine.source import Source
from parmap.engine.traits import Traits
from parmap.plans.blocks import Block
from parmap.transport.messages import Chunk, Location, Outcome
from parmap.worker.elements import _PART


@dataclass(frozen=True)
class Place:
    """Where chunks run.

    A message takes half of `round_trip` seconds. To send a chunk and to take in its result takes
    `dispatch` seconds of the caller's one thread. A worker holds up to `ahead` chunks: with 1 it
    asks for the next when it is done, as on a pool; with 2 the next one waits in its own queue.
    `told` is the round trip that the plan tells the policy.
    """

    name: str
    round_trip: float
    told: float
    dispatch: float
    ahead: int


LOCAL = Place("local", 1e-4, 1e-3, 2e-4, 1)
DASK = Place("Dask", 1e-2, 1e-2, 1e-3, 2)
FAR = Place("far", 1e-1, 1e-2, 1e-3, 2)


@dataclass(frozen=True)
class Costs:
    """What elements cost: `before(i)` is the sum of the first `i`, in seconds."""

    name: str
    count: int
    before: Callable[[int], float]
    longest: float


def constant(count: int, mean: float) -> Costs:
    return Costs("constant", count, lambda i: mean * i, mean)


def increasing(count: int, mean: float) -> Costs:
    slope = mean / count
    return Costs("increasing", count, lambda i: slope * i * i, mean * (2 - 1 / count))


def decreasing(count: int, mean: float) -> Costs:
    slope = mean / count
    return Costs("decreasing", count, lambda i: slope * i * (2 * count - i), 2 * mean)


_TABLE = 10**6  # random costs repeat after so many elements: 10^8 would need a gigabyte


def _tabled(name: str, costs: np.ndarray, count: int, mean: float) -> Costs:
    costs *= mean / costs.mean()
    sums, size = np.concatenate([[0.0], np.cumsum(costs)]), len(costs)
    total = float(sums[-1])
    return Costs(
        name, count, lambda i: i // size * total + float(sums[i % size]), float(costs.max())
    )


def lognormal(count: int, mean: float) -> Costs:
    costs = np.random.default_rng(0).lognormal(sigma=1, size=min(count, _TABLE))
    return _tabled("lognormal", costs, count, mean)


def heavy_tailed(count: int, mean: float) -> Costs:
    costs = 1 + np.random.default_rng(0).pareto(2.5, size=min(count, _TABLE))
    return _tabled("Pareto", costs, count, mean)


_SLOW = 100  # how much longer than the others the four slow elements take


def four_slow(name: str, places: list[int], count: int, mean: float) -> Costs:
    each = mean * count / (count + 4 * (_SLOW - 1))

    def before(i: int) -> float:
        return each * (i + (_SLOW - 1) * sum(place < i for place in places))

    return Costs(name, count, before, each * _SLOW)


def slow_first(count: int, mean: float) -> Costs:
    return four_slow("4 slow, first", [0, 1, 2, 3], count, mean)


def slow_last(count: int, mean: float) -> Costs:
    return four_slow("4 slow, last", list(range(count - 4, count)), count, mean)


def slow_mixed(count: int, mean: float) -> Costs:
    return four_slow("4 slow, mixed", [count * k // 9 for k in (1, 2, 5, 8)], count, mean)


SHAPES = [
    constant,
    lognormal,
    heavy_tailed,
    increasing,
    decreasing,
    slow_first,
    slow_last,
    slow_mixed,
]


class _Flight:
    """The future of a chunk; nothing fails here, and nobody cancels.

    `home` is when its outcome is there; `ends` says for each of its parts how many elements have
    run, and when, from the begin of the chunk.
    """

    __slots__ = ("begins", "chunk", "ends", "home", "outcome", "size", "worker")

    def add_done_callback(self, told: Callable) -> None:
        """Tell nobody: the clock brings the chunk to the engine."""

    def cancelled(self) -> bool:
        return False

    def exception(self) -> None:
        return None

    def result(self) -> Outcome:
        return self.outcome


class _World:
    """The session, the engine's queue, and the clock of both.

    The clock is the dispatcher's: it stands where the engine's one thread is.
    """

    nested = ()
    core_share = None

    def __init__(self, place: Place, workers: int, costs: Costs) -> None:
        self.workers, self._place, self._costs = workers, place, costs
        # It sees deaths, since none happens: so the engine need not look for suspects.
        recalls = place is LOCAL
        self.traits = Traits(round_trip=place.told, sees_deaths=True, recalls=recalls)
        self.now = self.busy = 0.0
        self.chunks, self.block = 0, Block(None)
        self._location = Location.here()
        self._numbers = itertools.count()  # which break ties in heaps
        self._coming: list[tuple[float, int, _Flight]] = []  # a heap: when, number, what
        self._landed: deque[_Flight] = deque()
        self._queue: deque[tuple[_Flight, Chunk]] = deque()
        self._held = [0] * workers
        self._free_at = [0.0] * workers
        # A heap of workers that may take one: how many they hold, since when, who.
        self._open = [(0, worker, worker) for worker in range(workers)]

    def broadcast(self, spec, chunks=None, *, known=None):
        return spec

    def drop(self, broadcast) -> None:
        """Nothing was put anywhere."""

    def send(self, broadcast, chunk) -> _Flight:
        self._work()
        flight = _Flight()
        self._queue.append((flight, chunk))
        self.chunks += 1
        self._assign(self.now)
        return flight

    def put(self, flight: _Flight) -> None:
        """Futures would call this; here `_land` puts in what has landed."""

    def empty(self) -> bool:
        self._land()
        return not self._landed

    def get(self, timeout: float | None = None) -> _Flight:
        self._land()
        end = math.inf if timeout is None else self.now + timeout
        while not self._landed:
            if end < self._coming[0][0]:
                self.now = end
                raise Empty
            self.now = self._coming[0][0]
            self._land()
        self._work()
        return self._landed.popleft()

    def _work(self) -> None:
        """Half of a chunk's dispatch goes into its sending, half into its landing."""
        self.now += self._place.dispatch / 2
        self.busy += self._place.dispatch / 2
        self._land()

    def _land(self) -> None:
        """Bring home what has landed by now; a worker's next chunk may end by now, too."""
        while self._coming and self._coming[0][0] <= self.now:
            when, number, flight = heapq.heappop(self._coming)
            if when != flight.home:  # a part of it was recalled since
                continue
            self._landed.append(flight)
            worker = flight.worker
            self._held[worker] -= 1
            heapq.heappush(self._open, (self._held[worker], number, worker))
            self._assign(when)

    def _assign(self, when: float) -> None:
        """Give what is queued to the workers that hold least."""
        while self._queue and self._open:
            held, number, worker = heapq.heappop(self._open)
            if held != self._held[worker]:  # a note from before it got another
                continue
            flight, chunk = self._queue.popleft()
            flight.begins = max(when + self._place.round_trip / 2, self._free_at[worker])
            flight.chunk, flight.size = chunk, chunk.size
            flight.worker, flight.ends = worker, self._run(chunk)
            self._fly(flight)
            self._held[worker] = held + 1
            if held + 1 < self._place.ahead:
                heapq.heappush(self._open, (held + 1, number, worker))

    def _fly(self, flight: _Flight) -> None:
        """Have the outcome of a chunk come home when its last part has run."""
        ran, took = flight.ends[-1]
        self._free_at[flight.worker] = flight.begins + took
        flight.outcome = Outcome(range(ran), (), took, self._location)
        flight.home = flight.begins + took + self._place.round_trip / 2
        heapq.heappush(self._coming, (flight.home, next(self._numbers), flight))

    def recall(self, flight: _Flight, _: int, *, only_slow: bool) -> tuple[int, bool] | None:
        """Take back of what comes after the part that runs now; as the pool does it."""
        if not hasattr(flight, "ends") or self.now < flight.begins:
            return None
        part = bisect.bisect_right(flight.ends, self.now - flight.begins, key=lambda end: end[1])
        part = min(part, len(flight.ends) - 1)
        begun, since = flight.ends[part][0], flight.ends[part - 1][1] if part else 0.0
        slow = self.now - flight.begins - since > recall._SLOW
        if only_slow and not slow:
            return None
        stay = begun if slow else begun + (flight.size - begun) // 2
        if stay < flight.size:
            flight.size = stay
            if stay < flight.ends[-1][0]:
                flight.ends = self._run(flight.chunk.part(0, stay))
                self._fly(flight)
        return stay, slow

    def _run(self, chunk: Chunk) -> list[tuple[int, float]]:
        """Say how many elements have run, and when, after each part: as `_run_parts` does it."""
        elements, before = chunk.columns[0], self._costs.before
        start, count = elements.start, len(elements)
        if chunk.seconds is None and not chunk.number:
            return [(count, before(start + count) - before(start))]
        ends, size, ran, took = [], 1, 0, 0.0
        while ran < count and (not ran or took < (chunk.seconds or math.inf)):
            ran, last = min(count, ran + size), took
            took = before(start + ran) - before(start)
            ends.append((ran, took))
            size = max(1, int(size * min(2.0, _PART / max(took - last, 1e-9))))
        return ends


class _Counter:
    """A buffer that only counts: 10^8 results need no memory."""

    def __init__(self) -> None:
        self.released = 0

    def put(self, indices, values) -> None:
        self.released += len(values)

    def ready(self):
        return ()


@dataclass(frozen=True)
class Result:
    """What came of a run; times in seconds.

    The optimum is a lower bound: the work shared out evenly, or the longest element.
    """

    makespan: float
    optimum: float
    chunks: int
    load: float  # of the dispatcher: the part of the makespan in which it works
    idle: float  # the part of the makespan in which a worker does nothing, on average

    @property
    def ratio(self) -> float:
        return self.makespan / self.optimum


def simulate(policy: Policy, place: Place, workers: int, costs: Costs) -> Result:
    """Run the engine's own loop on a place in virtual time."""
    world, buffer = _World(place, workers, costs), _Counter()
    settings = Settings(policy, "raise", Retry(0), None, "", ())
    call = Call(world, abs, Source([range(costs.count)]), settings, buffer=buffer)
    call._in_flight.landed = world
    clock = SimpleNamespace(monotonic=lambda: world.now)
    with mock.patch.object(loop, "time", clock), mock.patch.object(chunks, "time", clock):
        for _ in call.results():
            pass
    assert buffer.released == costs.count
    total = costs.before(costs.count)
    optimum = max(total / workers, costs.longest)
    idle = 1 - total / (workers * world.now)
    return Result(world.now, optimum, world.chunks, world.busy / world.now, idle)


def fixed_sizes(count: int, workers: int) -> list[int]:
    """Give sizes by steps of about three: from one chunk per worker down to singles.

    Left out is what makes more than 100,000 chunks, or more than 300 per worker: that would take
    long to simulate, and workers then wait for each other for less than 1/300 of the time.
    """
    share = math.ceil(count / workers)
    sizes = sorted({max(1, round(share / 10 ** (k / 2))) for k in range(6)}, reverse=True)
    few = [size for size in sizes if count / size <= 100_000]
    return few or sizes[:1]
