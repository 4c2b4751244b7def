"""A graph of calls: its structure, and what the workers run of it.

Both never change. `parmap.engine.dag_run` has the graph at work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from parmap.engine.streams import takes_rng
from parmap.engine.structure import Shape
from parmap.errors import add_note
from parmap.transport import shared as sharing
from parmap.transport.root import Root
from parmap.untouched import own
from parmap.worker.random_state import isolated_rng
from parmap.worker.rng import streamed

__all__ = ["Dag", "Node", "Runner", "named_in"]


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


class Dag:
    """The structure of a graph, which never changes.

    A chain is calls in single file: each is the only user of the one before, whose result nobody
    asks for. They run in one worker, without coming home between. To the loop a chain is one
    element; its index is that of its first call, its head.

    Parameters
    ----------
    nodes : sequence of Node
        The calls; each comes after those that it needs.
    wanted : set of int
        The nodes whose results are asked for.

    Attributes
    ----------
    users : list of list of int
        The nodes that need each node's result.
    chains : dict of int to list of int
        The nodes of each chain, by its head. A call that is in no file is a chain, too.
    """

    def __init__(self, nodes: Sequence[Node], wanted: set[int]) -> None:
        self.nodes, self.wanted = nodes, wanted
        self.users: list[list[int]] = [[] for _ in nodes]
        for index, node in enumerate(nodes):
            for need in node.needs:
                self.users[need].append(index)
        self.chains = _chains(nodes, self.users, wanted)


def _chains(
    nodes: Sequence[Node], users: Sequence[Sequence[int]], wanted: set[int]
) -> dict[int, list[int]]:
    """Find the chains, by their heads."""
    chains: dict[int, list[int]] = {}
    head_of: dict[int, int] = {}  # by the last node so far
    for index, node in enumerate(nodes):
        before = node.needs[0] if len(node.needs) == 1 else None
        if before is not None and len(users[before]) == 1 and before not in wanted:
            head = head_of.pop(before)
            chains[head].append(index)
            head_of[index] = head
        else:
            chains[index] = [index]
            head_of[index] = index
    return chains


class Runner:
    """Runs the calls of a chain; what the workers get as the function of the map.

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


# What the name of the call that failed follows, in a note on its error.
_NOTE = "parmap: in "


def named_in(error: BaseException | None, names: Iterable[str]) -> str | None:
    """Return which of these calls an error comes from: a `Runner` has noted it."""
    notes = own(error).get("__notes__", ())
    noted = {note.removeprefix(_NOTE).partition(",")[0] for note in notes}
    return next((name for name in names if name in noted), None)
