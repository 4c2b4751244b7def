"""The thread guard: how many threads native libraries may use inside a task.

A worker gets its share of the cores. Where nothing is loaded yet, `set_environment` says so
in the variables that libraries read as they load, at no cost. What is loaded already is
told by threadpoolctl, whose import and scan take milliseconds: once per process, and again
only when a module has come that may have brought a library.

OpenBLAS has one number for the process; of OpenMP and MKL each thread has its own. `hold`
limits what is the process's while a session of threads is open, and `release` gives it
back. `keep` runs in the worker before each chunk, and limits what is its thread's: that
dies with the thread, so nothing changes in the user's own.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Container, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from parmap import cores
from parmap.worker import variables
from parmap.worker.variables import LOKY as _LOKY
from parmap.worker.variables import NAMES as _VARIABLES
from parmap.worker.variables import number as _number

__all__ = ["Hold", "Library", "borrowed", "hold", "keep", "loaded", "release", "set_environment"]


def set_environment(
    threads: int, *, exact: bool = False, environ: MutableMapping[str, str] = os.environ
) -> None:
    """Limit what loads later in this process.

    Parameters
    ----------
    threads : int
        How many threads each library may use. A smaller number that is set stays.
    exact : bool, default False
        Whether to set just that number, upwards, too.
    environ : mapping, default `os.environ`
        Where to set it, such as the environment of a process to be started.
    """
    users = cores.users_environ() if environ is os.environ else environ
    for name in _VARIABLES:
        limit = variables.limited(name, threads, users, exact=exact)
        if limit != _number(environ.get(name)):
            environ[name] = str(limit)
    if environ is os.environ:
        cores.aside = {}  # what is set now is the worker's own
        _limits.cover(Hold(threads, exact))


def keep(threads: int, *, exact: bool = False) -> None:
    """Limit the libraries that are loaded, for what a worker runs next in this thread.

    What is the process's is limited, too, and for good, if the process is a worker's: one in
    which this comes before any `hold`.

    Parameters
    ----------
    threads : int
        How many threads each library may use; one that uses fewer stays as it is.
    exact : bool, default False
        Whether to set just that number, upwards, too.
    """
    if _mine.threads == threads and _mine.modules == len(sys.modules) and _mine.exact is exact:
        return  # before each chunk, so this must cost next to nothing
    _mine.limit(Hold(threads, exact), worker=True)


@contextmanager
def borrowed(threads: int, *, exact: bool = False) -> Iterator[None]:
    """Limit this thread's own numbers for the block: where it is not the worker's to keep."""
    marks = {dial.name: dial.mark() for dial in _limits.found()[0]}
    outer = {**vars(_mine), "before": dict(_mine.before)}
    try:
        _mine.limit(Hold(threads, exact), worker=False)
        yield
    finally:
        for dial in _limits.found()[0]:
            if dial.name in _mine.before:
                dial.set(marks.get(dial.name, _mine.before[dial.name]))
        vars(_mine).update(outer)


def hold(threads: int, *, exact: bool = False, later: bool = False) -> Hold:
    """Limit what is the whole process's, until `release`; the smallest that is held counts.

    Parameters
    ----------
    threads, exact
        As for `keep`.
    later : bool, default False
        Whether to limit also what loads until then, by the environment.

    Returns
    -------
    Hold
        What `release` takes, in any thread and any order.
    """
    token = Hold(threads, exact)
    _limits.hold(token)  # which first looks at what is loaded already
    if later:
        variables.hold(token)
    return token


def release(token: Hold) -> None:
    """End a hold: after the last one, all is as it was before the first."""
    if variables.holds(token):
        _mine.free(_limits.meet(token, worker=False))  # what has loaded meanwhile
        variables.release(token)
    _limits.release(token)


class Library(NamedTuple):
    """A native library with threads of its own, and how many this thread would get now."""

    user_api: str
    internal_api: str
    version: str | None
    threading_layer: str | None
    num_threads: int | None
    filepath: str


def loaded() -> list[Library]:
    """List the libraries with threads of their own that are loaded in this process."""
    _, found = _limits.found()
    # The fields are called as threadpoolctl calls them.
    return [Library(*(getattr(one, name, None) for name in Library._fields)) for one in found]  # type: ignore[arg-type]


class Hold:
    """A limit that somebody asked for; only itself is equal to it."""

    __slots__ = ("exact", "threads")

    def __init__(self, threads: int, exact: bool) -> None:  # noqa: FBT001 - as it is kept
        self.threads, self.exact = threads, exact

    def of(self, before: int | None) -> int:
        """Give the number for a library that had another before, or none."""
        return self.threads if self.exact or before is None else min(self.threads, before)

    def says(self, other: Hold | None) -> bool:
        """Whether another asks for the same."""
        return other is not None and (self.threads, self.exact) == (other.threads, other.exact)


class _Dial(NamedTuple):
    """Where one library's number is read and set.

    `mark` gives what `set` takes to go back, which may mean "none of its own".
    """

    name: str
    get: Callable[[], int | None]
    set: Callable[[Any], object]
    shared: bool  # the process's number, or each thread has its own
    mark: Callable[[], Any]
    natural: int | None = None  # where it has loaded with our limit: what it would have had

    def before(self) -> int | None:
        """Give the number that it has to go back to."""
        return self.get() if self.natural is None else self.natural


class _Limits:
    """What the process's libraries may use, and who asked for it.

    Invariant, whenever `_lock` is free: each shared dial that was found is turned to the
    smallest number that `_holds` and `_worker` ask for, and `_held` knows what it showed
    before the first of them. If nobody asks, `_held` is empty; in a fork it may not be, see
    `forked`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holds: set[Hold] = set()
        self._worker: Hold | None = None
        self._users = False  # whether sessions were held here before it was any worker's
        self._covered: Hold | None = None
        self._names: set[str] = set()
        self._libraries: list[Any] = []
        self._dials = [_loky()]
        self._held: dict[str, tuple[_Dial, int | None]] = {}
        if hasattr(os, "register_at_fork"):
            # Or a fork in the middle of a change would be left with half of it.
            os.register_at_fork(
                before=self._lock.acquire,
                after_in_parent=self._lock.release,
                after_in_child=self.forked,
            )

    def hold(self, token: Hold) -> None:
        with self._lock:
            self._look()
            self._users |= self._worker is None
            self._holds.add(token)
            self._settle()

    def release(self, token: Hold) -> None:
        with self._lock:
            if token not in self._holds:  # a fork closes its copy of the parent's session
                return
            self._holds.remove(token)
            self._settle()
            if not self._holds and not self._worker:
                # Also what somebody else has turned since: a task in another thread may have
                # turned it for a moment, as scikit-learn does, and put back one of our numbers
                # after a session had ended. To leave what is not ours would leave that.
                for dial, before in self._held.values():
                    _turn(dial, before)
                self._held.clear()
                # From now on each shows what it is to go back to.
                self._dials = [
                    dial._replace(natural=None) if dial.shared else dial for dial in self._dials
                ]

    def cover(self, limit: Hold) -> None:
        """Note that the environment limits all that will load, if nothing has loaded yet."""
        with self._lock:
            alone = not any(map(_brings_libraries, sys.modules.copy().items()))
            self._covered = limit if alone else None

    def meet(self, limit: Hold, *, worker: bool) -> list[_Dial]:
        """Settle what is the process's; give the dials that the thread must turn itself."""
        with self._lock:
            if limit.says(self._covered):
                # All has come with that number. To look would take 7 ms in each fresh worker
                # that loads NumPy, on top of NumPy's own 50, and 12 more for scikit-learn.
                return []
            own = self._look()
            # In a user's process, a chunk may begin after the hold of its call was released.
            if worker and not (self._holds or self._users or limit.says(self._worker)):
                self._worker = limit
                self._settle()
            else:
                # What was settled stays: a task in another thread may be turning it.
                self._settle(skip=self._held)
            return own

    def found(self) -> tuple[list[_Dial], list[Any]]:
        """Give the dials that each thread has for itself, and threadpoolctl's controllers."""
        with self._lock:
            return self._look(), self._libraries

    def forked(self) -> None:
        """Be the child of a fork, where the parent's sessions do not exist.

        The limits stay until this process asks for some: most children are workers and do so
        at once, and it is not safe to call a library in the fork of a process with threads.
        What was before them stays known: that is what is never raised, and what comes back.
        The fork of a worker is the worker's, too.
        """
        self._holds.clear()
        self._users = False
        _mine.threads = 0
        self._lock.release()

    def _look(self) -> list[_Dial]:
        if len(sys.modules) != len(self._names):
            modules = sys.modules.copy()  # in one step, as other threads may import
            new = modules.keys() - self._names
            self._names = set(modules)
            if any(_brings_libraries((name, modules[name])) for name in new):
                known = {dial.name: dial for dial in self._dials}
                self._libraries = _scan()
                found = [_loky(), *_numba(), *filter(None, map(_dial, self._libraries))]
                self._dials = [known.get(dial.name, dial) for dial in found]
        return [dial for dial in self._dials if not dial.shared]

    def _settle(self, skip: Container[str] = ()) -> None:
        asked = [*self._holds, *filter(None, [self._worker])]
        for dial in self._dials if asked else ():
            if dial.shared and dial.name not in skip:
                _, before = self._held.setdefault(dial.name, (dial, dial.before()))
                _turn(dial, min(one.of(before) for one in asked))


