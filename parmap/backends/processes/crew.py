"""The crew: the thread that hears the workers, and has them born and buried."""

from __future__ import annotations

import itertools
import os
import selectors
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from parmap.backends.processes.child import NOTES, heirlooms
from parmap.backends.processes.desk import Desk
from parmap.backends.processes.records import Task, Worker
from parmap.backends.processes.system import anonymous_file, unforked
from parmap.backends.processes.wire import Buffer, Frame, Kind, decode
from parmap.backends.processes.zygote import Birth, Burial, Zygote
from parmap.errors import said
from parmap.failures import PoolBroken
from parmap.worker.raised import unpack_error

__all__ = ["Crew"]

# So many workers in a row that end before they are ready mean that none ever will be.
_STILLBORN = 16


class Crew:
    """The workers, and one thread that hears them all through a selector.

    Nothing runs before `begin`. What stands here is that thread's alone, but for the wake-up
    socket and `desk`, which it shares with callers. It ends when the desk is closing and the
    last worker is buried.

    Parameters
    ----------
    width : int
        How many workers.
    setup : sequence of frame
        The first message to each worker.
    start : {"fresh", "fork"}
        How the zygote is made.
    zygote : Zygote or None
        The first one, if it is there already.
    """

    def __init__(
        self, width: int, setup: Sequence[Frame], start: str, zygote: Zygote | None
    ) -> None:
        self._width, self._setup, self._start = width, setup, start
        self._first = zygote
        self.desk = Desk(self._nudge)
        self.begun = False
        self._dying: dict[int, tuple[Worker, Task | None]] = {}  # until the zygote buries them
        self._numbers = itertools.count(1)
        self._eldest = 0  # workers of lower numbers are not this zygote's
        self._unready = 0  # workers lost in a row before any was ready
        self._inherited: tuple[int, ...] = ()  # keys of values that the zygote has

    def begin(self) -> None:
        """Start the zygote, the workers, and the thread."""
        self._begin_zygote()
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._zygote.control, selectors.EVENT_READ, self._hear_zygote)
        self._selector.register(self._woken, selectors.EVENT_READ, self._hear_wake)
        for _ in range(self._width):
            self._spawn()
        # A daemon: the interpreter's exit must not wait for it before the pool has been told
        # to close. See pool.py.
        self.thread = threading.Thread(target=self._run, name="parmap-processes", daemon=True)
        self.begun = True
        self.thread.start()

    def _begin_zygote(self) -> None:
        self._inherited = tuple(heirlooms) if self._start == "fork" else ()
        self._zygote, self._first = self._first or Zygote(self._start), None

    def disown(self) -> None:
        """Close what a fork of the parent inherited: a worker must see the parent's end.

        Only closes descriptors: the fork shares the selector's state with the parent.
        """
        for worker in (*self.desk.inherited(), *(worker for worker, _ in self._dying.values())):
            worker.channel.close()
            os.close(worker.notes)
        self._zygote.disown()
        self._wake.close()
        self._woken.close()
        self._selector.close()

    def _nudge(self) -> None:
        if not self.begun:
            return
        try:
            self._wake.send(b"\0", socket.MSG_DONTWAIT)
        except OSError:
            return  # full: it will wake anyway; closed: it has ended

    def _run(self) -> None:
        desk = self.desk
        try:
            while not desk.closing or self._dying or desk.living():
                for key, _ in self._selector.select(0 if self._zygote.unread else desk.patience):
                    key.data()
                if self._zygote.unread:
                    self._hear_zygote()
                for worker in desk.late():
                    self._zygote.kill(worker.number)
                for worker in desk.leaving():
                    worker.hang_up(socket.SHUT_WR)
        except BaseException as error:
            # A bug, here: whoever waits for a task must hear of it, not wait for ever.
            self._give_up("the pool's own thread failed", error)
            for number in list(self._dying):
                self._bury(number, None)
            raise
        desk.clear()
        for end in (self._selector, self._wake, self._woken, self._zygote):
            end.close()

    def _spawn(self) -> None:
        notes = anonymous_file()
        os.ftruncate(notes, NOTES)
        # The worker shares this position, so its last words come after the notes.
        os.lseek(notes, NOTES, os.SEEK_SET)
        number = next(self._numbers)
        with unforked:
            ours, theirs = socket.socketpair()
            with theirs:
                self._zygote.fork(number, theirs, notes)
        worker = Worker(number, ours, notes, self._inherited)
        self._selector.register(ours, selectors.EVENT_READ, partial(self._hear, worker))
        worker.send((Kind.SETUP, 0, self._setup))
        self.desk.enlist(worker)

    def _hear_wake(self) -> None:
        self._woken.recv(1 << 10)

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
            self.desk.rest(worker)
        elif kind is Kind.BROKEN:
            self._give_up("setup= failed in a worker", unpack_error(decode(frames)))
        elif (task := worker.task) is not None:  # else the pool has given up
            # First keep the worker busy, then unpack what it sent.
            self.desk.rest(worker)
            _resolve(task.future, kind, frames)

    def _lose(self, worker: Worker) -> None:
        """Take out a worker whose channel has closed, have it buried, and replace it."""
        task = self.desk.remove(worker)
        self._dying[worker.number] = (worker, task)
        self._selector.unregister(worker.channel)
        worker.close()
        if worker.number > self._eldest:
            self._zygote.bury(worker.number)
        else:
            self._bury(worker.number, None)
        self._unready += not worker.ready and not worker.leaving
        if self._unready >= _STILLBORN and self.desk.broken is None:
            why = f"{_STILLBORN} workers in a row ended before they were ready"
            self._give_up(why, worker.death(None))
        elif self.desk.wants_workers:
            self._spawn()

    def _hear_zygote(self) -> None:
        try:
            replies = self._zygote.replies()
        except EOFError:
            self._replace_zygote()
            return
        for reply in replies:
            if isinstance(reply, Burial):
                self._bury(reply.worker, reply)
            else:
                self._name(reply)

    def _name(self, birth: Birth) -> None:
        worker = self.desk.named(birth.worker) or self._dying[birth.worker][0]
        worker.pid = birth.pid

    def _bury(self, number: int, burial: Burial | None) -> None:
        worker, task = self._dying.pop(number)
        death = worker.death(burial)
        os.close(worker.notes)
        if task is not None:
            task.future.set_exception(death)

    def _replace_zygote(self) -> None:
        """Begin again: the zygote is gone, and the kernel has killed its workers with it."""
        self._selector.unregister(self._zygote.control)
        self._zygote.close()
        self._begin_zygote()
        self._selector.register(self._zygote.control, selectors.EVENT_READ, self._hear_zygote)
        # Nobody can say how its workers ended: those that are known to be gone, and those
        # whose channels have yet to close.
        self._eldest = next(self._numbers)
        for number in list(self._dying):
            self._bury(number, None)
        for worker in self.desk.living():
            worker.hang_up()  # where the kernel does not kill them, they leave by this

    def _give_up(self, why: str, cause: BaseException) -> None:
        """Break the pool: no worker can be made that works."""
        error = PoolBroken(f"{why}: {type(cause).__name__}: {said(cause)}")
        error.__cause__ = cause
        self.desk.give_up(error)
        for worker in self.desk.living():
            self._zygote.kill(worker.number)


def _resolve(future: Future[Any], kind: Kind, frames: list[Buffer]) -> None:
    try:
        value = decode(frames)
        if kind is Kind.ERROR:
            value = unpack_error(value)
    except BaseException as error:  # noqa: BLE001 - a result's __setstate__ may raise anything
        from parmap.worker.culprit import unreadable  # only to explain a failure

        future.set_exception(unreadable(error))
        return
    if kind is Kind.ERROR:
        future.set_exception(value)
    else:
        future.set_result(value)
