"""Which process has a task: told to the caller where the pool does not, by a socket.

The system closes a process's end when it dies, however it dies, so the caller learns that,
too. See `parmap.backends.adopted.death_watch`, the other end.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from multiprocessing import util
from typing import Any

from parmap.transport.sockets import QUIET, unix

__all__ = ["RECORD", "present"]

# First the process's number; then that of each task as it begins, and again, negative, as
# it ends; last 0, if the line closes while no task runs, and what ran has been sent.
RECORD = struct.Struct("<q")


class _Line:
    """A line to one caller.

    Parameters
    ----------
    address : str
        Where the caller listens.
    """

    def __init__(self, address: str) -> None:
        self._task = 0
        self._socket = unix()
        # A pool's process that comes to a good end has sent its last result.
        self._end = util.Finalize(None, self.leave, exitpriority=0)
        try:
            self._socket.connect(address)
        except OSError:  # nobody listens any more: the session is over
            self.close()
        self._send(os.getpid())

    def say(self, number: int) -> None:
        """Tell that a task begins, or ends."""
        self._task = number
        self._send(number)

    def leave(self) -> None:
        """Close the line; a task that runs is left, and lost with this process."""
        if self._task <= 0:
            self._send(0)
        self.close()

    def close(self) -> None:
        """Close it without a word."""
        self._end.cancel()
        self._socket.close()

    def _send(self, number: int) -> None:
        try:
            self._socket.sendall(RECORD.pack(number), QUIET)
        except OSError:  # as above
            self.close()


# To the last caller. A pool may serve several, one after the other.
_lines: dict[str, _Line] = {}


def present(address: str, number: int, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function, and tell who does.

    Parameters
    ----------
    address : str
        Where the caller listens.
    number : int
        Says which task this is.
    fn, *args, **kwargs
        What to call.
    """
    line = _lines.get(address) or _changed(address)
    line.say(number)
    try:
        value = fn(*args, **kwargs)
    except Exception:
        line.say(-number)
        raise
    # An exit or an interrupt ends the process: then the task has not ended, but is lost.
    line.say(-number)
    return value


def _changed(address: str) -> _Line:
    """Leave one caller for another."""
    while _lines:
        _lines.popitem()[1].leave()
    line = _lines[address] = _Line(address)
    return line


def _forked() -> None:
    # A line stays open as long as anybody has it, and a task may fork.
    while _lines:
        _lines.popitem()[1].close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
