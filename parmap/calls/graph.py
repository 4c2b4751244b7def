"""What: lazy calls, and computing all of them in one pool."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import BuiltinFunctionType, FunctionType
from typing import Any, Unpack
from weakref import WeakKeyDictionary

from parmap.calls.options import MapOptions, settings
from parmap.calls.signature import shows_options
from parmap.engine.callspec import refuse_shared_globals
from parmap.engine.dag import Dag, Node, Runner
from parmap.engine.dag_run import DagRun
from parmap.engine.loop import Call
from parmap.engine.streams import takes_rng
from parmap.engine.structure import Hole, Shape, shape_of, sharing_large
from parmap.engine.traits import Traits
from parmap.failures import FailureGroup
from parmap.plans.current import current_session
from parmap.untouched import name_of

__all__ = ["Delayed", "compute", "delayed"]

# What came of each call that was computed, for pictures; goes with the call.
_states: WeakKeyDictionary[Delayed, str] = WeakKeyDictionary()


class Delayed(Hole):
    """A call that has not been made: a value to pass to others, and to `compute`.

    Attributes
    ----------
    function : callable
        What to call.
    args : tuple
        Its arguments, which may hold other delayed calls at any depth.
    kwargs : dict
        Its keyword arguments, likewise.
    """

    __slots__ = ("args", "function", "kwargs")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs

    @property
    def state(self) -> str:
        """``"waiting"``; after a `compute`: ``"done"``, ``"failed"`` or ``"not run"``."""
        return _states.get(self, "waiting")

    def visualize(self, path: str | None = None) -> str:
        """Draw the graph of this call and all that it needs.

        Parameters
        ----------
        path : str, optional
            Where to write the picture.

        Returns
        -------
        str
            The picture, as SVG: drawn by Graphviz where its ``dot`` is installed.
        """
        calls, nodes, _ = _linked([self])
        picture = _drawn(calls, nodes)
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(picture)
        return picture

    def _repr_svg_(self) -> str | None:
        """Draw the graph in a notebook; a large graph stays a line of text."""
        calls, nodes, _ = _linked([self])
        return _drawn(calls, nodes) if len(calls) <= _SHOWN else None

    def __bool__(self) -> bool:
        """Refuse: there is no value yet."""
        raise TypeError(f"{self!r} has no value yet: compute it first")

    def __iter__(self) -> Any:
        """Refuse: there is no value yet."""
        raise TypeError(f"{self!r} has no value yet, so nothing to iterate over: compute it first")

    def __repr__(self) -> str:
        """Show which call it is."""
        return f"<Delayed {name_of(self.function)}>"


# Calls that a notebook draws, at most.
_SHOWN = 200


def _drawn(calls: Sequence[Delayed], nodes: Sequence[Node]) -> str:
    from parmap.calls.picture import drawn

    return drawn([(n.name, call.state, n.needs) for n, call in zip(nodes, calls, strict=True)])


# Whose attributes are not computed.
_PLAIN = (type, FunctionType, BuiltinFunctionType)


class DelayedFunction:
    """A function whose calls are delayed.

    Its arguments are typed as anything: each may be a delayed call in the place of a value.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if type(function) in _PLAIN:
            functools.update_wrapper(self, function)
        self.__name__ = name_of(function)  # and of a callable object no other attribute
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Delayed:
        """Note the call."""
        return Delayed(self.function, args, kwargs)


def delayed(fn: Callable[..., Any], /) -> DelayedFunction:
    """Make a function's calls lazy; also a decorator.

    Parameters
    ----------
    fn : callable
        The function.

    Returns
    -------
    callable
        Called like `fn`, gives a `Delayed`.

    Examples
    --------
    >>> import parmap
    >>> square = parmap.delayed(lambda x: x * x)
    >>> total = parmap.delayed(sum)
    >>> parmap.compute(total([square(i) for i in range(4)]))
    14
    """
    if not callable(fn):
        raise TypeError(f"delayed() needs a function, not {type(fn).__name__}: delayed(fn)(*args)")
    return DelayedFunction(fn)


