"""Context variables that functions name, with their values: pickle refuses them.

A variable of a module that workers can import is that module's, there, too. Any other is made anew,
once in each worker process, by its key. A variable's value is that of the call's context: it is
pickled with the variable, for `Variables.apply` to set it before each chunk; in a chunk's own
pickle, it is set as that is read.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Sequence
from contextvars import Context, ContextVar
from types import ModuleType
from typing import Any, NamedTuple

from parmap.errors import SerializationError, said
from parmap.transport.identity import Key, fresh_key, is_own

__all__ = ["Travelling", "Variables", "reduced"]

_NOTHING = object()


class Variables:
    """The context variables of a call.

    In the caller, it has the call's context. In a worker, it has the values that came.

    Parameters
    ----------
    context : Context, optional
        The call's.
    named : sequence of ContextVar
        Those that the call's functions name, where they travel by name.
    """

    __slots__ = ("_found", "_named", "context")

    def __init__(
        self, context: Context | None = None, named: Sequence[ContextVar[Any]] = ()
    ) -> None:
        self.context, self._named = context, list(named)
        self._found: list[tuple[ContextVar[Any], bytes]] = []

    def add(self, variable: ContextVar[Any], value: bytes) -> None:
        """Take in a variable that has come."""
        self._found.append((variable, value))

    def apply(self) -> None:
        """Set the variables that have come, in the context that runs."""
        for variable, value in self._found:
            variable.set(pickle.loads(value))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel without the context. As the named variables are pickled, their values are added.

        So are those of the variables in what this is pickled with: for pickle, it is one object.
        """
        return Variables, (), self._named

    def __setstate__(self, named: object) -> None:
        """Do nothing: the variables that are named have been added as they came."""


class _Where(NamedTuple):
    """Which variables are being packed: those of a context; into a spec, if not into a chunk."""

    context: Context
    into: Variables | None


_where: ContextVar[_Where | None] = ContextVar("parmap.where", default=None)


class Travelling:
    """Packs context variables with the values of a call, while the block runs.

    Parameters
    ----------
    variables : Variables
        The call's.
    spec : bool
        Whether its spec is packed, and not a chunk.
    """

    __slots__ = ("_spec", "_token", "_variables")

    def __init__(self, variables: Variables, *, spec: bool) -> None:
        self._variables, self._spec = variables, spec

    def __enter__(self) -> None:
        context = self._variables.context
        assert context is not None
        self._token = _where.set(_Where(context, self._variables if self._spec else None))

    def __exit__(self, *error: object) -> None:
        _where.reset(self._token)


class _Place(NamedTuple):
    """Where a variable is found: the module that has it as a global, if one does; and its key."""

    key: Key
    module: str
    attribute: str


# By their numbers (`id`), with the variables, so that no other gets that number. Contexts keep them
# for good, too: they are made at the top of modules.
_places: dict[int, tuple[ContextVar[Any], _Place]] = {}
# Those of this process, and those of others that were made here, by their keys.
_known: dict[Key, ContextVar[Any]] = {}


# Pickles a value by cloudpickle.
_Pack = Callable[[Any], bytes]


def reduced(variable: ContextVar[Any], pack: _Pack) -> tuple[Any, ...]:
    """Reduce a variable to its place, with its default and its value, which are packed.

    Raises
    ------
    SerializationError
        If the value cannot travel, or the default where there is no value.
    """
    where = _where.get()
    value = _NOTHING if where is None else where.context.get(variable, _NOTHING)
    try:
        default: Any = Context().run(variable.get)
    except LookupError:
        default = _NOTHING
    packed = None if value is _NOTHING else _packed(variable, value, pack)
    try:
        usual = None if default is _NOTHING else _packed(variable, default, pack)
    except SerializationError:
        if packed is None:
            raise
        usual = None  # nobody asks for it
    made = (_made, (variable.name, _place(variable), usual))
    if packed is None:
        return made
    assert where is not None
    return (*made, (where.into, packed), None, None, _arrive)


def _packed(variable: ContextVar[Any], value: Any, pack: _Pack) -> bytes:
    try:
        return pack(value)
    except Exception as error:
        raise SerializationError(
            f"the value of the context variable {variable.name!r}, of type "
            f"{type(value).__qualname__}, cannot be sent between processes "
            f"({type(error).__name__}: {said(error)}). Pass what the function needs of it as an "
            "argument, or use a plan that shares memory, such as 'threads'"
        ) from error


def _place(variable: ContextVar[Any]) -> tuple[Key, str, str]:
    known = _places.get(id(variable))
    if known is None:
        found = _Place(fresh_key(), *_home(variable))
        _known[found.key] = variable
        known = _places.setdefault(id(variable), (variable, found))
    return tuple(known[1])  # type: ignore[return-value]


def _home(variable: ContextVar[Any]) -> tuple[str, str]:
    """Find the module that has a variable as a global; not the script, which workers have not."""
    for name, module in list(sys.modules.items()):
        if type(module) is ModuleType and name not in ("__main__", "__mp_main__"):
            for attribute, value in list(vars(module).items()):
                if value is variable:
                    return name, attribute
    return "", ""


def _made(name: str, place: tuple[Key, str, str], default: bytes | None) -> ContextVar[Any]:
    """Give a variable that has come."""
    key, module, attribute = place
    variable = _known.get(key)
    if variable is not None:
        return variable
    if module and not is_own(key):
        try:
            found = vars(importlib.import_module(module)).get(attribute)
        except ImportError:
            found = None  # a module that workers cannot import: then its functions come by value
        if type(found) is ContextVar:
            return _known.setdefault(key, found)
    made: ContextVar[Any] = (
        ContextVar(name) if default is None else ContextVar(name, default=pickle.loads(default))  # noqa: B039 - it is the script's own
    )
    return _known.setdefault(key, made)


def _arrive(variable: ContextVar[Any], state: tuple[Variables | None, bytes]) -> None:
    """Take in the value of a variable that has come."""
    into, value = state
    if into is None:
        variable.set(pickle.loads(value))
    else:
        into.add(variable, value)
