"""Chunks, as the engine keeps them: each element is in exactly one."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import NamedTuple, TypeAlias

from parmap.engine.protocols import OpenSession
from parmap.transport.messages import Chunk, Outcome

__all__ = ["ChunkPlan", "InFlight", "Recalls", "ReturnedChunks", "Sent", "next_number"]

_numbers = itertools.count(1)


def next_number() -> int:
    """Give a number that no other chunk has: by it parts of the chunk can be recalled."""
    return next(_numbers)


class ChunkPlan(NamedTuple):
    """A chunk as the engine keeps it: which elements it holds, and their history.

    Parameters
    ----------
    indices : sequence of int
        The elements' places in the input; a range where they are neighbours.
    chunk : Chunk
        What travels.
    attempts : int, default 0
        How often its element has failed; only a chunk of one element has a history.
    deaths : int, default 0
        How many workers have died of its element.
    keep : bool, default False
        Whether the result of its one element is to stay with the workers.
    """

    indices: Sequence[int]
    chunk: Chunk
    attempts: int = 0
    deaths: int = 0
    keep: bool = False

    @property
    def size(self) -> int:
        """How many elements it has."""
        return len(self.indices)

    def part(self, start: int, stop: int) -> ChunkPlan:
        """Cut out the elements from `start` to before `stop`, as if never sent."""
        chunk = self.chunk.part(start, stop)._replace(careful=False, number=0)
        return ChunkPlan(self.indices[start:stop], chunk)

    def parts(self, *cuts: int) -> list[ChunkPlan]:
        """Cut before each of the offsets `cuts`; what would be empty is left out."""
        edges = [0, *cuts, self.size]
        return [self.part(a, b) for a, b in itertools.pairwise(edges) if a < b]

    def careful(self) -> ChunkPlan:
        """Make the same chunk, to be run with each element noted."""
        return self._replace(chunk=self.chunk._replace(careful=True, number=0))


# Chunks by the futures of their outcomes, in the order in which they were sent.
Sent: TypeAlias = "dict[Future[Outcome], ChunkPlan]"


class InFlight:
    """The chunks that the session has.

    Futures land in the queue from whatever thread resolves them. All else is touched by the
    call's own thread alone, so there is no lock.

    Parameters
    ----------
    session : OpenSession
        Where chunks run.

    Attributes
    ----------
    chunk_plans : dict of Future to ChunkPlan
        The chunks, by the futures of their outcomes.
    landed : queue.SimpleQueue of Future
        The futures that are resolved. Those of abandoned chunks come here, too.
    recalls : Recalls or None
        Those of them that can be taken back in part; None as long as there are none.
    """

    def __init__(self, session: OpenSession) -> None:
        self._session = session
        self.chunk_plans: Sent = {}
        self.landed: SimpleQueue[Future[Outcome]] = SimpleQueue()
        self.recalls: Recalls | None = None

    def add(self, future: Future[Outcome], chunk_plan: ChunkPlan, chunk: Chunk) -> None:
        """Take in a chunk that was sent: the plan's, or made from it."""
        self.chunk_plans[future] = chunk_plan
        if chunk.number:
            self.recalls = self.recalls or Recalls(self._session, self.chunk_plans)
            if chunk.seconds is not None:
                self.recalls.trials.add(future)
        future.add_done_callback(self.landed.put)

    def take_over(self, sent: Sent) -> None:
        """Take in chunks that were sent before there was a loop."""
        for future, chunk_plan in sent.items():
            self.add(future, chunk_plan, chunk_plan.chunk)

    def abandon(self, after: int | None = None) -> None:
        """Stop the chunks of which all elements come after that index. Default: all chunks."""
        for future, chunk_plan in list(self.chunk_plans.items()):
            if after is None or min(chunk_plan.indices) > after:
                del self.chunk_plans[future]
                if not future.cancel():
                    self._session.abandon(future, chunk_plan.chunk)


