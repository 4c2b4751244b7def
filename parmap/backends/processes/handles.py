"""The parent's records: a task on its way, workers, channels to them, broadcast values."""

from __future__ import annotations

import _socket
import contextlib
import itertools
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from parmap.backends.processes.notes import Notes
from parmap.backends.processes.protocol import (
    BroadcastKey,
    Buffer,
    Frame,
    Inbox,
    Kind,
    Message,
    decode,
    kept,
    send,
    size,
)
from parmap.backends.processes.recurring import Recurring
from parmap.backends.processes.worker import inherited_values
from parmap.engine.callbacks import resolve
from parmap.transport.error_payload import unpack_error
from parmap.transport.sockets import Socket

__all__ = ["BroadcastValues", "Channel", "Task", "Worker"]

# Broadcast values of more bytes than this go through shared memory, for all workers at once.
_SHARED = 1 << 20
# Arguments of more bytes than this go through shared memory, if their worker is not free yet:
# they must be copied for it, and a large copy would travel once more. Smaller ones are faster
# through the channel.
_LARGE = 1 << 25


class Task:
    """A call on its way through the pool.

    Parameters
    ----------
    future : concurrent.futures.Future
        Its result to come.
    frames : sequence of frame
        The call, encoded; emptied once sent.
    keys : tuple of int
        The keys of the broadcast values that it refers to.
    paths : sequence of frame
        Where the caller was when it submitted the call, encoded: the same object as long as that
        does not change.

    Attributes
    ----------
    own : bool
        Whether the frames are copies; until then they view the caller's arrays, which may
        change as soon as `submit` has returned.
    begun : bool
        Whether the future says that it runs: it may be told so only once.
    abandoned : bool
        Whether nobody waits for it any more.
    """

    __slots__ = ("abandoned", "begun", "frames", "future", "keys", "own", "paths")

    def __init__(
        self,
        future: Future[Any],
        frames: Sequence[Frame],
        keys: tuple[int, ...],
        paths: Sequence[Frame],
    ) -> None:
        self.future, self.frames, self.keys, self.paths = future, frames, keys, paths
        self.own = self.begun = self.abandoned = False

    def copy(self) -> None:
        """Have frames of its own."""
        self.frames, self.own = kept(self.frames, _LARGE), True

    def resolve(self, kind: Kind, frames: Sequence[Buffer]) -> None:
        """Resolve the future by a worker's answer."""
        try:
            value = decode(frames)
            if kind is Kind.ERROR:
                value = unpack_error(value)
        except BaseException as error:  # noqa: BLE001 - a result's __setstate__ may raise anything
            from parmap.transport.pickle_errors import unreadable  # only to explain a failure

            resolve(self.future, error=unreadable(error))
            return
        if kind is Kind.ERROR:
            resolve(self.future, error=value)
        else:
            resolve(self.future, value)

    def begin(self) -> bool:
        """Note that a worker gets it; False if it was cancelled before.

        The one call that wakes those who wait for a cancelled future.
        """
        self.begun = self.begun or self.future.set_running_or_notify_cancel()
        return self.begun


