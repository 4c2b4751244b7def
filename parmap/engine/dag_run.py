"""A graph at work, fed to the one loop: what is ready goes out, what comes back makes ready.

To the loop a graph is both its input and its result buffer. There are no levels: a call goes out
once its inputs are there.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from parmap.engine.chunks import ChunkPlan
from parmap.engine.dag import Dag, named_in
from parmap.engine.policies import Policy
from parmap.engine.traits import Traits
from parmap.errors import DependencyFailed
from parmap.failures import Failure
from parmap.observe.events import ElementFailed, Event
from parmap.transport.messages import Chunk

__all__ = ["DagRun"]

# Names in a message of how a failure spread; a chain may be long.
_WAY = 5


class DagRun:
    """One run of a graph: the feed and the result buffer of its call.

    Parameters
    ----------
    dag : Dag
        The graph.
    keeps : bool, default False
        Whether all results that nobody asks for can stay with the workers, to be handed on from
        there. Then each chain is a chunk of its own.
    recurring : frozenset of int, default empty
        The numbers (`id`) of large arrays that are arguments of several calls.

    Attributes
    ----------
    total : int
        How many elements there are, that is, chains.
    constants : dict
        Empty: a call's arguments are its own.
    load : None
        Nothing bounds what the call holds: all results are wanted at once.
    released : int
        0: results stay here, for `resolved`.
    outcome : DagOutcome
        What came of each call.
    """

    def __init__(
        self, dag: Dag, *, keeps: bool = False, recurring: frozenset[int] = frozenset()
    ) -> None:
        self.total = len(dag.chains)
        self.constants: Mapping[int, Any] = {}
        self.load = None
        self.released = 0
        self.outcome = DagOutcome(dag)
        self._dag, self._keeps, self._recurring = dag, keeps, recurring
        self._flow = Dataflow(dag)

    def cutter(self, policy: Policy, workers: int, traits: Traits) -> DagCutter:  # noqa: ARG002
        """Begin to hand out what is ready."""
        return DagCutter(self._dag, self._flow, policy, workers, keeps=self._keeps)

    def known(self) -> frozenset[int]:
        """Return what several calls hold: their arguments stay as they are until all have run."""
        return self._recurring

    def put(self, indices: Sequence[int], values: list[Any]) -> None:
        """Take results; what had waited for the last of its inputs becomes ready."""
        self.outcome.done(indices)
        self._flow.put(indices, values)

    def fail(self, index: int, failure: Failure) -> None:
        """Note a failure. As a result it would be a value: a call may return one of its own."""
        self._flow.drop_inputs([index, *self.outcome.fail(index, failure)])

    def ready(self) -> Iterator[list[Any]]:
        """Give nothing: results stay here."""
        return iter(())

    def resolved(self, wanted: Sequence[int]) -> list[Any]:
        """Return results, and for what failed or was not run its failure."""
        return self.outcome.resolved(wanted, self._flow.results)


class Dataflow:
    """The results that are there, and the chains that are ready because all their inputs are.

    A result is dropped at its last use, unless it is asked for.

    Parameters
    ----------
    dag : Dag
        The graph.

    Attributes
    ----------
    results : dict of int to object
        By their nodes.
    ready : list of int
        The heads of the chains that may go out; a heap.
    """

    def __init__(self, dag: Dag) -> None:
        self._dag = dag
        self.results: dict[int, Any] = {}
        self._uses = list(map(len, dag.users))  # of each node's result, that are still to come
        # The inputs that each chain still waits for.
        self._missing = {head: len(dag.nodes[head].needs) for head in dag.chains}
        self.ready = [head for head, count in self._missing.items() if not count]
        heapq.heapify(self.ready)

    def take(self, most: int, below: int | None) -> list[int]:
        """Take out chains that are ready, the first ones first, and none from `below` on."""
        heads: list[int] = []
        while self.ready and len(heads) < most and (below is None or self.ready[0] < below):
            heads.append(heapq.heappop(self.ready))
        return heads

    def take_back(self, heads: Iterable[int]) -> None:
        """Make chains ready again that did not run."""
        for head in heads:
            heapq.heappush(self.ready, head)

    def put(self, heads: Sequence[int], values: Sequence[Any]) -> None:
        """Take the results of chains, in the place of their inputs."""
        self.drop_inputs(heads)
        for head, value in zip(heads, values, strict=True):
            index = self._dag.chains[head][-1]
            users = self._dag.users[index]
            if users or index in self._dag.wanted:
                self.results[index] = value
            for user in users:
                self._missing[user] -= 1
                if not self._missing[user]:
                    heapq.heappush(self.ready, user)

    def drop_inputs(self, heads: Iterable[int]) -> None:
        """Drop the inputs of chains that are over, where nobody else needs them."""
        for head in heads:
            for need in self._dag.nodes[head].needs:
                self._uses[need] -= 1
                if not self._uses[need] and need not in self._dag.wanted:
                    self.results.pop(need, None)


class DagCutter:
    """Hands out what is ready, in chunks.

    Parameters
    ----------
    dag : Dag
        The graph.
    flow : Dataflow
        What is ready.
    policy : Policy
        How many chains are a chunk.
    workers : int
        How many workers there are.
    keeps : bool
        See `DagRun`.

    Attributes
    ----------
    taken : int
        How many chains have been handed out.
    broken : None
        Nothing: a graph is all there from the start.
    """

    def __init__(
        self, dag: Dag, flow: Dataflow, policy: Policy, workers: int, *, keeps: bool
    ) -> None:
        self.taken = 0
        self.broken = None
        self._dag, self._flow, self._workers, self._keeps = dag, flow, workers, keeps
        # A policy that shares out a known number shares out what is ready, each time.
        self._shares = policy.counts
        self._chunker = policy.begin(len(dag.chains), workers)

    def learn(self, size: int, seconds: float) -> bool:
        """Hear what a chunk took; say whether that is far more than those before."""
        return self._chunker.learn(size, seconds)

    def take_back(self, chunk_plan: ChunkPlan, *, slow: bool = False) -> None:  # noqa: ARG002
        """Make calls ready again that did not run."""
        self.taken -= chunk_plan.size
        self._flow.take_back(chunk_plan.indices)

    def next(self, at_most: int, below: int | None) -> ChunkPlan | None:
        """Give a chunk of what is ready, the first calls first."""
        # What is ready now is shared out: more may never come.
        ready = len(self._flow.ready)
        share = math.ceil(ready / self._workers)
        size = share if self._shares else min(share, self._chunker.size(ready))
        heads = self._flow.take(1 if self._keeps else min(size, at_most), below)
        if not heads:
            return None
        self.taken += len(heads)
        nodes, chains, results = self._dag.nodes, self._dag.chains, self._flow.results
        steps = [[(i, nodes[i]) for i in chains[head]] for head in heads]
        inputs = [[results[need] for need in nodes[head].needs] for head in heads]
        stays = self._keeps and chains[heads[0]][-1] not in self._dag.wanted
        return ChunkPlan(heads, Chunk((steps, inputs)), keep=stays)


class DagOutcome:
    """What came of each call: done, failed, not run; and why.

    Parameters
    ----------
    dag : Dag
        The graph.
    """

    def __init__(self, dag: Dag) -> None:
        self._dag = dag
        # By the heads of chains; one that has no state yet has not been run.
        self._states: dict[int, str] = {}
        self._failures: dict[int, Failure] = {}
        self._errors: dict[int, BaseException] = {}

    def done(self, heads: Iterable[int]) -> None:
        """Note chains that are done."""
        self._states.update(dict.fromkeys(heads, "done"))

    def observe(self, event: Event) -> None:
        """Note which calls failed, also where the first failure ends the call."""
        if isinstance(event, ElementFailed):
            self._states[event.failure.index] = "failed"
            self._errors[event.failure.index] = event.failure.error

    def fail(self, head: int, failure: Failure) -> list[int]:
        """Note why a chain failed; return the chains that will not run because of that."""
        self._failures[head] = failure
        lost: list[int] = []
        todo = [head]
        while todo:
            for user in self._dag.users[self._dag.chains[todo.pop()][-1]]:
                if user not in self._states:
                    self._states[user] = "not run"
                    lost.append(user)
                    todo.append(user)
        return lost

    def resolved(self, wanted: Sequence[int], results: Mapping[int, Any]) -> list[Any]:
        """Return results, and for what failed or was not run its failure.

        If several inputs of a call failed, the first of them in the calls' order is its cause:
        the order in which they failed depends on the plan.
        """
        nodes, chains = self._dag.nodes, self._dag.chains
        spoilt = dict(self._failures)
        ways: dict[int, tuple[str, ...]] = {}
        for head in spoilt:
            ways[head] = (nodes[self._failed_at(head)].name,)
        head_of = {chain[-1]: head for head, chain in chains.items()}
        for head in sorted(chains):
            if self._states.get(head) == "not run":
                needs = (head_of[need] for need in nodes[head].needs)
                cause = min(need for need in needs if need in spoilt)
                spoilt[head] = _spoilt(nodes[head].name, head, ways[cause], spoilt[cause])
                ways[head] = (ways[cause][0], *ways[cause][1:][-_WAY:], nodes[head].name)
        return [
            spoilt[head_of[index]] if head_of[index] in spoilt else results[index]
            for index in wanted
        ]

    def states(self) -> Iterator[tuple[int, str]]:
        """Tell of each call what came of it: done, failed, not run."""
        for head, chain in self._dag.chains.items():
            state = self._states.get(head, "not run")
            failed = self._failed_at(head) if state == "failed" else None
            for index in chain:
                before = failed is not None and index < failed
                after = failed is not None and index > failed
                yield index, "done" if before else "not run" if after else state

    def _failed_at(self, head: int) -> int:
        """Find which call of a chain failed."""
        names = {self._dag.nodes[index].name: index for index in self._dag.chains[head]}
        return names.get(named_in(self._errors.get(head), names) or "", head)


def _spoilt(name: str, index: int, way: tuple[str, ...], cause: Failure) -> Failure:
    error = cause.error
    first = error.__cause__ if isinstance(error, DependencyFailed) else error
    failed = DependencyFailed(
        f"{name} was not run, for it needs {' → '.join(way)}, and {way[0]} failed: "
        f"{type(first).__name__}: {first}"
    )
    failed.__cause__ = first
    return Failure(failed, index, cause.traceback, cause.host, cause.pid, cause.label)
