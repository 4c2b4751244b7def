"""How messages look on a worker's channel: a header, frame sizes, frames.

A message is a pickle (frame 0) and the buffers that it leaves out of band (the others), so
that arrays cross without being copied into the pickle. Large frames may lie in a block of
shared memory, whose descriptor comes with the message. Both ends strictly take turns: the
parent sends a task only to a worker that has none, the worker answers each task once.
"""

from __future__ import annotations

import _socket
import array
import errno
import itertools
import os
import pickle
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

from parmap.backends.processes.shared_memory import Block, Slot, mapped
from parmap.backends.processes.system_unix import fresh_memory
from parmap.transport.messages import CachedPayload, CallSpec, Outcome
from parmap.transport.payload import PROTOCOL, Payload, dumps, plain_pickle
from parmap.transport.sockets import QUIET, Socket
from parmap.worker import family

__all__ = [
    "BroadcastKey",
    "Buffer",
    "Frame",
    "ImportPaths",
    "Inbox",
    "Kind",
    "Message",
    "decode",
    "encode",
    "encode_call",
    "encode_result",
    "kept",
    "send",
    "size",
]

Buffer: TypeAlias = "bytes | bytearray | memoryview"
Frame: TypeAlias = "Buffer | Slot"

# Kind, key, number of frames; then the size of each. Where it lies in a block, that is negative,
# and less by `_NEXT` if the frame is the first one in its block.
_HEADER = struct.Struct("<BQI")
_NEXT = 1 << 60
# The header and the size of a message of one frame.
_SINGLE = struct.Struct("<BQIq")
_SCRATCH = 1 << 16
# Space for one descriptor beside each read: the kernel ends a read after one.
_BESIDE = _socket.CMSG_SPACE(array.array("i").itemsize)
# Elsewhere than on Linux a descriptor is kept from programs that a task starts only by chance.
_CLOEXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
# From this size on a frame is received into memory of its own, in huge pages.
_OWN = 1 << 22
# Frames below this size stay out of a block: each takes whole pages there.
_SMALL = 1 << 16
# Joining small frames costs a copy and saves a gather list; sendmsg takes at most IOV_MAX.
_JOIN = 1 << 15
_GATHER = 512


class Kind(IntEnum):
    """What a message is."""

    SETUP = 1  # parent: sys.path, sys.argv, core share, family, initializer; READY or BROKEN
    BROADCAST = 2  # parent: a value under a key
    DROP = 3  # parent: forget the key
    TASK = 4  # parent: (fn, args, kwargs); answered by RESULT or ERROR
    READY = 5  # with its process number as the key
    BROKEN = 6
    RESULT = 7
    ERROR = 8
    SYNC_PATHS = 9  # parent: its ImportPaths, for the tasks that follow


_KINDS = {int(kind): kind for kind in Kind}  # a third of what it takes to call the enumeration


class BroadcastKey(NamedTuple):
    """Stands in a task's arguments for a broadcast value."""

    key: int


# Of a CallSpec only the function is the user's: one with more never comes so.
_PACKED = frozenset({BroadcastKey, Payload, CachedPayload, CallSpec})


class ImportPaths(NamedTuple):
    """What a script may change while workers live: its path, its directory (None: it is removed).

    Also what its processes share (`parmap.worker.family`), and the user's modules that tasks name,
    as they were loaded (`parmap.transport.modules.Source`).
    """

    path: tuple[str, ...]
    directory: str | None
    trust: family.Trust = (None, None)
    sources: tuple[Any, ...] = ()

    @classmethod
    def here(cls) -> ImportPaths:
        """Give those of now."""
        try:
            directory = os.getcwd()
        except OSError:
            directory = None
        sources = getattr(sys.modules.get("parmap.transport.modules"), "sources", ())  # few load it
        # As the class does it, which is one call more for each task.
        return tuple.__new__(cls, (tuple(sys.path), directory, family.trust(), sources))


def encode(value: Any, what: str) -> list[Buffer]:
    """Pickle what the parent sends, by cloudpickle; `what` begins the path in an error."""
    buffers: list[pickle.PickleBuffer] = []
    head = dumps(value, what, buffers)
    return [head, *_raw(buffers)]


def encode_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> list[Buffer]:
    """Pickle a call.

    What is the user's has been packed by then, where the call is one of parmap's own: C pickle
    then does in 3 µs what takes cloudpickle 20, which looks at each class.
    """
    ours = type(fn) is FunctionType and str(fn.__module__).startswith("parmap.worker.")
    if ours and fn.__name__ == "run_small":  # all of it is of Python's own plain types
        return [pickle.dumps((args,), PROTOCOL)]  # to look up a name takes the worker 5 us
    if ours and _PACKED.issuperset(map(type, args)) and not kwargs:
        return _plain((fn, args, kwargs))
    return encode((fn, args, kwargs), "call")


