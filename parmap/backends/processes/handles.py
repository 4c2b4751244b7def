"""The parent's records: a task on its way, and a worker."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, cast

import parmap
from parmap.backends.processes.forkserver import Exited
from parmap.backends.processes.protocol import (
    Buffer,
    Frame,
    Inbox,
    Kind,
    Message,
    kept,
    send,
)
from parmap.backends.processes.worker import NOTES
from parmap.errors import WorkerDied
from parmap.transport.sockets import Socket

__all__ = ["Task", "Worker"]

# Arguments of more bytes than this go through shared memory, if their worker is not free yet:
# they must be copied for it, and a large copy would travel once more. Smaller ones are faster
# through the channel.
_LARGE = 1 << 25
# How the interpreter names a frame of parmap's in a stack that it writes as it dies.
_OURS = f'File "{os.path.dirname(os.path.abspath(parmap.__file__))}'


class Task:
    """A call on its way through the pool.

    Parameters
    ----------
    future : concurrent.futures.Future
        Its result to come.
    frames : sequence of frame
        The call, encoded; emptied once sent.
    keys : tuple of int
        The placed values that it refers to.
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
        self.frames, self.own = kept(cast("Sequence[Buffer]", self.frames), _LARGE), True

    def begin(self) -> bool:
        """Note that a worker gets it; False if it was cancelled before.

        The one call that wakes those who wait for a cancelled future.
        """
        self.begun = self.begun or self.future.set_running_or_notify_cancel()
        return self.begun


class Worker:
    """The parent's record of a worker process.

    `task` changes only under the task queue's lock, and who sets it, sends it: so a channel has
    one writer at a time. A descriptor closed under a writer may be another file's by the time it
    writes, so `close` leaves that to a writer. Neither waits for the other, without a lock: a
    writer's thread may be in a finalizer that waits for what the closing one is to bring.

    Parameters
    ----------
    number : int
        Its name, between the parent and the fork server.
    slot : int
        Its place among the workers, from 1 on.
    channel : Socket
        The parent's end.
    notes : int
        The descriptor of the file that it notes its position in; the record's own.
    known : iterable of int, default ()
        The keys of placed values that it is born with.
    """

    def __init__(
        self,
        number: int,
        slot: int,
        channel: Socket,
        notes: int,
        known: Iterable[int] = (),
    ) -> None:
        self.number, self.slot, self.channel, self.notes = number, slot, channel, notes
        self.inbox = Inbox(channel, blocking=False)
        self._writing = self._over = False
        self.pid = 0  # until the fork server tells
        self.task: Task | None = None
        self.known = set(known)  # keys of placed values that it has
        self.paths: Sequence[Frame] = ()  # where it was told to be
        self.ready = self.leaving = False

    def give(self, task: Task, placed: Mapping[int, Sequence[Frame]]) -> None:
        """Send a task, and first the placed values that it refers to."""
        self._writing = True
        try:
            if not self._over:
                self._give(task, placed)
        finally:
            self._writing = False
            if self._over:
                self.channel.close()
        task.frames = ()  # they may be large, and are not needed again

    def _give(self, task: Task, placed: Mapping[int, Sequence[Frame]]) -> None:
        stale = [key for key in self.known if key not in placed]
        new = [key for key in task.keys if key not in self.known and key in placed]
        messages: list[Message] = [(Kind.DROP, key, ()) for key in stale]
        if task.paths is not self.paths:
            messages.append((Kind.SYNC_PATHS, 0, task.paths))
        # A value may be dropped at any time; the task that it was for does not wait for it.
        messages += [(Kind.BROADCAST, key, placed.get(key, ())) for key in new]
        self.paths = task.paths
        self.known.difference_update(stale)
        self.known.update(new)
        self.send(*messages, (Kind.TASK, 0, task.frames))

    def forget(self, key: int) -> None:
        """Have it forget a placed value."""
        if key in self.known:
            self.known.discard(key)
            self.send((Kind.DROP, key, ()))

    def send(self, *messages: Message) -> None:
        """Write messages; to a dead worker, nothing: its channel's end is on the way."""
        try:
            send(self.channel, *messages)
        except OSError:
            return

    def hang_up(self, how: int = socket.SHUT_RDWR) -> None:
        """End the channel, without closing the descriptor."""
        try:
            self.channel.shutdown(how)
        except OSError:
            return  # it is closed already

    def close(self) -> None:
        """Close the channel, or have its writer close it, who has his own error by now."""
        self._over = True
        if not self._writing:
            self.channel.close()

    def death(self, exited: Exited | None) -> WorkerDied:
        """Describe how it ended, from its notes and what the fork server knows."""
        position = int.from_bytes(os.pread(self.notes, NOTES, 0), sys.byteorder, signed=True)
        words = os.pread(self.notes, 1 << 16, NOTES).decode(errors="replace")
        return WorkerDied(
            self.pid,
            exited.exitcode if exited else None,
            exited.peak_memory if exited else None,
            position if position >= 0 else None,
            _users_part(words),
        )


def _users_part(words: str) -> str:
    """Cut a stack, innermost call first, where parmap's own frames begin."""
    lines = words.splitlines()
    ours = (i for i, line in enumerate(lines) if _OURS in line)
    return "\n".join(lines[: next(ours, len(lines))])
