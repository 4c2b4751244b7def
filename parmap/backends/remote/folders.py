"""A session's folder: private, locked as long as the session lives, and removed afterwards.

A process number would not tell whether a session lives: containers, on one machine or on several
that share a disk, repeat their host names and process numbers. A lock ends with those who hold it.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path

__all__ = ["private", "sweep"]

_LOCK = "lock"


def private(parent: Path) -> tuple[Path, int]:
    """Make a folder that only the user can look into; return it and the descriptor of its lock."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Under a name that nobody sweeps, until it is locked.
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with contextlib.suppress(OSError):  # this disk has no locks: then nobody sweeps there
        fcntl.flock(lock, fcntl.LOCK_EX)
    return made.rename(parent / f"{socket.gethostname()}-{secrets.token_hex(16)}"), lock


def sweep(parent: Path) -> None:
    """Remove what sessions of this machine have left: it went down, say."""
    for left in parent.glob(f"{glob.escape(socket.gethostname())}-*"):
        with contextlib.suppress(OSError):  # it has no lock, or somebody else removes it
            _remove(left)


def _remove(left: Path) -> None:
    lock = os.open(left / _LOCK, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # the session lives
        return
    finally:
        # Before the folder goes: NFS keeps a file that is open, under another name.
        os.close(lock)
    shutil.rmtree(left, ignore_errors=True)
