"""Which tasks are lost with a process that dies, in pools that do not say.

A `multiprocessing.Pool` replaces a worker that dies, and forgets its task: whoever waits for
it waits for ever. Tasks of such a pool call in as they begin, on a line that the system
closes when their process dies. So it is known which task each process had, and only that
one fails.

To watch the processes instead does not do: the pool says neither which task a process had,
so that all that are out must fail and those that run on run twice; nor what it started, so
that one which comes and dies between two looks is missed.
"""

from __future__ import annotations

import itertools
import os
import secrets
import selectors
import shutil
import socket
import struct
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import Any

from parmap.backends.once_future import OnceFuture
from parmap.errors import WorkerDied
from parmap.failures import PoolBroken
from parmap.transport.sockets import QUIET, Socket, pair, unix
from parmap.worker.announce import RECORD

__all__ = ["DeathWatch"]

_AT_ONCE = 4096  # bytes
_PAUSE = 0.2  # seconds


@dataclass(slots=True)
class _Line:
    """What one process has said.

    Parameters
    ----------
    socket : Socket
        This end of it.
    pid : int, default 0
        The process's number, once it has said that.
    process : object, optional
        The pool's own object for it, which learns how it ends.
    task : int, default 0
        The newest task that it has begun; negative if it has also ended it; 0 if it has also
        sent the result.
    rest : bytes, default b""
        The beginning of a record.
    """

    socket: Socket
    pid: int = 0
    process: Any = None
    task: int = 0
    rest: bytes = b""


class DeathWatch:
    """Fails the task of each process that dies.

    Parameters
    ----------
    pool : object
        Its processes stand in the list ``_pool``.

    Attributes
    ----------
    address : str
        What the tasks are given for `parmap.worker.announce.present`.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        # The tasks that are out. It changes in single steps, without a lock: a finalizer that
        # cancels a task strikes it, in any thread.
        self._out: dict[int, OnceFuture] = {}
        self._numbers = itertools.count(1)
        self._folder, self.address = _named()
        self._door = unix()
        self._door.bind(self.address)
        self._door.listen()
        self._shut = False  # the thread's own
        self._wake_reader, self._wake_writer = pair()
        self._thread = threading.Thread(target=self._listen, name="parmap-death-watch", daemon=True)
        self._thread.start()

    def number(self, once: OnceFuture) -> int:
        """Give a task the number that it calls in with."""
        number = next(self._numbers)
        self._out[number] = once
        once.future.add_done_callback(lambda _: self._strike(number))
        return number

    def stop(self) -> None:
        """Stop listening."""
        self._wake_writer.send(b"!", QUIET)
        self._thread.join()
        self._wake_writer.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _strike(self, number: int) -> None:
        self._out.pop(number, None)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._door, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            over = False
            while not over:
                ready = selector.select(_PAUSE if self._shut else None)
                if self._shut:
                    selector.register(self._door, selectors.EVENT_READ)
                    self._shut = False
                for key, _ in ready:
                    if key.fileobj is self._wake_reader:
                        over = True
                    elif key.fileobj is self._door:
                        self._answer(selector)
                    elif not self._hears(key.data):
                        selector.unregister(key.fileobj)
                        key.data.socket.close()
                        self._gone(key.data)
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    def _answer(self, selector: selectors.BaseSelector) -> None:
        try:
            line = self._door.accept()
        except OSError:
            # This process has all the descriptors that it may have: who has come waits, and the
            # selector, which would tell of it without end, hears nothing of the door for a while.
            selector.unregister(self._door)
            self._shut = True
            return
        if _ours(line):
            selector.register(line, selectors.EVENT_READ, _Line(line))
        else:
            line.close()

    def _hears(self, line: _Line) -> bool:
        """Take in what a process says; False once it is gone."""
        try:
            said = line.socket.recv(_AT_ONCE)
        except ConnectionError:
            return False
        whole = line.rest + said
        end = len(whole) - len(whole) % RECORD.size
        line.rest = whole[end:]
        for (number,) in RECORD.iter_unpack(whole[:end]):
            if line.pid:
                line.task = number
            else:
                line.pid = number
        if line.process is None:  # it may call in before the pool has put it into its list
            line.process = self._process(line.pid)
        return bool(said)

    def _process(self, pid: int) -> Any:
        return next((one for one in list(self._pool._pool) if one.pid == pid), None)  # noqa: SLF001

    def _gone(self, line: _Line) -> None:
        """Fail what a process had in hand."""
        once = self._out.get(abs(line.task))
        exitcode = None
        if once is not None and line.process is not None:
            line.process.join()
            # None where the pool's own thread asks the system at the same moment.
            exitcode = line.process.exitcode
        # One that was killed after its task may have died while it sent the result; but one that
        # has come to a good end, as after `maxtasksperchild` tasks, has sent it.
        if once is not None and (line.task > 0 or exitcode != 0):
            once.resolve(None, WorkerDied(line.pid, exitcode))
        if getattr(self._pool, "_state", None) == "TERMINATE":
            why = "the adopted pool was terminated by its owner: make another, and adopt that"
            for once in self._out.copy().values():
                once.resolve(None, PoolBroken(why))


def _named() -> tuple[str, str]:
    """Make a name for the door, and for the folder that it needs, if any."""
    if sys.platform == "linux":  # where a name need not be a file's, which would stay behind
        return "", f"\0parmap-{secrets.token_hex(16)}"
    folder = tempfile.mkdtemp(prefix="parmap-")
    return folder, os.path.join(folder, "door")


def _ours(line: Socket) -> bool:
    """Whether it is the user's own process: a door without a file is open to all."""
    if sys.platform != "linux":
        return True
    credentials = struct.Struct("3i")
    data = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return bool(credentials.unpack(data)[1] == os.getuid())
