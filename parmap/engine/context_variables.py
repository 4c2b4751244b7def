"""The context variables of a call: which of them its functions name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import Context, ContextVar
from types import FunctionType, ModuleType
from typing import Any

from parmap import cores
from parmap.engine.hints import behind, is_librarys, named, names_in
from parmap.transport.variables import Variables
from parmap.worker import context as own

__all__ = ["known", "variables_of"]

# Variables that do not travel as such: parmap's own, and those that a `Setting` reads. Others'
# are added as they are met.
known: set[ContextVar[Any]] = {own.frame, own.threaded, cores.share}
_NAMES = frozenset(
    {"decimal_context", "numpy.ufunc.extobj", "numpy.ufunc_extobj", "format_options"}
)
# Functions that are looked at: a web of functions may have no end.
_MOST = 2_000


def variables_of(context: Context, functions: Iterable[Callable[..., Any]]) -> Variables | None:
    """Make the context variables of a call; None where the context has none of the script's."""
    for variable in context:
        if variable not in known and _is_known(variable.name):
            known.add(variable)
    if known.issuperset(context):
        return None
    named = [one for one in _named_by(functions) if one in context and one not in known]
    return Variables(context, named)


def _is_known(name: str) -> bool:
    return name in _NAMES or name.startswith("parmap.")


def _named_by(functions: Iterable[Any]) -> list[ContextVar[Any]]:
    """Find the variables that functions name, and those that the functions they name do.

    Of installed packages, only those are looked into that the functions themselves are of.
    """
    found: dict[int, ContextVar[Any]] = {}
    todo: list[Any] = list(functions)
    own = {_package(one) for one in todo if type(one) is FunctionType}
    seen: dict[int, Any] = {}  # with the objects, so that no other gets their ids
    while todo and len(seen) < _MOST:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        kind = type(one)
        if kind is ContextVar:
            found[id(one)] = one
        elif kind is FunctionType:
            if _package(one) in own or not is_librarys(one.__code__):
                todo += _named(one)
        elif issubclass(kind, type):
            todo += _methods(one)
        elif kind is not ModuleType:
            todo += behind(one)
            todo.append(kind)  # the methods of a callable object
    return list(found.values())


def _package(function: FunctionType) -> str:
    return str(function.__globals__.get("__name__")).partition(".")[0]


def _named(function: FunctionType) -> list[Any]:
    """Give what a function names; of modules of libraries, the variables alone."""
    names = names_in(function.__code__)
    found = named(function, names)
    for module in [one for one in found if type(one) is ModuleType]:
        inside = vars(module)
        parts = map(inside.get, names & inside.keys())
        found += [part for part in parts if type(part) is ContextVar]
    return found


def _methods(kind: type) -> list[Any]:
    """Give the functions that a class of the script's defines."""
    members = type.__dict__["__dict__"].__get__(kind).values()
    return [one for one in members if type(one) is FunctionType]