class Recalls:
    """The chunks in flight of which elements that have not begun may be taken back.

    They are, where a worker has nothing to do, and where a trial waits for a slow element: those
    beside it may be slow, too, and come before what other workers run.

    Parameters
    ----------
    session : OpenSession
        Where chunks run.
    chunk_plans : dict of Future to ChunkPlan
        All chunks in flight; the part that stays with its worker replaces one that is taken back.

    Attributes
    ----------
    trials : set of Future
        Those of them that are trials, or were.
    """

    # Seconds from when there is a reason until the first try, and at most to the next. The first
    # are for each worker, but no less than 1 ms: one caller hands out all chunks.
    _SOON, _LEAST, _LONGEST = 1e-4, 1e-3, 0.05

    def __init__(self, session: OpenSession, chunk_plans: Sent) -> None:
        self._session, self._chunk_plans = session, chunk_plans
        self._since: float | None = None  # when the reason was seen
        self._pause = self._LEAST
        self.trials: set[Future[Outcome]] = set()

    @property
    def _idle(self) -> bool:
        """Whether a worker has nothing to do."""
        return len(self._chunk_plans) < self._session.workers

    @property
    def due(self) -> float | None:
        """The time (`time.monotonic`) of the next try; None where there is no reason."""
        self.trials.intersection_update(self._chunk_plans)
        if not (self.trials or (self._idle and self._out())):
            self._since = None
            return None
        if self._since is None:
            self._since = time.monotonic()
            self._pause = max(self._LEAST, self._SOON * self._session.workers)
        return self._since + self._pause

    def take_back(self) -> tuple[ChunkPlan, bool] | None:
        """Take something back, once that is due.

        Returns
        -------
        tuple of (ChunkPlan, bool) or None
            What was taken back, and whether its worker is at a slow element.
        """
        due = self.due
        if due is None or due > time.monotonic():
            return None
        self._since = time.monotonic()
        self._pause = max(self._pause, min(2 * self._pause, self._LONGEST))
        idle = self._idle
        out = self._out() if idle else list(self.trials)
        for future in sorted(out, key=lambda one: -self._chunk_plans[one].size):
            whole = self._chunk_plans[future]
            found = self._session.recall(future, whole.chunk.number, only_slow=not idle)
            if found is None:
                continue
            stay, slow = found
            kept = whole.part(0, stay)
            if slow or stay == whole.size:  # there is no more to take
                self.trials.discard(future)
            else:
                kept = kept._replace(chunk=kept.chunk._replace(number=whole.chunk.number))
            self._chunk_plans[future] = kept
            if stay < whole.size:
                self._since = None
                return whole.part(stay, whole.size), slow
        return None

    def _out(self) -> list[Future[Outcome]]:
        return [future for future, one in self._chunk_plans.items() if one.chunk.number]


class ReturnedChunks:
    """Chunks that came back without having run; they are cut again, in the input's order."""

    def __init__(self) -> None:
        self.size = 0  # elements
        self._chunk_plans: list[ChunkPlan] = []  # a stack: the first of the input lies on top
        self._start = 0  # elements of the topmost that have been cut: to slice it each time is slow

    def put(self, chunk_plan: ChunkPlan) -> None:
        """Take a chunk."""
        if self._start:
            topmost = self._chunk_plans.pop()
            self._chunk_plans.append(topmost.part(self._start, topmost.size))
            self._start = 0
        bisect.insort(self._chunk_plans, chunk_plan, key=lambda one: -one.indices[0])
        self.size += chunk_plan.size

    def next(self, size: int, below: int | None) -> ChunkPlan | None:
        """Cut so many elements; pass over chunks that begin at the index `below` or after it."""
        while self._chunk_plans:
            topmost = self._chunk_plans[-1]
            start, stop = self._start, min(self._start + size, topmost.size)
            passed = below is not None and min(topmost.indices[start:]) >= below
            if passed or stop == topmost.size:
                self._chunk_plans.pop()
                self._start, stop = 0, topmost.size
            else:
                self._start = stop
            self.size -= stop - start
            if not passed:
                return topmost if stop - start == topmost.size else topmost.part(start, stop)
        return None
