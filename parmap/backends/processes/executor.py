"""The pool as an executor. README.md beside this file draws how its parts work together."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from parmap.backends.mapping import MappingExecutor
from parmap.backends.processes.forkserver import Zygote
from parmap.backends.processes.handles import Task
from parmap.backends.processes.pool_thread import Crew
from parmap.backends.processes.protocol import Place, Reference, encode, encode_call
from parmap.backends.processes.system_unix import unforked
from parmap.errors import SerializationError
from parmap.transport.messages import Budget
from parmap.worker import family
from parmap.worker import native_threads as blas

__all__ = ["ProcessExecutor"]


class ProcessExecutor(MappingExecutor):
    """A PEP 3148 executor on worker processes, which outlives the death of any of them.

    Parameters
    ----------
    max_workers : int
        How many workers.
    initializer : callable, optional
        Run in each worker before its first task.
    initargs : tuple, default ()
        Its arguments.
    start : {"fresh", "fork"}, default "fresh"
        Whether workers are new interpreters or copies of this process.
    budget : Budget, optional
        What each worker may use of the machine. Default: as much as this process.
    zygote : Zygote, optional
        One that is started already, and is this executor's from now on. Default: it starts
        one.
    """

    def __init__(
        self,
        max_workers: int,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        start: str = "fresh",
        budget: Budget | None = None,
        zygote: Zygote | None = None,
    ) -> None:
        if max_workers < 1:
            raise ValueError("max_workers must be greater than 0")
        self.workers = max_workers
        try:
            argv = getattr(sys, "argv", [])  # none where Python is part of another program
            kin = (family.here(), family.trust())
            setup = [
                *encode((sys.path, argv, budget, kin), "sys.argv"),
                *encode((initializer, initargs), "setup"),
            ]
        except BaseException:
            if zygote is not None:
                zygote.close()  # from here on it is the crew's
            raise
        _open.difference_update([crew for crew in _open if not crew.thread.is_alive()])
        self._crew = Crew(max_workers, setup, start, zygote)
        self._desk = self._crew.desk
        self._place = Place.here()
        self._settle = encode(self._place, "sys.path")
        # Held while the crew begins, by one thread, once. It is reentrant: a finalizer or a signal
        # handler may submit meanwhile; it finds `_begins`, and its task waits in the queue.
        self._beginning = threading.RLock()
        self._begins = False
        # Forks are made when the first task comes, so that they have what it refers to.
        self._forks = start == "fork"
        if not self._forks:
            self._begin()
        # The crew does not know this object: forgotten, it closes the crew.
        weakref.finalize(self, self._desk.forget).atexit = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call ``fn(*args, **kwargs)``.

        Whatever goes wrong with this one call, unpicklable arguments included, is the
        future's exception.
        """
        future: Future[Any] = Future()
        if not self._crew.begun:  # later the desk refuses by itself what comes too late
            self._desk.check()
            self._begin()
        keys: tuple[int, ...] = ()
        if Reference in map(type, args):  # else a comprehension is a call for nothing
            keys = tuple([arg.key for arg in args if type(arg) is Reference])
        try:
            frames = encode_call(fn, args, kwargs)
            here = Place.here()
            if here != self._place:  # else they are the very frames that the workers know
                # In this order: another thread that finds the new place finds its frames, too.
                self._settle = encode(here, "sys.path")
                self._place = here
        except SerializationError as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        self._desk.take(Task(future, frames, keys, self._settle))
        return future

    def put(self, value: Any, what: str = "") -> Reference:
        """Place a value; a reference to it may stand among the arguments of `submit`.

        `what` begins the path in an error's message. Arrays are read-only in the workers.
        """
        return self._desk.put(encode(value, what), inherit=self._forks and not self._crew.begun)

    def drop(self, reference: Reference) -> None:
        """Forget a placed value, here and in the workers."""
        self._desk.drop(reference.key)

    def abandon(self, future: Future[Any]) -> None:
        """Stop a task that runs: interrupt it, and kill its worker if that does not help."""
        self._desk.abandon(future)

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that must not wait here, as futures are resolved by it.

        That is the crew's; or the one that asks, if it is in the middle of a change at the desk.
        """
        if self._desk.busy:
            return threading.get_ident()
        return self._crew.thread.ident if self._crew.begun else None

    @property
    def pids(self) -> list[int]:
        """The process numbers of the workers that live now."""
        self._begin()
        return self._desk.pids

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; end the workers when all that were taken are done."""
        _close(self._crew, wait=wait, cancel=cancel_futures)

    def _begin(self) -> None:
        if self._crew.begun:
            return
        with self._beginning:
            if self._begins:
                return
            self._begins = True
            try:
                self._begin_once()
            finally:
                self._begins = False

    def _begin_once(self) -> None:
        if not self._crew.begun and not self._desk.closing:
            if self._forks:
                # Looks once for all workers, and not after a fork of threads. Not under `unforked`:
                # a fork in another thread may have the lock that this takes, and wait for that.
                blas.loaded()
            with unforked:
                self._crew.begin()
            _open.add(self._crew)


# Pools whose thread may still run. Strong references: a pool that was told to close without
# waiting, and forgotten, must still be waited for at the interpreter's exit.
_open: set[Crew] = set()


def _close(crew: Crew, *, wait: bool, cancel: bool) -> None:
    if crew.desk.foreign:
        return
    crew.desk.close(cancel=cancel)
    if not crew.begun:
        crew.desk.clear()
    if wait and crew.begun and threading.current_thread() is not crew.thread:
        crew.thread.join()


def _close_all() -> None:
    """At the interpreter's exit, finish what was taken, as concurrent.futures does."""
    for crew in list(_open):
        _close(crew, wait=True, cancel=False)


def _disown_all() -> None:
    for crew in list(_open):
        crew.disown()
    _open.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
