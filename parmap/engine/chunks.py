"""Chunks, as the engine keeps them: each element is in exactly one."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NamedTuple

from parmap.engine.protocols import OpenSession
from parmap.transport.messages import Chunk, Outcome

__all__ = ["ChunkPlan", "InFlight", "ReturnedChunks"]


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
        chunk = self.chunk.part(start, stop)._replace(careful=False)
        return ChunkPlan(self.indices[start:stop], chunk)

    def parts(self, *cuts: int) -> list[ChunkPlan]:
        """Cut before each of the offsets `cuts`; what would be empty is left out."""
        edges = [0, *cuts, self.size]
        return [self.part(a, b) for a, b in itertools.pairwise(edges) if a < b]

    def careful(self) -> ChunkPlan:
        """Make the same chunk, to be run with each element noted."""
        return self._replace(chunk=self.chunk._replace(careful=True))


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
    """

    def __init__(self, session: OpenSession) -> None:
        self._session = session
        self.chunk_plans: dict[Future[Outcome], ChunkPlan] = {}
        self.landed: SimpleQueue[Future[Outcome]] = SimpleQueue()

    def send(self, chunk_plan: ChunkPlan, chunk: Chunk, broadcast: Any) -> None:
        """Send `chunk`, which is the plan's or made from it, to be run as a broadcast spec says."""
        send = self._session.run_remote if chunk_plan.keep else self._session.send
        future = send(broadcast, chunk)
        self.chunk_plans[future] = chunk_plan
        future.add_done_callback(self.landed.put)

    def abandon(self, after: int | None = None) -> None:
        """Stop the chunks of which all elements come after that index. Default: all chunks."""
        for future, chunk_plan in list(self.chunk_plans.items()):
            if after is None or min(chunk_plan.indices) > after:
                del self.chunk_plans[future]
                if not future.cancel():
                    self._session.abandon(future, chunk_plan.chunk)


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
