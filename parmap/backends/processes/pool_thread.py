"""The pool's thread: the thread that hears the workers, and has them started and reaped."""

from __future__ import annotations

import bisect
import contextlib
import errno
import itertools
import operator
import os
import selectors
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from parmap.backends.processes.forkserver import Exited, ForkServer, Spawned
from parmap.backends.processes.handles import Task, Worker
from parmap.backends.processes.limits import refused
from parmap.backends.processes.protocol import Buffer, Frame, Kind, decode
from parmap.backends.processes.system_unix import anonymous_file, unforked
from parmap.backends.processes.task_queue import TaskQueue
from parmap.backends.processes.worker import NOTES, inherited_values
from parmap.engine.callbacks import resolve
from parmap.errors import said
from parmap.failures import PoolBroken
from parmap.transport.error_payload import unpack_error
from parmap.transport.sockets import QUIET, above_standard, pair

__all__ = ["PoolThread"]

# So many workers in a row that end before they are ready mean that none ever will be.
_STILLBORN = 16


class PoolThread:
    """The workers, and one thread that hears them all through a selector.

    Nothing runs before `begin`. What stands here is that thread's alone, but for the wake-up
    socket and `queue`, which it shares with callers. It ends when the task queue is closing and the
    last worker is reaped.

    Parameters
    ----------
    width : int
        How many workers.
    setup : sequence of frame
        The first message to each worker.
    start : {"fresh", "fork"}
        How the fork server is made.
    fork_server : ForkServer or None
        The first one, if it is there already.
    """

    def __init__(
        self, width: int, setup: Sequence[Frame], start: str, fork_server: ForkServer | None
    ) -> None:
        self._width, self._setup, self._start = width, setup, start
        self._first = fork_server
        self.queue = TaskQueue(self._wake)
        self.begun = False
        self._dying: dict[int, tuple[Worker, Task | None]] = {}  # until the fork server reaps them
        self._numbers = itertools.count(1)
        # Slots, from 1 on, that no worker has. One that is replaced leaves its slot to the next:
        # tasks choose a device or a line of the screen by it.
        self._free = list(range(width, 0, -1))
        self._eldest = 0  # workers of lower numbers are not this fork server's
        self._unready = 0  # workers lost in a row before any was ready
        self._inherited: tuple[int, ...] = ()  # keys of values that the fork server has

    def begin(self) -> None:
        """Start the fork server, the workers, and the thread.

        Raises
        ------
        PoolBroken
            If the system does not let all of them start. Then none is left.
        """
        with contextlib.ExitStack() as undo:
            try:
                self._begin(undo)
            except OSError as error:
                raise refused(error, self._width) from error
            undo.pop_all()

    def _begin(self, undo: contextlib.ExitStack) -> None:
        undo.callback(self._abort)
        self._numbers = itertools.count(1)
        self._start_fork_server()
        undo.callback(self._fork_server.close)
        self._wake_writer, self._wake_reader = map(undo.enter_context, pair())
        self._selector = undo.enter_context(above_standard(selectors.DefaultSelector))
        self._selector.register(
            self._fork_server.control, selectors.EVENT_READ, self._hear_fork_server
        )
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._hear_wake)
        while self._free:
            self._spawn()
        # A daemon: the interpreter's exit must not wait for it before the pool has been told
        # to close. See pool.py.
        self.thread = threading.Thread(target=self._run, name="parmap-processes", daemon=True)
        undo.callback(setattr, self, "begun", False)
        self.begun = True
        try:
            self.thread.start()
        except RuntimeError as error:  # the system starts no more threads
            raise OSError(errno.EAGAIN, str(error)) from error

    def _abort(self) -> None:
        """Let go of workers that were to be the first."""
        for worker in self.queue.living():
            self.queue.remove(worker)
            worker.close()
            os.close(worker.notes)
            self._leave(worker.slot)

    def _leave(self, slot: int) -> None:
        bisect.insort(self._free, slot, key=operator.neg)

    def _start_fork_server(self) -> None:
        self._inherited = tuple(inherited_values) if self._start == "fork" else ()
        self._fork_server, self._first = self._first or ForkServer(self._start), None

    def disown(self) -> None:
        """Close what a fork of the parent inherited: a worker must see the parent's end.

        Only closes descriptors: the fork shares the selector's state with the parent.
        """
        for worker in (*self.queue.inherited(), *(worker for worker, _ in self._dying.values())):
            worker.channel.close()
            os.close(worker.notes)
        self._fork_server.disown()
        self._wake_writer.close()
        self._wake_reader.close()
        self._selector.close()

    def _wake(self) -> None:
        if not self.begun:
            return
        try:
            self._wake_writer.send(b"\0", socket.MSG_DONTWAIT | QUIET)
        except OSError:
            return  # full: it will wake anyway; closed: it has ended

    def _run(self) -> None:
        queue = self.queue
        try:
            while not queue.closing or self._dying or queue.living():
                for key, _ in self._selector.select(
                    0 if self._fork_server.unread else queue.patience
                ):
                    key.data()
                if self._fork_server.unread:
                    self._hear_fork_server()
                for worker in queue.late():
                    self._fork_server.kill(worker.number)
                for worker in queue.leaving():
                    worker.hang_up(socket.SHUT_WR)
        except BaseException as error:
            # A bug, here: whoever waits for a task must hear of it, not wait for ever.
            self._give_up(_broken("the pool's own thread failed", error))
            for number in list(self._dying):
                self._reap(number, None)
            raise
        queue.clear()
        for end in (self._selector, self._wake_writer, self._wake_reader, self._fork_server):
            end.close()

    def _spawn(self) -> None:
        """Have a worker born for the first of the free slots."""
        number, slot = next(self._numbers), self._free[-1]
        with contextlib.ExitStack() as undo:
            notes = anonymous_file()
            undo.callback(os.close, notes)
            os.ftruncate(notes, NOTES)
            # The worker shares this position, so its crash report come after the notes.
            os.lseek(notes, NOTES, os.SEEK_SET)
            with unforked:
                ours, theirs = pair()
                undo.enter_context(ours)
                with theirs:
                    self._fork_server.fork(number, theirs, notes)
            worker = Worker(number, slot, ours, notes, self._inherited)
            self._selector.register(ours, selectors.EVENT_READ, partial(self._hear, worker))
            undo.pop_all()
        self._free.pop()
        worker.send((Kind.SETUP, slot, self._setup))
        self.queue.add_worker(worker)

    def _fill(self) -> None:
        """Replace workers that have ended, as far as the system allows it now.

        Where it does not, the others go on, and this is tried again when they answer.
        """
        try:
            while self._free and self.queue.wants_workers:
                self._spawn()
        except OSError as error:
            self._lack(error)

    def _lack(self, error: OSError) -> None:
        if not self.queue.living() and not self._dying and self.queue.broken is None:
            self._give_up(refused(error, self._width))

    def _hear_wake(self) -> None:
        self._wake_reader.recv(1 << 10)

    def _hear(self, worker: Worker) -> None:
        if worker.channel.fileno() < 0:  # taken out in this very turn
            return
        try:
            message = worker.inbox.read()
        except EOFError:
            self._lose(worker)
            return
        except MemoryError as error:  # for the answer, of which the rest is in the channel yet
            self._take_out(worker, error)
            self._fill()
            return
        if message is None:
            return
        kind, _, frames = message
        if kind is Kind.READY:
            worker.ready, self._unready = True, 0
            self.queue.assign_next(worker)
        elif kind is Kind.BROKEN:
            self._give_up(_broken("setup= failed in a worker", unpack_error(decode(frames))))
        elif (task := worker.task) is not None:  # else the pool has given up
            # First keep the worker busy, then unpack what it sent.
            self.queue.assign_next(worker)
            _resolve(task.future, kind, frames)
        if self._free:
            self._fill()

    def _lose(self, worker: Worker) -> None:
        """Take out a worker whose channel has closed, have it reaped, and replace it."""
        self._unready += not worker.ready and not worker.leaving
        hopeless = self._unready >= _STILLBORN and self.queue.broken is None
        death = worker.death(None) if hopeless else None  # while its notes are open
        self._take_out(worker)
        if death is not None:
            why = f"{_STILLBORN} workers in a row ended before they were ready"
            self._give_up(_broken(why, death))
        else:
            self._fill()

    def _take_out(self, worker: Worker, error: BaseException | None = None) -> None:
        """Take out a worker; its task fails by `error`, or else when it is known how it ended."""
        task = self.queue.remove(worker)
        if task is not None and error is not None:
            task.future.set_exception(error)
            task = None
        self._dying[worker.number] = (worker, task)
        self._selector.unregister(worker.channel)
        worker.close()
        self._leave(worker.slot)
        if worker.number > self._eldest:
            self._fork_server.reap(worker.number)
        else:
            self._reap(worker.number, None)

    def _hear_fork_server(self) -> None:
        try:
            replies = self._fork_server.replies()
        except EOFError:
            self._replace_fork_server()
            return
        for reply in replies:
            if isinstance(reply, Exited):
                self._reap(reply.worker, reply)
                self._fill()  # it has left room
            elif reply.pid > 0:
                self._name(reply)
            else:
                self._stillborn(reply.worker, OSError(-reply.pid, os.strerror(-reply.pid)))

    def _name(self, spawned: Spawned) -> None:
        worker = self.queue.named(spawned.worker) or self._dying[spawned.worker][0]
        worker.pid = spawned.pid

    def _stillborn(self, number: int, error: OSError) -> None:
        """Take out a worker that the fork server could not fork."""
        if (worker := self.queue.named(number)) is not None:
            self._take_out(worker)
        self._reap(number, None)
        if number <= self._width and self.queue.broken is None:  # one of the first
            self._give_up(refused(error, self._width))
        else:
            self._lack(error)

    def _reap(self, number: int, exited: Exited | None) -> None:
        worker, task = self._dying.pop(number)
        death = worker.death(exited)
        os.close(worker.notes)
        if task is not None:
            resolve(task.future, error=death)

    def _replace_fork_server(self) -> None:
        """Begin again: the fork server is gone, and the kernel has killed its workers with it."""
        self._selector.unregister(self._fork_server.control)
        self._fork_server.close()
        # Nobody can say how its workers ended: those that are known to be gone, and those
        # whose channels have yet to close.
        self._eldest = next(self._numbers)
        for number in list(self._dying):
            self._reap(number, None)
        for worker in self.queue.living():
            worker.hang_up()  # where the kernel does not kill them, they leave by this
        try:
            self._start_fork_server()
        except OSError as error:
            self._give_up(refused(error, self._width))
            return
        self._selector.register(
            self._fork_server.control, selectors.EVENT_READ, self._hear_fork_server
        )

    def _give_up(self, error: PoolBroken) -> None:
        """Break the pool: no worker can be made that works."""
        self.queue.give_up(error)
        for worker in self.queue.living():
            self._fork_server.kill(worker.number)


def _broken(why: str, cause: BaseException) -> PoolBroken:
    error = PoolBroken(f"{why}: {type(cause).__name__}: {said(cause)}")
    error.__cause__ = cause
    return error


def _resolve(future: Future[Any], kind: Kind, frames: list[Buffer]) -> None:
    try:
        value = decode(frames)
        if kind is Kind.ERROR:
            value = unpack_error(value)
    except BaseException as error:  # noqa: BLE001 - a result's __setstate__ may raise anything
        from parmap.transport.pickle_errors import unreadable  # only to explain a failure

        resolve(future, error=unreadable(error))
        return
    if kind is Kind.ERROR:
        resolve(future, error=value)
    else:
        resolve(future, value)
