"""Facts about the user's objects, found without running any code of theirs.

An attribute of a user's object may be computed, may make a default, or may raise anything: a dict
with ``__getattr__``, a proxy of an object that is not there, a class with a slow property. Even
`isinstance` reads ``__class__``, which a proxy answers. So these look at types, whose slots and
dictionaries Python itself reads, and at the dictionary that an object really has.
"""

from __future__ import annotations

import functools
import sys
from types import GetSetDescriptorType
from typing import Any, TypeGuard, TypeVar

__all__ = ["bytes_of", "class_name", "has", "is_a", "name_of", "own", "shown"]

T = TypeVar("T")

_LONGEST = 60  # characters of a value in a message

# Libraries whose own classes may be asked for an attribute: they are known to answer plainly.
_LIBRARIES = frozenset(
    {"cupy", "jax", "jaxlib", "numba", "numpy", "pandas", "pyarrow", "torch", "xarray"}
)
# Whose objects are Python's own.
_PYTHON = frozenset({"_functools", "_operator", "builtins", "functools", "operator", "types"})


def is_a(thing: object, kind: type[T] | tuple[type[T], ...]) -> TypeGuard[T]:
    """Return whether an object's type derives from a class: isinstance that asks no proxy."""
    return issubclass(type(thing), kind)


def has(thing: object, name: str) -> bool:
    """Return whether an object's type defines a special method."""
    return any(name in one.__dict__ for one in type(thing).__mro__)


def own(thing: object) -> dict[str, Any]:
    """Return the dictionary that an object really has; an empty one if it has none."""
    for one in type(thing).__mro__:
        slot = one.__dict__.get("__dict__")
        if type(slot) is GetSetDescriptorType:  # else a property of the class's own
            return slot.__get__(thing)  # type: ignore[no-any-return]
    return {}


def name_of(fn: object) -> str:
    """Return a function's name; of a callable object, what a wrapper noted, or its type's name."""
    while type(fn) is functools.partial:
        fn = fn.func
    if issubclass(type(fn), type):
        return class_name(fn)
    known = _library(type(fn))
    name = getattr(fn, "__name__", None) if known in _PYTHON or known in _LIBRARIES else None
    name = name or own(fn).get("__name__")
    return name if type(name) is str else class_name(type(fn))


def class_name(kind: Any) -> str:
    """Return a class's name, past what its metaclass makes of it."""
    return type.__dict__["__name__"].__get__(kind)  # type: ignore[no-any-return]


def _library(kind: type) -> str:
    module = kind.__module__
    return module.partition(".")[0] if type(module) is str else ""


def bytes_of(value: object) -> int | None:
    """Return the bytes of an array, or of what a known library has made; None for all else."""
    kind = type(value)
    arrays = getattr(sys.modules.get("numpy"), "ndarray", None)
    if arrays is not None and issubclass(kind, arrays):
        return arrays.nbytes.__get__(value)  # type: ignore[no-any-return]  # not a subclass's own
    if _library(kind) not in _LIBRARIES:
        return None
    try:
        size = value.nbytes  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - most classes have none; a tensor without storage raises
        return None
    return size if type(size) is int else None


def shown(value: object) -> str:
    """Return a short text of a value for a message: its type, and its repr if that can be had."""
    import reprlib  # only to explain a failure

    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = _LONGEST
    text = short.repr(value)  # catches what a __repr__ raises, and does not walk long lists
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
