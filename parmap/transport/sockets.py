"""parmap's own sockets, whatever the script has made of Python's.

A script may set a default timeout, replace `socket.socket` (by that of a proxy, or by one that
refuses, as test suites have it), let SIGPIPE end the process, or run with its standard input
and output closed. None of that is meant for the channels to workers.
"""

from __future__ import annotations

import _socket  # the class beneath `socket.socket`, which nobody replaces
import os
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

__all__ = ["QUIET", "STANDARD", "Socket", "above_standard", "moved", "pair", "unix"]

# A flag for what is sent: if the other end is gone, raise BrokenPipeError, and no SIGPIPE.
QUIET = getattr(_socket, "MSG_NOSIGNAL", 0)
STANDARD = 3  # descriptors of standard input, output, error


class Socket(_socket.socket):
    """A socket that waits as long as it takes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settimeout(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def accept(self) -> Socket:
        """Give the next connection."""
        descriptor, _ = self._accept()  # type: ignore[attr-defined]
        return Socket(fileno=descriptor)


def pair() -> tuple[Socket, Socket]:
    """Make two sockets that are connected to each other."""
    ours, theirs = _socket.socketpair()
    return _own(ours), _own(theirs)


def unix() -> Socket:
    """Make a socket that can be bound to a name on this machine, or connected to one."""
    return _own(_socket.socket(_socket.AF_UNIX))


def _own(made: _socket.socket) -> Socket:
    return Socket(fileno=moved(made.detach()))


def moved(descriptor: int) -> int:
    """Give a descriptor another number, if it has one of the three standard ones.

    Those are free where a script was started with them closed; but what prints, and each
    program that a task starts, takes them for standard input and output.
    """
    if descriptor >= STANDARD:
        return descriptor
    import fcntl

    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, STANDARD)
    finally:
        os.close(descriptor)


class _Closable(Protocol):
    def fileno(self) -> int: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


def above_standard(make: Callable[[], C]) -> C:
    """Make what cannot be moved, such as a selector, with another descriptor than those three."""
    low: list[C] = []
    try:
        while (made := make()).fileno() < STANDARD:
            low.append(made)
        return made
    finally:
        for one in low:
            one.close()
