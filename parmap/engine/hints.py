"""Which random generators a function may use, guessed from its code.

The walk looks at types, and into objects of Python's own types alone: a `getattr` on an object of
the user's runs the user's code, which may raise, or change the object.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from parmap.engine.naming import ByName
from parmap.transport.generators import generator_types, name_of_global
from parmap.transport.modules import is_installed

__all__ = [
    "behind",
    "global_behind",
    "hints_of",
    "is_librarys",
    "look",
    "named",
    "names_in",
]

_CACHED = type(functools.lru_cache(abs))
_KNOWN = (MethodType, BuiltinFunctionType, functools.partial, ByName, _CACHED)


def hints_of(functions: Iterable[Callable[..., Any]]) -> tuple[str, ...]:
    """Guess which global generators functions may use: see `look`."""
    return look(functions)[0]


def look(functions: Iterable[Callable[..., Any]]) -> tuple[tuple[str, ...], list[Any]]:
    """Guess which random generators functions, and the functions that they name, may use.

    A cheap hint: what a library does in its depths is not seen.

    Returns
    -------
    hints : tuple of str
        Of ``"random"``, ``"numpy.random"`` and ``"torch"``: whose global generators.
    generators : list
        Other generators that the user's own functions name, capture or have as defaults.
    """
    names: set[str] = set()
    generators: list[Any] = []
    todo: list[Any] = list(functions)
    seen: dict[int, Any] = {}  # with the objects, so that no other gets their ids
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        kind = type(one)
        if kind is FunctionType:
            here = names_in(one.__code__)
            names |= here
            held = one.__closure__ or one.__defaults__ or one.__kwdefaults__ or vars(one)
            if not held and here.isdisjoint(one.__globals__):
                continue  # a call less for many small functions
            found = named(one, here)
            todo += found
            if not _COMMON.issuperset(map(type, found)) and not is_librarys(one.__code__):
                generators += filter(_is_generator, found)
        elif kind in _KNOWN:
            todo += behind(one)
            if global_behind(one) == "random":
                names.add("random")
        elif one is sys.modules.get("random"):
            names.add("random")
    torch = ("torch",) if "torch" in names else ()
    if "random" not in " ".join(names):
        return torch, generators
    numpy = ("numpy.random",) if names & {"numpy", "np"} else ()
    return ("random", *numpy, *torch), generators


def named(function: FunctionType, names: frozenset[str]) -> list[Any]:
    """Give what a function names, also in the user's modules, what it captures, its defaults."""
    space = function.__globals__
    found: list[Any] = list(map(space.get, names & space.keys()))
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not filled yet
            found.append(cell.cell_contents)
    if ModuleType in map(type, found):
        for module in [one for one in found if type(one) is ModuleType]:
            if not _is_librarys(module):
                inside = vars(module)
                found += map(inside.get, names & inside.keys())
    found += function.__defaults__ or ()
    found += (function.__kwdefaults__ or {}).values()
    if "__wrapped__" in vars(function):
        found.append(vars(function)["__wrapped__"])
    return found


# Most globals: none is a generator.
_COMMON = frozenset(
    {type(None), bool, int, float, str, type, FunctionType, BuiltinFunctionType, ModuleType}
)


def _is_generator(thing: Any) -> bool:
    """Whether an object is a generator that repeats itself where it is made once more."""
    kind = type(thing)
    system = getattr(sys.modules.get("random"), "SystemRandom", kind)
    return (
        issubclass(kind, generator_types())
        and not issubclass(kind, system)
        and not name_of_global(thing)
    )


def _is_librarys(module: ModuleType) -> bool:
    file = vars(module).get("__file__")
    return type(file) is not str or is_installed(file)


def is_librarys(code: CodeType) -> bool:
    """Whether code is that of an installed library."""
    return is_installed(code.co_filename)


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
