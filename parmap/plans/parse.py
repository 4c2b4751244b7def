"""The text form of plans: what `parmap.plan` reads, and ``str(plan)`` writes."""

from __future__ import annotations

import ast
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from parmap.errors import PlanError
from parmap.plans.registry import names
from parmap.untouched import is_a, name_of

__all__ = ["parse", "written"]

Parsed = tuple[str, dict[str, Any]]


def parse(text: str) -> list[Parsed]:
    """Read a plan's text form: a name, a call with options, or a list of these.

    Raises
    ------
    PlanError
        If it is not of that form.

    Examples
    --------
    >>> parse("processes(workers=4)")
    [('processes', {'workers': 4})]
    >>> parse("[threads, sequential]")
    [('threads', {}), ('sequential', {})]
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise _unreadable(text) from None
    parts = tree.elts if isinstance(tree, ast.List) else [tree]
    if not parts:
        raise PlanError(f"the plan {text!r} is an empty list: name at least one")
    return [_parsed(part, text) for part in parts]


def _parsed(tree: ast.expr, text: str) -> Parsed:
    match tree:
        case ast.Name(id=name):
            return name, {}
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            try:
                return name, {
                    str(k.arg): ast.literal_eval(k.value) for k in keywords if k.arg or _fail()
                }
            except (TypeError, ValueError):  # {[]: 1} has an unhashable key
                raise _unreadable(text) from None
    raise _unreadable(text)


def _fail() -> bool:
    raise ValueError("** in a plan's text")


def _unreadable(text: str) -> PlanError:
    return PlanError(
        f"the plan {text!r} cannot be read: write a name, or a name with options such as "
        f"'processes(workers=4)', or a list of these. Plans: {', '.join(names())}"
    )


def written(value: Any) -> str:
    """Write the value of an option as the text that `parse` reads."""
    if is_a(value, type) or type(value) in (BuiltinFunctionType, FunctionType, MethodType):
        return repr(f"{value.__module__}:{value.__qualname__}")
    if callable(value):
        return repr(f"{type(value).__module__}:{name_of(value)}")
    return repr(value)
