"""A worker process: reads a task, runs it, answers; leaves when its channel closes."""

from __future__ import annotations

import contextlib
import contextvars
import faulthandler
import mmap
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any, ClassVar

from parmap import cores
from parmap.backends.processes.protocol import (
    BroadcastKey,
    Buffer,
    ImportPaths,
    Inbox,
    Kind,
    decode,
    encode_result,
    send,
)
from parmap.backends.processes.recall import Begun
from parmap.errors import SerializationError
from parmap.transport.functions import load_cloudpickle
from parmap.transport.sockets import Socket
from parmap.worker import context, family, native_threads
from parmap.worker.random_state import renew
from parmap.worker.run import run_small

__all__ = ["flush", "inherited_values", "main"]

# Values that were broadcast, by their keys, which workers find in memory, as forks of this
# process. The parent's threads change it, each key once; a worker reads it once.
inherited_values: dict[int, Sequence[Buffer]] = {}


def main(channel: int, notes: int, *, interrupts: bool = True) -> None:
    """Be a worker on the descriptors that the parent gave.

    Parameters
    ----------
    channel, notes : int
        The descriptors.
    interrupts : bool, default True
        Whether SIGINT interrupts a task. If not, the pool kills a worker whose task is abandoned.
    """
    # Written by the interpreter itself if it crashes, so it holds even for a segfault. Off first:
    # in a fork of a process that had it on, others may have taken the signals since.
    faulthandler.disable()
    faulthandler.enable(notes, all_threads=False)
    slot = memoryview(mmap.mmap(notes, context.NOTES))
    context.worker = context.Worker(
        is_worker=True,
        slot=slot,
        words=notes,  # the crash report follows what is mapped
        begun=Begun(notes, slot),
    )
    context.worker.note(-1)
    parent = Socket(fileno=channel)
    _keep_from_children(parent, notes)
    worker = _Child(parent)
    if interrupts:
        signal.signal(signal.SIGINT, worker.interrupt)
    renew()  # before a setup= that may seed
    with contextlib.suppress(BrokenPipeError, EOFError):  # the parent is gone: so are we
        # Not in the context of a process that this one is a fork of: what was set there is sent.
        contextvars.Context().run(worker.serve)
    flush()
    family.leave()
    flush()  # what that has printed


