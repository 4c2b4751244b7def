"""The values of a plan's options: checked, and resolved."""

from __future__ import annotations

import functools
import importlib
import operator
from typing import Any

from parmap.errors import PlanError

__all__ = ["function_of", "whole"]

_WORKERS = "give a whole number, at least 1"
_MOST = 1_000_000  # more are a mistake, which would be noticed when this machine is full


def whole(value: Any, option: str = "workers", what: str = _WORKERS) -> int:
    """Return the value of an option as a whole number of at least 1; refuse all others."""
    try:
        number = operator.index(value) if not isinstance(value, bool) else 0
    except TypeError:
        number = 0
    if number < 1:
        raise PlanError(f"{option}={value!r}: {what}")
    if number > _MOST:
        raise PlanError(f"{option}={number:.3g}: give {_MOST:,} at most")
    return number


def function_of(option: str, value: Any) -> Any:
    """Return the function that an option is, or names as ``"package.module:function"``."""
    if value is None or callable(value):
        return value
    module, colon, path = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not (module and colon):
        raise PlanError(
            f"{option}={value!r}: give a function without arguments, or a text such as "
            "'package.module:function'"
        )
    try:
        found = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise PlanError(f"{option}={value!r} cannot be imported: {error}") from error
    if not callable(found):
        raise PlanError(f"{option}={value!r} names {found!r}, which is not a function")
    return found
