"""The task queue: who does what. All that several threads of the parent share, behind one lock."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any

from parmap.backends.processes.deadlines import Deadlines
from parmap.backends.processes.handles import BroadcastValues, Task, Worker
from parmap.backends.processes.recall import recall
from parmap.engine.callbacks import resolve
from parmap.errors import ParmapError, SessionClosed

__all__ = ["PoolState", "TaskQueue"]

# After an interrupt, how long a task may take to notice it before its worker is killed.
_GRACE = 0.5
# How long a worker may take to leave when asked to.
_FAREWELL = 2.0


class PoolState:
    """Whether the pool takes work. `closing` never becomes false again, and `broken` never None.

    Both change under the task queue's lock, but for `TaskQueue.forget`.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.closing = False
        self.broken: ParmapError | None = None

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the one that the workers belong to."""
        return self._pid != os.getpid()

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


class TaskQueue:
    """Which worker has which task, and which tasks wait.

    Under `_lock`, always:

    * a worker is in `_idle` if and only if it lives, is ready, has no task and is not leaving;
    * where `_queue` holds a task, `_idle` is empty.

    Callbacks of futures run outside the lock, for they may submit.

    Who may come in between, in the thread that holds `_lock`: a finalizer or a signal handler,
    which may submit, cancel, drop and close. So the lock is reentrant, what it guards changes in
    single steps, and what one step has found is looked at anew after the next. They may not wait
    for results, for the pool's thread needs the lock to bring any: a call there is refused, see
    `busy`. KeyboardInterrupt may strike after any call: `take` then has the worker in its hands,
    and ends it. A fork may find the lock held by a thread that it does not have: there nothing
    takes it.

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
        self.deadlines = Deadlines()
        self.broadcast = BroadcastValues()
        self.returned: deque[Worker] = deque()  # those that the pool's thread is to give tasks
        self.state = PoolState()

    # -- any thread ------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether this very thread is in the middle of a change: then it must not wait."""
        return bool(self._lock._is_owned())  # noqa: SLF001 - as the library's Condition asks

    def take(self, task: Task) -> None:
        """Give a task to an idle worker, from this very thread, or queue it."""
        hands: list[Worker] = []
        try:
            with self._lock:
                self.state.check()
                if self._seize(hands):
                    hands[0].task = task
                    task.begin()
                elif task.own:
                    self._queue.append(task)
                    return
            if hands:
                # It reads now, so it may read from the caller's arrays.
                hands[0].channel.give(task, self.broadcast.frames)
            else:
                task.copy()  # without the lock, for it may be large; then look again
                self.take(task)
        except BaseException:
            # Ctrl-C, here or in the middle of a message: the worker would wait for the rest
            # for ever. Its channel's end makes it one that has died.
            for worker in hands:
                worker.channel.hang_up()
            raise

    def _seize(self, hands: list[Worker]) -> bool:
        """Move an idle worker into somebody's hands, if there is one."""
        try:
            # One call, so that neither Ctrl-C nor a finalizer finds it in neither place.
            hands.extend(itertools.islice(iter(self._idle.pop, None), 1))
        except IndexError:
            return False
        return True

    def drop_from_idle(self, key: int) -> None:
        """Have idle workers forget a broadcast value that was dropped."""
        with self._lock:
            for worker in self._idle:
                # It reads, being idle, so a dozen bytes cannot block; the lock keeps it idle.
                worker.channel.forget(key)

    def abandon(self, future: Future[Any]) -> None:
        """Interrupt the task that runs for this future; have it killed if it does not mind."""
        if self.state.foreign:
            return  # an iterator that a fork inherited: the task is the parent's
        with self._lock:
            for worker, task in self.with_tasks((future,)):
                # Under the lock the worker cannot get another task, so the signal can
                # only hit this one; and it is not reaped before it is out of _living,
                # so the number is still its own.
                worker.interrupt()
                task.abandoned = True
                self.deadlines.add(_GRACE, worker)
                self._wake()

    def recall(
        self, future: Future[Any], chunk: int, *, only_slow: bool
    ) -> tuple[int, bool] | None:
        """Recall elements that the worker of this future has not begun of its chunk.

        Under the lock, since the system's lock on the notes keeps out other processes, and not
        other threads of this one.
        """
        if self.state.foreign:
            return None
        with self._lock:
            for worker, _ in self.with_tasks((future,)):
                return recall(worker.notes.fd, chunk, only_slow=only_slow)
        return None

    def with_tasks(self, futures: Collection[Future[Any]]) -> list[tuple[Worker, Task]]:
        """List the workers that have the tasks of these futures, and the tasks."""
        return [
            (worker, task)
            for worker in self.living()
            if (task := worker.task) is not None and task.future in futures
        ]

    def begin_reading(
        self, worker: Worker, reader: object, futures: Collection[Future[Any]] | None = None
    ) -> bool:
        """Make somebody the reader of a worker's channel, if nobody is.

        A caller's thread names the futures it waits for: the worker must still have one's task.
        Last comes the change: Ctrl-C strikes after any call.
        """
        with self._lock:
            free = worker.reader is None
            if futures is not None:
                task = worker.task
                free = free and task is not None and task.future in futures
            if free:
                worker.reader = reader
        return free

    def answered(self, worker: Worker) -> None:
        """Let a worker idle whose answer a caller's thread has read, and end the reading.

        Where tasks wait, the pool's thread gives it the next one, which is somebody else's.
        """
        with self._lock:
            # No call stands between this and the next list: Ctrl-C, which strikes after calls,
            # finds the worker with its reader, or there.
            worker.task = worker.reader = None
            if not (self._queue or self.state.closing or worker.leaving):
                self._idle.append(worker)
                return
            try:
                self.returned.append(worker)
                self._wake()
            finally:
                self._wake()  # also if Ctrl-C has struck in one of the two

    @property
    def pids(self) -> list[int]:
        """The process numbers of the workers that live now."""
        with self._lock:
            return [worker.pid for worker in self._living.values() if worker.pid]

    def close(self, *, cancel: bool) -> None:
        """Take no more tasks; cancel those that wait, or let them be done."""
        with self._lock:
            self.state.closing = True
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
        if not self.state.foreign:
            self.state.closing = True
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
            worker.task = None
            if worker.leaving:  # it was told to, and became ready or answered meanwhile
                return
            self._idle.append(worker)
            hands: list[Worker] = []
            while self._queue and self._seize(hands):
                if (task := self._next_task()) is None:
                    self._idle.append(hands.pop())
                else:
                    hands[-1].task = task
                    given.append((hands.pop(), task))
        for one, task in given:
            one.channel.give(task, self.broadcast.frames)

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
            return self.state.broken is None and (not self.state.closing or bool(self._queue))

    def living(self) -> list[Worker]:
        """List the workers that have not been removed."""
        with self._lock:
            return list(self._living.values())

    def named(self, number: int) -> Worker | None:
        """Give the living worker of that number."""
        with self._lock:
            return self._living.get(number)

    def late(self) -> list[Worker]:
        """List, once, the workers that should have stopped or left by now."""
        if not self.deadlines.entries:  # without the lock: see there
            return []
        with self._lock:
            late = self.deadlines.passed()
            return [w for _, w, task in late if w.task is task and w.number in self._living]

    def leaving(self) -> list[Worker]:
        """List, once, the workers for whom there is nothing left to do."""
        if not self.state.closing:  # who sets it wakes this thread
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
                self.deadlines.add(_FAREWELL, worker)
        return leaving

    def give_up(self, error: ParmapError) -> None:
        """Fail all tasks, and refuse new ones, for `error`."""
        with self._lock:
            self.state.broken, self.state.closing = error, True
            tasks = [*self._queue, *(w.task for w in self._living.values() if w.task)]
            self._queue.clear()
            self._idle = []
            for worker in self._living.values():
                worker.task = None
        for task in tasks:
            if task.begin():
                resolve(task.future, error=error)
