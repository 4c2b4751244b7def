"""The pool's workers: has them forked, taken out, reaped and replaced."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import operator
import selectors
from collections.abc import Callable, Sequence
from functools import partial

from parmap.backends.processes.forkserver import Exited, ForkServer
from parmap.backends.processes.handles import Channel, Task, Worker
from parmap.backends.processes.limits import refused
from parmap.backends.processes.notes import Notes
from parmap.backends.processes.protocol import Frame, Kind
from parmap.backends.processes.system_unix import unforked
from parmap.backends.processes.task_queue import TaskQueue
from parmap.backends.processes.worker import inherited_values
from parmap.engine.callbacks import resolve
from parmap.errors import said
from parmap.failures import PoolBroken
from parmap.transport.sockets import pair

__all__ = ["PoolForkServer", "Workers", "broken"]

# So many workers in a row that end before they are ready mean that none ever will be.
_NEVER_READY = 16


class Workers:
    """The workers of a pool, from the fork to the exit code. The pool's thread's alone.

    Parameters
    ----------
    width : int
        How many.
    setup : sequence of frame
        The first message to each.
    queue : TaskQueue
        Where those that live take their tasks.
    fork_server : PoolForkServer
        What forks and reaps them.
    selector : selectors.BaseSelector
        Tells the pool's thread which of them has something to say.
    hear : callable
        What the pool's thread does then, with the worker.
    """

    def __init__(
        self,
        width: int,
        setup: Sequence[Frame],
        queue: TaskQueue,
        *,
        fork_server: PoolForkServer,
        selector: selectors.BaseSelector,
        hear: Callable[[Worker], None],
    ) -> None:
        self._setup, self._queue, self._fork_server = setup, queue, fork_server
        self._selector, self._hear = selector, hear
        self.places = Places(width)
        self.dying = Dying()
        self._unready = 0  # workers lost in a row before any was ready

    def spawn(self) -> None:
        """Have a worker forked for the first of the free slots.

        Raises
        ------
        OSError
            If the system does not let it start.
        """
        number, slot = next(self.places.numbers), self.places.free[-1]
        with contextlib.ExitStack() as undo:
            notes = Notes()
            undo.callback(notes.close)
            with unforked:
                ours, theirs = pair()
                undo.enter_context(ours)
                with theirs:
                    self._fork_server.current.fork(number, theirs, notes.fd)
            worker = Worker(number, slot, Channel(ours, self._fork_server.inherited), notes)
            self._selector.register(ours, selectors.EVENT_READ, partial(self._hear, worker))
            undo.pop_all()
        self.places.free.pop()
        worker.channel.send((Kind.SETUP, slot, self._setup))
        self._queue.add_worker(worker)

    def fill(self) -> None:
        """Replace workers that have ended, as far as the system allows it now.

        Where it does not, the others go on, and this is tried again when they answer.
        """
        try:
            while self.places.free and self._queue.wants_workers:
                self.spawn()
        except OSError as error:
            self._lack(error)

    def _lack(self, error: OSError) -> None:
        if not self.any() and self._queue.state.broken is None:
            self.give_up(refused(error, self.places.width))

    def any(self) -> bool:
        """Tell whether a worker lives or is to be reaped yet."""
        return bool(self.dying.workers or self._queue.living())

    def note_ready(self, worker: Worker, pid: int) -> None:
        """Note that a worker has run its set-up, and its process number.

        The fork server tells the number, too, and may come later: until then nobody could interrupt
        the worker's task.
        """
        worker.pid, worker.ready, self._unready = pid, True, 0

    def lose(self, worker: Worker) -> None:
        """Take out a worker whose channel has closed, have it reaped, and replace it."""
        self._unready += not worker.ready and not worker.leaving
        hopeless = self._unready >= _NEVER_READY and self._queue.state.broken is None
        # While its notes are open.
        death = worker.notes.death(worker.pid, None) if hopeless else None
        self.take_out(worker)
        if death is not None:
            why = f"{_NEVER_READY} workers in a row ended before they were ready"
            self.give_up(broken(why, death))
        else:
            self.fill()

    def take_out(self, worker: Worker, error: BaseException | None = None) -> None:
        """Take out a worker; its task fails by `error`, or else when it is known how it ended."""
        task = self._queue.remove(worker)
        if task is not None and error is not None:
            task.future.set_exception(error)
            task = None
        self.dying.add(worker, task)
        self._selector.unregister(worker.channel.socket)
        worker.channel.close()
        self.places.leave(worker.slot)
        if self._fork_server.has_forked(worker):
            self._fork_server.current.reap(worker.number)
        else:
            self.dying.reap(worker.number, None)

    def exited(self, exited: Exited) -> None:
        """Let go of a worker that is reaped: it has left room for another."""
        self.dying.reap(exited.worker, exited)
        self.fill()

    def forked(self, number: int, pid: int) -> None:
        """Note a new worker's process number."""
        worker = self._queue.named(number) or self.dying.workers[number][0]
        worker.pid = pid

    def not_forked(self, number: int, error: OSError) -> None:
        """Take out a worker that the fork server could not fork."""
        if (worker := self._queue.named(number)) is not None:
            self.take_out(worker)
        self.dying.reap(number, None)
        if number <= self.places.width and self._queue.state.broken is None:  # one of the first
            self.give_up(refused(error, self.places.width))
        else:
            self._lack(error)

    def disinherit(self) -> None:
        """Part with the workers of a fork server that is gone: nobody can say how they ended.

        That is, those that are known to be gone, and those whose channels have yet to close.
        """
        self._fork_server.eldest = next(self.places.numbers)
        self.dying.reap_all()
        for worker in self._queue.living():
            worker.channel.hang_up()  # where the kernel does not kill them, they leave by this

    def give_up(self, error: PoolBroken) -> None:
        """Break the pool: no worker can be made that works."""
        self._queue.give_up(error)
        for worker in self._queue.living():
            self._fork_server.current.kill(worker.number)

    def abort(self) -> None:
        """Let go of workers that were to be the first."""
        for worker in self._queue.living():
            self._queue.remove(worker)
            worker.channel.close()
            worker.notes.close()

    def disown(self) -> None:
        """In a fork of the parent: close what leads to the workers."""
        dying = (worker for worker, _ in self.dying.workers.values())
        for worker in (*self._queue.inherited(), *dying):
            worker.channel.socket.close()
            worker.notes.close()


