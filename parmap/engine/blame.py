"""Who killed the worker: what to run again after a death, and which element to fail."""

from __future__ import annotations

from dataclasses import replace

from parmap.engine.cutting import Piece
from parmap.errors import WorkerDied

__all__ = ["after_death"]

# An element is failed once this many workers died while it ran. A death of the worker's own
# doing (a fault, an exit) happens again if the element is to blame, so two prove it. A kill
# from outside may hit an innocent element twice by chance, and hitting it four times is as
# good as never: with kills of one worker in four, and one element in ten running, 1 in 40^3.
_OWN_DEATHS = 2
_OUTSIDE_DEATHS = 4


def after_death(piece: Piece, death: WorkerDied) -> tuple[int | None, list[Piece]]:
    """Decide what follows when a worker died while it had a piece.

    Parameters
    ----------
    piece : Piece
        What the worker had in hand. All its results are lost.
    death : WorkerDied
        How it died; its `position` says at which element, where that was noted.

    Returns
    -------
    offset : int or None
        The element of the piece that is to blame, which must not run again.
    again : list of Piece
        What to run again: together with the blamed one, all elements of the piece.
    """
    offset = _located(piece, death)
    if offset is None:
        if not piece.chunk.careful:
            return None, [piece.careful()]
        # Nobody noted the position, for the backend has no slot: halve until one is alone.
        return None, [half.careful() for half in piece.parts(len(piece) // 2)]
    deaths = piece.deaths + 1
    limit = _OUTSIDE_DEATHS if death.from_outside else _OWN_DEATHS
    before, after = piece.parts(offset)[:-1] if offset else [], piece.part(offset + 1, len(piece))
    others = [part for part in (*before, after) if len(part)]
    if death.timed_out or deaths >= limit:
        return offset, others
    suspect = replace(piece.part(offset, offset + 1), attempts=piece.attempts, deaths=deaths)
    return None, [suspect, *others]


def _located(piece: Piece, death: WorkerDied) -> int | None:
    if len(piece) == 1:
        return 0
    position = death.position
    if position is None or not 0 <= position < len(piece):
        return None
    return position
