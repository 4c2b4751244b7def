"""The task queue: who does what. All that several threads of the parent share, behind one lock."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from parmap.backends.processes.handles import Task, Worker
from parmap.backends.processes.protocol import BroadcastKey, Buffer, Frame, kept, size
from parmap.backends.processes.worker import inherited_values
from parmap.engine.callbacks import resolve
from parmap.errors import ParmapError, SessionClosed

__all__ = ["TaskQueue"]

# Values of more bytes than this go through shared memory, for all workers at once.
_LARGE = 1 << 20
# Of fewer bytes than this a worker may keep what nobody needs any more.
_SMALL = 1 << 16
# After an interrupt, how long a task may take to notice it before its worker is killed.
_GRACE = 0.5
# How long a worker may take to leave when asked to.
_FAREWELL = 2.0


# No two of this process's pools give a key twice: a fork inherits the values of all.
_keys = itertools.count(1)


class TaskQueue:
    """Queue, workers and placed values.

    Under `_lock`, always:

    * a worker is in `_idle` if and only if it lives, is ready, has no task and is not leaving;
    * where `_queue` holds a task, `_idle` is empty;
    * `closing` never becomes false again, and `broken` never None.

    Callbacks of futures run outside the lock, for they may submit.

    Who may come in between, in the thread that holds `_lock`: a finalizer or a signal handler,
    which may submit, cancel, drop and close. So the lock is reentrant, what it guards changes in
    single steps, and what one step has found is looked at anew after the next. They may not wait
    for results, for the pool's thread needs the lock to bring any: a call there is refused, see
    `busy`. KeyboardInterrupt may strike after any call: `take` then has the worker in its hands,
    and ends it.
    A fork may find the lock held by a thread that it does not have: there nothing takes it.

    Parameters
    ----------
    wake : callable
        Wakes the pool's thread, so that it looks round.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock: Any = threading.RLock()
        self._queue: deque[Task] = deque()
        self._idle: list[Worker] = []
        self._living: dict[int, Worker] = {}
        self._overdue: list[tuple[float, Worker, Task | None]] = []
        self._broadcast: dict[int, Sequence[Frame]] = {}
        self._pid = os.getpid()
        self.closing = False
        self.broken: ParmapError | None = None

    # -- any thread ------------------------------------------------------------------------

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the one that the workers belong to."""
        return self._pid != os.getpid()

    @property
    def busy(self) -> bool:
        """Whether this very thread is in the middle of a change: then it must not wait."""
        return bool(self._lock._is_owned())  # noqa: SLF001 - as the library's Condition asks

    def check(self) -> None:
        """Refuse work when closed or broken, or in a fork."""
        if self.broken is not None:
            raise self.broken
        if self.foreign:
            raise SessionClosed(
                f"these workers belong to process {self._pid}, of which this one is a fork: "
                "start a plan of its own here"
            )
        if self.closing:
            raise SessionClosed("cannot schedule new futures after shutdown")

    def take(self, task: Task) -> None:
        """Give a task to an idle worker, from this very thread, or queue it."""
        hands: list[Worker] = []
        try:
            with self._lock:
                self.check()
                if self._seize(hands):
                    hands[0].task = task
                    task.begin()
                elif task.own:
                    self._queue.append(task)
                    return
            if hands:
                # It reads now, so it may read from the caller's arrays.
                hands[0].give(task, self._broadcast)
            else:
                task.copy()  # without the lock, for it may be large; then look again
                self.take(task)
        except BaseException:
            # Ctrl-C, here or in the middle of a message: the worker would wait for the rest
            # for ever. Its channel's end makes it one that has died.
            for worker in hands:
                worker.hang_up()
            raise

    def _seize(self, hands: list[Worker]) -> bool:
        """Move an idle worker into somebody's hands, if there is one."""
        try:
            # One call, so that neither Ctrl-C nor a finalizer finds it in neither place.
            hands.extend(itertools.islice(iter(self._idle.pop, None), 1))
        except IndexError:
            return False
        return True

    def put(self, frames: Sequence[Buffer], *, inherit: bool = False) -> BroadcastKey:
        """Keep a value's frames; a worker gets them with the first task that refers to it.

        Parameters
        ----------
        frames : sequence of buffer
            As from `encode`; what they view may change afterwards.
        inherit : bool, default False
            Whether workers are yet to be forked, and will have the frames by that.
        """
        with self._lock:
            self.check()
        own = frames if inherit else kept(frames, _LARGE)  # without the lock: it may be large
        with self._lock:
            key = next(_keys)
            self._broadcast[key] = own
        if inherit:
            inherited_values[key] = frames
        return BroadcastKey(key)

    def drop(self, key: int) -> None:
        """Forget a placed value; a worker hears of it with its next task, if it is a small one.

        To wake an idle one for a few bytes would cost more than they do.
        """
        if self.foreign:
            return
        with self._lock:
            inherited_values.pop(key, None)
            frames = self._broadcast.pop(key, ())
            if sum(map(size, frames)) > _SMALL:
                for worker in self._idle:
                    # It reads, being idle, so a dozen bytes cannot block; the lock keeps it idle.
                    worker.forget(key)

    def clear(self) -> None:
        """Forget all placed values: no worker will ask for them any more."""
        with self._lock:
            for key in self._broadcast:
                inherited_values.pop(key, None)
            self._broadcast = {}

    def abandon(self, future: Future[Any]) -> None:
        """Interrupt the task that runs for this future; have it killed if it does not mind."""
        if self.foreign:
            return  # an iterator that a fork inherited: the task is the parent's
        with self._lock:
            for worker in self._living.values():
                if worker.task is not None and worker.task.future is future:
                    # Under the lock the worker cannot get another task, so the signal can
                    # only hit this one; and it is not reaped before it is out of _living,
                    # so the number is still its own.
                    if worker.pid:
                        with contextlib.suppress(
                            ProcessLookupError
                        ):  # its fork server died with it
                            os.kill(worker.pid, signal.SIGINT)
                    worker.task.abandoned = True
                    self._overdue.append((time.monotonic() + _GRACE, worker, worker.task))
                    self._wake()
                    return

    @property
    def pids(self) -> list[int]:
        """The process numbers of the workers that live now."""
        with self._lock:
            return [worker.pid for worker in self._living.values() if worker.pid]

    def close(self, *, cancel: bool) -> None:
        """Take no more tasks; cancel those that wait, or let them be done."""
        with self._lock:
            self.closing = True
            dropped = list(self._queue) if cancel else []
            if cancel:
                self._queue.clear()
        for task in dropped:
            task.future.cancel()
            task.begin()
        self._wake()

    def inherited(self) -> list[Worker]:
        """In a fork, list the workers; without the lock, for its owner may not exist here."""
        return list(self._living.values())

    def forget(self) -> None:
        """Close without the lock: the thread in which garbage is collected may hold it."""
        if not self.foreign:
            self.closing = True
            self._wake()

    # -- the pool's thread -----------------------------------------------------------------

    def add_worker(self, worker: Worker) -> None:
        """Add a new worker, which gets tasks once it is ready."""
        with self._lock:
            self._living[worker.number] = worker

    def assign_next(self, worker: Worker) -> None:
        """Give a worker that is ready the next task, or let it idle."""
        given: list[tuple[Worker, Task]] = []
        with self._lock:
            if worker.leaving:  # it was told to, and became ready meanwhile
                return
            worker.task = None
            self._idle.append(worker)
            hands: list[Worker] = []
            while self._queue and self._seize(hands):
                if (task := self._next_task()) is None:
                    self._idle.append(hands.pop())
                else:
                    hands[-1].task = task
                    given.append((hands.pop(), task))
        for one, task in given:
            one.give(task, self._broadcast)

    def _next_task(self) -> Task | None:
        with contextlib.suppress(IndexError):  # the queue is empty
            while not (task := self._queue.popleft()).begin():
                continue
            return task
        return None

    def remove(self, worker: Worker) -> Task | None:
        """Take out a worker that has died; give the task that died with it."""
        with self._lock:
            del self._living[worker.number]
            with contextlib.suppress(ValueError):  # it was not idle
                self._idle.remove(worker)
            task, worker.task = worker.task, None
        return task

    @property
    def wants_workers(self) -> bool:
        """Whether a worker that has died must be replaced."""
        with self._lock:
            return self.broken is None and (not self.closing or bool(self._queue))

    def living(self) -> list[Worker]:
        """List the workers that have not been removed."""
        with self._lock:
            return list(self._living.values())

    def named(self, number: int) -> Worker | None:
        """Give the living worker of that number."""
        with self._lock:
            return self._living.get(number)

    @property
    def patience(self) -> float | None:
        """Seconds until somebody is overdue, or None."""
        # Without the lock: who is added later nudges, and only this thread takes out.
        first = min((when for when, _, _ in self._overdue), default=None) if self._overdue else None
        return None if first is None else max(0.0, first - time.monotonic())

    def late(self) -> list[Worker]:
        """List, once, the workers that should have stopped or left by now."""
        if not self._overdue:  # as above
            return []
        now = time.monotonic()
        with self._lock:
            late = [entry for entry in self._overdue if entry[0] <= now]
            for entry in late:  # one by one: a finalizer may add some in between
                self._overdue.remove(entry)
            return [w for _, w, task in late if w.task is task and w.number in self._living]

    def leaving(self) -> list[Worker]:
        """List, once, the workers for whom there is nothing left to do."""
        if not self.closing:  # who sets it nudges
            return []
        with self._lock:
            if self._queue:
                return []
            # Not only those in _idle: Ctrl-C may have struck between taking one out and
            # giving it its task.
            leaving = [w for w in self._living.values() if w.task is None and not w.leaving]
            self._idle = []
            for worker in leaving:
                worker.leaving = True
                self._overdue.append((time.monotonic() + _FAREWELL, worker, None))
        return leaving

    def give_up(self, error: ParmapError) -> None:
        """Fail all tasks, and refuse new ones, for `error`."""
        with self._lock:
            self.broken, self.closing = error, True
            tasks = [*self._queue, *(w.task for w in self._living.values() if w.task)]
            self._queue.clear()
            self._idle = []
            for worker in self._living.values():
                worker.task = None
        for task in tasks:
            if task.begin():
                resolve(task.future, error=error)
