"""The pool: hands tasks to workers, hears their answers, replaces those that die.

README.md beside this file draws the flow and lists the races.
"""

from __future__ import annotations

import atexit
import itertools
import os
import selectors
import signal
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

from parmap.backends.processes.child import NOTES
from parmap.backends.processes.system import anonymous_file
from parmap.backends.processes.wire import Frame, Inbox, Kind, Reference, decode, encode, send
from parmap.backends.processes.zygote import Birth, Burial, Zygote
from parmap.errors import ParmapError, PoolBroken, SessionClosed, WorkerDied
from parmap.worker.culprit import unreadable
from parmap.worker.parcel import unpack_error

__all__ = ["ProcessExecutor"]

# After an interrupt, how long a task may take to notice it before its worker is killed; and
# how long a worker may take to leave when asked to.
_GRACE = 0.5
# So many workers in a row that end before they are ready mean that none ever will be.
_STILLBORN = 16


@dataclass(eq=False, slots=True)
class Task:
    """A call on its way through the pool."""

    future: Future[Any]
    frames: list[Frame]
    keys: tuple[int, ...]  # the placed values that it refers to


class Worker:
    """The parent's record of a worker.

    `task` changes only under the pool's lock. Who sets it, sends it: so a channel has one
    writer at a time, and `sending` is contended only when a dead worker's channel closes.
    """

    def __init__(self, number: int, channel: socket.socket, notes: int) -> None:
        self.number, self.channel, self.notes = number, channel, notes
        self.inbox = Inbox(channel, blocking=False)
        self.sending = threading.Lock()
        self.pid = 0  # until the zygote tells
        self.task: Task | None = None
        self.known: set[int] = set()  # keys of placed values that it has
        self.ready = False

    def send(self, kind: Kind, key: int = 0, frames: list[Frame] | None = None) -> None:
        try:
            send(self.channel, kind, key, frames or ())
        except OSError:
            return  # it has died; its channel's end-of-file is on the way to the pool's thread

    def death(self, burial: Burial | None) -> WorkerDied:
        """Describe how it ended, from its notes and what the zygote knows."""
        position = int.from_bytes(os.pread(self.notes, NOTES, 0), sys.byteorder, signed=True)
        words = os.pread(self.notes, 1 << 16, NOTES).decode(errors="replace")
        return WorkerDied(
            self.pid,
            burial.exitcode if burial else None,
            burial.peak_memory if burial else None,
            position if position >= 0 else None,
            words,
        )


