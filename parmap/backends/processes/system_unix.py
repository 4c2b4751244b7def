"""What differs between operating systems, behind a few small functions."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import parmap
from parmap.errors import BackendUnavailable
from parmap.transport.sockets import STANDARD, moved

__all__ = [
    "HUGE",
    "ROOT",
    "anonymous_file",
    "anonymous_memory",
    "die_with_parent",
    "fresh_memory",
    "interpreter",
    "lock",
    "map_aligned",
    "open_standard",
    "prepare",
    "same_as_memory",
    "unforked",
    "unlocker",
    "write_huge",
]

# Held while this process has a far end of a channel open, or a near end that is not yet
# listed for closing in forks: a fork made by another thread just then would keep it open,
# and this end would never see a death, or a worker never its parent's. Reentrant: it is held by the
# thread that forks, too, and a finalizer or a signal handler that forks in the middle must not wait
# for itself; that one fork may keep an end open. Under it no other lock of ours is taken, and no
# code of the user's runs.
unforked = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=unforked.acquire, after_in_parent=unforked.release, after_in_child=unforked.release
    )

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_MAP_FIXED, _MADV_COLLAPSE = 0x10, 25  # from linux/mman.h

HUGE = 1 << 21  # bytes of a huge page
# Bytes that become huge pages in one call: hundreds of megabytes at once can take seconds, and what
# the kernel has just cleared is still in the processor's cache. So much counts as the writer's own.
_STEP = 2 * HUGE
# A virtual machine may have to ask its host for each page that it has not used of late, which takes
# 20 times as long. So huge pages may take as long as small ones take to write, in seconds for each
# byte, and this much longer; then the rest is left to small ones.
_WRITE, _PATIENCE = 0.5e-9, 0.04

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(parmap.__file__)))  # parmap is here


def lock(file: int, start: int, size: int, *, waits: bool = True) -> bool:
    """Lock bytes of a file for this process; the system unlocks them when it ends.

    Parameters
    ----------
    file : int
        The descriptor.
    start, size : int
        Which bytes.
    waits : bool, default True
        Whether to wait for another process that has them locked.

    Returns
    -------
    bool
        Whether they are locked: for `waits=False`, another process may have them.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB), size, start)
    except BlockingIOError:
        return False
    return True


def unlocker(file: int, start: int, size: int) -> Callable[[], None]:
    """Give what unlocks them; it does no harm where they are not locked.

    All in C: Ctrl-C strikes before a function in Python has begun, and after one in C is done.
    """
    return functools.partial(fcntl.lockf, file, fcntl.LOCK_UN, size, start)


def anonymous_file() -> int:
    """Open a file without a name, which is gone once nobody has it open; give its descriptor."""
    if hasattr(os, "memfd_create"):
        return moved(os.memfd_create("parmap", os.MFD_CLOEXEC))
    import tempfile

    with tempfile.TemporaryFile() as file:
        return moved(os.dup(file.fileno()))


def anonymous_memory(size: int) -> int:
    """Open shared memory without a name; give its descriptor.

    Only descriptors, and what is mapped through them, keep it: nothing is left behind,
    whoever is killed, and no limit of a file system such as ``/dev/shm`` counts.
    """
    if not hasattr(os, "memfd_create"):
        return _unlinked_memory(size)
    descriptor = moved(os.memfd_create("parmap", os.MFD_CLOEXEC))
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _unlinked_memory(size: int) -> int:
    """Do the same where memory must have a name: for the moment until it is unlinked."""
    from multiprocessing.shared_memory import SharedMemory

    memory = SharedMemory(create=True, size=size)
    memory.unlink()
    descriptor = moved(os.dup(memory._fd))  # type: ignore[attr-defined]  # noqa: SLF001 - no public name
    memory.close()
    return descriptor


def fresh_memory(size: int) -> mmap.mmap:
    """Map private memory, in huge pages where the kernel has them.

    A page fault for each 4 KiB takes longer than to receive them: 64 MiB through a socket
    took 22 ms into huge pages, 51 ms into a bytearray.
    """
    try:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # a limit on the address space, as batch systems set it
        raise MemoryError(f"no memory for a message of {size} bytes ({error})") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def map_aligned(descriptor: int, size: int) -> memoryview:
    """Map a file privately, so that its huge pages are huge in this mapping, too.

    For that the mapping begins at a multiple of their size; `mmap.mmap` begins at any page.

    Raises
    ------
    OSError
        If there is no room for it, or this is not Linux.
    """
    return _view(_aligned(descriptor, size, mmap.MAP_PRIVATE))


