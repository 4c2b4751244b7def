"""Which random generators a function may use, guessed from its code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

__all__ = ["hints_of"]


def hints_of(functions: Iterable[Callable[..., Any]]) -> tuple[str, ...]:
    """Guess which global generators functions, and the functions that they name, may use.

    A cheap hint for `Watch`: what a library does in its depths is not seen.

    Returns
    -------
    tuple of str
        Of ``"random"`` and ``"numpy.random"``.
    """
    seen: set[int] = set()
    todo: list[Any] = list(functions)
    names: set[str] = set()
    while todo:
        one = todo.pop()
        one = inspect.unwrap(one) if hasattr(one, "__wrapped__") else one
        one = one.func if isinstance(one, functools.partial) else one
        code = getattr(one, "__code__", None)
        if not isinstance(code, CodeType) or id(code) in seen:
            continue
        seen.add(id(code))
        names |= _names(code)
        space = getattr(one, "__globals__", {})
        named = [space[name] for name in code.co_names if name in space]
        if any(map(_is_random, named)):
            names.add("random")
        todo += filter(inspect.isfunction, named)
    if not any("random" in name for name in names):
        return ()
    return ("random", "numpy.random") if names & {"numpy", "np"} else ("random",)


@functools.lru_cache(maxsize=256)
def _names(code: CodeType) -> frozenset[str]:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return frozenset(code.co_names).union(*map(_names, inner))


def _is_random(thing: Any) -> bool:
    """Recognise ``random`` under another name, and what was imported from it."""
    return "random" in (getattr(thing, "__name__", ""), getattr(thing, "__module__", "")) or (
        type(getattr(thing, "__self__", None)).__module__ == "random"
    )
