"""The options of a call by name, as ``help()`` and the TAB key show them.

The functions take ``**options``, so that an option which does not exist gets an error that explains
it, and a call without options costs nothing. `inspect.signature` shows the names and the defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["DEFAULTS", "shows_options"]

F = TypeVar("F", bound=Callable[..., Any])

# `MapOptions` says what each of them is.
DEFAULTS: dict[str, Any] = {
    "chunks": "auto",
    "rng": None,
    "errors": "raise",
    "retries": 0,
    "timeout": None,
    "progress": None,
    "label": None,
}


def shows_options(function: F) -> F:
    """Have a function show its options by name; a decorator."""
    signature = inspect.signature(function)
    *named, _ = signature.parameters.values()
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in DEFAULTS.items()
    ]
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*named, *options]
    )
    return function
