"""A worker's notes: the file in which it leaves its position and its crash report."""

from __future__ import annotations

import os

import parmap
from parmap.backends.processes.forkserver import Exited
from parmap.backends.processes.system_unix import anonymous_file
from parmap.errors import WATCHDOG_REPORT, WorkerDied
from parmap.worker.context import BEGUN, NOTES

__all__ = ["Notes"]

# How the interpreter names a frame of parmap's in a stack that it writes as it dies.
_OURS = f'File "{os.path.dirname(os.path.abspath(parmap.__file__))}'


class Notes:
    """The parent's end of a worker's notes. It outlives the worker, until `close`.

    Attributes
    ----------
    fd : int
        The descriptor of the file, which has no name.
    """

    def __init__(self) -> None:
        self.fd = anonymous_file()
        try:
            os.ftruncate(self.fd, NOTES)
            # The worker shares this position, so its crash report comes after the notes.
            os.lseek(self.fd, NOTES, os.SEEK_SET)
        except BaseException:
            os.close(self.fd)
            raise

    def death(self, pid: int, exited: Exited | None) -> WorkerDied:
        """Describe how the worker ended, from its notes and what the fork server knows."""
        position, had_its_time = _read(os.pread(self.fd, NOTES, 0))
        words = os.pread(self.fd, 1 << 16, NOTES).decode(errors="replace")
        if words.startswith(WATCHDOG_REPORT) and not had_its_time:
            position = -1  # nobody is to blame, and each element runs again, alone
        return WorkerDied(
            pid,
            exited.exitcode if exited else None,
            exited.peak_memory if exited else None,
            position if position >= 0 else None,
            _users_part(words),
        )

    def close(self) -> None:
        """Close the file; call it once."""
        os.close(self.fd)


def _read(notes: bytes) -> tuple[int, bool]:
    """Read which element ran, and whether it had had its time if the watchdog rang."""
    (position,) = memoryview(notes)[:8].cast("q")
    until, *began = memoryview(notes)[8 + BEGUN :].cast("d")
    # When each element of a block began, and zeros: 0 where the element runs that has its position.
    count = began.index(0.0) if 0.0 in began else len(began)
    if position < 0 or not count:
        return position, True
    return position + count - 1, began[count - 1] <= until


def _users_part(words: str) -> str:
    """Cut a stack, innermost call first, where parmap's own frames begin."""
    lines = words.splitlines()
    ours = (i for i, line in enumerate(lines) if _OURS in line)
    return "\n".join(lines[: next(ours, len(lines))])
