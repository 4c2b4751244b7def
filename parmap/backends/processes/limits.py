"""What the system refuses a pool: descriptors, processes, memory; and what to do about it."""

from __future__ import annotations

import errno
import resource

from parmap.failures import PoolBroken

__all__ = ["refused"]

_FILES = (errno.EMFILE, errno.ENFILE)
_PER_WORKER = 2  # descriptors: its channel, and its notes


def refused(error: OSError, workers: int) -> PoolBroken:
    """Say why so many workers cannot be started, and what to do."""
    if error.errno in _FILES:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        what = (
            f"they take {_PER_WORKER * workers} file descriptors, {_PER_WORKER} each, and this "
            f"process may have {limit} in all. Raise that limit (`ulimit -n`), close files, or "
            "give fewer workers="
        )
    elif error.errno in (errno.EAGAIN, errno.ENOMEM):
        what = (
            "the system starts no more processes or threads for this user. Raise the limit "
            "(`ulimit -u`, the memory or pids limit of a container or batch job), or give fewer "
            "workers="
        )
    else:
        what = "the system does not let this process start them"
    broken = PoolBroken(f"{workers} worker processes cannot be started ({error}): {what}")
    broken.__cause__ = error
    return broken
