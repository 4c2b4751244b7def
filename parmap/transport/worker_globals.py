"""Globals that ``setup=`` assigns: they belong to the worker, and do not travel with functions.

``setup=`` runs in a worker with globals of its own, as each function of the script does there. So
what it assigns to a global would be heard of by nobody, and a later function would bring the
caller's value along. Instead its names stand in later functions' pickles as references.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import CodeType, FunctionType, MethodType
from typing import Any

from parmap.transport import modules
from parmap.untouched import own

__all__ = ["Declared", "Reference", "owned", "owning"]

Owned = Mapping[int, frozenset[str]]

# While something is sent to workers: which names are their own, by the ids of the globals here.
owned: ContextVar[Owned | None] = ContextVar("parmap.owned", default=None)


@contextmanager
def owning(names: Owned) -> Iterator[None]:
    """Send functions, in the block, to workers that have globals of their own."""
    token = owned.set(names)
    try:
        yield
    finally:
        owned.reset(token)


class Declared:
    """The functions behind ``setup=`` that declare names global.

    Parameters
    ----------
    functions : sequence of (FunctionType, frozenset of str)
        The functions, with the names.
    travelled : bool, default False
        Whether they are copies in a worker, with globals that are not the caller's.
    """

    def __init__(
        self, functions: Sequence[tuple[FunctionType, frozenset[str]]], *, travelled: bool = False
    ) -> None:
        self._functions, self._travelled = functions, travelled

    @classmethod
    def behind(cls, setup: Callable[..., object]) -> Declared:
        """Find them: what `setup` calls counts, as far as its code names it."""
        found: list[tuple[FunctionType, frozenset[str]]] = []
        seen, todo = {}, [setup]
        while todo:
            one: Any = todo.pop()
            if id(one) in seen:
                continue
            seen[id(one)] = one  # with the object, so that no other gets its id
            if type(one) is not FunctionType:
                todo += _within(one)
            elif one.__module__ == "__main__" or not modules.by_name(one.__module__):
                if names := _assigned(one.__code__):
                    found.append((one, names))
                todo += _named(one)
        return cls(found)

    @property
    def names(self) -> Owned:
        """The names that they declare, by the ids of their globals."""
        found: dict[int, frozenset[str]] = {}
        for one, names in self._functions:
            found[id(one.__globals__)] = found.get(id(one.__globals__), frozenset()) | names
        return found

    def take(self) -> None:
        """Note, in a worker, where the globals are that they have assigned."""
        for one, names in self._functions if self._travelled else ():
            _spaces.update({(one.__module__, name): one.__globals__ for name in names})

    def __reduce__(self) -> Any:
        return _travelled, (self._functions,)


def _travelled(functions: Sequence[tuple[FunctionType, frozenset[str]]]) -> Declared:
    return Declared(functions, travelled=True)


def _within(thing: Any) -> list[Any]:
    """Return the functions that something else calls: a method, a partial, a callable object."""
    kind = type(thing)
    if kind is MethodType:
        return [thing.__func__]
    if kind is functools.partial:
        return [thing.func]
    found = [one.__dict__["__call__"] for one in kind.__mro__ if "__call__" in one.__dict__][:1]
    return [one for one in (*found, own(thing).get("__wrapped__")) if type(one) is FunctionType]


def _named(function: FunctionType) -> list[Any]:
    """Return the functions that a function's code names, or that it captures."""
    space = function.__globals__
    found = [space[name] for name in _names(function.__code__) & space.keys()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not filled yet
            found.append(cell.cell_contents)
    return [one for one in found if type(one) in (FunctionType, MethodType, functools.partial)]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if type(const) is CodeType:
            yield from _codes(const)


def _names(code: CodeType) -> set[str]:
    return {name for one in _codes(code) for name in one.co_names}


@functools.lru_cache(maxsize=256)
def _assigned(code: CodeType) -> frozenset[str]:
    """Return the globals that a function assigns."""
    import dis  # 5 ms, for which only a script with a setup= waits

    found = (step for one in _codes(code) for step in dis.get_instructions(one))
    return frozenset([step.argval for step in found if step.opname == "STORE_GLOBAL"])


class Reference:
    """Stands, in a pickle, for a global that is the worker's own.

    Parameters
    ----------
    module, name : str
        Which.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __reduce__(self) -> Any:
        return value_of, (self._module, self._name)


# In a worker: the globals of the function that has assigned a name of a module.
_spaces: dict[tuple[str, str], dict[str, Any]] = {}


def value_of(module: str, name: str) -> Any:
    """Return, in a worker, what ``setup=`` has assigned to a global."""
    try:
        return _spaces[module, name][name]
    except KeyError:
        raise NameError(
            f"setup= declares {name!r} global, and has not assigned it in this worker", name=name
        ) from None
