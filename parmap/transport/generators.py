"""Random generators as objects: which they are, and how they travel.

The global generator of a module travels by name: a function that draws from it, such as
`numpy.random.normal`, then draws from the worker's own. Any other is copied, state and all, and
copies draw the same numbers: whoever packs may ask to be told.
"""

from __future__ import annotations

import copyreg
import importlib
import sys
from contextvars import ContextVar
from typing import Any

__all__ = ["Noticing", "generator_types", "name_of_global", "named", "reduced"]

# The global generators, by the modules that users know them by.
_GLOBALS = {
    "random": ("random", "_inst"),
    "numpy.random": ("numpy.random.mtrand", "_rand"),
    "torch": ("torch", "default_generator"),
}
_PROTOCOL = 5

# Gets the generators that are copied while something is packed; None: nobody wants to know.
_found: ContextVar[list[Any] | None] = ContextVar("parmap.found", default=None)


class Noticing:
    """Gives the list of the generators that are copied while the block packs something."""

    __slots__ = ("_token",)

    def __enter__(self) -> list[Any]:
        found: list[Any] = []
        self._token = _found.set(found)
        return found

    def __exit__(self, *error: object) -> None:
        _found.reset(self._token)


def generator_types() -> tuple[type, ...]:
    """Give the classes of random generators; of a module that is not loaded there are none."""
    loaded = sys.modules.get
    numpy_random = loaded("numpy.random")
    found = (
        getattr(loaded("random"), "Random", None),
        getattr(numpy_random, "Generator", None),
        getattr(numpy_random, "RandomState", None),
        getattr(loaded("torch"), "Generator", None),
    )
    return tuple(filter(None, found))


def name_of_global(thing: Any) -> str:
    """Name the module whose global generator an object is; "" for all others."""
    for name, (module, attribute) in _GLOBALS.items():
        if thing is not None and thing is getattr(sys.modules.get(module), attribute, None):
            return name
    return ""


def reduced(generator: Any) -> Any:
    """Reduce a generator: a global one to its name, one without a state to a new one."""
    name = name_of_global(generator)
    if name:
        return named, _GLOBALS[name]
    kind = type(generator)
    if kind is getattr(sys.modules.get("random"), "SystemRandom", None):
        return kind, ()
    found = _found.get()
    if found is not None:
        found.append(generator)
    registered: Any = copyreg.dispatch_table.get(kind)
    return registered(generator) if registered else generator.__reduce_ex__(_PROTOCOL)


def named(module: str, attribute: str) -> Any:
    """Give what has a name in a module here."""
    return getattr(importlib.import_module(module), attribute)
