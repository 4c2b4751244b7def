"""Frames in shared memory: written once, mapped by whoever is sent the descriptor.

For values that many workers read, and for arguments so large that a second copy, on its way
through a socket, would hurt. docs/explanation/decisions/shared-memory.md says what was measured.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from weakref import WeakSet

from parmap.backends.processes.system_unix import anonymous_memory

__all__ = ["Block", "Slot", "mapped"]

_PAGE = mmap.ALLOCATIONGRANULARITY
_STEP = 1 << 26  # bytes per write: the kernel takes 2 GiB at most


class Block:
    """Shared memory that holds some frames; closed with the object.

    Parameters
    ----------
    frames : sequence of memoryview
        What it holds, each from a new page on.
    """

    def __init__(self, frames: Sequence[memoryview]) -> None:
        self.descriptor = -1
        _blocks.add(self)
        sizes = [frame.nbytes for frame in frames]
        self.descriptor = anonymous_memory(sum(map(_whole_pages, sizes)))
        for frame, start in zip(frames, _starts(sizes), strict=True):
            self._write(frame.cast("B"), start)

    def _write(self, frame: memoryview, start: int) -> None:
        # Not through a mapping: that faults once a page, and took twice as long.
        while frame.nbytes:
            written = os.pwrite(self.descriptor, frame[:_STEP], start)
            frame, start = frame[written:], start + written

    def close(self) -> None:
        """Let go of the memory; whoever has mapped it keeps it."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


# A fork has no use for them: it would keep the memory for as long as it lives.
_blocks: WeakSet[Block] = WeakSet()


def _close_all() -> None:
    for block in list(_blocks):
        block.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)


class Slot:
    """Stands in a message for a frame that lies in a block.

    Parameters
    ----------
    block : Block
        Where it lies. All slots of a message are of one block, and in its order.
    nbytes : int
        Its size.
    """

    __slots__ = ("block", "nbytes")

    def __init__(self, block: Block, nbytes: int) -> None:
        self.block, self.nbytes = block, nbytes


def mapped(descriptor: int, sizes: Sequence[int]) -> list[memoryview]:
    """Map the frames of a block, and close the descriptor.

    What is written to them is this process's own: the pages are copied when they are
    written to. So a fork that writes changes nothing for its parent, either.
    """
    try:
        total = sum(map(_whole_pages, sizes))
        whole = memoryview(mmap.mmap(descriptor, total, access=mmap.ACCESS_COPY))
    finally:
        os.close(descriptor)
    return [whole[start : start + size] for start, size in zip(_starts(sizes), sizes, strict=True)]


def _starts(sizes: Sequence[int]) -> list[int]:
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + _whole_pages(size))
    return starts[:-1]


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
