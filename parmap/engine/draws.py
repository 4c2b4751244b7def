"""Which global generators a user's own code draws from, or seeds, as it is written.

Read only where a generator has moved: it tells the draws of the function from those of the
libraries that it calls. Like `hints_of` it looks at types, and into objects of Python's own types
alone.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from parmap.engine.hints import behind, global_behind, is_librarys, named, names_in
from parmap.transport.generators import name_of_global

__all__ = ["Draws", "draws_of"]

_MODULES = ("random", "numpy", "numpy.random", "numpy.random.mtrand", "torch", "torch.random")
_GENERATOR = {"numpy.random.mtrand": "numpy.random", "torch.random": "torch"}
_SEEDS = frozenset({"seed", "set_state", "setstate", "manual_seed", "set_rng_state"})
# Those of NumPy and torch that draw, and are no methods of their generator.
_DRAWS = {
    "numpy.random": frozenset({"ranf", "sample"}),
    "torch": frozenset(
        {"bernoulli", "multinomial", "normal", "poisson", "rand", "rand_like", "randint"}
        | {"randint_like", "randn", "randn_like", "randperm"}
    ),
}
_HEAP = 1 << 9  # the flag of classes that were made by a class statement
_STAY = frozenset({"CACHE", "COPY", "NOP", "POP_TOP", "PUSH_NULL", "RESUME", "SWAP"})


class Draws(NamedTuple):
    """What is written in some code.

    Parameters
    ----------
    drawn, seeded : frozenset of str
        The modules whose global generators it draws from, and seeds.
    """

    drawn: frozenset[str]
    seeded: frozenset[str]


def draws_of(functions: Iterable[Callable[..., Any]]) -> Draws:
    """Read the code of functions, and of the user's functions and classes that they name."""
    drawn: set[str] = set()
    seeded: set[str] = set()
    given = list(functions)
    while given and any(behind(one) for one in given):
        given = [part for one in given for part in behind(one) or (one,)]
    first = {id(one) for one in given}
    todo: list[Any] = list(functions)
    seen: dict[int, Any] = {}
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        name = global_behind(one) or name_of_global(one)
        if name:
            drawn.add(name)
        elif type(one) is not FunctionType:
            todo += [*behind(one), *_members(one)]
        elif id(one) in first or not is_librarys(one.__code__):
            _Reader(one, drawn, seeded).read(one.__code__, {})
            todo += [*behind(one), *named(one, names_in(one.__code__))]
    return Draws(frozenset(drawn), frozenset(seeded))


def _members(thing: Any) -> Iterator[Any]:
    """Give the functions of a class, or of an object's class."""
    if type(thing) is MethodType:
        thing = thing.__self__
    kind = thing if issubclass(type(thing), type) else type(thing)
    for base in type.__dict__["__mro__"].__get__(kind):
        if type.__dict__["__flags__"].__get__(base) & _HEAP:
            for member in type.__dict__["__dict__"].__get__(base).values():
                if type(member) in (staticmethod, classmethod):
                    yield member.__func__
                elif type(member) is property:
                    yield member.fget
                elif type(member) is FunctionType:
                    yield member


class _Reader:
    """Follows names of modules through a function's code.

    Parameters
    ----------
    function : function
        Whose code is read.
    drawn, seeded : set of str
        Where to note the modules.
    """

    def __init__(self, function: FunctionType, drawn: set[str], seeded: set[str]) -> None:
        self._globals: Mapping[str, Any] = function.__globals__
        self._cells = dict(
            zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
        )
        self._drawn, self._seeded = drawn, seeded

    def read(self, code: CodeType, outer: Mapping[str, str]) -> None:
        """Read some code; `outer`: the modules that names of the function around it stand for."""
        held = dict(outer)
        here = source = ""
        before: Any = None
        for step in dis.get_instructions(code):
            name, what = step.opname, step.argval
            if name == "IMPORT_NAME":
                here = source = what if before else what.partition(".")[0]
            elif name == "IMPORT_FROM":
                here = self._attribute(source, what)
            elif name in ("LOAD_ATTR", "LOAD_METHOD"):
                here = self._attribute(here, what)
            elif name.startswith("STORE_"):
                held[str(what)] = here
                here = ""
            elif name.startswith("LOAD_") and name != "LOAD_CONST":
                here = self._loaded(name, what, held)
            elif name not in _STAY:
                here = ""
            before = what if name == "LOAD_CONST" else None
        for inner in code.co_consts:
            if type(inner) is CodeType:
                self.read(inner, held)

    def _loaded(self, step: str, what: Any, held: Mapping[str, str]) -> str:
        name = str(what[-1] if type(what) is tuple else what)
        if step not in ("LOAD_GLOBAL", "LOAD_NAME"):
            cell = self._cells.get(name)
            if cell is None or name in held:
                return held.get(name, "")
            try:
                return _module(cell.cell_contents)
            except ValueError:  # not filled yet
                return ""
        return _module(self._globals[name]) if name in self._globals else held.get(name, "")

    def _attribute(self, module: str, name: str) -> str:
        """Give the module that an attribute of a module is; note what draws, or seeds."""
        inner = f"{module}.{name}"
        if module not in _MODULES or inner in _MODULES:
            return inner if inner in _MODULES else ""
        generator = _GENERATOR.get(module, module)
        value = vars(sys.modules[module]).get(name) if module in sys.modules else None
        if name in _SEEDS:
            self._seeded.add(generator)
        elif name in _DRAWS.get(generator, ()) or global_behind(value) or name_of_global(value):
            self._drawn.add(generator)
        return ""


def _module(thing: Any) -> str:
    if type(thing) is not ModuleType:
        return ""
    return next((name for name in _MODULES if sys.modules.get(name) is thing), "")
