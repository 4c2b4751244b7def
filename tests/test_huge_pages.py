"""Shared memory in huge pages, where the kernel makes them; where it does not, all is the same."""

import errno
import itertools
import mmap
import os
import random
import re
import sys
from unittest import mock

import numpy as np
import pytest

import parmap
from parmap.backends.processes import shared_memory, system_unix
from parmap.backends.processes.shared_memory import Block, mapped
from parmap.backends.processes.system_unix import HUGE, map_aligned, write_huge

STEP = system_unix._STEP


class Library:
    """The C library, which counts its calls; some of them fail instead."""

    def __init__(self, fails=()):
        self.library, self.fails = system_unix._c_library(), fails
        self.collapsed, self.calls = [], 0

    def mmap(self, *args):
        self.calls += 1
        if "mmap" in self.fails:
            return 2**64 - 1
        return self.library.mmap(*args)

    def memcmp(self, *args):
        return self.library.memcmp(*args)

    def munmap(self, *args):
        return self.library.munmap(*args)

    def madvise(self, at, size, advice):
        if advice == mmap.MADV_DONTNEED:
            return self.library.madvise(at, size, advice)
        assert at % HUGE == 0
        assert advice == 25
        self.collapsed.append(size)
        if len(self.collapsed) in self.fails:
            return -1
        return self.library.madvise(at, size, advice)


@pytest.fixture
def library(request):
    """Give the library for the test, which says which of the calls fail."""
    made = Library(getattr(request, "param", ()))
    with mock.patch.object(system_unix, "_c_library", return_value=made):
        yield made


def data(size):
    return memoryview(random.Random(size).randbytes(size))


def holds(block, frame):
    return block.holds(frame, np.frombuffer(frame, "u1").ctypes.data)


def content(block, size):
    return os.pread(block.descriptor, size, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the call is of Linux")
@pytest.mark.parametrize(
    ("size", "steps"),
    [
        (shared_memory._LARGE - 1, []),
        (shared_memory._LARGE, [shared_memory._LARGE]),
        (STEP + HUGE - 1, [STEP]),
        (2 * STEP + HUGE + 5, [STEP, STEP, HUGE]),
    ],
)
def test_it_is_asked_for_in_steps_and_the_tail_is_not(library, size, steps):
    frame = data(size)
    block = Block([frame])
    assert library.collapsed == steps
    assert content(block, size) == frame
    assert holds(block, frame)
    (view,) = mapped(os.dup(block.descriptor), [size])
    assert view == frame


@pytest.mark.skipif(sys.platform != "linux", reason="the call is of Linux")
@pytest.mark.parametrize("library", [{1}, {2}, {3}, {"mmap"}], indirect=True)
def test_where_the_kernel_refuses_pages_are_small(library):
    size = 2 * STEP + HUGE + 5
    frame = data(size)
    block = Block([frame])
    asked = 0 if "mmap" in library.fails else min(library.fails)
    assert library.collapsed == [STEP, STEP, HUGE][:asked]
    assert content(block, size) == frame
    (view,) = mapped(os.dup(block.descriptor), [size])
    assert view == frame
    view[0] ^= 255
    assert view[0] != frame[0] == content(block, 1)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="the call is of Linux")
@pytest.mark.parametrize(("seconds", "steps"), [(0.0, 20), (0.001, 20), (0.009, 6), (1.0, 1)])
def test_where_the_kernel_takes_long_the_rest_is_small(library, seconds, steps):
    frame = data(20 * STEP)
    times = itertools.count(0.0, seconds)
    with mock.patch.object(system_unix.time, "thread_time", side_effect=times):
        block = Block([frame])
    assert len(library.collapsed) == steps
    assert holds(block, frame)


def test_where_ctypes_cannot_be_loaded_pages_are_small(library):
    """A process that has no descriptor left loads no library."""
    frame = data(2 * STEP)
    with mock.patch.dict(sys.modules, {"ctypes": None}):
        block = Block([frame])
        (view,) = mapped(os.dup(block.descriptor), [len(frame)])
        assert view == frame
    assert library.collapsed == []


