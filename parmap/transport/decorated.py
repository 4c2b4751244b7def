"""What decorators of the standard library make of a script's functions, and how it travels.

Python pickles it by its name alone, or not at all: it holds a lock, or weak references. So it is
made once more, from the function that it was made from; a cache begins empty.
"""

from __future__ import annotations

import copyreg
import functools
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from parmap.transport import captured, modules
from parmap.untouched import own

__all__ = [
    "DISPATCH",
    "REDUCERS",
    "VALIDATING",
    "amended",
    "has_name",
    "reduced_dispatch",
    "reduced_validating",
]

# What the decorators add to a function by themselves.
_ADDED = frozenset({"__wrapped__", "cache_parameters", "register", "dispatch", "registry"})
_ADDED |= {"_clear_cache"}


def has_name(thing: Any) -> bool:
    """Tell whether workers find an object by its module and its name there."""
    known = own(thing)
    module, name = known.get("__module__"), known.get("__qualname__")
    if type(module) is not str or type(name) is not str or module == "__main__":
        return False
    first, *others = name.split(".")
    found: Any = modules.space_of(sys.modules.get(module)).get(first)
    for part in others:
        found = own(found).get(part)
    return found is thing and modules.by_name(module)


def _rest(thing: Any) -> dict[str, Any] | None:
    """Return what somebody has added to a function."""
    rest = {name: value for name, value in own(thing).items() if name not in _ADDED}
    return rest or None


def _cached(cached: Any) -> Any:
    if has_name(cached):
        return own(cached)["__qualname__"]
    options = cached.cache_parameters()
    given = own(cached)["__wrapped__"], options["maxsize"], options["typed"]
    return make_cached, given, _rest(cached)


def make_cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:  # noqa: FBT001
    """Give a function a cache, which is empty."""
    return functools.lru_cache(maxsize, typed)(function)


def _property(prop: functools.cached_property[Any]) -> Any:
    state = {name: value for name, value in own(prop).items() if name not in ("func", "lock")}
    return functools.cached_property, (own(prop)["func"],), state


# The code of all functions that `functools.singledispatch` makes.
_ONE: Any = functools.singledispatch(lambda _: None)
DISPATCH = _ONE.__code__


def reduced_dispatch(function: FunctionType) -> Any:
    """Reduce what `functools.singledispatch` has made, to its implementations."""
    registry: dict[type, Any] = dict(vars(function)["registry"])
    first = registry.pop(object)
    state = list(registry.items()), _rest(function)
    return functools.singledispatch, (first,), state, None, None, register


def amended(pickler: Any, thing: Any) -> Any:
    """Return the reduction of an object by cloudpickle's pickler, as it travels here."""
    made, kind = pickler.reducer_override(thing), type(thing)
    if made is NotImplemented and kind is FunctionType and not modules.by_name(thing.__module__):
        made = pickler._dynamic_function_reduce(thing)  # noqa: SLF001
    if kind is ModuleType and not captured.stays(thing):
        space = modules.space_of(thing)
        return ModuleType, ("",), {name: space[name] for name in space if name[:2] != "__"}
    if kind is FunctionType and type(made) is tuple and thing.__code__ is DISPATCH:
        return reduced_dispatch(thing)
    return made


def register(function: Any, state: tuple[list[tuple[type, Any]], dict[str, Any] | None]) -> None:
    """Add implementations for some types."""
    for kind, implementation in state[0]:
        function.register(kind, implementation)
    vars(function).update(state[1] or {})


def _dispatch_method(method: functools.singledispatchmethod[Any]) -> Any:
    return make_dispatch_method, (own(method)["func"],), own(method)["dispatcher"], None, None, give


def make_dispatch_method(function: Any) -> functools.singledispatchmethod[Any]:
    """Make a method that dispatches, without its implementations."""
    return functools.singledispatchmethod(function)


def give(method: Any, dispatcher: Any) -> None:
    """Give a method its implementations."""
    method.dispatcher = dispatcher


# What pydantic's `validate_call` puts into a function's closure: its class's name, and its module.
# By their names, since few scripts load them.
VALIDATING = {"ValidateCallWrapper": "pydantic._internal._validate_call"}


_NEW: Callable[..., Any] = vars(copyreg)["__newobj__"]


def reduced_validating(wrapper: Any) -> Any:
    """Reduce what validates a function's arguments.

    The names among which it has looked for annotations, all globals of the script, do not travel.
    The configuration travels as a dictionary: the object around that cannot be unpickled, since
    it has a ``__getattr__`` that asks for itself.
    """
    kind = type(wrapper)
    slots = {name: getattr(wrapper, name) for name in kind.__slots__ if hasattr(wrapper, name)}
    if "config_wrapper" not in slots or not slots.get("__pydantic_complete__"):
        return wrapper.__reduce_ex__(4)  # of another version
    slots["config_wrapper"] = slots["config_wrapper"].config_dict
    slots.pop("ns_resolver", None)
    return _NEW, (kind,), slots, None, None, set_validating


def set_validating(wrapper: Any, slots: dict[str, Any]) -> None:
    """Give its state to what validates a function's arguments."""
    made = sys.modules["pydantic._internal._config"].ConfigWrapper
    slots["config_wrapper"] = made(slots["config_wrapper"], check=False)
    for name, value in slots.items():
        setattr(wrapper, name, value)


REDUCERS: dict[type, Callable[[Any], Any]] = {
    type(functools.lru_cache(abs)): _cached,
    functools.cached_property: _property,
    functools.singledispatchmethod: _dispatch_method,
}