@shows_options
def compute(*structures: Any, **options: Unpack[MapOptions]) -> Any:
    """Make delayed calls, all in one pool, each as soon as its inputs are there.

    Parameters
    ----------
    *structures : object
        Delayed calls, in lists, tuples, dicts and dataclasses nested to any depth. A call
        that stands in several places is made once.
    **options
        See `MapOptions`. ``rng=`` numbers the calls in the order in which Python would make
        them if the structure were one expression: what a call needs comes before it, from
        left to right. ``chunks`` that reorder their input are refused.

    Returns
    -------
    object
        The same structure with results in place of the delayed calls; of several
        structures, a tuple.

    Raises
    ------
    Exception
        As `pmap`; the first failure is that of the call which Python would make first.
    ValueError
        If a structure contains itself, or calls need one another in a circle.

    Examples
    --------
    >>> import parmap
    >>> double = parmap.delayed(lambda x: 2 * x)
    >>> parmap.compute({"a": [double(1), double(2)], "b": (double(double(3)), "text")})
    {'a': [2, 4], 'b': (12, 'text')}
    """
    chosen = settings("compute", options)
    if chosen.policy.reorders:
        raise ValueError(
            "a graph sets its own order: use chunks= without cost=, shuffle= or cyclic="
        )
    calls, nodes, shape = _linked(structures)
    functions, nodes = _numbered(calls, nodes)
    session = current_session()
    if chosen.root is not None:
        for function in functions:
            if not takes_rng(function):
                refuse_shared_globals(function, session.traits)
    nodes, recurring = _sharing(nodes, session.traits)
    wanted, whole = shape
    run = DagRun(Dag(nodes, set(wanted)), keeps=session.traits.keeps, recurring=recurring)
    chosen = chosen._replace(ordered=False, observers=(*chosen.observers, run.outcome.observe))
    runner = Runner(functions, chosen.root)
    call = Call(session, runner, run, chosen, buffer=run, functions=functions)
    try:
        for _ in call.results():
            pass
    finally:
        for index, state in run.outcome.states():
            _states[calls[index]] = state
    built = whole.build(run.resolved(wanted))
    computed = built if len(structures) != 1 else built[0]
    failures = sorted(call.failures, key=lambda failure: failure.index)
    if failures and chosen.errors == "group":
        raise FailureGroup(computed, failures, of=len(calls))
    return computed


def _linked(structures: Sequence[Any]) -> tuple[list[Delayed], list[Node], tuple[list[int], Shape]]:
    """Put all calls in the order in which Python would make them, and number their needs."""
    whole, outer = shape_of(tuple(structures))
    numbers: dict[Delayed, int] = {}
    calls: list[Delayed] = []
    nodes: list[Node] = []
    parts: dict[Delayed, tuple[Shape, list[Delayed]]] = {}
    stack = list(reversed(outer))
    while stack:
        call = stack[-1]
        if call in numbers:
            stack.pop()
            continue
        if call not in parts:
            parts[call] = shape_of((call.args, call.kwargs))
            missing = [need for need in parts[call][1] if need not in numbers]
            if any(need in parts for need in missing):
                raise ValueError(f"{call!r} needs its own result, by a circle of calls")
            if missing:
                stack += reversed(missing)
                continue
        shape, needs = parts.pop(call)
        stack.pop()
        numbers[call] = len(calls)
        calls.append(call)
        needed = tuple(numbers[need] for need in needs)
        nodes.append(Node(-1, shape, needed, f"{name_of(call.function)}#{numbers[call]}"))
    return calls, nodes, ([numbers[call] for call in outer], whole)


def _numbered(
    calls: list[Delayed], nodes: list[Node]
) -> tuple[list[Callable[..., Any]], list[Node]]:
    """Give the functions numbers, so that each travels once, however many calls it has."""
    numbers: dict[int, int] = {}
    functions: list[Callable[..., Any]] = []
    numbered = []
    for call, node in zip(calls, nodes, strict=True):
        number = numbers.setdefault(id(call.function), len(functions))
        if number == len(functions):
            functions.append(call.function)
        numbered.append(replace(node, function=number))
    return functions, numbered


def _sharing(nodes: list[Node], traits: Traits) -> tuple[list[Node], frozenset[int]]:
    """Have large arguments of several calls travel once; return the `id`s that have no handle."""
    if traits.shares_memory:
        return nodes, frozenset()
    shapes, recurring = sharing_large([node.shape for node in nodes], but_arrays=traits.recurring)
    nodes = [replace(node, shape=shape) for node, shape in zip(nodes, shapes, strict=True)]
    return nodes, recurring


# Public: pickles and tracebacks name it as users do, wherever it is defined.
Delayed.__module__ = compute.__module__ = delayed.__module__ = "parmap"
