"""Dask's own random numbers, kept apart from those of the tasks and of the script.

Dask draws from Python's global generator in threads of its own, at any time: for the jitter of its
timers, to choose among workers, to guess the size of a list. So a task that has seeded that
generator would find it moved, and so would the script that started the cluster.
"""

from __future__ import annotations

import functools
import importlib.util
import random
import sys
from types import BuiltinFunctionType, MethodType, ModuleType
from typing import Any

import distributed

__all__ = ["keep_apart"]

_PACKAGES = frozenset({"dask", "distributed", "tornado", "zict"})
_GLOBAL: Any = random._inst  # noqa: SLF001 - the one to keep apart


@functools.cache
def _own() -> ModuleType:
    """Load the standard library's module once more, under nobody's name: with its own generator."""
    spec = importlib.util.find_spec("random")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keep_apart() -> None:
    """Put Dask's own in the place of ``random``, and of what was imported from it."""
    assert distributed  # loaded, and with it all of its modules that draw
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in _PACKAGES or type(module) is not ModuleType:
            continue
        for attribute, value in list(vars(module).items()):
            if value is random:
                setattr(module, attribute, _own())
            elif _is_of_global(value):
                setattr(module, attribute, getattr(_own(), value.__name__))


def _is_of_global(value: Any) -> bool:
    return type(value) in (BuiltinFunctionType, MethodType) and value.__self__ is _GLOBAL
