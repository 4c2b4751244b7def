"""The line to the process that cancels our jobs, however this one ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import weakref
from pathlib import Path

from parmap.backends.remote import cleanup

__all__ = ["CleanupProcess"]


class CleanupProcess:
    """Runs `parmap.backends.remote.cleanup`, and tells it which jobs there are.

    The end of the line has that process cancel the jobs that are left, and remove the folder.

    Parameters
    ----------
    own : Path
        The session's folder.
    lock : int
        The descriptor of its lock, which this object closes.
    cancel : str
        The command that cancels a job.
    """

    def __init__(self, own: Path, lock: int, cancel: str) -> None:
        self._lock = lock
        self._process = subprocess.Popen(
            [sys.executable, cleanup.__file__, os.fspath(own), str(lock), cancel],
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=[lock],
            start_new_session=True,  # neither Ctrl-C nor the end of a terminal is for it
        )
        _processes.add(self)

    def add(self, number: str) -> None:
        """Have it cancel a job in the end."""
        self._tell(f"+{number}")

    def remove(self, number: str) -> None:
        """Have it forget a job, which has ended or is cancelled."""
        self._tell(f"-{number}")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # somebody has killed it, or it is closed
            print(line, file=self._process.stdin, flush=True)

    def close(self) -> None:
        """Have it do its work now, and wait for that."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)
        if self._process.poll() is None:
            self._process.communicate()

    def let_go(self) -> None:
        """In a fork, which may live on: leave the line to the parent."""
        assert self._process.stdin is not None
        with contextlib.suppress(ValueError):  # it is closed already
            nothing = os.open(os.devnull, os.O_RDWR)
            # In their places, for both objects may be closed here once more.
            os.dup2(nothing, self._process.stdin.fileno())
            if self._lock >= 0:
                os.dup2(nothing, self._lock)
            os.close(nothing)


# A fork has the line to the cleanup process, too, and would keep jobs alive as long as it lives.
_processes: weakref.WeakSet[CleanupProcess] = weakref.WeakSet()


def _forked() -> None:
    for process in list(_processes):
        process.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
