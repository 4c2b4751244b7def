"""The pool as an executor. README.md beside this file draws how its parts work together."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any

from parmap.backends.mapping import MappingExecutor
from parmap.backends.processes.forkserver import ForkServer
from parmap.backends.processes.handles import Task
from parmap.backends.processes.pool_thread import PoolThread
from parmap.backends.processes.protocol import BroadcastKey, Frame, ImportPaths, encode, encode_call
from parmap.backends.processes.system_unix import unforked
from parmap.errors import SerializationError
from parmap.transport.messages import CoreShare
from parmap.transport.shared import LARGE
from parmap.worker import family, native_threads

__all__ = ["ProcessExecutor"]

# Of fewer bytes than this a worker may keep what nobody needs any more.
_SMALL = 1 << 16


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
    core_share : CoreShare, optional
        What each worker may use of the machine. Default: as much as this process.
    fork_server : ForkServer, optional
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
        core_share: CoreShare | None = None,
        fork_server: ForkServer | None = None,
    ) -> None:
        if max_workers < 1:
            raise ValueError("max_workers must be greater than 0")
        self.workers = self.per_node = max_workers
        try:
            argv = getattr(sys, "argv", [])  # none where Python is part of another program
            kin = (family.here(), family.trust())
            setup = [
                *encode((sys.path, argv, core_share, kin), "sys.argv"),
                *encode((initializer, initargs), "setup"),
            ]
        except BaseException:
            if fork_server is not None:
                fork_server.close()  # below, it becomes the pool thread's
            raise
        _open.difference_update(
            [pool_thread for pool_thread in _open if not pool_thread.thread.is_alive()]
        )
        self._pool_thread = PoolThread(max_workers, setup, start, fork_server)
        self._queue = self._pool_thread.queue
        self._paths = ImportPaths.here()
        self._path_frames = encode(self._paths, "sys.path")
        # Held while the pool's thread begins, by one thread, once. It is reentrant: a finalizer or
        # a signal handler may submit meanwhile; it finds `_begins`, and its task waits.
        self._beginning = threading.RLock()
        self._begins = False
        # Forks are made when the first task comes, so that they have what it refers to.
        self._forks = start == "fork"
        if not self._forks:
            self._begin()
        # The pool's thread does not know this object, which closes the pool when it is forgotten.
        weakref.finalize(self, self._queue.forget).atexit = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call ``fn(*args, **kwargs)``.

        Whatever goes wrong with this one call, unpicklable arguments included, is the
        future's exception.
        """
        future: Future[Any] = Future()
        # Later the task queue refuses by itself what comes too late.
        if not self._pool_thread.begun:
            self._queue.state.check()
            self._begin()
        keys: tuple[int, ...] = ()
        if BroadcastKey in map(type, args):  # else a comprehension is a call for nothing
            keys = tuple([arg.key for arg in args if type(arg) is BroadcastKey])
        try:
            encoded = encode_call(fn, args, kwargs)
            frames: Sequence[Frame] = encoded
            if max(map(len, encoded)) >= LARGE:
                self._queue.state.check()  # nobody would forget what is kept for it
                frames = self._queue.broadcast.recurring.frames(args, encoded)
            here = ImportPaths.here()
            if here != self._paths:  # else they are the very frames that the workers know
                # In this order: another thread that finds the new paths finds their frames, too.
                self._path_frames = encode(here, "sys.path")
                self._paths = here
        except SerializationError as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        self._queue.take(Task(future, frames, keys, self._path_frames))
        return future

    def put(self, value: Any, /) -> BroadcastKey:
        """Place a value; a reference to it may stand among the arguments of `submit`.

        Arrays are read-only in the workers.
        """
        frames = encode(value, "")
        self._queue.state.check()
        return self._queue.broadcast.put(
            frames, inherit=self._forks and not self._pool_thread.begun
        )

    def drop(self, reference: BroadcastKey, /) -> None:
        """Forget a placed value, here and in the workers.

        A worker hears of it with its next task, if it is a small one: to wake an idle one for a few
        bytes would cost more than they do.
        """
        if self._queue.state.foreign:
            return
        if self._queue.broadcast.drop(reference.key) > _SMALL:
            self._queue.drop_from_idle(reference.key)

    def recall(
        self, future: Future[Any], chunk: int, /, *, only_slow: bool
    ) -> tuple[int, bool] | None:
        """Recall elements that a worker has not begun of a chunk."""
        return self._queue.recall(future, chunk, only_slow=only_slow)

    def abandon(self, future: Future[Any], /) -> None:
        """Stop a task that runs: interrupt it, and kill its worker if that does not help."""
        self._queue.abandon(future)

    def drive(self, futures: Collection[Future[Any]], /, *, seconds: float) -> None:
        """Wait for these tasks, for so many seconds at most, and hear their workers meanwhile."""
        if self._pool_thread.begun and not self._queue.state.foreign:
            self._pool_thread.driving.drive(futures, seconds)

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that must not wait here, as futures are resolved by it.

        That is the pool's; or the one that asks, if it is in the middle of a change of the queue.
        """
        if self._queue.busy:
            return threading.get_ident()
        return self._pool_thread.thread.ident if self._pool_thread.begun else None

    @property
    def pids(self) -> list[int]:
        """The process numbers of the workers that live now."""
        self._begin()
        return self._queue.pids

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; end the workers when all that were taken are done."""
        _close(self._pool_thread, wait=wait, cancel=cancel_futures)

    def _begin(self) -> None:
        if self._pool_thread.begun:
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
        if not self._pool_thread.begun and not self._queue.state.closing:
            if self._forks:
                # Looks once for all workers, and not after a fork of threads. Not under `unforked`:
                # a fork in another thread may have the lock that this takes, and wait for that.
                native_threads.loaded()
            with unforked:
                self._pool_thread.begin()
            _open.add(self._pool_thread)


# Pools whose thread may still run. Strong references: a pool that was told to close without
# waiting, and forgotten, must still be waited for at the interpreter's exit.
_open: set[PoolThread] = set()


def _close(pool_thread: PoolThread, *, wait: bool, cancel: bool) -> None:
    if pool_thread.queue.state.foreign:
        return
    pool_thread.queue.close(cancel=cancel)
    if not pool_thread.begun:
        pool_thread.queue.broadcast.clear()
    if wait and pool_thread.begun and threading.current_thread() is not pool_thread.thread:
        pool_thread.thread.join()


def _close_all() -> None:
    """At the interpreter's exit, finish what was taken, as concurrent.futures does."""
    for pool_thread in list(_open):
        _close(pool_thread, wait=True, cancel=False)


def _disown_all() -> None:
    for pool_thread in list(_open):
        pool_thread.disown()
    _open.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
