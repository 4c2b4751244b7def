"""Keys that no other process of any machine gives, before, now or later.

A host name, a process number and a count do not make one: containers repeat host names and process
numbers, and a worker of a long-lived cluster would run the function of an earlier script.
"""

from __future__ import annotations

import itertools
import os
import threading

__all__ = ["Key", "fresh_key", "is_own"]

Key = tuple[bytes, int]


class _Mine(threading.local):
    """What the keys of one thread are made of.

    Each thread has a count of its own: Python does not promise that a count which threads share
    gives no number twice, and without a GIL some versions do.
    """

    def __init__(self) -> None:
        self.token, self.numbers = _process + os.urandom(8), itertools.count(1)


def _renew() -> None:
    global _mine, _process  # noqa: PLW0603 - a fork must not go on with its parent's
    _process = os.urandom(8)
    _mine = _Mine()


def fresh_key() -> Key:
    """Return a key that is given once."""
    mine = _mine
    return mine.token, next(mine.numbers)


def is_own(key: Key | None) -> bool:
    """Tell whether this process, and not one that it is a fork of, has made a key."""
    return key is not None and key[0].startswith(_process)


_process = os.urandom(8)  # the beginning of all tokens of this process
_mine = _Mine()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
