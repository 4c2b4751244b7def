"""Engines' own random numbers, kept apart from those of the tasks and of the script.

Dask draws from Python's global generator in threads of its own, at any time: for the jitter of its
timers, to choose among workers, to guess the size of a list. Ray draws as it starts and ends. So a
task that has seeded that generator would find it moved, and so would the script that started them.
"""

from __future__ import annotations

import functools
import importlib.util
import random
import sys
from collections.abc import Container
from types import BuiltinFunctionType, MethodType, ModuleType
from typing import Any

__all__ = ["keep_apart"]

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


def keep_apart(packages: Container[str]) -> None:
    """Put another generator in the place of ``random``, and of what was imported from it.

    Parameters
    ----------
    packages : container of str
        In whose modules, of those that are loaded.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in packages or type(module) is not ModuleType:
            continue
        for attribute, value in list(vars(module).items()):
            if value is random:
                setattr(module, attribute, _own())
            elif _is_of_global(value):
                setattr(module, attribute, getattr(_own(), value.__name__))


def _is_of_global(value: Any) -> bool:
    return type(value) in (BuiltinFunctionType, MethodType) and value.__self__ is _GLOBAL
