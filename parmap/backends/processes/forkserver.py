"""The fork server: a small process that has parmap loaded and forks workers when told to.

A worker from the fork server costs a millisecond, not an interpreter's start. The fork server never
runs users' code and has one thread, so forking it is safe, which forking the parent, with
its threads and locks, is not. It is also the workers' parent: it alone learns how they
ended, and it ends them all when its own channel closes. So a killed parent leaves nothing.

With ``start="fork"`` the fork server is itself a fork of the parent, made before the pool's own
thread starts; all else is the same.
"""

from __future__ import annotations

import _socket
import array
import errno
import gc
import os
import select
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from parmap.backends.processes.system_unix import (
    ROOT,
    anonymous_file,
    die_with_parent,
    interpreter,
    open_standard,
    prepare,
    unforked,
)
from parmap.transport.sockets import QUIET, Socket, pair

if TYPE_CHECKING:
    import subprocess  # loaded by the parent alone

__all__ = ["Exited", "ForkServer", "Spawned", "main"]

_REQUEST = struct.Struct("<BQ")  # what, worker
_REPLY = struct.Struct("<BQqq")  # what, worker, pid or exit code, peak memory in bytes
_FORK, _KILL, _REAP = 1, 2, 3
_PID = struct.Struct("<q")
_FEW = 8  # workers that are forked before the fork server imports cloudpickle
_GIVEN = 2  # descriptors that come with a request for a worker
_BESIDE = _socket.CMSG_SPACE(_GIVEN * array.array("i").itemsize)
_NOW = _socket.MSG_DONTWAIT | QUIET


# Named tuples, and not dataclasses, where a fork server would wait for each: 0.7 ms to make one.
class Spawned(NamedTuple):
    """A worker was forked; or not, then `pid` is an error's number, negative."""

    worker: int
    pid: int


class Exited(NamedTuple):
    """A worker has ended and is reaped; the exit code is as in `subprocess`."""

    worker: int
    exitcode: int
    peak_memory: int


class ForkServer:
    """The parent's end of a fork server. Only the pool's own thread uses it after its start.

    Parameters
    ----------
    start : {"fresh", "fork"}
        Whether it is a new interpreter or a fork of this process.
    """

    def __init__(self, start: str) -> None:
        self._heard, self._ended = b"", False
        self._process: subprocess.Popen[bytes] | None
        # A Ctrl-C in its first milliseconds, before it can say that it does not care, waits.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            with unforked:
                self.control, theirs = pair()
                with theirs:
                    self.pid, self._process = self._begun(theirs, start)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _begun(self, theirs: Socket, start: str) -> tuple[int, subprocess.Popen[bytes] | None]:
        try:
            return _forked(self.control, theirs) if start == "fork" else _spawned(theirs)
        except BaseException:
            self.control.close()
            raise

    def fork(self, worker: int, channel: Socket, notes: int) -> None:
        """Ask for a worker, which gets `channel` and the descriptor `notes`.

        Where the fork server is gone, the channel closes as if the worker had died.

        Raises
        ------
        OSError
            If the system lets no more descriptors be sent.
        """
        fds = array.array("i", [channel.fileno(), notes])
        self._tell(_FORK, worker, [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])

    def kill(self, worker: int) -> None:
        """Ask for a worker's end by SIGKILL."""
        self._tell(_KILL, worker)

    def reap(self, worker: int) -> None:
        """Ask for the exit code of a worker whose channel has closed."""
        self._tell(_REAP, worker)

    def _tell(self, what: int, worker: int, rights: Sequence[tuple[int, int, Any]] = ()) -> None:
        while True:
            try:
                self.control.sendmsg([_REQUEST.pack(what, worker)], rights, _NOW)
                return
            except BlockingIOError:
                # It does not read: it may itself be waiting until its answers are read.
                waiting = select.poll()
                waiting.register(self.control, select.POLLIN | select.POLLOUT)
                waiting.poll()
                self._listen()
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:  # so many descriptors are on their way
                    raise
                return  # it is gone, and `replies` will say so

    def _listen(self) -> None:
        try:
            data = self.control.recv(1 << 16, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._ended = not data
        self._heard += data

    @property
    def unread(self) -> bool:
        """Whether `replies` has something that was heard while asking, so no selector tells."""
        return self._ended or len(self._heard) >= _REPLY.size

    def replies(self) -> list[Spawned | Exited]:
        """Read what has been answered, without waiting.

        Raises
        ------
        EOFError
            If the fork server is gone.
        """
        if not self._ended:
            self._listen()
        whole = len(self._heard) - len(self._heard) % _REPLY.size
        data, self._heard = self._heard[:whole], self._heard[whole:]
        if not data and self._ended:
            raise EOFError
        return [_read(*reply) for reply in _REPLY.iter_unpack(data)]

    def disown(self) -> None:
        """In a fork of the parent: let go of a process that is not this one's child."""
        self.control.close()
        if self._process is not None:
            self._process.returncode = 0  # or it would be waited for, in vain

    def close(self) -> None:
        """End it, with any worker that it has, and wait until it is gone."""
        self.control.close()
        self._heard, self._ended = b"", False
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            return
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ChildProcessError, ProcessLookupError):
            return  # somebody waits for all children, as some servers do


