"""The thread guard: how many threads native libraries may use inside a task.

A worker gets its share of the cores. Where nothing is loaded yet, `set_environment` says so
in the variables that libraries read as they load, at no cost. What is loaded already is
told by threadpoolctl, whose import and scan take milliseconds: once per process, and again
only when a module has come that may have brought a library.

OpenBLAS has one number for the process; of OpenMP and MKL each thread has its own. `hold` limits
what is the process's while a session of threads is open, and `release` gives it back. `keep` runs
in the worker before each chunk. What it limits is its thread's, so the user's own stay as they are.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Container, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from parmap import cores
from parmap.worker import thread_variables as variables
from parmap.worker.thread_controls import Library, ThreadControl, control_of, loky, numba, turn
from parmap.worker.thread_variables import NAMES as _VARIABLES
from parmap.worker.thread_variables import ThreadLimit, number

__all__ = ["Held", "Library", "borrowed", "hold", "keep", "loaded", "release", "set_environment"]


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
        if limit != number(environ.get(name)):
            environ[name] = str(limit)
    if environ is os.environ:
        cores.aside = {}  # what is set now is the worker's own
        _limits.cover(ThreadLimit(threads, exact))


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
    _mine.limit(ThreadLimit(threads, exact), worker=True)


@contextmanager
def borrowed(threads: int, *, exact: bool = False) -> Iterator[None]:
    """Limit this thread's own numbers for the block: where it is not the worker's to keep."""
    marks = {control.name: control.mark() for control in _limits.found()[0]}
    outer = vars(_mine).copy()
    before = _mine.before.copy()
    try:
        _mine.before, _mine.blocks = before, (*_mine.blocks, before)
        _mine.limit(ThreadLimit(threads, exact), worker=False)
        yield
    finally:
        try:
            _mine.restore(before, marks, outer)
        except KeyboardInterrupt:  # perhaps at its first step
            _mine.restore(before, marks, outer)
            raise


def hold(threads: int, *, exact: bool = False, later: bool = False) -> Held:
    """Limit what is the whole process's, until `release`; the smallest that is held counts.

    Parameters
    ----------
    threads, exact
        As for `keep`.
    later : bool, default False
        Whether to limit also what loads until then, by the environment.

    Returns
    -------
    Held
        What `release` takes, in any thread and any order. Lost, it is released.
    """
    held = Held(ThreadLimit(threads, exact))
    try:
        _limits.hold(held.limit, later=later)
    except BaseException:  # Ctrl-C, while a library is set: nobody would release it
        release(held)
        raise
    return held


def release(held: Held) -> None:
    """End a hold: after the last one, all is as it was before the first."""
    _release(held.limit)


def _release(token: ThreadLimit) -> None:
    later = variables.holds(token)
    _limits.release(token)
    if later:
        _mine.free(_limits.own())  # what has loaded meanwhile


def loaded() -> list[Library]:
    """List the libraries with threads of their own that are loaded in this process."""
    _, found = _limits.found()
    # The fields are called as threadpoolctl calls them.
    return [Library(*(getattr(one, name, None) for name in Library._fields)) for one in found]  # type: ignore[arg-type]


class Held:
    """A hold that somebody has, until it is released or nobody has it any more.

    Ctrl-C may strike between the end of `hold` and the caller's next step: then the result is
    lost, and nobody could release it.
    """

    __slots__ = ("_release", "exact", "limit", "threads")

    def __init__(self, limit: ThreadLimit) -> None:
        self._release = _release
        self.threads, self.exact = limit.threads, limit.exact
        self.limit = limit

    def __del__(self) -> None:
        # Ctrl-C may strike before `__init__` has set it: then nothing is held.
        if hasattr(self, "limit"):
            try:
                self._release(self.limit)
            except KeyboardInterrupt:  # in a finalizer it is only written, and the hold would stay
                self._release(self.limit)
                raise


class _Limits:
    """What the process's libraries may use, and who asked for it.

    Invariant, whenever `_lock` is free: each shared control that was found is set to the
    smallest number that `_holds` and `_worker` ask for, and `_held` knows what it showed
    before the first of them. If nobody asks, `_held` is empty; in a fork it may not be, see
    `forked`.

    Who may hold `_lock` when something comes in between, in the same thread:

    * A finalizer, such as that of a forgotten `imap`, releases a hold. It does not take the lock,
      nor wait for it: another thread may have it and import threadpoolctl, of which this
      thread may have the import lock. It leaves the hold in `_over`; whoever has the lock, or takes
      it next, ends the hold (`_drain`).
    * A finalizer or a signal handler of the user's may make a call, which holds and releases: the
      lock is reentrant, and each control is set to what is asked for at that moment.
    * KeyboardInterrupt may leave controls half set: `hold` then releases, which sets them all.
    * The environment's variables change under this lock, too.
    * A fork takes the lock before, so that the child finds no change half made.
    """

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()
        self._over: deque[ThreadLimit] = deque()  # to be released by who has the lock
        self._holds: set[ThreadLimit] = set()
        self._worker: ThreadLimit | None = None
        self._users = False  # whether sessions were held here before it was any worker's
        self._covered: ThreadLimit | None = None
        self._names: set[str] = set()
        self._libraries: list[Any] = []
        self._controls = [loky()]
        self._held: dict[str, tuple[ThreadControl, int | None]] = {}
        if hasattr(os, "register_at_fork"):
            # Or a fork in the middle of a change would be left with half of it.
            os.register_at_fork(
                before=self._lock.acquire,
                after_in_parent=self._lock.release,
                after_in_child=self.forked,
            )

    def hold(self, token: ThreadLimit, *, later: bool = False) -> None:
        try:
            with self._lock:
                self._look()  # first, at what is loaded already
                self._users |= self._worker is None
                self._holds.add(token)
                self._apply()
                if later:
                    variables.hold(token)
        finally:
            self._drain()

    def release(self, token: ThreadLimit) -> None:
        self._over.append(token)
        try:
            self._drain()
        except KeyboardInterrupt:  # nobody else may come to end it
            self._drain()
            raise

    def cover(self, limit: ThreadLimit) -> None:
        """Note that the environment limits all that will load, if nothing has loaded yet."""
        try:
            with self._lock:
                alone = not any(map(_brings_libraries, sys.modules.copy().items()))
                self._covered = limit if alone else None
        finally:
            self._drain()

    def meet(self, limit: ThreadLimit, *, worker: bool) -> list[ThreadControl]:
        """Set what is the process's; give the controls that the thread must set itself."""
        try:
            with self._lock:
                if limit.says(self._covered):
                    # All has come with that number. To look would take 7 ms in each fresh worker
                    # that loads NumPy, on top of NumPy's own 50, and 12 more for scikit-learn.
                    return []
                own = self._look()
                # In a user's process, a chunk may begin after the hold of its call was released.
                if worker and not (self._holds or self._users or limit.says(self._worker)):
                    self._worker = limit
                    self._apply()
                else:
                    # What was set stays: a task in another thread may be setting it.
                    self._apply(skip=self._held)
                return own
        finally:
            self._drain()

    def own(self) -> list[ThreadControl]:
        """List the known controls that each thread has for itself."""
        # No lock: a finalizer asks. What another thread finds just now is set later.
        return [control for control in self._controls if not control.shared]

    def found(self) -> tuple[list[ThreadControl], list[Any]]:
        """Give the controls that each thread has for itself, and threadpoolctl's controllers."""
        try:
            with self._lock:
                return self._look(), self._libraries
        finally:
            self._drain()

    def forked(self) -> None:
        """Be the child of a fork, where the parent's sessions do not exist.

        The limits stay until this process asks for some: most children are workers and do so
        at once, and it is not safe to call a library in the fork of a process with threads.
        What was before them stays known: that is what is never raised, and what comes back.
        The fork of a worker is the worker's, too.
        """
        self._holds.clear()
        self._over.clear()
        self._users = False
        _mine.threads = 0
        self._lock.release()

    def _drain(self) -> None:
        """End the holds that are over; leave them to whoever has the lock, in any thread."""
        lock = self._lock
        if not self._over or lock._is_owned():  # noqa: SLF001 - as the standard library's Condition asks
            return
        try:
            # Again if some came while it was held: their releasers found it held.
            while self._over and lock.acquire(blocking=False):
                while self._over:
                    self._end(self._over[0])
                    self._over.popleft()
                lock.release()
        except BaseException:
            # Ctrl-C strikes after any call, and so between `acquire` and its result.
            if lock._is_owned():  # noqa: SLF001
                lock.release()
            raise

    def _end(self, token: ThreadLimit) -> None:
        if token not in self._holds:  # a fork closes its copy of the parent's session
            return
        if variables.holds(token) and not token.says(self._covered):
            self._look()  # before the variables go back: they tell what would have been
            self._apply(skip=self._held)
        variables.release(token)  # again, if Ctrl-C has cut that short
        self._apply(over=token)
        if not self._asked(token):
            # Also what somebody else has set since: a task in another thread may have set it for
            # a moment, as scikit-learn does, and put back one of our numbers after a session had
            # ended. To leave what is not ours would leave that.
            for control, before in list(self._held.values()):
                turn(control, before)
            self._held.clear()
            # From now on each shows what it is to go back to.
            self._controls = [
                control._replace(natural=None) if control.shared else control
                for control in self._controls
            ]
        self._holds.discard(token)

    def _look(self) -> list[ThreadControl]:
        if len(sys.modules) != len(self._names):
            modules = sys.modules.copy()  # in one step, as other threads may import
            new = modules.keys() - self._names
            if any(_brings_libraries((name, modules[name])) for name in new):
                known = {control.name: control for control in self._controls}
                self._libraries = _scan()
                found = [loky(), *numba(), *filter(None, map(control_of, self._libraries))]
                self._controls = [known.get(control.name, control) for control in found]
            self._names = set(modules)  # last, or what was interrupted would never be found
        return self.own()

    def _asked(self, over: ThreadLimit | None = None) -> list[ThreadLimit]:
        return [one for one in (*self._holds.copy(), self._worker) if one and one is not over]

    def _apply(self, skip: Container[str] = (), over: ThreadLimit | None = None) -> None:
        for control in self._controls if self._asked(over) else ():
            if control.shared and control.name not in skip:
                _, before = self._held.setdefault(control.name, (control, control.before()))
                # Asked anew for each: what comes in between may hold, too.
                turn(control, min((one.of(before) for one in self._asked(over)), default=before))