def write_huge(descriptor: int, frame: memoryview, start: int) -> int:
    """Write the beginning of a frame to a file in huge pages, as far as the kernel makes some.

    Shared memory has small ones by itself, whose page faults take longer than the copy.

    Parameters
    ----------
    descriptor : int
        Shared memory.
    frame : memoryview
        Bytes.
    start : int
        Where they go, a multiple of `HUGE`.

    Returns
    -------
    int
        How many bytes were written: none where the kernel is older than 6.1, or forbids it; fewer
        where it takes too long.
    """
    end = start + frame.nbytes // HUGE * HUGE
    try:
        memory = _aligned(descriptor, end, mmap.MAP_SHARED)
    except OSError:
        return 0
    import ctypes

    library, view, address = _c_library(), _view(memory), ctypes.addressof(memory)
    spent = -_PATIENCE
    for at in range(start, end, _STEP):
        to = min(at + _STEP, end)
        for page in range(at, to, HUGE):  # the kernel refuses one that has nothing in it
            os.pwrite(descriptor, b"\0", page)
        begun = time.thread_time()
        if library.madvise(address + at, to - at, _MADV_COLLAPSE):
            return at - start
        spent += time.thread_time() - begun
        view[at:to] = frame[at - start : to - start]
        # It is in the file; else all of it would count as this process's memory, too.
        library.madvise(address + at, to - at, mmap.MADV_DONTNEED)
        if spent > (to - start) * _WRITE:
            return to - start
    return end - start


def same_as_memory(descriptor: int, address: int, size: int) -> bool:
    """Tell whether a file begins with what lies in this process's memory.

    Parameters
    ----------
    descriptor : int
        The file, which has that many bytes.
    address, size : int
        Where in memory, and how many bytes.

    Raises
    ------
    OSError
        As `map_aligned`.
    """
    memory, library = _aligned(descriptor, size, mmap.MAP_SHARED), _c_library()
    import ctypes

    there = ctypes.addressof(memory)
    for at in range(0, size, _STEP):
        count = min(_STEP, size - at)
        if library.memcmp(there + at, address + at, count):
            return False
        library.madvise(there + at, count, mmap.MADV_DONTNEED)  # as in `write_huge`
    return True


def _aligned(descriptor: int, size: int, flags: int) -> Any:
    """Map a file at a multiple of a huge page's size, until the array that this returns is gone."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "only Linux has huge pages for files")
    try:
        import ctypes
        import weakref
    except ImportError as error:  # there may be no descriptor left to load it with
        raise OSError(errno.ENOSYS, "ctypes cannot be loaded") from error

    library, failed = _c_library(), ctypes.c_void_p(-1).value
    space, anonymous = size + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    room = library.mmap(None, space, 0, anonymous, -1, 0)  # that nobody may touch
    if room == failed:
        raise OSError(ctypes.get_errno(), "no room for a mapping")
    at = -(-room // HUGE) * HUGE
    memory = (ctypes.c_ubyte * size).from_address(at)
    weakref.finalize(memory, library.munmap, room, space).atexit = False
    allowed = mmap.PROT_READ | mmap.PROT_WRITE
    if library.mmap(at, size, allowed, flags | _MAP_FIXED, descriptor, 0) == failed:
        raise OSError(ctypes.get_errno(), "a file cannot be mapped")
    return memory


def _view(memory: Any) -> memoryview:
    """View an array as bytes: ctypes gives another format, which cannot be cast."""
    from pickle import PickleBuffer  # not before the fork server starts

    return PickleBuffer(memory).raw()


@functools.cache
def _c_library() -> Any:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = pointer = ctypes.c_void_p
    size, number = ctypes.c_size_t, ctypes.c_int
    library.mmap.argtypes = [pointer, size, number, number, number, ctypes.c_long]
    library.munmap.argtypes = [pointer, size]
    library.madvise.argtypes = [pointer, size, number]
    library.memcmp.argtypes = [pointer, pointer, size]
    return library


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, where the kernel can.

    Parameters
    ----------
    parent : int
        The parent's process number. If it has ended before the kernel was asked, this
        process ends at once.
    """
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def prepare() -> None:
    """Load what `die_with_parent` needs: 7 ms, which each fork would spend again."""
    if sys.platform == "linux":
        import ctypes  # noqa: F401


def interpreter() -> list[str]:
    """Give the command of a Python like this one: the same program, the same flags."""
    import subprocess  # not in every worker

    # The standard library has no public name for this; multiprocessing uses this one.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    # It leaves out this one, which the script may also have set by now.
    digits = f"-Xint_max_str_digits={sys.get_int_max_str_digits()}"
    return [_program(), *flags, digits]


def _program() -> str:
    if sys.executable:
        return sys.executable
    # Unknown where Python is part of another program, or was started in an odd way.
    known = os.path.join(
        sys.exec_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"
    )
    if os.access(known, os.X_OK):
        return known
    raise BackendUnavailable(
        "sys.executable does not name a Python interpreter that workers could run: set it to the "
        "path of one, or start them as forks of this process, by start='fork'"
    )


def open_standard() -> None:
    """Open what is closed of standard input, output and error: as nothing.

    Else the next files to be opened would be taken for them, by programs that tasks start.
    """
    for descriptor in range(STANDARD):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