def _read(what: int, worker: int, first: int, second: int) -> Spawned | Exited:
    return Spawned(worker, first) if what == _FORK else Exited(worker, first, second)


# The path comes in a file: a long one does not fit on a command line. The collector would come
# round several times, and find nothing: 4 ms. An end by _exit, or PYTHONINSPECT asks for commands.
_CODE = """\
import gc, marshal, os, sys, typing
gc.disable()
with open({path}, "rb") as file:
    sys.path[:] = marshal.load(file)
import parmap
del sys.path[0]
from parmap.backends.processes.forkserver import main
main({control}, collect=True)
os._exit(0)
"""


def _spawned(theirs: Socket) -> tuple[int, subprocess.Popen[bytes]]:
    import subprocess

    from parmap import cores  # not in the fork server itself

    path = _path()
    # What a call on threads has set for now is not for workers that live on.
    environ = cores.users_environ() if cores.aside else None
    try:
        fds = [theirs.fileno(), path]
        code = _CODE.format(control=theirs.fileno(), path=path)
        process = subprocess.Popen(
            [*interpreter(), "-c", code], stdin=subprocess.DEVNULL, pass_fds=fds, env=environ
        )
    finally:
        os.close(path)
    return process.pid, process


def _path() -> int:
    """Write ``sys.path`` into a file, behind where parmap is; give its descriptor.

    Of a path with relative entries parmap may have come when the directory was another.
    """
    import marshal

    # Imports ignore what is no text.
    path = [str.__str__(entry) for entry in list[object](sys.path) if isinstance(entry, str)]
    file = anonymous_file()
    try:
        data = memoryview(marshal.dumps([ROOT, *path]))
        while data:
            data = data[os.write(file, data) :]
        os.lseek(file, 0, os.SEEK_SET)
    except BaseException:
        os.close(file)
        raise
    return file


def _forked(ours: Socket, theirs: Socket) -> tuple[int, None]:
    from parmap.backends.processes.worker import flush
    from parmap.worker import ambient

    # What stands in the buffers would be written once more by each of the forks.
    flush()
    said, says = os.pipe()
    try:
        pid = _fork_of_this(said)
        if pid == 0:
            os.write(says, _PID.pack(os.getpid()))
    finally:
        os.close(said)
        os.close(says)
    if pid == 0:
        try:
            ours.close()  # or it would never see the parent's end
            os.closerange(0, 1)  # `main` opens it again, empty
            ambient.reset()  # to what a new interpreter has; the rest is sent
            main(theirs.fileno(), collect=gc.isenabled())
        finally:
            os._exit(0)
    return pid, None