class Channel:
    """The parent's end of a worker's channel, and what the worker was sent through it.

    A channel has one writer at a time: who sets `Worker.task` sends it. A descriptor closed under a
    writer may be another file's by the time it writes, so `close` leaves that to a writer. Neither
    waits for the other, without a lock: a writer's thread may be in a finalizer that waits for what
    the closing one is to bring.

    Parameters
    ----------
    socket : Socket
        The parent's end; closed with the channel.
    known : iterable of int, default ()
        The keys of the broadcast values that the worker has inherited.
    """

    def __init__(self, socket: Socket, known: Iterable[int] = ()) -> None:
        self.socket = socket
        self.inbox = Inbox(socket, blocking=False)
        self.known = set(known)  # keys of broadcast values that the worker has
        self._paths: Sequence[Frame] = ()  # the newest that the worker was sent
        self._writing = self._over = False

    def give(self, task: Task, broadcast: Mapping[int, Sequence[Frame]]) -> None:
        """Send a task, and first the broadcast values that it refers to."""
        self._writing = True
        try:
            if not self._over:
                self._give(task, broadcast)
        finally:
            self._writing = False
            if self._over:
                self.socket.close()
        task.frames = ()  # they may be large, and are not needed again

    def _give(self, task: Task, broadcast: Mapping[int, Sequence[Frame]]) -> None:
        messages: list[Message] = []
        if task.paths is not self._paths:
            messages.append((Kind.SYNC_PATHS, 0, task.paths))
            self._paths = task.paths
        if self.known or task.keys:  # most small calls broadcast nothing
            stale = [key for key in self.known if key not in broadcast]
            new = [key for key in task.keys if key not in self.known and key in broadcast]
            messages += [(Kind.DROP, key, ()) for key in stale]
            # A value may be dropped at any time; the task that it was for does not wait for it.
            messages += [(Kind.BROADCAST, key, broadcast.get(key, ())) for key in new]
            self.known.difference_update(stale)
            self.known.update(new)
        self.send(*messages, (Kind.TASK, 0, task.frames))

    def forget(self, key: int) -> None:
        """Have it forget a broadcast value."""
        if key in self.known:
            self.known.discard(key)
            self.send((Kind.DROP, key, ()))

    def send(self, *messages: Message) -> None:
        """Write messages; to a dead worker, nothing: its channel's end is on the way."""
        try:
            send(self.socket, *messages)
        except OSError:
            return

    def hang_up(self, how: int = _socket.SHUT_RDWR) -> None:
        """End the channel, without closing the descriptor."""
        try:
            self.socket.shutdown(how)
        except OSError:
            return  # it is closed already

    def close(self) -> None:
        """Close the channel, or have its writer close it, who has his own error by now."""
        self._over = True
        if not self._writing:
            self.socket.close()


class Worker:
    """The parent's record of a worker process.

    `task` changes only under the task queue's lock, and who sets it, sends it. `reader` is who
    reads the channel, if anybody does; who sets it under that lock ends it.

    Parameters
    ----------
    number : int
        Its name, between the parent and the fork server.
    slot : int
        Its place among the workers, from 1 on.
    channel : Channel
        The way to it.
    notes : Notes
        What it leaves when it dies.
    """

    def __init__(self, number: int, slot: int, channel: Channel, notes: Notes) -> None:
        self.number, self.slot, self.channel, self.notes = number, slot, channel, notes
        self.pid = 0  # until the fork server tells, or the worker
        self.task: Task | None = None
        self.reader: object = None
        self.ready = self.leaving = False

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in its task."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):  # its fork server died with it
                os.kill(self.pid, signal.SIGINT)


# No two of this process's pools give a key twice: a fork inherits the values of all.
_keys = itertools.count(1)


class BroadcastValues:
    """The values that were broadcast and not dropped. `Channel` knows which worker has which.

    No lock: each change is a single step, and a writer that finds a value dropped sends an empty
    one in its place.

    Attributes
    ----------
    frames : dict of int to sequence of frame
        The values by their keys.
    recurring : Recurring
        Large arrays that recur in the tasks of a call, whose spec is one of the values.
    """

    def __init__(self) -> None:
        self.frames: dict[int, Sequence[Frame]] = {}
        self.recurring = Recurring()

    def put(self, frames: Sequence[Buffer], *, inherit: bool = False) -> BroadcastKey:
        """Keep a value's frames; a worker gets them with the first task that refers to it.

        Parameters
        ----------
        frames : sequence of buffer
            As from `encode`; what they view may change afterwards.
        inherit : bool, default False
            Whether workers are yet to be forked, and will have the frames by that.
        """
        own: Sequence[Frame] = frames
        if not inherit:
            # One frame alone is a pickle.
            own = kept(self.recurring.kept.shared(frames) if len(frames) > 1 else frames, _SHARED)
        key = next(_keys)
        self.frames[key] = own
        if inherit:
            inherited_values[key] = frames
        return BroadcastKey(key)

    def drop(self, key: int) -> int:
        """Forget a value; return how many bytes it had."""
        inherited_values.pop(key, None)
        self.recurring.calls.pop(key, None)
        return sum(map(size, self.frames.pop(key, ())))

    def clear(self) -> None:
        """Forget all values: no worker will ask for them any more."""
        for key in list(self.frames):
            self.drop(key)
        self.recurring.kept.clear()
