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
import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any, cast
from weakref import WeakValueDictionary

__all__ = [
    "IMPORTS",
    "OTHERS",
    "fill_module",
    "hidden",
    "load_cloudpickle",
    "make_class",
    "make_enum",
    "make_importing",
    "make_module",
    "named",
    "replacements",
    "restore",
]

# Among the members of a function: the modules that travel with it since it imports them.
IMPORTS = "_parmap_imports"

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
        theirs._make_skeleton_class: make_class,  # noqa: SLF001
        theirs._make_skeleton_enum: make_enum,  # noqa: SLF001
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


def make_importing(
    code: types.CodeType, namespace: dict[str, Any], *rest: Any
) -> types.FunctionType:
    """Make a function that imports, when it runs, modules that travel with it: see above."""
    # A function keeps those builtins that its globals have when it is made.
    namespace["__builtins__"] = {**vars(builtins), "__import__": _Import()}
    made = types.FunctionType(code, namespace, *rest)
    namespace["__builtins__"] = vars(builtins)
    return made


class _Import:
    """Imports for one function: it finds the modules that came with it, and then all others."""

    def __init__(self) -> None:
        self.modules: dict[str, types.ModuleType] = {}

    def __call__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - these are Python's names
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> types.ModuleType:
        full = name
        if level:
            package = str((globals or {}).get("__package__")).rsplit(".", level - 1)[0]
            full = f"{package}.{name}" if name else package
        if full not in self.modules:
            return __import__(name, globals, locals, fromlist, level)
        return self.modules[full if fromlist else full.partition(".")[0]]