def test_elsewhere_than_on_linux_nothing_is_asked(library):
    size = STEP + 5
    with mock.patch.object(system_unix.sys, "platform", "darwin"):
        block = Block([data(size)])
        (view,) = mapped(os.dup(block.descriptor), [size])
    assert library.calls == 0
    assert view == data(size)


def test_many_frames_of_all_sizes(library):
    sizes = [5, STEP + 5, 1 << 16, STEP, HUGE, 2 * STEP + 1, 1]
    frames = [data(size) for size in sizes]
    block = Block(frames)
    views = mapped(os.dup(block.descriptor), sizes)
    assert [view.tobytes() for view in views] == [frame.tobytes() for frame in frames]
    assert all(not view.readonly for view in views)
    used = os.fstat(block.descriptor).st_blocks * 512
    assert used <= sum(size + mmap.PAGESIZE for size in sizes)  # what lies between takes no memory


def test_what_is_written_to_a_mapping_stays_there():
    size = STEP + HUGE + 7
    block = Block([data(size)])
    one, two = (mapped(os.dup(block.descriptor), [size])[0] for _ in range(2))
    np.frombuffer(one, "u1")[:] = 0
    assert not any(one[::4099])
    assert two == data(size)
    assert holds(block, data(size))


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="there is no list of mappings")
def test_a_mapping_ends_with_its_last_view():
    def mappings():
        with open("/proc/self/maps") as maps:
            return sum("memfd:parmap" in line for line in maps)

    before = mappings()
    block = Block([data(STEP)])
    assert mappings() == before  # that for writing is gone
    (view,) = mapped(os.dup(block.descriptor), [STEP])
    array = np.frombuffer(view, "u1")[5:]
    assert mappings() > before
    del view
    assert array[0] == data(STEP)[5]
    del array
    assert mappings() == before


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="there are no counts")
def test_what_is_written_does_not_count_as_the_writers_own():
    """More than a step at a time: or a limit on its memory would count it twice."""
    made = Library()

    def counted(at, size, advice):
        found.append(huge())
        return made.madvise(at, size, advice)

    found = []
    with mock.patch.object(
        system_unix, "_c_library", return_value=mock.Mock(wraps=made)
    ) as library:
        library.return_value.madvise = counted
        block = Block([data(6 * STEP)])
    assert found
    assert max(found) <= STEP // 1024
    assert holds(block, data(6 * STEP))


@pytest.mark.skipif(sys.platform != "linux", reason="the call is of Linux")
def test_an_error_of_the_file_is_raised():
    """Not hidden: a device that is full is full for small pages, too."""
    with (
        mock.patch.object(system_unix.os, "pwrite", side_effect=OSError(errno.ENOSPC, "full")),
        pytest.raises(OSError, match="full"),
    ):
        Block([data(STEP)])


@pytest.mark.skipif(sys.platform != "linux", reason="the call is of Linux")
def test_what_cannot_be_mapped_raises_an_error():
    with open(os.devnull, "rb") as nothing, pytest.raises(OSError, match="cannot be mapped"):
        map_aligned(nothing.fileno(), STEP)
    with pytest.raises(OSError, match="no room"):
        map_aligned(-1, 1 << 60)
    assert write_huge(-1, data(STEP), 0) == 0


def huge():
    """Count the kilobytes of files in huge pages that this process has mapped."""
    with open("/proc/self/smaps_rollup") as rollup:
        return int(re.search(r"ShmemPmdMapped: *(\d+) kB", rollup.read())[1])


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="there are no counts")
def test_workers_have_the_huge_pages_that_there_are():
    """As many as the caller finds in the same block: the kernel may refuse them at any time."""
    array = np.arange(STEP / 4)
    with parmap.plan("processes", workers=1) as session:
        parmap.submit(len, array).result()  # the next one is written
        there = parmap.submit(lambda a: (float(a.sum()), huge()), array).result()
        (kept,) = session.executor._queue.broadcast.recurring.kept._kept.values()
        (view,) = mapped(os.dup(kept._block.descriptor), [array.nbytes])
        assert there == (float(np.frombuffer(view).sum()), huge())
