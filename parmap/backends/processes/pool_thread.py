"""The pool's thread: the thread that hears the workers, and has them started and reaped."""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import selectors
import threading
from collections.abc import Sequence

from parmap.backends.processes.driving import Driving
from parmap.backends.processes.forkserver import Exited, ForkServer
from parmap.backends.processes.handles import Worker
from parmap.backends.processes.limits import refused
from parmap.backends.processes.protocol import Frame, Kind, decode
from parmap.backends.processes.task_queue import TaskQueue
from parmap.backends.processes.workers import PoolForkServer, Workers, broken
from parmap.transport.error_payload import unpack_error
from parmap.transport.sockets import QUIET, Socket, above_standard, pair

__all__ = ["PoolThread"]


class PoolThread:
    """One thread that hears all workers through a selector.

    Nothing runs before `begin`. What stands here is that thread's alone, but for `_waker` and
    `queue`, which it shares with callers. It ends when the task queue is closing and the last
    worker is reaped.

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
        self._width, self._setup = width, setup
        self._fork_server = PoolForkServer(start, fork_server)
        self._waker = Waker()
        self.queue = TaskQueue(self._waker.wake)
        self.begun = False

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
        self._fork_server.begin()
        undo.callback(self._fork_server.current.close)
        self._waker.open()
        undo.callback(self._waker.close)
        self._selector = undo.enter_context(above_standard(selectors.DefaultSelector))
        self._selector.register(self._waker.reader, selectors.EVENT_READ, self._waker.hear)
        self._listen_to_fork_server()
        self._workers = Workers(
            self._width,
            self._setup,
            self.queue,
            fork_server=self._fork_server,
            selector=self._selector,
            hear=self._hear,
        )
        undo.callback(self._workers.abort)
        self.driving = Driving(self.queue, self._selector)
        undo.callback(self.driving.close)
        while self._workers.places.free:
            self._workers.spawn()
        # A daemon: the interpreter's exit must not wait for it before the pool has been told
        # to close. See executor.py.
        self.thread = threading.Thread(target=self._run, name="parmap-processes", daemon=True)
        undo.callback(setattr, self, "begun", False)
        self.begun = True
        try:
            self.thread.start()
        except RuntimeError as error:  # the system starts no more threads
            raise OSError(errno.EAGAIN, str(error)) from error

    def disown(self) -> None:
        """Close what a fork of the parent inherited: a worker must see the parent's end.

        Only closes descriptors: the fork shares the selector's state with the parent.
        """
        self._workers.disown()
        self._fork_server.current.disown()
        self._waker.close()
        self.driving.close()
        self._selector.close()

    def _run(self) -> None:
        queue, forks, workers = self.queue, self._fork_server, self._workers
        try:
            while not queue.state.closing or workers.any():
                for key, _ in self._selector.select(
                    0 if forks.current.unread else queue.deadlines.patience
                ):
                    key.data()
                if forks.current.unread:
                    self._hear_fork_server()
                while queue.returned:
                    worker = queue.returned.popleft()
                    if queue.named(worker.number) is worker:  # it lives
                        queue.assign_next(worker)
                for worker in queue.late():
                    forks.current.kill(worker.number)
                for worker in queue.leaving():
                    worker.channel.hang_up(_socket.SHUT_WR)
        except BaseException as error:
            # A bug, here: whoever waits for a task must hear of it, not wait for ever.
            workers.give_up(broken("the pool's own thread failed", error))
            workers.dying.reap_all()
            raise
        queue.broadcast.clear()
        for end in (self.driving, self._selector, self._waker, forks.current):
            end.close()

    def _hear(self, worker: Worker) -> None:
        if worker.channel.socket.fileno() < 0:  # taken out in this very turn
            return
        if not self.queue.begin_reading(worker, self):  # a caller's thread reads it
            return
        try:
            message = worker.channel.inbox.read()
            worker.reader = None
        except EOFError:
            self._workers.lose(worker)
            return
        except MemoryError as error:  # for the answer, of which the rest is in the channel yet
            self._workers.take_out(worker, error)
            self._workers.fill()
            return
        if message is None:
            return
        kind, key, frames = message
        if kind is Kind.READY:
            self._workers.note_ready(worker, key)
            self.queue.assign_next(worker)
        elif kind is Kind.BROKEN:
            self._workers.give_up(broken("setup= failed in a worker", unpack_error(decode(frames))))
        elif (task := worker.task) is not None:  # else the pool has given up
            # First keep the worker busy, then unpack what it sent.
            self.queue.assign_next(worker)
            task.resolve(kind, frames)
        if self._workers.places.free:
            self._workers.fill()

    def _listen_to_fork_server(self) -> None:
        control = self._fork_server.current.control
        self._selector.register(control, selectors.EVENT_READ, self._hear_fork_server)

    def _hear_fork_server(self) -> None:
        try:
            replies = self._fork_server.current.replies()
        except EOFError:
            self._replace_fork_server()
            return
        for reply in replies:
            if isinstance(reply, Exited):
                self._workers.exited(reply)
            elif reply.pid > 0:
                self._workers.forked(reply.worker, reply.pid)
            else:
                error = OSError(-reply.pid, os.strerror(-reply.pid))
                self._workers.not_forked(reply.worker, error)

    def _replace_fork_server(self) -> None:
        """Begin again: the fork server is gone, and the kernel has killed its workers with it."""
        self._selector.unregister(self._fork_server.current.control)
        self._fork_server.current.close()
        self._workers.disinherit()
        try:
            self._fork_server.begin()
        except OSError as error:
            self._workers.give_up(refused(error, self._width))
            return
        self._listen_to_fork_server()


class Waker:
    """Wakes the pool's thread, from any thread: a byte in a socket that its selector hears."""

    def __init__(self) -> None:
        self._writer: Socket | None = None
        self.reader: Socket

    def open(self) -> None:
        """Make the socket; before, there is nobody to wake."""
        self._writer, self.reader = pair()

    def wake(self) -> None:
        """Have the selector return."""
        if self._writer is None:
            return
        try:
            self._writer.send(b"\0", _socket.MSG_DONTWAIT | QUIET)
        except OSError:
            return  # full: it will wake anyway; closed: it has ended

    def hear(self) -> None:
        """Take out what has woken the thread."""
        self.reader.recv(1 << 10)

    def close(self) -> None:
        """Close the socket."""
        if self._writer is not None:
            self._writer.close()
            self.reader.close()
