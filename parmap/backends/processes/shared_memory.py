"""Frames in shared memory: written once, mapped by whoever is sent the descriptor.

For values that many workers read, and for arguments so large that a second copy, on its way
through a socket, would hurt. docs/explanation/decisions/shared-memory.md says what was measured.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence
from weakref import WeakSet

from parmap.backends.processes.system_unix import (
    HUGE,
    anonymous_memory,
    map_aligned,
    same_as_memory,
    write_huge,
)

__all__ = ["Block", "Slot", "mapped"]

_PAGE = mmap.ALLOCATIONGRANULARITY
_STEP = 1 << 26  # bytes per write: the kernel takes 2 GiB at most
_PART = 1 << 18  # bytes per read
# From this size on a frame is written in huge pages, where the kernel has them for shared memory.
_LARGE = 1 << 22


class Block:
    """Shared memory that holds some frames; closed with the object.

    Parameters
    ----------
    frames : sequence of memoryview
        What it holds, each from a new page on: a large one from a new huge page on.

    Attributes
    ----------
    descriptor : int
        The memory's; -1 once it is closed.
    size : int
        How many bytes it has, in whole pages.
    """

    def __init__(self, frames: Sequence[memoryview]) -> None:
        self.descriptor = -1
        _blocks.add(self)
        *starts, self.size = _starts([frame.nbytes for frame in frames])
        self.descriptor = anonymous_memory(self.size)
        for frame, start in zip(frames, starts, strict=True):
            self._write(frame.cast("B"), start)

    def _write(self, frame: memoryview, start: int) -> None:
        if frame.nbytes >= _LARGE:
            written = write_huge(self.descriptor, frame, start)
            frame, start = frame[written:], start + written
        # Not through a mapping: that faults once a small page, and took twice as long.
        while frame.nbytes:
            written = os.pwrite(self.descriptor, frame[:_STEP], start)
            frame, start = frame[written:], start + written

    def holds(self, frame: memoryview, address: int) -> bool:
        """Compare the block's one frame with some bytes.

        `==` of two memoryviews takes ten times as long.

        Parameters
        ----------
        frame : memoryview
            The bytes.
        address : int
            Where in memory they begin.
        """
        if _rounded(frame.nbytes, _PAGE) != self.size:
            return False
        if frame.nbytes >= _LARGE:
            with contextlib.suppress(OSError):  # not on this system, or no room
                return same_as_memory(self.descriptor, address, frame.nbytes)
        frame = frame.cast("B")
        # By parts that stay in the processor's cache: a mapping faults once a small page.
        scratch = bytearray(min(_PART, frame.nbytes))
        for start in range(0, frame.nbytes, _PART):
            part = frame[start : start + _PART]
            count = os.preadv(self.descriptor, [memoryview(scratch)[: part.nbytes]], start)
            if count < part.nbytes or not scratch.startswith(part):
                return False
        return True

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
    *starts, total = _starts(sizes)
    try:
        whole = _mapped(descriptor, total, huge=max(sizes) >= _LARGE)
    finally:
        os.close(descriptor)
    return [whole[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def _mapped(descriptor: int, size: int, *, huge: bool) -> memoryview:
    if huge:
        with contextlib.suppress(OSError):  # `mmap` needs less room, and says what is wrong
            return map_aligned(descriptor, size)
    return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY))


def _starts(sizes: Sequence[int]) -> list[int]:
    """Return where frames of these sizes start in a block, and where the last one's pages end."""
    starts, end = [], 0
    for size in sizes:
        start = _rounded(end, HUGE if size >= _LARGE else _PAGE)
        starts.append(start)
        end = _rounded(start + size, _PAGE)
    return [*starts, end]


def _rounded(count: int, unit: int) -> int:
    return -(-count // unit) * unit
