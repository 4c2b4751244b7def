"""What ends a worker whose element runs too long, whatever the element does.

A thread in C that needs no GIL writes down where the element hangs, and ends the process. The pool
tells this death by those words. It is one thread for the process, and a fork does not have it: so
it is stopped around each fork, or the fork would for ever wait for it when it stops it.
"""

from __future__ import annotations

import faulthandler
import os
import time

__all__ = ["start", "stop"]

# When the process is to end, and where to write; None while no element is timed.
_armed: tuple[float, int] | None = None


def start(limit: float, words: int) -> None:
    """Have the process end after `limit` seconds, with its crash report to a descriptor."""
    global _armed  # noqa: PLW0603 - the process has one
    _armed = time.monotonic() + limit, words
    faulthandler.dump_traceback_later(limit, exit=True, file=words)


def stop() -> None:
    """Let the process live."""
    global _armed  # noqa: PLW0603 - as above
    faulthandler.cancel_dump_traceback_later()
    _armed = None


def _pause() -> None:
    if _armed is not None:
        faulthandler.cancel_dump_traceback_later()


def _go_on() -> None:
    if _armed is not None:
        end, words = _armed
        # It takes no 0: what is over already is so in a moment.
        faulthandler.dump_traceback_later(max(1e-3, end - time.monotonic()), exit=True, file=words)


def _forget() -> None:
    global _armed  # noqa: PLW0603 - as above
    _armed = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause, after_in_parent=_go_on, after_in_child=_forget)
