"""Forks that a task makes, and that come back from it: they end there.

In a plain loop such a fork goes on with the script. In a worker it would go on as a second one:
run the elements that follow once more, answer on channels that are not its own, or wait for ever
for threads that it does not have.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

__all__ = ["end", "generation"]

# How many forks lie between this process and the first that had loaded this file: read before
# an element, and after, for nothing but that tells whether the same process came back.
generation = 0


def _born() -> None:
    global generation  # noqa: PLW0603 - the process has one
    generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_born)


def end(error: BaseException | None = None) -> NoReturn:
    """End this process, as Python ends a script that `error` has left."""
    code = 0
    try:
        code = _told(error)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def _told(error: BaseException | None) -> int:
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        sys.stderr.write(f"{error.code}\n")
        return 1
    sys.excepthook(type(error), error, error.__traceback__)
    return 1
