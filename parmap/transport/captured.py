"""What a function of the script brings along, beyond the globals that its code names.

cloudpickle sends a function with the globals that its code names. Here are those that only strings
in its code name, and modules whose code is to travel with it.
"""

from __future__ import annotations

import dis
import functools
import re
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from parmap.transport import modules
from parmap.transport.functions import IMPORTS, fill_module, make_module
from parmap.transport.worker_globals import Reference, owned

__all__ = ["EVALUATES", "amend", "stays", "whole"]

# Who looks up names that stand in strings: Python, pandas, numexpr, and the formulas of patsy and
# statsmodels.
EVALUATES = frozenset(
    {"eval", "exec", "globals", "query", "evaluate", "dmatrix", "dmatrices", "from_formula"}
    | {"ols", "wls", "gls", "glm", "gee", "logit", "probit", "poisson", "mixedlm"}
)
_NAME = re.compile(r"[^\W\d]\w*")
_BASE = ("__package__", "__name__", "__path__", "__file__")  # as cloudpickle has it


def amend(
    function: FunctionType,
    slots: dict[str, Any],
    spaces: dict[int, dict[str, Any]],
    dumps: Callable[[Any], Any],
) -> None:
    """Amend the state that cloudpickle has made of a function.

    Parameters
    ----------
    function : FunctionType
        The function.
    slots : dict
        Its members, among them the globals that travel.
    spaces : dict of int to dict
        By their ids, all globals that travel in this pickle, which their functions share.
    dumps : callable
        Pickles an object, to see whether it can be.
    """
    code = function.__code__
    names, strings = _words(code)
    found: dict[str, Any] = slots["__globals__"]
    space, said = function.__globals__, frozenset[str]()
    if not EVALUATES.isdisjoint(names):
        said = strings - set(_NAME.findall(function.__doc__ or ""))
        missing = said & space.keys() - found.keys()
        found |= {name: space[name] for name in missing if _travels(space[name], dumps)}
    found |= _owned(space, names | said)
    view = functools.partial(_view, names=names | strings, spaces=spaces, dumps=dumps, made={})
    for name, value in found.items():
        if type(value) is ModuleType and not stays(value):
            found[name] = view(value)
    if function.__closure__:
        slots["__closure__"] = tuple([_viewed(cell, view) for cell in function.__closure__])
    if imported := _imported(function):
        slots[IMPORTS] = {name: view(sys.modules[name]) for name in imported}
    slots["_cloudpickle_submodules"] = list(filter(stays, slots["_cloudpickle_submodules"]))


@functools.lru_cache(maxsize=256)
def _words(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names in a function's code, and those in its strings; also of functions inside."""
    names, strings = set(code.co_names), set[str]()
    for const in code.co_consts:
        if type(const) is CodeType:
            inner = _words(const)
            names |= inner[0]
            strings |= inner[1]
        elif type(const) is str:
            strings.update(_NAME.findall(const))
    return frozenset(names), frozenset(strings)


def _viewed(cell: CellType, view: Callable[[ModuleType], Any]) -> CellType:
    """Return a cell, or another with what stands for the module in it."""
    try:
        held = cell.cell_contents
    except ValueError:  # not filled yet
        return cell
    return CellType(view(held)) if type(held) is ModuleType and not stays(held) else cell


def _owned(space: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Return what stands for those of some globals that are the worker's own."""
    own = (owned.get() or {}).get(id(space), frozenset())
    return {name: Reference(space["__name__"], name) for name in own & names}


def _travels(value: Any, dumps: Callable[[Any], Any]) -> bool:
    """Tell whether an object can travel that only a string names: perhaps nobody needs it."""
    if _trying.get() or type(value) in (FunctionType, ModuleType) or issubclass(type(value), type):
        return True  # without a try, which might come back to the function that names it
    token = _trying.set(True)
    try:
        dumps(value)
    except Exception:  # noqa: BLE001 - whatever a user's __reduce__ may raise
        return False
    finally:
        _trying.reset(token)
    return True


# Whether this is one: what an object has in it may lead back to what names it.
_trying: ContextVar[bool] = ContextVar("parmap.trying", default=False)


def _travelling(
    inside: dict[str, Any], names: Iterable[str], dumps: Callable[[Any], Any]
) -> dict[str, Any]:
    """Return some of what a module has, but for what cannot travel: code may not need it at all."""
    return {name: inside[name] for name in names if _travels(inside[name], dumps)}


def stays(module: ModuleType) -> bool:
    """Tell whether a module travels by its name, or as cloudpickle would have it."""
    name = modules.space_of(module).get("__name__")
    if type(name) is not str or name in modules.installed or name not in sys.modules:
        return True
    return sys.modules[name] is module and modules.by_name(name)


def _imported(function: FunctionType) -> set[str]:
    """Return the modules that a function imports when it runs, and that travel by value."""
    package = modules.space_of(sys.modules.get(function.__module__)).get("__package__")
    around = [""]
    while type(package) is str and package:
        around.append(package)
        package = package.rpartition(".")[0]
    found = set()
    for name in _imports(function.__code__):
        found |= {f"{one}.{name}".strip(".") for one in around}
    found = {name for name in found if type(sys.modules.get(name)) is ModuleType}
    found = {name for name in found if not modules.by_name(name)}
    return found | {name.partition(".")[0] for name in found}


@functools.lru_cache(maxsize=256)
def _imports(code: CodeType) -> frozenset[str]:
    """Return what stands in a function's statements of import; its dots are left out."""
    found = dis.get_instructions(code)
    return frozenset([one.argval for one in found if one.opname == "IMPORT_NAME"])


def whole(
    module: ModuleType, spaces: dict[int, dict[str, Any]], dumps: Callable[[Any], Any]
) -> Any:
    """Reduce a module that travels by value, with all that can; the others are as for `amend`."""
    inside = modules.space_of(module)
    names = [name for name in inside if not name.startswith("__")]
    values = _travelling(inside, names, dumps)
    given = inside["__name__"], _namespace(module, spaces)
    return make_module, given, values, None, None, fill_module


def _namespace(module: ModuleType, spaces: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the globals of a module's functions, as they are in the pickle."""
    inside = modules.space_of(module)
    namespace = spaces.setdefault(id(inside), {})
    if not namespace:
        namespace.update({name: inside[name] for name in _BASE if name in inside})
    return namespace


class _View:
    """Stands, in a pickle, for a module that travels by value: with the names that code has of it.

    Parameters
    ----------
    module : ModuleType
        The module.
    namespace : dict
        The globals of its functions, in the pickle.
    values : dict
        What it has of those names.
    """

    def __init__(
        self, module: ModuleType, namespace: dict[str, Any], values: dict[str, Any]
    ) -> None:
        self._module, self._namespace, self._values = module, namespace, values

    def __reduce__(self) -> Any:
        name = modules.space_of(self._module)["__name__"]
        return make_module, (name, self._namespace), self._values, None, None, fill_module


def _view(
    module: ModuleType,
    names: frozenset[str],
    spaces: dict[int, dict[str, Any]],
    dumps: Callable[[Any], Any],
    made: dict[int, _View],
) -> _View:
    """Return what stands for a module; `made` has what stands for others in the same function."""
    if id(module) not in made:
        inside = modules.space_of(module)
        values = _travelling(inside, names & inside.keys(), dumps) | _owned(inside, names)
        made[id(module)] = _View(module, _namespace(module, spaces), values)
        for name, value in values.items():
            if type(value) is ModuleType and not stays(value):
                values[name] = _view(value, names, spaces, dumps, made)
    return made[id(module)]