def restore(function: types.FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Give a function its attributes, the globals that it names, and what its cells hold."""
    attributes, members = state
    function.__dict__.update(attributes)
    function.__globals__.update(members.pop("__globals__"))
    function.__globals__["__builtins__"] = vars(builtins)
    # Their only purpose was to be imported while the pickle was read.
    members.pop("_cloudpickle_submodules")
    if IMPORTS in members:
        own = cast("Any", function).__builtins__
        own["__import__"].modules.update(members.pop(IMPORTS))
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


def make_class(*arguments: Any) -> type:
    """Make a class without its state; give the same again where it is there already.

    Unlike cloudpickle, which makes another one, for nothing, each time that it meets the class:
    its bases would hear of a subclass that is none.
    """
    import cloudpickle  # a worker needs it for a class in any case

    theirs = cloudpickle.cloudpickle
    meta, *others = arguments
    rebuilt = theirs._DYNAMIC_CLASS_TRACKER_BY_CLASS  # noqa: SLF001
    if meta in rebuilt:  # it has seen the class in the caller, when that was whole
        known = next(one for one in type.__dict__["__mro__"].__get__(meta) if one not in rebuilt)
        meta = functools.partial(known.__new__, meta)
    return _made(theirs, theirs._make_skeleton_class, (meta, *others))  # noqa: SLF001


def make_enum(*arguments: Any) -> type:
    """Make an enumeration, as `make_class` does."""
    import cloudpickle

    theirs = cloudpickle.cloudpickle
    return _made(theirs, theirs._make_skeleton_enum, arguments)  # noqa: SLF001


def make_script_class(*arguments: Any) -> type:
    """Make a class of the script, in a worker, where tasks may pickle its objects themselves."""
    return _let_find(make_class(*arguments))


def make_script_enum(*arguments: Any) -> type:
    """Make an enumeration of the script, as `make_script_class` does."""
    return _let_find(make_enum(*arguments))


def _let_find(made: type) -> type:
    """Have pickle find a class by the name that it has in the script.

    As an attribute of this process's own main module, which is another one, but only where that
    has none of this name. A function there gives it, and not its dictionary, since parmap's own
    pickles must not refer to it: the next process that reads one may not have the class.
    """
    name, main = _QUALNAME(made), vars(sys.modules["__main__"])
    if name.partition(".")[0] in main:  # it is the script itself, or a fork of it
        return made
    if main.setdefault("__getattr__", _script_class) is _script_class:
        _script_classes[name] = made
    return made


_QUALNAME = type.__dict__["__qualname__"].__get__


def _script_class(name: str) -> Any:
    """Return a class of the script; or what has some, if the class around them is not here."""
    if not hidden.get():
        found = _script_classes.get(name)
        if found is not None:
            return found
        if any(one.startswith(f"{name}.") for one in list(_script_classes)):
            return _Around(name)
    raise AttributeError(f"module '__main__' has no attribute {name!r}", name=name)


class _Around:
    """Stands for a class of the script of which only those inside are here."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return _script_class(f"{self._name}.{name}")


_script_classes: MutableMapping[str, type] = WeakValueDictionary()

# Whether classes of the script are not to be found by their names: while a result is packed.
hidden: ContextVar[bool] = ContextVar("parmap.hidden", default=False)


def named(kind: type, make: Any, arguments: tuple[Any, ...], *, result: bool) -> tuple[Any, Any]:
    """Amend how a class is rebuilt, so that it has its name there, also inside another class.

    Parameters
    ----------
    kind : type
        The class.
    make : callable
        What rebuilds it: `make_class` or `make_enum`.
    arguments : tuple
        What that takes. cloudpickle has given it the last part of the name.
    result : bool
        Whether it is for what a worker sends back: then no task is to find it.
    """
    name = _QUALNAME(kind)
    if make is make_class and name != arguments[1]:
        first, last, bases, members, *others = arguments
        arguments = first, last, bases, {**members, "__qualname__": name}, *others
    if result or _own_of_class(kind).get("__module__") != "__main__":
        return make, arguments
    first, *inside = name.split(".")
    found = vars(sys.modules["__main__"]).get(first)
    for part in inside:
        found = _own_of_class(found).get(part) if issubclass(type(found), type) else None
    if found is kind:
        make = make_script_class if make is make_class else make_script_enum
    return make, arguments


_own_of_class: Callable[[Any], Mapping[str, Any]] = type.__dict__["__dict__"].__get__


def _made(theirs: Any, make: Callable[..., type], arguments: tuple[Any, ...]) -> type:
    there = theirs._DYNAMIC_CLASS_TRACKER_BY_ID.get(arguments[-2])  # noqa: SLF001
    if there is not None:
        return there  # type: ignore[no-any-return]
    bases = next(one for one in arguments if type(one) is tuple)
    with _unheard(bases, theirs._DYNAMIC_CLASS_TRACKER_BY_CLASS):  # noqa: SLF001
        return make(*arguments)


@contextlib.contextmanager
def _unheard(bases: tuple[Any, ...], rebuilt: Any) -> Iterator[None]:
    """Have the rebuilt ones of some bases not hear of a subclass.

    They have heard of it in the caller, when it was whole, and what they did then is in their
    state. Those that are imported here have not.
    """
    with _hearing:
        listeners = {
            one: one.__dict__["__init_subclass__"]
            for base in types.resolve_bases(bases)
            for one in type.__dict__["__mro__"].__get__(base)
            if "__init_subclass__" in one.__dict__ and one in rebuilt
        }
        try:
            for one in listeners:
                type.__delattr__(one, "__init_subclass__")
            yield
        finally:
            try:
                _hear_again(listeners)
            finally:  # Ctrl-C may have struck in that
                _hear_again(listeners)


def _hear_again(listeners: dict[type, Any]) -> None:
    for one, listener in listeners.items():
        type.__setattr__(one, "__init_subclass__", listener)


# Held while some classes do not hear of subclasses. Reentrant: a metaclass is the user's code, and
# so is a finalizer, which may unpickle another class. It finds what is deaf here already so, and
# leaves it so.
_hearing = threading.RLock()


def make_module(name: str, namespace: dict[str, Any]) -> types.ModuleType:
    """Make a module that travels by value; one for all that comes with its functions."""
    made: types.ModuleType = namespace.setdefault(_MODULE, _Module(name))
    object.__setattr__(made, "_namespace", namespace)
    return made


def fill_module(module: types.ModuleType, values: dict[str, Any]) -> None:
    """Give a module some of what it has."""
    object.__getattribute__(module, "_namespace").update(values)


_MODULE = "__parmap_module__"


class _Module(types.ModuleType):
    """A module whose names are the globals of its functions."""

    _namespace: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self._namespace[name]
        except KeyError:
            raise AttributeError(
                f"module {self.__name__!r} has no attribute {name!r} in this worker: it travels "
                "by value, since its file has changed or workers cannot import it, and then "
                "only with the names that a function's code has, and without what cannot be pickled"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._namespace[name] = value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._namespace} - {_MODULE})


def load(name: str) -> types.ModuleType:
    """Import a module, also one in a package."""
    __import__(name)  # which returns the package
    return sys.modules[name]


# What rebuilds something else than cloudpickle's own functions do.
OTHERS = (make_importing, make_module, fill_module, restore, make_script_class, make_script_enum)