class _Child:
    """Serves one channel.

    `_running` is true only while a task's own code runs, and only then may SIGINT raise:
    an interrupt that comes late, when the task has just ended, must not hit the next one.
    """

    def __init__(self, channel: Socket) -> None:
        self._channel = channel
        self._broadcast = {key: _Broadcast(frames) for key, frames in inherited_values.items()}
        self._running = False

    def interrupt(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._running:
            # The terminal and the parent may both send one; the second finds it false.
            self._running = False
            raise KeyboardInterrupt

    def serve(self) -> None:
        inbox = Inbox(self._channel, blocking=True)
        while True:
            message = inbox.read()
            assert message is not None
            kind, key, frames = message
            del message
            match kind:
                case Kind.TASK:
                    answer = self._perform(frames)
                    del frames
                    flush()
                    send(self._channel, (answer[0], key, answer[1]))
                    del answer
                case Kind.BROADCAST:
                    self._broadcast[key] = _Broadcast(frames)
                case Kind.DROP:
                    self._broadcast.pop(key, None)
                case Kind.SETUP:
                    send(self._channel, _setup(key, frames))
                case Kind.SYNC_PATHS:
                    _sync_paths(decode(frames))

    def _perform(self, frames: Sequence[Buffer]) -> tuple[Kind, Sequence[Buffer]]:
        """Run a task; give the answer."""
        try:
            call = decode(frames)
            # Of a small call only the arguments come.
            fn, args, kwargs = call if len(call) > 1 else (run_small, *call, {})
            args = [
                self._broadcast[arg.key].value() if type(arg) is BroadcastKey else arg
                for arg in args
            ]
        except SystemExit as error:
            return _failed(SerializationError(f"unpickling the task called sys.exit({error.code})"))
        except SerializationError as error:
            return _failed(error)
        except BaseException as error:  # noqa: BLE001 - a user's __setstate__ may raise anything
            from parmap.transport import pickle_errors  # only to explain a failure

            return _failed(pickle_errors.unreadable(error))
        try:
            self._running = True
            value = fn(*args, **kwargs)
            self._running = False
        except BaseException as error:  # noqa: BLE001 - it belongs to who waits for the task
            self._running = False
            return _failed(error)
        try:
            return Kind.RESULT, encode_result(value)
        except BaseException as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
            return _failed(error)


class _Broadcast:
    """A broadcast value, unpickled when a task first asks for it: so its error is that task's.

    Its arrays cannot be written to: all tasks share them, and some of them all workers.
    """

    def __init__(self, frames: Sequence[Buffer]) -> None:
        self._frames: Sequence[Buffer] | None = frames
        self._value: Any = None

    def value(self) -> Any:
        if self._frames is not None:
            try:
                self._value = decode([memoryview(f).toreadonly() for f in self._frames])
            except Exception as error:
                from parmap.transport import pickle_errors

                raise pickle_errors.unreadable(error) from error
            self._frames = None
        return self._value


def _setup(slot: int, frames: Sequence[Buffer]) -> tuple[Kind, int, Sequence[Buffer]]:
    path, argv, core_share, (parent, trust) = decode(frames[:1])
    sys.path[:], sys.argv = path, argv
    family.become(parent, slot, trust)
    family.renew()
    if core_share is not None:
        cores.grant(core_share.cores)
        if core_share.threads is not None:
            # Before a task can load a library: it need not be looked for then.
            native_threads.set_environment(core_share.threads, exact=core_share.exact)
    try:
        initializer, initargs = decode(frames[1:])
        if initializer is not None:
            load_cloudpickle()  # it may change the path
            initializer(*initargs)
    except BaseException as error:  # noqa: BLE001 - told to the user, whatever it is
        return Kind.BROKEN, 0, _failed(error)[1]
    return Kind.READY, os.getpid(), ()


def _sync_paths(paths: ImportPaths) -> None:
    here = ImportPaths.here()
    if (_texts(here.path), here.directory) != (_texts(paths.path), paths.directory):
        load_cloudpickle()
    sys.path[:] = paths.path
    family.entrust(paths.trust)
    _Finder.sources.update({one[0]: one for one in paths.sources})
    if _Finder.sources and _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    if paths.directory is not None:
        # Gone meanwhile, or closed to us: a task that needs it will say so.
        with contextlib.suppress(OSError):
            os.chdir(paths.directory)


class _Finder:
    """Finds the caller's own modules as it has loaded them; leaves all others to Python."""

    sources: ClassVar[dict[str, Any]] = {}

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG003
        """Return how to load a module, if its file has changed."""
        source = cls.sources.get(name)
        if source is None:
            return None
        from parmap.transport.modules import Source
        from parmap.worker.sources import spec_of  # only where a task names such a module

        return spec_of(Source(*source))


def _texts(path: Iterable[object]) -> list[str]:
    """Give what imports heed of a path: other objects may refuse to be compared."""
    return [str.__str__(entry) for entry in path if issubclass(type(entry), str)]


def _failed(error: BaseException) -> tuple[Kind, Sequence[Buffer]]:
    from parmap.transport.error_payload import pack_error  # which most workers never need

    return Kind.ERROR, encode_result(pack_error(error, crosses=True))


def _keep_from_children(channel: Socket, notes: int) -> None:
    """See that the channel ends with this process, not with one that a task started."""
    os.set_inheritable(channel.fileno(), False)
    os.set_inheritable(notes, False)

    def leave() -> None:
        channel.close()
        context.worker = context.Worker(is_worker=True)  # the slot is the worker's

    os.register_at_fork(after_in_child=leave)


def flush() -> None:
    """Write out what tasks have printed."""
    for stream in (sys.stdout, sys.stderr):
        # A task may have closed or replaced it, and the other end of a pipe may be gone.
        try:  # contextlib.suppress takes as long as the rest, for each task
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue
