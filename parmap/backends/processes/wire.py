"""How messages look on a worker's channel: a header, frame sizes, frames.

A message is a pickle (frame 0) and the buffers that it leaves out of band (the others), so
that arrays cross without being copied into the pickle. Both ends strictly take turns: the
parent sends a task only to a worker that has none, the worker answers each task once.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

from parmap.worker.parcel import PROTOCOL, dumps

__all__ = ["Frame", "Inbox", "Kind", "Reference", "decode", "encode", "encode_result", "send"]

Frame: TypeAlias = "bytes | bytearray | memoryview | pickle.PickleBuffer"

_HEADER = struct.Struct("<BQI")  # kind, key, number of frames
_SCRATCH = 1 << 16
# Joining small frames costs a copy and saves a gather list; sendmsg takes at most IOV_MAX.
_JOIN = 1 << 15
_GATHER = 512


class Kind(IntEnum):
    """What a message is."""

    SETUP = 1  # parent: sys.path, sys.argv, initializer; answered by READY or BROKEN
    PLACE = 2  # parent: a value under a key
    DROP = 3  # parent: forget the key
    TASK = 4  # parent: (fn, args, kwargs); answered by RESULT or ERROR
    READY = 5
    BROKEN = 6
    RESULT = 7
    ERROR = 8


@dataclass(frozen=True, slots=True)
class Reference:
    """Stands in a task's arguments for a placed value."""

    key: int


def encode(value: Any, what: str) -> list[Frame]:
    """Pickle what the parent sends, by cloudpickle; `what` begins the path in an error."""
    buffers: list[pickle.PickleBuffer] = []
    head = dumps(value, what, buffers)
    return [head, *_contiguous(buffers)]


def encode_result(value: Any) -> list[Frame]:
    """Pickle what a worker answers: by C pickle, or cloudpickle where that fails."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        head = pickle.dumps(value, PROTOCOL, buffer_callback=buffers.append)
    except Exception:  # noqa: BLE001 - whatever a user's __reduce__ may raise
        return encode(value, "result")
    return [head, *_contiguous(buffers)]


def decode(frames: Sequence[Frame]) -> Any:
    """Give the value of a message; its arrays use the frames' memory."""
    return pickle.loads(frames[0], buffers=frames[1:])


def _contiguous(buffers: list[pickle.PickleBuffer]) -> list[Frame]:
    return [buffer.raw() for buffer in buffers]


def send(channel: socket.socket, kind: Kind, key: int = 0, frames: Sequence[Frame] = ()) -> None:
    """Write one message; blocks while the other end reads it."""
    views = [memoryview(frame) for frame in frames]
    sizes = [view.nbytes for view in views]
    head = _HEADER.pack(kind, key, len(views)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    if sum(sizes) <= _JOIN:
        channel.sendall(b"".join([head, *views]))
        return
    rest = [memoryview(head), *(view.cast("B") for view in views if view.nbytes)]
    while rest:
        sent = channel.sendmsg(rest[:_GATHER])
        while rest and sent >= rest[0].nbytes:
            sent -= rest.pop(0).nbytes
        if sent:
            rest[0] = rest[0][sent:]


class Inbox:
    """Reads a channel's messages one by one, and keeps its place where a read would block.

    Parameters
    ----------
    channel : socket.socket
        What to read.
    blocking : bool
        Whether `read` waits for a whole message.
    """

    def __init__(self, channel: socket.socket, *, blocking: bool) -> None:
        self._channel = channel
        self._flags = 0 if blocking else socket.MSG_DONTWAIT
        self._scratch = bytearray(_SCRATCH)
        self._have = 0  # bytes of the scratch that are filled
        self._large: tuple[Kind, int, list[bytearray]] | None = None
        self._rest: list[memoryview] = []  # what of the large message is still to be filled

    def read(self) -> tuple[Kind, int, list[bytearray]] | None:
        """Give the next message, or None where it has not come whole.

        Raises
        ------
        EOFError
            If the other end has closed the channel.
        """
        while True:
            message = self._next()
            if message is not None:
                return message
            try:
                self._receive()
            except BlockingIOError:
                return None
            except ConnectionError:
                raise EOFError from None

    def _receive(self) -> None:
        if self._large:
            count = self._channel.recvmsg_into(self._rest[:_GATHER], 0, self._flags)[0]
            self._fill(count)
        else:
            count = self._channel.recv_into(memoryview(self._scratch)[self._have :], 0, self._flags)
            self._have += count
        if not count:
            raise EOFError

    def _fill(self, count: int) -> None:
        while self._rest and count >= self._rest[0].nbytes:
            count -= self._rest.pop(0).nbytes
        if count:
            self._rest[0] = self._rest[0][count:]

    def _next(self) -> tuple[Kind, int, list[bytearray]] | None:
        if self._large:
            if self._rest:
                return None
            message, self._large = self._large, None
            return message
        if self._have < _HEADER.size:
            return None
        kind, key, count = _HEADER.unpack_from(self._scratch)
        start = _HEADER.size + 8 * count
        if start > len(self._scratch):
            self._scratch.extend(bytes(start))
        if self._have < start:
            return None
        sizes = struct.unpack_from(f"<{count}Q", self._scratch, _HEADER.size)
        end = start + sum(sizes)
        if self._have >= end:
            return Kind(kind), key, self._cut(start, sizes)
        if end > len(self._scratch):
            self._begin_large(Kind(kind), key, [bytearray(size) for size in sizes], start)
        return None

    def _cut(self, start: int, sizes: Sequence[int]) -> list[bytearray]:
        """Copy a message's frames out of the scratch, and move what follows to its front."""
        frames = []
        for size in sizes:
            frames.append(self._scratch[start : start + size])
            start += size
        self._scratch[: self._have - start] = self._scratch[start : self._have]
        self._have -= start
        return frames

    def _begin_large(self, kind: Kind, key: int, frames: list[bytearray], start: int) -> None:
        """Have the rest of the message received straight into its frames."""
        self._large = (kind, key, frames)
        self._rest = [memoryview(frame) for frame in frames if frame]
        came = memoryview(self._scratch)[start : self._have]
        self._have = 0
        while came.nbytes:
            part = min(came.nbytes, self._rest[0].nbytes)
            self._rest[0][:part] = came[:part]
            self._fill(part)
            came = came[part:]