class Places:
    """The numbers and slots of a pool's workers.

    Attributes
    ----------
    width : int
        How many slots there are.
    free : list of int
        Slots, from 1 on, that no worker has; the next is the last. A worker that is replaced leaves
        its slot to the next: tasks choose a device or a line of the screen by it.
    numbers : iterator of int
        The workers' numbers, none of which comes twice.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.free = list(range(width, 0, -1))
        self.numbers = itertools.count(1)

    def leave(self, slot: int) -> None:
        """Leave a slot to the next worker."""
        bisect.insort(self.free, slot, key=operator.neg)


class Dying:
    """The workers that have been taken out and not been reaped yet, and the tasks they ran.

    Attributes
    ----------
    workers : dict of int to (Worker, Task or None)
        By their numbers.
    """

    def __init__(self) -> None:
        self.workers: dict[int, tuple[Worker, Task | None]] = {}

    def add(self, worker: Worker, task: Task | None) -> None:
        """Add a worker that is to be reaped; its task fails when it is known how it ended."""
        self.workers[worker.number] = (worker, task)

    def reap(self, number: int, exited: Exited | None) -> None:
        """Let go of a worker; None where nobody can say how it ended."""
        worker, task = self.workers.pop(number)
        death = worker.notes.death(worker.pid, exited)
        worker.notes.close()
        if task is not None:
            resolve(task.future, error=death)

    def reap_all(self) -> None:
        """Let go of all, as nobody can say any more how they ended."""
        for number in list(self.workers):
            self.reap(number, None)


class PoolForkServer:
    """The pool's fork server, and the next one where it dies.

    Parameters
    ----------
    start : {"fresh", "fork"}
        How one is made.
    first : ForkServer or None
        The first one, if it is there already.

    Attributes
    ----------
    current : ForkServer
        The one that runs, from `begin` on.
    inherited : tuple of int
        The keys of the broadcast values that it has, and its workers with it.
    eldest : int
        Workers of lower numbers are not this fork server's.
    """

    def __init__(self, start: str, first: ForkServer | None) -> None:
        self._start, self._first = start, first
        self.eldest = 0
        self.inherited: tuple[int, ...] = ()
        self.current: ForkServer

    def begin(self) -> None:
        """Start a fork server.

        Raises
        ------
        OSError
            If the system does not let it start.
        """
        self.inherited = tuple(inherited_values) if self._start == "fork" else ()
        self.current, self._first = self._first or ForkServer(self._start), None

    def has_forked(self, worker: Worker) -> bool:
        """Tell whether a worker is the current fork server's."""
        return worker.number > self.eldest


def broken(why: str, cause: BaseException) -> PoolBroken:
    """Say why no worker can be made that works."""
    error = PoolBroken(f"{why}: {type(cause).__name__}: {said(cause)}")
    error.__cause__ = cause
    return error
