"""Which modules workers may import by their names, and which travel by value.

A worker that imports a module reads its file: as it is then, not as it was when the caller loaded
it. So a module of the user's travels by value if its file has changed since this interpreter
started, or if a module that it uses has; so does a module that workers cannot import, as one that
was loaded by its path. Installed packages always travel by name.

Whether a file has changed is not remembered, so there is nothing to go stale: a file that has
changed since the start stays so. To look costs 2 µs for each module of the user's that the one in
question uses. What was in the file is kept for workers that start in the middle of a call.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from parmap.untouched import own

__all__ = [
    "Source",
    "by_name",
    "has_changed",
    "installed",
    "is_installed",
    "sources",
    "space_of",
]

_STDLIB = (os.path.dirname(os.__file__) + os.sep, "<frozen")
# The times of files come from a clock that may be some milliseconds behind.
_COARSE = 0.02

# Names of modules that are known to travel by name; asked inline, since most are.
installed: set[str] = {"builtins"}


def is_installed(file: str) -> bool:
    """Tell whether a file is that of an installed library, or of Python's own."""
    return file.startswith(_STDLIB) or "site-packages" in file or "dist-packages" in file


def space_of(module: object) -> dict[str, Any]:
    """Return the names in a module, past what a class of modules makes of attributes."""
    if issubclass(type(module), ModuleType):
        return _SPACE(module)  # type: ignore[no-any-return]
    return own(module)  # what somebody has put in the place of a module


_SPACE: Callable[[Any], Any] = vars(ModuleType)["__dict__"].__get__


def by_name(name: str) -> bool:
    """Tell whether workers find in a module what this process has loaded of it."""
    if name in installed:
        return True
    known = _known.get(name)
    if known is None or known.modules != len(sys.modules) or known.path != sys.path:
        known = _look(name)
    if known.files is None:
        return False
    for file in known.files:  # here, as one call is all that a function by name may cost
        try:
            found = os.stat(file)
        except NotADirectoryError:  # it is in an archive, whose parts nobody edits
            continue
        except OSError:
            return False
        if found.st_ctime > _STARTED or found.st_mtime > _STARTED:
            return False
    return True


class _Known(NamedTuple):
    """What is known of a module as long as no other is loaded.

    Parameters
    ----------
    modules : int
        The number of modules that are loaded.
    path : list of str
        ``sys.path``.
    files : tuple of str or None
        Its file, and those of the modules that it uses; None if workers cannot import it.
    """

    modules: int
    path: list[str]
    files: tuple[str, ...] | None


_known: dict[str, _Known] = {}


def _look(name: str) -> _Known:
    """Look where a module comes from, and what it uses."""
    count, path, files = len(sys.modules), list(sys.path), None
    if not _is_users(name):
        if name in sys.modules:
            installed.add(name)
        return _Known(count, path, ())
    if _would_import(name):
        used = {one: _file(sys.modules.get(one)) for one in _used(name)}
        files = tuple(filter(None, used.values()))
        _note_sources(used)
    _known[name] = _Known(count, path, files)
    return _known[name]


class Source(NamedTuple):
    """What a module was loaded from, for a worker that starts when the file is another.

    Parameters
    ----------
    name, file : str
        The module, and its file.
    text : bytes
        What was in it.
    started : float
        Files that have changed since are others than this process has loaded.
    """

    name: str
    file: str
    text: bytes
    started: float


# Of the modules that have been sent by name: replaced as a whole, so that it can be compared fast;
# and plain tuples, so that a worker loads this file only if it needs it.
sources: tuple[tuple[str, str, bytes, float], ...] = ()


def _note_sources(used: dict[str, str | None]) -> None:
    global sources  # noqa: PLW0603 - see there
    known = {one[0] for one in sources}
    new = []
    for name, file in used.items():
        if name not in known and file is not None and file.endswith(".py"):
            with contextlib.suppress(OSError):  # then it has changed, and travels by value
                with open(file, "rb") as opening:
                    text = opening.read()
                if not has_changed(file, _STARTED):  # asked last, so that this is what was loaded
                    new.append((name, file, text, _STARTED))
    sources += tuple(new)


def has_changed(file: str, since: float) -> bool:
    """Tell whether a file has changed since a time, or is gone."""
    try:
        found = os.stat(file)
    except OSError:
        return True
    return max(found.st_mtime, found.st_ctime) > since


def _is_users(name: str) -> bool:
    """Tell whether a module is the user's own, so that it may change while a script runs."""
    module = sys.modules.get(name)
    if module is None or name.partition(".")[0] in ("parmap", "__main__"):
        return False
    file = _file(module)
    if file is not None:
        return not is_installed(file)
    if (
        space_of(module).get("__spec__") is not None
    ):  # built in, frozen, or a package without a file
        return any(not is_installed(str(one)) for one in space_of(module).get("__path__") or ())
    # Made by code. A part of a library's is for that library to make in the worker, too.
    return "." not in name and type(module) is ModuleType


def _file(module: object) -> str | None:
    file = space_of(module).get("__file__")
    return file if type(file) is str else None


def _start() -> float:
    """Return when this interpreter has started, by the clock of files."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        since_boot = ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot - _COARSE
    except (OSError, AttributeError, ValueError, IndexError):  # elsewhere than on Linux
        return time.time() - _COARSE


# Once, and not at the first question: a fork has what its parent had loaded before.
_STARTED = _start()


# -- whether workers can import it ------------------------------------------------------------


def _would_import(name: str) -> bool:
    """Tell whether an import would find the file that a module was loaded from."""
    module = sys.modules.get(name)
    parent = name.rpartition(".")[0]
    path: Any = None
    if parent:
        path = space_of(sys.modules.get(parent)).get("__path__")
        if path is None or not _would_import(parent):
            return False
    from importlib.machinery import PathFinder  # only where a function of such a module is sent

    for finder in (PathFinder, *_editable()):
        spec = None
        with contextlib.suppress(Exception):  # of a finder of somebody else's
            spec = finder.find_spec(name, path)
        if spec is not None:
            return _is_same(spec.origin, _file(module))
    return False


def _is_same(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one is other
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def _editable() -> list[Any]:
    """Return the finders that a worker has, too, since installed packages bring them."""
    found = []
    for finder in sys.meta_path:
        home = str(getattr(finder, "__module__", None) or type(finder).__module__)
        file = _file(sys.modules.get(home))
        if file is not None and is_installed(file) and not home.startswith("_pytest"):
            found.append(finder)
    return found


# -- what it uses -----------------------------------------------------------------------------


def _used(name: str) -> set[str]:
    """Return a module of the user's, and those that it uses, however indirectly."""
    seen, todo = {name}, [name]
    while todo:
        new = set(_named(sys.modules.get(todo.pop()))) - seen - installed
        new = set(filter(_is_users, new))
        seen |= new
        todo += new
    return seen


def _named(module: object) -> Iterator[str]:
    """Yield the names of the modules whose functions, classes or objects a module has."""
    for value in list(space_of(module).values()):
        kind = type(value)
        if issubclass(kind, ModuleType):
            name = space_of(value).get("__name__")
        elif kind is FunctionType:
            name = value.__module__
            yield from sys.modules.keys() & set(value.__code__.co_names)  # which it may import
        else:
            one = value if issubclass(kind, type) else kind
            name = type.__dict__["__dict__"].__get__(one).get("__module__")
        if type(name) is str:
            yield name
