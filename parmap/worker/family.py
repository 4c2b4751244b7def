"""What a worker is to `multiprocessing`: a child of the caller, with a name, a number and its key.

Programs choose a device, or a line of the screen, by a process's number; they guard what only the
script may do by its name; and proxies of `multiprocessing.Manager` need the key of the process
that made them. That package takes 3 ms to load, so a worker becomes its child when it is loaded.
"""

# ruff: noqa: SLF001 - what a process is to that package, the package alone can say: none is public

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Parent", "authkey", "become", "entrust", "here", "leave", "renew"]

_PROCESS = "multiprocessing.process"


class Parent(NamedTuple):
    """What the caller is to `multiprocessing`.

    Parameters
    ----------
    name : str
        The name of its process.
    pid : int
        Its number.
    identity : tuple of int, default ()
        Its place among the children of its own parent, and so on; empty for a script.
    """

    name: str
    pid: int
    identity: tuple[int, ...] = ()


class _Child(NamedTuple):
    """What this process is."""

    parent: Parent
    name: str
    identity: tuple[int, ...]


# Set once in a worker, before its first task.
_child: _Child | None = None
# The caller's, which may change it.
_key: bytes | None = None


def here() -> Parent:
    """Give what this process is to the workers that it starts."""
    process: Any = sys.modules.get(_PROCESS)
    if process is not None:
        me = process.current_process()
        return Parent(me.name, os.getpid(), me._identity)
    if _child is not None:
        return Parent(_child.name, os.getpid(), _child.identity)
    return Parent("MainProcess", os.getpid())


def authkey() -> bytes | None:
    """Give the key by which this process and its children know each other.

    None where nothing needs one: `multiprocessing` draws it when it is loaded.
    """
    process: Any = sys.modules.get(_PROCESS)
    # Not by its functions: this is asked for each task.
    return _key if process is None else bytes(process._current_process._config["authkey"])


def entrust(key: bytes | None) -> None:
    """Take over the caller's key. It must have come by a channel that nobody else can read."""
    global _key  # noqa: PLW0603 - as the package that it is for
    if key is None or key == _key:
        return
    _key = key
    process: Any = sys.modules.get(_PROCESS)
    if process is not None:
        process.current_process().authkey = key


def become(parent: Parent, number: int, key: bytes | None = None) -> None:
    """Make this process a child.

    Parameters
    ----------
    parent : Parent
        Whose.
    number : int
        Its place among the children, from 1 on.
    key : bytes, optional
        As for `entrust`.
    """
    global _child, _key  # noqa: PLW0603 - as above
    _child = _Child(parent, f"parmap-{number}", (*parent.identity, number))
    _key = key
    if (process := sys.modules.get(_PROCESS)) is not None:
        _tell(process)
    else:
        sys.meta_path.insert(0, _Herald)


def _tell(process: Any) -> None:
    """Do in the loaded package what it does itself in a child that it has started."""
    assert _child is not None
    parent = _child.parent
    me = process.BaseProcess(name=_child.name)
    process._dangling.discard(me)
    me._identity, me._parent_name, me._parent_pid = _child.identity, parent.name, parent.pid
    if _key is not None:
        me.authkey = _key
    process._process_counter = itertools.count(1)
    process._children = set()
    process._parent_process = process._ParentProcess(parent.name, parent.pid, _sentinel(parent.pid))
    process._current_process = me


def renew() -> None:
    """Let connections that a fork has inherited be made anew, as in a child."""
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._finalizer_registry.clear()
        util._run_after_forkers()


def _sentinel(pid: int) -> int:
    """Open a descriptor that can be read once a process has ended."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        # It has ended. Where the system does not tell that, either, as nobody can say whether it
        # lives, it does: this process ends with it.
        ours, theirs = os.pipe()
        if not _lives(pid):
            os.close(theirs)
        return ours


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def leave() -> None:
    """End what tasks have started by `multiprocessing`, as it does itself where a script ends."""
    util: Any = sys.modules.get("multiprocessing.util")
    if util is None:
        return
    util._run_finalizers(0)
    for child in sys.modules[_PROCESS].active_children():
        if child.daemon:
            child.terminate()


class _Herald:
    """Hears when the package is loaded; first among the finders of modules until then."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        """Have the module made this process's own once it is loaded."""
        if name != _PROCESS:
            return None
        sys.meta_path.remove(_Herald)
        finders: list[Callable[..., Any]] = [one.find_spec for one in sys.meta_path]
        spec = next(filter(None, (find(name, path, target) for find in finders)), None)
        if spec is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader:
    """Loads a module by another loader, and then has `_tell` see it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: Any) -> Any:
        """Leave that to the other."""
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        """Run the module; it does not see who has loaded it."""
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _tell(module)