class _Mine(threading.local):
    """What this thread was given of the numbers that each thread has for itself."""

    def __init__(self) -> None:
        self.threads, self.exact, self.modules = 0, False, 0
        self.before: dict[str, int | None] = {}  # by dial, before it was first turned here

    def limit(self, limit: Hold, *, worker: bool) -> None:
        modules = len(sys.modules)  # what comes while we look is looked at the next time
        changed = (limit.threads, limit.exact) != (self.threads, self.exact)
        for dial in _limits.meet(limit, worker=worker):
            if changed or dial.name not in self.before:
                _turn(dial, limit.of(self.before.setdefault(dial.name, dial.before())))
        self.threads, self.exact, self.modules = limit.threads, limit.exact, modules

    def free(self, dials: list[_Dial]) -> None:
        """Give this thread what a library that has loaded with our limit would have had."""
        for dial in dials:
            if dial.natural is not None and dial.name not in self.before:
                self.before[dial.name] = dial.natural
                _turn(dial, dial.natural)
                self.threads = 0  # if it is a worker's thread, the next chunk limits it again


def _turn(dial: _Dial, number: int | None) -> None:
    if dial.get() != number:
        dial.set(number)


def _brings_libraries(item: tuple[str, Any]) -> bool:
    """Whether a module may have loaded a library with threads of its own."""
    name, module = item
    top = name.partition(".")[0]
    if top in {"lightgbm", "xgboost"}:  # theirs is loaded by ctypes
        return True
    try:  # not by way of the module: a lazy one would be loaded by the question
        file = object.__getattribute__(module, "__file__")
    except AttributeError:
        return False
    return str(file).endswith((".so", ".pyd")) and top not in sys.stdlib_module_names


