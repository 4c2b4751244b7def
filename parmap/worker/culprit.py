"""Which part of an object cannot travel: walk down to it, and name the path.

The walk pickles child after child and goes down into the first that fails, so the path
ends at the smallest object to blame. It runs only after a failure, and each step pickles
less than the one before.
"""

from __future__ import annotations

import dataclasses
import functools
import pickle
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

from parmap.errors import SerializationError

__all__ = ["accuse", "unreadable"]

_DEEPEST = 20
_INPUT = (
    "Make it inside the function, or pass what it is made from (a file name, not the open file)"
)
_RESULT = "Return plain data instead (a list, not a generator; numbers, not the open file)"


def accuse(value: Any, what: str, error: BaseException) -> SerializationError:
    """Make the error that names what inside `value` cannot be pickled.

    Parameters
    ----------
    value : object
        What could not be pickled.
    what : str
        What to call it, such as ``"args"``; the path begins so. Empty where the parts'
        own names say enough.
    error : BaseException
        What pickling raised.
    """
    path, culprit = _descend(value, what)
    path = path.removeprefix(".") or "it"
    kind = type(culprit)
    reason = str(error).partition("\n")[0]
    return SerializationError(
        f"{path} cannot be sent between processes: it is of type "
        f"{kind.__module__}.{kind.__qualname__} ({type(error).__name__}: {reason}). "
        f"{_RESULT if what == 'result' else _INPUT}; or use a plan that shares memory, "
        "such as 'threads'."
    )


def unreadable(error: BaseException) -> SerializationError:
    """Make the error for something that arrived but cannot be unpickled there."""
    if isinstance(error, ModuleNotFoundError):
        advice = (
            f"The worker cannot import {error.name!r}: install it where the workers run, or "
            f"call cloudpickle.register_pickle_by_value({error.name}) before the call."
        )
    else:
        advice = (
            "Check its __reduce__, __setstate__ or __init__, and that both ends have the same "
            "versions."
        )
    return SerializationError(
        f"something arrived that cannot be unpickled: {type(error).__name__}: {error}. {advice}"
    )


def _descend(value: Any, path: str) -> tuple[str, Any]:
    for _ in range(_DEEPEST):
        for step, child in _children(value):
            if not _pickles(child):
                path, value = path + step, child
                break
        else:
            break
    return path, value


def _pickles(value: Any) -> bool:
    import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception:  # noqa: BLE001 - the question is whether it works
        return False
    return True


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Name the parts that pickling would visit, each with its step of the path."""
    match value:
        case Mapping():
            yield from ((f" key {key!r}", key) for key in value)
            yield from ((f"[{key!r}]", item) for key, item in value.items())
        case list() | tuple():
            yield from ((f"[{i}]", item) for i, item in enumerate(value))
        case set() | frozenset():
            yield from ((f" member {item!r}", item) for item in value)
        case FunctionType():
            yield from _captured(value)
        case MethodType():
            yield ".__self__", value.__self__
        case type():
            yield from ((f".{name}", item) for name, item in vars(value).items())
        case _:
            yield from _attributes(value)


def _captured(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f".__closure__[{name!r}]", cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield f".__globals__[{name!r}]", function.__globals__[name]
    yield ".__defaults__", function.__defaults__
    yield ".__kwdefaults__", function.__kwdefaults__
    yield from ((f".{name}", item) for name, item in vars(function).items())


def _names(code: CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, functools.partial):
        yield from ((f".{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
        return
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name, None)
        return
    try:
        state = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)[2]
    except Exception:  # noqa: BLE001 - it refuses to be pickled: it is the culprit itself
        return
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, Mapping):
            yield from ((f".{name}", item) for name, item in part.items())
