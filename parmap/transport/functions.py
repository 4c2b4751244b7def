"""What rebuilds a script's function in a worker, without cloudpickle.

A pickle names the functions that rebuild its objects. cloudpickle names its own, so a worker that
reads such a pickle imports cloudpickle, and 20 modules of the standard library that nothing else
needs. That takes 13 ms, and a script's first result waits for it. To rebuild a function takes only
a few of cloudpickle's functions, which are short. The functions here do the same. For a class of
the script the worker still imports cloudpickle.

cloudpickle still takes functions apart, so it decides what travels. Only the names of the functions
that put them together again are exchanged, and only those of versions that were compared.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
import types
from collections.abc import Callable
from typing import Any

__all__ = ["load_cloudpickle", "replacements"]

# The versions whose functions were compared with these. A later one may pass another state.
_KNOWN = frozenset({"3.0.0", "3.1.0", "3.1.1", "3.1.2", "3.1.3"})


def replacements(cloudpickle: Any) -> dict[object, Callable[..., Any]]:
    """Map functions of cloudpickle to the functions here that do the same.

    The map is empty for a version that is not known. Workers then import cloudpickle.
    """
    if cloudpickle.__version__ not in _KNOWN:
        return {}
    theirs = cloudpickle.cloudpickle
    return {
        theirs._make_function: make_function,  # noqa: SLF001
        theirs._function_setstate: restore,  # noqa: SLF001
        theirs._make_cell: make_cell,  # noqa: SLF001
        theirs._make_empty_cell: make_cell,  # noqa: SLF001
        theirs._builtin_type: builtin_type,  # noqa: SLF001
        theirs.subimport: load,
    }


def load_cloudpickle() -> None:
    """Import cloudpickle now, before a module of the script can hide one that it imports.

    A worker imports it when it first reads a pickle that needs it. If the script's folders have
    changed by then, a file there may have the name of a module of the standard library.
    """
    # If it fails, the pickle that needs it fails, and that error reaches the caller.
    with contextlib.suppress(Exception):
        import cloudpickle  # noqa: F401


def make_function(
    code: types.CodeType,
    namespace: dict[str, Any],
    name: str | None,
    defaults: tuple[Any, ...] | None,
    closure: tuple[types.CellType, ...] | None,
) -> types.FunctionType:
    """Make a function without its state: that may refer to the function itself."""
    namespace["__builtins__"] = vars(builtins)
    return types.FunctionType(code, namespace, name, defaults, closure)


def restore(function: types.FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Give a function its attributes, the globals that it names, and what its cells hold."""
    own, members = state
    function.__dict__.update(own)
    function.__globals__.update(members.pop("__globals__"))
    function.__globals__["__builtins__"] = vars(builtins)
    # Their only purpose was to be imported while the pickle was read.
    members.pop("_cloudpickle_submodules")
    cells = members.pop("__closure__") or ()
    for cell, filled in zip(function.__closure__ or (), cells, strict=True):
        try:
            cell.cell_contents = filled.cell_contents
        except ValueError:  # the caller's cell is empty, too
            continue
    for name, value in members.items():
        setattr(function, name, value)


def make_cell(*contents: Any) -> types.CellType:
    """Make a cell of a closure, with its contents, or empty."""
    return types.CellType(*contents)


def builtin_type(name: str) -> Any:
    """Return one of Python's own types that is no builtin, such as that of code."""
    return getattr(types, name)


def load(name: str) -> types.ModuleType:
    """Import a module, also one in a package."""
    __import__(name)  # which returns the package
    return sys.modules[name]
