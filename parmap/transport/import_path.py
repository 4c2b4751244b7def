"""What a script has added to its import path since a session's workers began.

It goes before the function: to read that is to import its modules.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Added", "added_since"]


class Added(NamedTuple):
    """Entries that were added to ``sys.path``: in front of all others, and behind."""

    front: tuple[str, ...] = ()
    back: tuple[str, ...] = ()

    def extend(self) -> None:
        """Add them here, those that are not here yet."""
        front = [entry for entry in self.front if entry not in sys.path]
        back = [entry for entry in self.back if entry not in sys.path]
        if front or back:
            sys.path[:] = [*front, *sys.path, *back]


def added_since(before: Sequence[object]) -> Added | None:
    """Compare ``sys.path`` with what it was; None where nothing was added."""
    now: list[object] = list(sys.path)
    if now == before:
        return None
    known = {entry for entry in before if type(entry) is str}
    texts = [entry for entry in now if type(entry) is str]
    first = next((at for at, entry in enumerate(texts) if entry in known), len(texts))
    front, rest = texts[:first], texts[first:]
    back = [entry for entry in rest if entry not in known]
    return Added(tuple(front), tuple(back)) if front or back else None