class _Mine(threading.local):
    """What this thread was given of the numbers that each thread has for itself."""

    def __init__(self) -> None:
        self.threads, self.exact, self.modules = 0, False, 0
        self.before: dict[str, int | None] = {}  # by control, before it was first set here
        # Of each block of `borrowed` that runs here, outermost first, what is in its `before`.
        self.blocks: tuple[dict[str, int | None], ...] = ()

    def limit(self, limit: ThreadLimit, *, worker: bool) -> None:
        modules = len(sys.modules)  # what comes while we look is looked at the next time
        changed = (limit.threads, limit.exact) != (self.threads, self.exact)
        for control in _limits.meet(limit, worker=worker):
            if changed or control.name not in self.before:
                turn(control, limit.of(self.before.setdefault(control.name, control.before())))
        self.threads, self.exact, self.modules = limit.threads, limit.exact, modules

    def restore(
        self, before: dict[str, int | None], marks: dict[str, Any], outer: dict[str, Any]
    ) -> None:
        """End a block: restore the numbers, and what this thread remembered, of its beginning."""
        # Ctrl-C may leave a block to the garbage collector. A block around it may have ended first.
        if not any(one is before for one in self.blocks):
            return
        for control in _limits.found()[0]:
            if control.name in self.before:
                control.set(marks.get(control.name, self.before[control.name]))
        vars(self).update(outer)

    def free(self, controls: list[ThreadControl]) -> None:
        """Give this thread what a library that has loaded with our limit would have had."""
        for control in controls:
            if control.natural is not None and control.name not in self.before:
                self.before[control.name] = control.natural
                turn(control, control.natural)
                self.threads = 0  # if it is a worker's thread, the next chunk limits it again


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


_limits = _Limits()
_mine = _Mine()
