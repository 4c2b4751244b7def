"""Keys that no other process of any machine gives, before, now or later.

A host name, a process number and a count do not make one: containers repeat host names and process
numbers, and a worker of a long-lived cluster would run the function of an earlier script.
"""

from __future__ import annotations

import itertools
import os

__all__ = ["Key", "fresh_key"]

Key = tuple[bytes, int]

_numbers = itertools.count(1)
_token = b""


def _draw() -> None:
    global _token  # noqa: PLW0603 - a fork must not go on with its parent's
    _token = os.urandom(16)


def fresh_key() -> Key:
    """Return a key that is given once."""
    return _token, next(_numbers)


_draw()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_draw)