class ProcessExecutor(Executor):
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
    """

    def __init__(
        self,
        max_workers: int,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        start: str = "fresh",
    ) -> None:
        if max_workers < 1:
            raise ValueError("max_workers must be greater than 0")
        self.workers = max_workers
        setup = [*encode((sys.path, sys.argv), "sys.argv"), *encode((initializer, initargs), "setup")]
        self._crew = Crew(max_workers, setup, start)
        # The crew's thread must not keep this object alive: forgotten, it closes the crew.
        weakref.finalize(self, self._crew.close, wait=False).atexit = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call ``fn(*args, **kwargs)``.

        Whatever goes wrong with this one call, unpicklable arguments included, is the
        future's exception.
        """
        future: Future[Any] = Future()
        self._crew.check()
        keys = tuple(arg.key for arg in args if type(arg) is Reference)
        try:
            frames = encode((fn, args, kwargs), "call")
        except ParmapError as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        self._crew.take(Task(future, frames, keys))
        return future

    def put(self, value: Any) -> Reference:
        """Place a value; a reference to it may stand among the arguments of `submit`."""
        return self._crew.put(encode(value, "job"))

    def drop(self, reference: Reference) -> None:
        """Forget a placed value, here and in the workers."""
        self._crew.drop(reference.key)

    def abandon(self, future: Future[Any]) -> None:
        """Stop a task that runs: interrupt it, and kill its worker if that does not help."""
        self._crew.abandon(future)

    @property
    def pids(self) -> list[int]:
        """The process numbers of the workers that live now."""
        return self._crew.pids

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; end the workers when all that were taken are done."""
        self._crew.close(wait=wait, cancel=cancel_futures)


class Crew:
    """The running half: workers, their tasks, and the thread that hears them.

    Under `_lock`, always:

    * a worker is in `_idle` if and only if it lives and has no task;
    * where `_queue` holds a task, `_idle` is empty;
    * `_closing` never becomes false again, and `_broken` never None.

    Only the pool's thread touches `_zygote`, `_selector`, and the reading side of channels.
    Callbacks of futures run outside the lock, for they may submit.
    """

    def __init__(self, width: int, setup: list[Frame], start: str) -> None:
        self._width, self._setup, self._start = width, setup, start
        self._lock = threading.Lock()
        self._queue: deque[Task] = deque()
        self._idle: list[Worker] = []
        self._living: dict[int, Worker] = {}
        self._dying: dict[int, tuple[Worker, Task | None]] = {}  # until the zygote has buried them
        self._placed: dict[int, list[Frame]] = {}
        self._closing = False
        self._broken: ParmapError | None = None
        self._numbers = itertools.count(1)
        self._unready = 0  # workers lost in a row before any was ready
        self._overdue: deque[tuple[float, Worker, Task | None]] = deque()
        self._pid = os.getpid()
        self._zygote = Zygote(start)
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._zygote.control, selectors.EVENT_READ, self._hear_zygote)
        self._selector.register(self._woken, selectors.EVENT_READ, self._hear_wake)
        for _ in range(width):
            self._spawn()
        _open.add(self)
        # A daemon: the interpreter's exit must not wait for it before `_close_all` can run.
        self._thread = threading.Thread(target=self._run, name="parmap-processes", daemon=True)
        self._thread.start()

    # -- any thread ------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse work when closed or broken, or in a fork."""
        if self._broken is not None:
            raise self._broken
        if self._pid != os.getpid():
            raise SessionClosed(
                f"these workers belong to process {self._pid}, of which this one is a fork: start a plan of its own here"
            )
        if self._closing:
            raise SessionClosed("cannot schedule new futures after shutdown")

    def take(self, task: Task) -> None:
        """Give a task to an idle worker, from this very thread, or queue it."""
        with self._lock:
            self.check()
            if not self._idle:
                self._queue.append(task)
                return
            worker = self._idle.pop()
            worker.task = task
            task.future.set_running_or_notify_cancel()
        self._send(worker, task)

    def put(self, frames: list[Frame]) -> Reference:
        with self._lock:
            self.check()
            key = next(self._numbers)
            self._placed[key] = frames
        return Reference(key)

    def drop(self, key: int) -> None:
        with self._lock:
            self._placed.pop(key, None)
            for worker in self._idle:
                if key in worker.known:
                    # Idle, so it reads; a dozen bytes cannot block, and the lock keeps it idle.
                    worker.known.discard(key)
                    worker.send(Kind.DROP, key)

    def abandon(self, future: Future[Any]) -> None:
        with self._lock:
            for worker in self._living.values():
                if worker.task is not None and worker.task.future is future:
                    # Under the lock the worker cannot get another task, so the signal can
                    # only hit this one; and it is not reaped before it is out of _living,
                    # so the number is still its own.
                    if worker.pid:
                        os.kill(worker.pid, signal.SIGINT)
                    self._overdue.append((time.monotonic() + _GRACE, worker, worker.task))
                    self._nudge()
                    return

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return [worker.pid for worker in self._living.values() if worker.pid]

    def close(self, *, wait: bool, cancel: bool = False) -> None:
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closing = True
            dropped = list(self._queue) if cancel else []
            if cancel:
                self._queue.clear()
        for task in dropped:
            _cancel(task.future)
        self._nudge()
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    def disown(self) -> None:
        """In a fork of the parent: close what it inherited, or workers would outlive the parent."""
        for worker in (*self._living.values(), *(worker for worker, _ in self._dying.values())):
            worker.channel.close()
            os.close(worker.notes)
        self._zygote.control.close()
        self._wake.close()
        self._woken.close()
        self._selector.close()

    def _nudge(self) -> None:
        """Have the thread look round."""
        try:
            self._wake.send(b"\0", socket.MSG_DONTWAIT)
        except OSError:
            return  # full: it will wake anyway; closed: it has ended

    def _send(self, worker: Worker, task: Task) -> None:
        """Send a task to the worker that it was assigned to, and first what it refers to."""
        with worker.sending:
            try:
                for stale in worker.known - self._placed.keys():
                    worker.known.discard(stale)
                    worker.send(Kind.DROP, stale)
                for key in task.keys:
                    frames = self._placed.get(key)
                    if key not in worker.known and frames is not None:
                        worker.known.add(key)
                        worker.send(Kind.PLACE, key, frames)
                worker.send(Kind.TASK, 0, task.frames)
            except BaseException:
                # Ctrl-C in the middle of a message: the channel is of no more use.
                worker.channel.shutdown(socket.SHUT_RDWR)
                raise
        task.frames = []  # it may hold much, and only a rerun by the engine could need it

    # -- the pool's thread -----------------------------------------------------------------

    def _run(self) -> None:
        while self._living or self._dying or not self._closing:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            self._kill_overdue()
            if self._closing:
                self._retire()
        for end in (self._selector, self._wake, self._woken, self._zygote):
            end.close()
        _open.discard(self)

    def _patience(self) -> float | None:
        with self._lock:
            return max(0.0, self._overdue[0][0] - time.monotonic()) if self._overdue else None

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        notes = anonymous_file()
        os.ftruncate(notes, NOTES)
        # The worker shares this position, so its last words come after the notes.
        os.lseek(notes, NOTES, os.SEEK_SET)
        worker = Worker(next(self._numbers), ours, notes)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(worker))
        with theirs:
            self._zygote.fork(worker.number, theirs, notes)
        worker.send(Kind.SETUP, 0, self._setup)
        self._living[worker.number] = worker
        self._rest(worker)

    def _hear(self, worker: Worker) -> None:
        try:
            message = worker.inbox.read()
        except EOFError:
            self._lose(worker)
            return
        if message is None:
            return
        kind, _, frames = message
        if kind is Kind.READY:
            worker.ready, self._unready = True, 0
        elif kind is Kind.BROKEN:
            self._break("setup= failed in a worker", unpack_error(decode(frames)))
        else:
            task = worker.task
            assert task is not None
            self._rest(worker)
            _resolve(task.future, kind, frames)

    def _hear_wake(self) -> None:
        self._woken.recv(1 << 10)

    def _rest(self, worker: Worker) -> None:
        """Give a worker the next task, or let it idle."""
        with self._lock:
            worker.task = task = self._next_task()
            if task is None:
                self._idle.append(worker)
        if task is not None:
            self._send(worker, task)

    def _next_task(self) -> Task | None:
        while self._queue:
            task = self._queue.popleft()
            # The one call that wakes those who wait for a cancelled future.
            if task.future.set_running_or_notify_cancel():
                return task
        return None

    def _lose(self, worker: Worker) -> None:
        """A worker's channel has closed: take it out, have it buried, replace it."""
        with self._lock:
            del self._living[worker.number]
            if worker in self._idle:
                self._idle.remove(worker)
            task, worker.task = worker.task, None
            wanted = self._broken is None and (not self._closing or bool(self._queue))
        self._dying[worker.number] = (worker, task)
        self._selector.unregister(worker.channel)
        with worker.sending:  # a writer has its own error by now, and lets go
            worker.channel.close()
        self._zygote.bury(worker.number)
        self._unready += not worker.ready and not self._closing
        if self._unready >= _STILLBORN:
            self._break(f"{_STILLBORN} workers in a row ended before they were ready", worker.death(None))
        elif wanted:
            self._spawn()

    def _hear_zygote(self) -> None:
        try:
            replies = self._zygote.replies()
        except EOFError:
            self._replace_zygote()
            return
        for reply in replies:
            if isinstance(reply, Birth):
                if worker := self._living.get(reply.worker):
                    worker.pid = reply.pid
                elif dying := self._dying.get(reply.worker):
                    dying[0].pid = reply.pid
            else:
                self._bury(reply.worker, reply)

    def _bury(self, number: int, burial: Burial | None) -> None:
        worker, task = self._dying.pop(number)
        death = worker.death(burial)
        os.close(worker.notes)
        if task is not None:
            task.future.set_exception(death)

    def _replace_zygote(self) -> None:
        """The zygote is gone, and the kernel has killed its workers: begin again."""
        self._selector.unregister(self._zygote.control)
        self._zygote.close()
        if not any(worker.ready for worker in self._living.values()):
            self._unready += 1
        self._zygote = Zygote(self._start)
        self._selector.register(self._zygote.control, selectors.EVENT_READ, self._hear_zygote)
        for number in list(self._dying):
            self._bury(number, None)

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = []
            while self._overdue and self._overdue[0][0] <= now:
                late.append(self._overdue.popleft())
            late = [worker for _, worker, task in late if worker.task is task and worker.number in self._living]
        for worker in late:
            self._zygote.kill(worker.number)

    def _retire(self) -> None:
        """Let idle workers go, when there is nothing left to do for them."""
        with self._lock:
            if self._queue:
                return
            leaving, self._idle = self._idle, []
            for worker in leaving:
                self._overdue.append((time.monotonic() + 4 * _GRACE, worker, None))
        for worker in leaving:
            worker.channel.shutdown(socket.SHUT_WR)

    def _break(self, why: str, cause: BaseException) -> None:
        """Give up: no worker can be made that works."""
        error = PoolBroken(f"{why}: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        with self._lock:
            self._broken, self._closing = error, True
            tasks = [*self._queue, *(w.task for w in self._living.values() if w.task)]
            self._queue.clear()
            for worker in self._living.values():
                worker.task = None
            self._idle = []
            doomed = list(self._living)
        for number in doomed:
            self._zygote.kill(number)
        for task in tasks:
            if task.future.running() or task.future.set_running_or_notify_cancel():
                task.future.set_exception(error)


def _resolve(future: Future[Any], kind: Kind, frames: list[bytearray]) -> None:
    try:
        value = decode(frames)
        if kind is Kind.ERROR:
            value = unpack_error(value)
    except BaseException as error:  # noqa: BLE001 - a result's __setstate__ may raise anything
        future.set_exception(unreadable(error))
        return
    if kind is Kind.ERROR:
        future.set_exception(value)
    else:
        future.set_result(value)


def _cancel(future: Future[Any]) -> None:
    if future.cancel() or future.cancelled():
        future.set_running_or_notify_cancel()


_open: set[Crew] = set()


def _close_all() -> None:
    """At the interpreter's exit, finish what was taken, as concurrent.futures does."""
    for crew in list(_open):
        crew.close(wait=True)


def _disown_all() -> None:
    for crew in list(_open):
        crew.disown()
    _open.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
