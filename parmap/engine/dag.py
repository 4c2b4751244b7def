"""A graph of calls, fed to the one loop: what is ready goes out, what comes back makes ready.

To the loop a graph is both its input and its result buffer. There are no levels: a call goes out
once its inputs are there. Calls in single file, each the only user of the one before, are
one element: they run in one worker without coming home between.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parmap.engine.chunkers import Chunker
from parmap.engine.chunks import ChunkPlan
from parmap.engine.policies import Policy
from parmap.engine.streams import takes_rng
from parmap.engine.structure import Shape
from parmap.errors import DependencyFailed, add_note
from parmap.failures import Failure
from parmap.observe.events import ElementFailed, Event
from parmap.transport import shared as sharing
from parmap.transport.messages import Chunk
from parmap.transport.root import Root
from parmap.untouched import own
from parmap.worker.random_state import isolated_rng
from parmap.worker.rng import streamed

__all__ = ["Dag", "Node", "Runner"]


@dataclass(frozen=True, slots=True)
class Node:
    """One call of a graph.

    Parameters
    ----------
    function : int
        Which function, in the graph's list.
    shape : Shape
        ``(args, kwargs)``, with holes for the results of others.
    needs : tuple of int
        The nodes whose results fill the holes; all come before this one.
    name : str
        What to call it in messages.
    """

    function: int
    shape: Shape
    needs: tuple[int, ...]
    name: str


class Runner:
    """Runs calls in single file; what the workers get as the function of the map.

    Parameters
    ----------
    functions : list of callable
        All functions of the graph.
    root : Root or None
        Where the calls' random streams begin; call i gets stream i.
    """

    def __init__(self, functions: list[Callable[..., Any]], root: Root | None) -> None:
        self._functions, self._root = functions, root

    def __call__(self, steps: Sequence[tuple[int, Node]], inputs: Any, rng: Any = None) -> Any:  # noqa: ARG002
        """Run the steps; the first gets `inputs`, each other the result before it.

        The stream that the loop gives is the element's; each call has its own instead.
        """
        for place, (index, node) in enumerate(steps):
            args, kwargs = node.shape.build(inputs)
            if sharing.handles_exist():
                args, kwargs = sharing.unwrapped(args), sharing.unwrapped_names(kwargs)
            try:
                inputs = (self._call(index, node, args, kwargs),)
            except BaseException as error:
                row = f", call {place + 1} of {len(steps)} in a row" if len(steps) > 1 else ""
                add_note(error, f"{_NOTE}{node.name}{row}")
                raise
        return inputs[0]

    def _call(self, index: int, node: Node, args: Any, kwargs: Any) -> Any:
        function = self._functions[node.function]
        if sharing.handles_exist():
            function = sharing.unwrapped_partial(function)
        if self._root is None:
            return function(*args, **kwargs)
        keyword = takes_rng(function) and "rng" not in kwargs
        bound = functools.partial(function, **kwargs) if kwargs else function
        call = streamed(bound, self._root, [args], [index], keyword=keyword)
        if keyword:
            return next(call)
        with isolated_rng():
            return next(call)


class Dag:
    """A graph at work: a feed, its cutting, and its result buffer.

    Parameters
    ----------
    nodes : sequence of Node
        The calls; each comes after those that it needs.
    wanted : set of int
        The nodes whose results are asked for.
    keeps : bool, default False
        Whether all other results can stay with the workers, to be handed on from there. Then
        each run of calls is a chunk of its own.
    """

    def __init__(self, nodes: Sequence[Node], wanted: set[int], *, keeps: bool = False) -> None:
        self.results: dict[int, Any] = {}
        self.released = 0
        self._nodes = nodes
        self._wanted = wanted
        self._keeps = keeps
        users: list[list[int]] = [[] for _ in nodes]
        for index, node in enumerate(nodes):
            for need in node.needs:
                users[need].append(index)
        self._runs = _in_single_file(nodes, users, wanted)
        self._users = users
        # Uses of a result that are still to come; it is dropped at the last.
        self._uses = {i: len(users[i]) for i in range(len(nodes))}
        self._missing = {run[0]: len(nodes[run[0]].needs) for run in self._runs.values()}
        self._ready = [head for head, count in self._missing.items() if not count]
        heapq.heapify(self._ready)
        self._chunker: Chunker | None = None
        self._workers, self._shares = 1, False
        self._handed_out = 0
        # By the heads of runs; one that has no state yet has not been run.
        self._states: dict[int, str] = {}
        self._failures: dict[int, Failure] = {}
        self._errors: dict[int, BaseException] = {}

    # -- the feed --------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """How many elements there are: calls, those in single file counted once."""
        return len(self._runs)

    @property
    def constants(self) -> Mapping[int, Any]:
        """None: a call's arguments are its own."""
        return {}

    @property
    def load(self) -> None:
        """Nothing: all results are wanted at once."""
        return

    def cutter(self, policy: Policy, workers: int, *, lists: bool) -> Dag:  # noqa: ARG002
        """Begin; the graph cuts itself."""
        # A policy that shares out a known number shares out what is ready, each time.
        self._shares = policy.counts
        self._chunker = policy.begin(self.total, workers)
        self._workers = workers
        return self

    # -- the cutting -----------------------------------------------------------------------

    @property
    def taken(self) -> int:
        """How many elements have been handed out."""
        return self._handed_out

    @property
    def broken(self) -> None:
        """Nothing: a graph is all there from the start."""
        return

    def learn(self, size: int, seconds: float) -> None:
        """Hear what a chunk took."""
        assert self._chunker is not None
        self._chunker.learn(size, seconds)

    def take_back(self, chunk_plan: ChunkPlan) -> None:
        """Make calls ready again that did not run."""
        self._handed_out -= chunk_plan.size
        for head in chunk_plan.indices:
            heapq.heappush(self._ready, head)

    def next(self, at_most: int, below: int | None) -> ChunkPlan | None:
        """Give a chunk of what is ready, the first calls first."""
        assert self._chunker is not None
        # What is ready now is shared out: more may never come.
        share = math.ceil(len(self._ready) / self._workers)
        size = share if self._shares else min(share, self._chunker.size(len(self._ready)))
        size = 1 if self._keeps else min(size, at_most)
        heads: list[int] = []
        while self._ready and len(heads) < size and (below is None or self._ready[0] < below):
            heads.append(heapq.heappop(self._ready))
        if not heads:
            return None
        self._handed_out += len(heads)
        steps = [[(i, self._nodes[i]) for i in self._runs[head]] for head in heads]
        inputs = [[self.results[need] for need in self._nodes[head].needs] for head in heads]
        stays = self._keeps and self._runs[heads[0]][-1] not in self._wanted
        return ChunkPlan(heads, Chunk((steps, inputs)), keep=stays)

    # -- the result buffer -----------------------------------------------------------------

    def put(self, indices: Sequence[int], values: list[Any]) -> None:
        """Take results; what had waited for the last of its inputs becomes ready."""
        for head, value in zip(indices, values, strict=True):
            self._use_up(head)
            self._states[head] = "done"
            self._arrive(self._runs[head][-1], value)

    def fail(self, index: int, failure: Failure) -> None:
        """Note a failure. As a result it would be a value: a call may return one of its own."""
        self._use_up(index)
        self._failures[index] = failure
        self._spoil(index)

    def ready(self) -> Iterator[list[Any]]:
        """Give nothing: results stay in `results`."""
        return iter(())

    def _arrive(self, index: int, value: Any) -> None:
        if self._users[index] or index in self._wanted:
            self.results[index] = value
        for user in self._users[index]:
            self._missing[user] -= 1
            if not self._missing[user]:
                heapq.heappush(self._ready, user)

    def _use_up(self, head: int) -> None:
        """Drop the inputs of a run that is over, where nobody else needs them."""
        for need in self._nodes[head].needs:
            self._uses[need] -= 1
            if not self._uses[need] and need not in self._wanted:
                self.results.pop(need, None)

    def _spoil(self, head: int) -> None:
        """Let go of all that was waiting for what failed."""
        todo = [head]
        while todo:
            for user in self._users[self._runs[todo.pop()][-1]]:
                if user not in self._states:
                    self._states[user] = "not run"
                    self._use_up(user)
                    todo.append(user)

    # -- the outcome -----------------------------------------------------------------------

    def observe(self, event: Event) -> None:
        """Note which calls failed, also where the first failure ends the call."""
        if isinstance(event, ElementFailed):
            self._states[event.failure.index] = "failed"
            self._errors[event.failure.index] = event.failure.error

    def resolved(self, wanted: Sequence[int]) -> list[Any]:
        """Give results, and for what failed or was not run its failure.

        Which of several failed inputs a call is laid to is settled here, in the calls' order:
        the order in which they failed depends on the plan.
        """
        spoilt = dict(self._failures)
        ways: dict[int, tuple[str, ...]] = {}
        for head in spoilt:
            ways[head] = (self._nodes[self._failed_at(head)].name,)
        head_of = {run[-1]: head for head, run in self._runs.items()}
        for head in sorted(self._runs):
            if self._states.get(head) == "not run":
                needs = (head_of[need] for need in self._nodes[head].needs)
                cause = min(need for need in needs if need in spoilt)
                spoilt[head] = _spoilt(self._nodes[head].name, head, ways[cause], spoilt[cause])
                ways[head] = (ways[cause][0], *ways[cause][1:][-_WAY:], self._nodes[head].name)
        return [
            spoilt[head_of[index]] if head_of[index] in spoilt else self.results[index]
            for index in wanted
        ]

    def states(self) -> Iterator[tuple[int, str]]:
        """Tell of each call what came of it: done, failed, not run."""
        for head, run in self._runs.items():
            state = self._states.get(head, "not run")
            failed = self._failed_at(head) if state == "failed" else None
            for index in run:
                before = failed is not None and index < failed
                after = failed is not None and index > failed
                yield index, "done" if before else "not run" if after else state

    def _failed_at(self, head: int) -> int:
        """Find which call of a run failed: the worker has noted its name on the error."""
        notes = own(self._errors.get(head)).get("__notes__", ())
        names = {note.removeprefix(_NOTE).partition(",")[0] for note in notes}
        return next((i for i in self._runs[head] if self._nodes[i].name in names), head)


