"""Plans that nobody can enter: made by a statement that drops them.

``parmap.plan("processes")`` alone on its line sets no plan, although the same line of R does.
Python itself tells such a statement apart: its bytecode throws the value away.
"""

from __future__ import annotations

import functools
import os
from types import FrameType

__all__ = ["dropped", "note", "taken"]

# The names of plans that were dropped, by file and line; and the lines that were warned of.
dropped: dict[tuple[str, int], str] = {}
_said: set[tuple[str, int]] = set()
_HOME = os.path.dirname(os.path.dirname(__file__)) + os.sep


def note(name: str, frame: FrameType) -> None:
    """Remember a plan that was made in this frame, if the frame drops it."""
    place = (frame.f_code.co_filename, frame.f_lineno)
    if place not in _said and not place[0].startswith(_HOME) and _drops_the_value(frame):
        dropped[place] = name


def taken() -> tuple[str, str, int] | None:
    """Take the plan that was dropped last, to warn of it once; forget the others."""
    found = dict(dropped)  # a copy: another thread may take them, too
    dropped.clear()
    _said.update(found)
    return next(((name, *place) for place, name in reversed(found.items())), None)


def _drops_the_value(frame: FrameType) -> bool:
    """Whether the call that runs in a frame is a statement of its own, in a script or a cell."""
    drops, shows, cache = _codes()
    code, at = frame.f_code.co_code, frame.f_lasti + 2
    while at + 1 < len(code) and code[at] == cache:
        at += 2
    return code[at] in drops or tuple(code[at : at + 2]) in shows


@functools.cache
def _codes() -> tuple[set[int], set[tuple[int, int]], int]:
    """Give the operations that drop a value, and those by which an interactive shell shows it."""
    import dis

    of = dis.opmap
    drops = {of[name] for name in ("POP_TOP", "PRINT_EXPR") if name in of}  # 3.11 prints so
    shows = {(of["CALL_INTRINSIC_1"], 1)} if "CALL_INTRINSIC_1" in of else set()
    return drops, shows, of.get("CACHE", 0)