def _scan() -> list[Any]:
    import threadpoolctl

    return list(threadpoolctl.ThreadpoolController().lib_controllers)


def _dial(one: Any) -> _Dial | None:
    """Give a library's dial, if it has one of its own."""
    get, turn, shared = one.get_num_threads, one.set_num_threads, False
    match one.internal_api:
        case "openblas" if one.threading_layer != "openmp":
            turn, shared = _openblas(one), True
        case "openmp":
            shared = one.prefix == "vcomp"
        case "mkl":
            return _mkl(one)
        case "blis":
            shared = str(one.version).startswith("0.")
        case _:
            # OpenBLAS over OpenMP takes the number of that, at each call; FlexiBLAS has it
            # from the library behind it; and of one that others registered we know nothing.
            return None
    natural = variables.natural(one.internal_api)
    return None if get() is None else _Dial(one.filepath, get, turn, shared, get, natural)


def _openblas(one: Any) -> Callable[[int], None]:
    # From 3.8 on, threadpoolctl lets but one thread turn it, the first one that does, for
    # as long as it lives, and ignores all others without a word.
    free = getattr(one, "clear_controlling_thread", lambda **_: None)

    def turn(threads: int) -> None:
        free(force=True)
        one.set_num_threads(threads)
        free(force=True)

    return turn


def _mkl(one: Any) -> _Dial:
    # Not by threadpoolctl, which before 3.8 turned the process's, after that the thread's.
    turn = one.dynlib.MKL_Set_Num_Threads_Local

    def mark() -> int:
        own = int(turn(0))  # which gives what it was, 0 where the thread follows the process
        turn(own)
        return own

    return _Dial(one.filepath, one.get_num_threads, turn, False, mark, variables.natural("mkl"))


def _numba() -> list[_Dial]:
    # One of these comes with the first parallel function; before, to ask starts the threads.
    if not any(f"numba.np.ufunc.{x}" in sys.modules for x in ("omppool", "tbbpool", "workqueue")):
        return []
    numba = sys.modules["numba"]
    get, most = numba.get_num_threads, numba.config.NUMBA_NUM_THREADS
    return [_Dial("numba", get, lambda n: numba.set_num_threads(min(n, most)), False, mark=get)]


def _loky() -> _Dial:
    def get() -> int | None:
        return _number(os.environ.get(_LOKY))

    def turn(threads: int | None) -> None:
        if threads is None:
            os.environ.pop(_LOKY, None)
        else:
            os.environ[_LOKY] = str(threads)

    return _Dial(_LOKY, get, turn, shared=True, mark=get)


_limits = _Limits()
_mine = _Mine()