def _spoilt(name: str, index: int, way: tuple[str, ...], cause: Failure) -> Failure:
    error = cause.error
    first = error.__cause__ if isinstance(error, DependencyFailed) else error
    failed = DependencyFailed(
        f"{name} was not run, for it needs {' → '.join(way)}, and {way[0]} failed: "
        f"{type(first).__name__}: {first}"
    )
    failed.__cause__ = first
    return Failure(failed, index, cause.traceback, cause.host, cause.pid, cause.label)


# What the name of the call that failed follows, in a note on its error.
_NOTE = "parmap: in "
# Names in a message of how a failure spread; a chain may be long.
_WAY = 5


def _in_single_file(
    nodes: Sequence[Node], users: Sequence[Sequence[int]], wanted: set[int]
) -> dict[int, list[int]]:
    """Find runs of nodes of which each is the only user of the one before; by their heads."""
    runs: dict[int, list[int]] = {}
    head_of: dict[int, int] = {}  # by the last node so far
    for index, node in enumerate(nodes):
        before = node.needs[0] if len(node.needs) == 1 else None
        if before is not None and len(users[before]) == 1 and before not in wanted:
            head = head_of.pop(before)
            runs[head].append(index)
            head_of[index] = head
        else:
            runs[index] = [index]
            head_of[index] = index
    return runs