def _fork_of_this(said: int) -> int:
    """Fork; read the fork's number from `said` where Python does not return it.

    Python warns of a fork beside threads. From Python 3.15 on, a filter that turns warnings into
    errors raises this one after the fork, in the parent only: the fork runs, and only the fork
    itself can say which process it is. Older Pythons drop such an error, and so does this.
    """
    try:
        return os.fork()
    except DeprecationWarning:
        (pid,) = _PID.unpack(os.read(said, _PID.size))
        return int(pid)


def main(control: int, *, collect: bool) -> None:
    """Be a fork server: serve requests until the parent closes the channel.

    Parameters
    ----------
    control : int
        The descriptor of the channel.
    collect : bool
        Whether the workers' collector runs, unless a task stops it.
    """
    # Loaded here, and not where the parent loads this file: it is a worker's side. All that a
    # worker needs to begin is loaded now, for each would load it again.
    from parmap.backends.processes import worker
    from parmap.worker import run  # noqa: F401 - the first task would load it

    prepare()
    open_standard()
    # Ctrl-C in a terminal reaches all processes; workers set their own handler, unless the caller
    # ignores it, as a job in the background of a shell script does.
    interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN) != signal.SIG_IGN
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    # A loop of asyncio, which a fork inherits, would be woken by this one's signals.
    signal.set_wakeup_fd(-1)
    # The script may have the system reap its children, or do so in a handler; but how a worker
    # ends only this process may learn. Tasks find what the script has set.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # What stands now stays: workers then share its pages for longer.
    gc.freeze()
    if collect:
        gc.enable()

    def serve(channel: int, notes: int) -> None:
        if before is not None:  # else it is a library's, in C
            signal.signal(signal.SIGCHLD, before)
        worker.main(channel, notes, interrupts=interrupts)

    with Socket(fileno=control) as channel:
        _obey(channel, serve)


def _obey(channel: Socket, serve: Callable[[int, int], None]) -> None:
    pids: dict[int, int] = {}
    while True:
        data, beside, _, _ = channel.recvmsg(_REQUEST.size, _BESIDE, _socket.MSG_WAITALL)
        if len(data) < _REQUEST.size:
            break
        what, worker = _REQUEST.unpack(data)
        fds = [fd for _, _, sent in beside for fd in array.array("i", sent)]
        if what == _FORK:
            _reply(channel, what, worker, _fork(pids, worker, fds, channel, serve))
        elif worker in pids:
            os.kill(pids[worker], signal.SIGKILL)
            if what == _REAP:
                _reply(channel, what, worker, *_reaped(pids.pop(worker)))
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)


def _fork(
    pids: dict[int, int],
    worker: int,
    fds: list[int],
    control: Socket,
    serve: Callable[[int, int], None],
) -> int:
    """Fork a worker; give its number, or that of the error, negative."""
    fork_server = os.getpid()
    try:
        if worker > _FEW:
            # A script's classes need it. The first workers do not wait for it here, since the first
            # result waits for them: a worker that needs it imports it.
            from parmap.transport.functions import load_cloudpickle

            load_cloudpickle()
        # The system drops descriptors for which this process has no room.
        pid = os.fork() if len(fds) == _GIVEN else -errno.EMFILE
    except OSError as error:
        pid = -(error.errno or errno.EAGAIN)
    if pid == 0:
        try:
            control.close()
            die_with_parent(fork_server)
            serve(*fds)
        finally:
            os._exit(0)
    for fd in fds:
        os.close(fd)
    if pid > 0:
        pids[worker] = pid
    return pid


def _reaped(pid: int) -> tuple[int, int]:
    # Its channel is closed, so it is past its last instruction or about to be: the SIGKILL
    # before this cannot change how it ends, except for one that closed the channel itself.
    _, status, usage = os.wait4(pid, 0)
    # ru_maxrss counts kibibytes, on macOS bytes.
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _reply(channel: Socket, what: int, worker: int, first: int, second: int = 0) -> None:
    try:
        channel.sendall(_REPLY.pack(what, worker, first, second), QUIET)
    except OSError:
        return  # the parent is gone; the next read says so