def _plain(value: Any) -> list[Buffer]:
    buffers: list[pickle.PickleBuffer] = []
    return [pickle.dumps(value, PROTOCOL, buffer_callback=buffers.append), *_raw(buffers)]


def encode_result(value: Any) -> list[Buffer]:
    """Pickle what a worker answers: by C pickle, or cloudpickle where that fails."""
    if type(value) is Outcome and type(value.values) is Payload:  # what is the user's is packed
        return _plain(value)
    buffers: list[pickle.PickleBuffer] = []
    try:
        head = plain_pickle(value, buffers.append)
    except Exception:  # noqa: BLE001 - whatever a user's __reduce__ may raise
        return encode(value, "result")
    return [head, *_raw(buffers)]


def decode(frames: Sequence[Buffer]) -> Any:
    """Give the value of a message; its arrays use the frames' memory."""
    return pickle.loads(frames[0], buffers=frames[1:])


def _raw(buffers: list[pickle.PickleBuffer]) -> list[memoryview]:
    return [buffer.raw() for buffer in buffers]


def kept(frames: Sequence[Frame], limit: int) -> list[Frame]:
    """Give frames that stay as they are, whatever becomes of the value that they view.

    Parameters
    ----------
    frames : sequence of frame
        As from `encode`; some may lie in a block already.
    limit : int
        Frames of more bytes than this together go into a block, but for small ones.
    """
    stay: list[Frame] = list(frames)
    if sum(size(frame) for frame in frames if not isinstance(frame, Slot)) > limit:
        # A block for those between two slots: a message has each block's frames in one place.
        runs = itertools.groupby(frames, lambda frame: isinstance(frame, Slot))
        stay = [one for lie, run in runs for one in (run if lie else _moved(list(run)))]
    return [
        frame if isinstance(frame, Slot) or type(memoryview(frame).obj) is bytes else bytes(frame)
        for frame in stay
    ]


def _moved(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Move those that are not small into a block, where there can be one."""
    large = [memoryview(frame) for frame in frames if size(frame) >= _SMALL]  # type: ignore[arg-type]
    block = _block(large) if large else None
    if block is None:
        return frames
    return [Slot(block, size(frame)) if size(frame) >= _SMALL else frame for frame in frames]


def size(frame: Frame) -> int:
    """Count a frame's bytes, wherever they lie."""
    return frame.nbytes if isinstance(frame, Slot) else memoryview(frame).nbytes


def _block(frames: Sequence[memoryview]) -> Block | None:
    try:
        return Block(frames)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EFBIG):
            return None  # it may open no more files, or none so large: by the channel, then
        raise


Message: TypeAlias = "tuple[Kind, int, Sequence[Frame]]"  # with the key, and the frames


def send(channel: Socket, *messages: Message) -> None:
    """Write messages; blocks while the other end reads them."""
    if len(messages) == 1 and len(messages[0][2]) == 1:
        ((kind, key, (frame,)),) = messages
        if type(frame) is bytes and len(frame) <= _JOIN:  # as most are
            channel.sendall(_SINGLE.pack(kind, key, 1, len(frame)) + frame, QUIET)
            return
    small: list[Buffer] = []  # several small ones are one write, and one waking of the reader
    for kind, key, frames in messages:
        blocks: list[Block] = []
        views, sizes = [], []
        for frame in frames:
            if isinstance(frame, Slot):
                first = not blocks or blocks[-1] is not frame.block
                blocks += [frame.block] * first
                sizes.append(-frame.nbytes - _NEXT * first)
            else:
                views.append(memoryview(frame))
                sizes.append(views[-1].nbytes)
        head = _HEADER.pack(kind, key, len(sizes)) + struct.pack(f"<{len(sizes)}q", *sizes)
        if not blocks and sum(sizes) <= _JOIN:
            small += [head, *views]
            continue
        if small:
            channel.sendall(b"".join(small), QUIET)
            small.clear()
        for block in blocks:  # each descriptor goes with a byte, of which there are more
            head = head[channel.sendmsg([head[:1]], _rights(block.descriptor), QUIET) :]
        _gather(channel, [memoryview(head), *(view.cast("B") for view in views if view.nbytes)])
    if small:
        channel.sendall(b"".join(small), QUIET)


def _rights(*descriptors: int) -> list[tuple[int, int, Any]]:
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", descriptors))]


def _gather(channel: Socket, views: list[memoryview]) -> None:
    """Write pieces of memory as they lie."""
    at = 0  # what lies before has been sent: to take it out of the list each time moves the rest
    while at < len(views):
        sent = channel.sendmsg(views[at : at + _GATHER], (), QUIET)
        while at < len(views) and sent >= views[at].nbytes:
            sent -= views[at].nbytes
            at += 1
        if sent:
            views[at] = views[at][sent:]


