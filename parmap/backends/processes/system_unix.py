"""What differs between operating systems, behind a few small functions."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import mmap
import os
import sys
import threading
from collections.abc import Callable

import parmap
from parmap.errors import BackendUnavailable
from parmap.transport.sockets import STANDARD, moved

__all__ = [
    "ROOT",
    "anonymous_file",
    "anonymous_memory",
    "die_with_parent",
    "fresh_memory",
    "interpreter",
    "lock",
    "open_standard",
    "prepare",
    "unforked",
    "unlocker",
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
