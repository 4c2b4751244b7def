"""The line of the user's script that a warning points at."""

from __future__ import annotations

import os
import sys
from types import FrameType

__all__ = ["users_line"]

_HOME = os.path.dirname(os.path.dirname(__file__)) + os.sep


def users_line() -> tuple[str, int]:
    """Give the file and line of the innermost call that is not parmap's own."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as inspect.currentframe does
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_HOME):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return "parmap", 0