class Inbox:
    """Reads a channel's messages one by one, and keeps its place where a read would block.

    Parameters
    ----------
    channel : Socket
        What to read.
    blocking : bool
        Whether `read` waits for a whole message.
    """

    def __init__(self, channel: Socket, *, blocking: bool) -> None:
        self._channel = channel
        self._flags = _CLOEXEC | (0 if blocking else _socket.MSG_DONTWAIT)
        self._scratch = bytearray(_SCRATCH)
        self._have = 0  # bytes of the scratch that are filled
        self._large: tuple[Kind, int, Sequence[int], list[Buffer]] | None = None
        self._rest: deque[memoryview] = deque()  # what of the large message is still to be filled
        self._descriptors: deque[int] = deque()  # of blocks whose messages are not whole yet

    def read(self) -> tuple[Kind, int, list[Buffer]] | None:
        """Give the next message, or None where it has not come whole.

        Raises
        ------
        EOFError
            If the other end has closed the channel.
        """
        while True:
            message = self._next()
            if message is not None:
                kind, key, sizes, frames = message
                if len(frames) < len(sizes):
                    frames = self._with_block(sizes, frames)
                return kind, key, frames
            try:
                self._receive()
            except BlockingIOError:
                return None
            except ConnectionError:
                raise EOFError from None

    def _receive(self) -> None:
        large = itertools.islice(self._rest, _GATHER)
        into = list(large) if self._large else [memoryview(self._scratch)[self._have :]]
        count, beside, _, _ = self._channel.recvmsg_into(into, _BESIDE, self._flags)
        for _, _, data in beside:
            self._descriptors.extend(array.array("i", data))
        if self._large:
            self._fill(count)
        else:
            self._have += count
        if not count:
            raise EOFError

    def _fill(self, count: int) -> None:
        while self._rest and count >= self._rest[0].nbytes:
            count -= self._rest.popleft().nbytes
        if count:
            self._rest[0] = self._rest[0][count:]

    def _next(self) -> tuple[Kind, int, Sequence[int], list[Buffer]] | None:
        """Give the next message with the frames that came through the channel itself."""
        if self._large or self._have < _HEADER.size:
            if self._rest:
                return None
            message, self._large = self._large, None
            return message
        if self._have > _SINGLE.size:
            kind, key, count, size = _SINGLE.unpack_from(self._scratch)
            end = _SINGLE.size + size
            if count == 1 and end == self._have:  # all that has come, as mostly
                self._have = 0
                return _KINDS[kind], key, (size,), [self._scratch[_SINGLE.size : end]]
        kind, key, count = _HEADER.unpack_from(self._scratch)
        start = _HEADER.size + 8 * count
        if start > len(self._scratch):
            self._scratch.extend(bytes(start))
        if self._have < start:
            return None
        sizes = struct.unpack_from(f"<{count}q", self._scratch, _HEADER.size)
        inline = [size for size in sizes if size >= 0]
        end = start + sum(inline)
        if self._have >= end:
            return _KINDS[kind], key, sizes, self._cut(start, inline)
        if end > len(self._scratch):
            self._begin_large((_KINDS[kind], key, sizes, list(map(_room, inline))), start)
        return None

    def _cut(self, start: int, sizes: Sequence[int]) -> list[Buffer]:
        """Copy a message's frames out of the scratch, and move what follows to its front."""
        frames: list[Buffer] = []
        for size in sizes:
            frames.append(self._scratch[start : start + size])
            start += size
        self._scratch[: self._have - start] = self._scratch[start : self._have]
        self._have -= start
        return frames

    def _begin_large(
        self, message: tuple[Kind, int, Sequence[int], list[Buffer]], start: int
    ) -> None:
        """Have the rest of a message received straight into its frames."""
        self._large = message
        self._rest = deque(memoryview(frame) for frame in message[3] if len(frame))
        came = memoryview(self._scratch)[start : self._have]
        self._have = 0
        while came.nbytes:
            part = min(came.nbytes, self._rest[0].nbytes)
            self._rest[0][:part] = came[:part]
            self._fill(part)
            came = came[part:]

    def _with_block(self, sizes: Sequence[int], frames: list[Buffer]) -> list[Buffer]:
        """Put the frames that lie in the message's blocks between the others."""
        blocks: list[list[int]] = []
        for size in sizes:
            if size <= -_NEXT:
                blocks.append([-size - _NEXT])
            elif size < 0:
                blocks[-1].append(-size)
        slots = [mapped(self._descriptors.popleft(), block) for block in blocks]
        lying, came = itertools.chain.from_iterable(slots), iter(frames)
        return [next(lying) if size < 0 else next(came) for size in sizes]


def _room(size: int) -> Buffer:
    return bytearray(size) if size < _OWN else memoryview(fresh_memory(size))
