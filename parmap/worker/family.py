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

__all__ = ["Parent", "Trust", "become", "entrust", "here", "leave", "renew", "trust"]

_PROCESS = "multiprocessing.process"
_TRACKER = "multiprocessing.resource_tracker"

# The key by which a process and its children know each other; and the process and descriptor at
# which its tracker of shared memory listens. None where that package is not in use.
Trust = tuple[bytes | None, tuple[int, int] | None]


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
_trust: Trust = (None, None)


def here() -> Parent:
    """Give what this process is to the workers that it starts."""
    process: Any = sys.modules.get(_PROCESS)
    if process is not None:
        me = process.current_process()
        return Parent(me.name, os.getpid(), me._identity)
    if _child is not None:
        return Parent(_child.name, os.getpid(), _child.identity)
    return Parent("MainProcess", os.getpid())


def trust() -> Trust:
    """Give what this process and its children share."""
    process: Any = sys.modules.get(_PROCESS)
    if process is None:
        return _trust
    tracker: Any = sys.modules.get(_TRACKER)
    listens = None if tracker is None else tracker._resource_tracker._fd
    # Not by its functions: this is asked for each task.
    key = bytes(process._current_process._config["authkey"])
    return key, None if listens is None else (os.getpid(), listens)


def entrust(given: Trust) -> None:
    """Take over what the caller has. It must have come by a channel that nobody else can read."""
    global _trust  # noqa: PLW0603 - as the package that it is for
    if given[0] is None or given == _trust:
        return
    _trust = given
    process: Any = sys.modules.get(_PROCESS)
    if process is not None:
        process.current_process().authkey = given[0]
    if _TRACKER in sys.modules:
        _track(sys.modules[_TRACKER])


def become(parent: Parent, number: int, given: Trust = (None, None)) -> None:
    """Make this process a child.

    Parameters
    ----------
    parent : Parent
        Whose.
    number : int
        Its place among the children, from 1 on.
    given : Trust, optional
        As for `entrust`.
    """
    global _child, _trust  # noqa: PLW0603 - as above
    _child = _Child(parent, f"parmap-{number}", (*parent.identity, number))
    _trust = given
    awaited = {_PROCESS: _tell, _TRACKER: _track}
    for name in [*awaited]:
        if (module := sys.modules.get(name)) is not None:
            awaited.pop(name)(module)
    if awaited:
        sys.meta_path.insert(0, _Herald(awaited))


def _tell(process: Any) -> None:
    """Do in the loaded package what it does itself in a child that it has started."""
    assert _child is not None
    parent = _child.parent
    me = process.BaseProcess(name=_child.name)
    process._dangling.discard(me)
    me._identity, me._parent_name, me._parent_pid = _child.identity, parent.name, parent.pid
    if _trust[0] is not None:
        me.authkey = _trust[0]
    process._process_counter = itertools.count(1)
    process._children = set()
    process._parent_process = process._ParentProcess(parent.name, parent.pid, _sentinel(parent.pid))
    process._current_process = me


def _track(tracker: Any) -> None:
    """Have the caller's tracker know of shared memory that is opened here, as a child does.

    One of this process's own would remove it when this process ends.
    """
    if _trust[1] is None or _trust[1][0] == os.getpid():
        return
    pid, descriptor = _trust[1]
    try:  # another end of the same pipe
        ours = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # no such folder on this system, or it is closed to us
    tracker._resource_tracker._fd = ours


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
    """Hears when modules are loaded; first among the finders of modules until then.

    Parameters
    ----------
    awaited : dict of str to callable
        What to do with each once it is loaded.
    """

    def __init__(self, awaited: dict[str, Callable[[Any], None]]) -> None:
        self._awaited = awaited

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Have a module made this process's own once it is loaded."""
        if name not in self._awaited:
            return None
        then = self._awaited.pop(name)
        others = [one for one in sys.meta_path if one is not self]
        if not self._awaited:
            sys.meta_path[:] = others
        finders: list[Callable[..., Any]] = [one.find_spec for one in others]
        spec = next(filter(None, (find(name, path, target) for find in finders)), None)
        if spec is not None:
            spec.loader = _Loader(spec.loader, then)
        return spec


class _Loader:
    """Loads a module by another loader, and then has it seen."""

    def __init__(self, loader: Any, then: Callable[[Any], None]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: Any) -> Any:
        """Leave that to the other."""
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        """Run the module; it does not see who has loaded it."""
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._then(module)
