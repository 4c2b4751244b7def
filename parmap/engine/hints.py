"""Which random generators a function may use, guessed from its code.

The walk looks at types, and into objects of Python's own types alone: a `getattr` on an object of
the user's runs the user's code, which may raise, or change the object.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

from parmap.engine.naming import ByName
from parmap.worker.generators import name_of_global

__all__ = ["behind", "global_behind", "hints_of", "names_in"]

_CACHED = type(functools.lru_cache(abs))
_KNOWN = (MethodType, BuiltinFunctionType, functools.partial, ByName, _CACHED)


def hints_of(functions: Iterable[Callable[..., Any]]) -> tuple[str, ...]:
    """Guess which global generators functions, and the functions that they name, may use.

    A cheap hint for `Watch`: what a library does in its depths is not seen.

    Returns
    -------
    tuple of str
        Of ``"random"``, ``"numpy.random"`` and ``"torch"``.
    """
    names: set[str] = set()
    todo: list[Any] = list(functions)
    seen: dict[int, Any] = {}  # with the objects, so that no other gets their ids
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        kind = type(one)
        if kind is FunctionType:
            here, space = names_in(one.__code__), one.__globals__
            names |= here
            todo += map(space.get, here & space.keys())
            if "__wrapped__" in vars(one):
                todo.append(vars(one)["__wrapped__"])
        elif kind in _KNOWN:
            todo += behind(one)
            if global_behind(one) == "random":
                names.add("random")
        elif one is sys.modules.get("random"):
            names.add("random")
    torch = ("torch",) if "torch" in names else ()
    if "random" not in " ".join(names):
        return torch
    return ("random", *(("numpy.random",) if names & {"numpy", "np"} else ()), *torch)


def behind(thing: Any) -> tuple[Any, ...]:
    """Give the functions that a callable of a known type stands for; of others none."""
    kind = type(thing)
    if kind is MethodType:
        return () if global_behind(thing) else (thing.__func__,)
    if kind is functools.partial:
        return (thing.func,)
    if kind is ByName:
        return (thing.__wrapped__,)
    if kind is FunctionType or kind is _CACHED:
        return (vars(thing)["__wrapped__"],) if "__wrapped__" in vars(thing) else ()
    return ()


@functools.lru_cache(maxsize=256)
def names_in(code: CodeType) -> frozenset[str]:
    """Give the names of globals and attributes in a function's code, and in functions inside."""
    inner = (const for const in code.co_consts if type(const) is CodeType)
    return frozenset(code.co_names).union(*map(names_in, inner))


def global_behind(thing: Any) -> str:
    """Name the global generator that a function draws from, as `random.gauss` does."""
    if type(thing) not in (BuiltinFunctionType, MethodType):
        return ""
    return name_of_global(thing.__self__)
