"""Who killed the worker: what to run again after a death, and which element to fail."""

from __future__ import annotations

import math

from parmap.engine.chunks import Piece
from parmap.errors import WorkerDied

__all__ = ["after_death"]

# An element is failed once this many workers died while it ran. A death of the worker's own
# doing (a fault, an exit) happens again if the element is to blame, so two prove it. A kill
# from outside may hit an innocent element twice by chance, and hitting it four times is as
# good as never: with kills of one worker in four, and one element in ten running, 1 in 40^3.
_OWN_DEATHS = 2
_OUTSIDE_DEATHS = 4
# A piece of which nobody noted which element ran is cut into so many, each a task of its own:
# a death there costs seconds, a task milliseconds.
_PARTS = 16


def after_death(
    piece: Piece, death: WorkerDied, *, noted: bool = True
) -> tuple[int | None, list[Piece]]:
    """Decide what follows when a worker died while it had a piece.

    Parameters
    ----------
    piece : Piece
        What the worker had in hand. All its results are lost.
    death : WorkerDied
        How it died; its `position` says at which element, where that was noted.
    noted : bool, default True
        Whether workers note which element they run when they are told to be careful. Where
        they do not, careful pieces must run alone: that is what proves them guilty.

    Returns
    -------
    offset : int or None
        The element of the piece that is to blame, which must not run again.
    again : list of Piece
        What to run again: together with the blamed one, all elements of the piece.
    """
    if not noted and not piece.chunk.careful:
        return None, _apart(piece)
    offset = _located(piece, death)
    if offset is None:
        return None, _apart(piece) if piece.chunk.careful else [piece.careful()]
    deaths = piece.deaths + death.times
    limit = _OUTSIDE_DEATHS if death.from_outside else _OWN_DEATHS
    before, after = piece.parts(offset)[:-1] if offset else [], piece.part(offset + 1, piece.size)
    others = [part for part in (*before, after) if part.size]
    if death.timed_out or deaths >= limit:
        return offset, others
    suspect = piece.part(offset, offset + 1)._replace(attempts=piece.attempts, deaths=deaths)
    return None, [suspect if noted else suspect.careful(), *others]


def _apart(piece: Piece) -> list[Piece]:
    """Cut a piece into careful ones, so that in the end each element is alone."""
    if piece.size == 1:
        return [piece.careful()]  # its history stays with it
    size = math.ceil(piece.size / _PARTS)
    return [part.careful() for part in piece.parts(*range(size, piece.size, size))]


def _located(piece: Piece, death: WorkerDied) -> int | None:
    if piece.size == 1:
        return 0
    position = death.position
    if position is None or not 0 <= position < piece.size:
        return None
    return position
