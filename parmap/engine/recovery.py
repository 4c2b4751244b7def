"""Who killed the worker: what to run again after a death, and which element to fail."""

from __future__ import annotations

import math

from parmap.engine.chunks import ChunkPlan
from parmap.errors import WorkerDied

__all__ = ["after_death"]

# An element is failed once this many workers died while it ran. A death of the worker's own
# doing (a fault, an exit) happens again if the element is at fault, so two prove it. A kill
# from outside may hit an innocent element twice by chance, and hitting it four times is as
# good as never: with kills of one worker in four, and one element in ten running, 1 in 40^3.
_OWN_DEATHS = 2
_OUTSIDE_DEATHS = 4
# A chunk of which nobody noted which element ran is cut into so many, each a task of its own:
# a death there costs seconds, a task milliseconds.
_PARTS = 16


def after_death(
    chunk_plan: ChunkPlan, death: WorkerDied, *, noted: bool = True
) -> tuple[int | None, list[ChunkPlan]]:
    """Decide what follows when a worker died while it had a chunk.

    Parameters
    ----------
    chunk_plan : ChunkPlan
        What the worker had in hand. All its results are lost.
    death : WorkerDied
        How it died; its `position` says at which element, where that was noted.
    noted : bool, default True
        Whether workers note which element they run when they are told to be careful. Where
        they do not, careful chunks must run alone: that is what proves them guilty.

    Returns
    -------
    offset : int or None
        The element of the chunk that is at fault, which must not run again.
    again : list of ChunkPlan
        What to run again: together with the one at fault, all elements of the chunk.
    """
    if not noted and not chunk_plan.chunk.careful:
        return None, _apart(chunk_plan)
    offset = _located(chunk_plan, death)
    if offset is None:
        return None, _apart(chunk_plan) if chunk_plan.chunk.careful else [chunk_plan.careful()]
    deaths = chunk_plan.deaths + death.times
    limit = _OUTSIDE_DEATHS if death.from_outside else _OWN_DEATHS
    before, after = (
        chunk_plan.parts(offset)[:-1] if offset else [],
        chunk_plan.part(offset + 1, chunk_plan.size),
    )
    others = [part for part in (*before, after) if part.size]
    if death.timed_out or deaths >= limit:
        return offset, others
    suspect = chunk_plan.part(offset, offset + 1)._replace(
        attempts=chunk_plan.attempts, deaths=deaths
    )
    return None, [suspect if noted else suspect.careful(), *others]


def _apart(chunk_plan: ChunkPlan) -> list[ChunkPlan]:
    """Cut a chunk into careful ones, so that in the end each element is alone."""
    if chunk_plan.size == 1:
        return [chunk_plan.careful()]  # its history stays with it
    size = math.ceil(chunk_plan.size / _PARTS)
    return [part.careful() for part in chunk_plan.parts(*range(size, chunk_plan.size, size))]


def _located(chunk_plan: ChunkPlan, death: WorkerDied) -> int | None:
    if chunk_plan.size == 1:
        return 0
    position = death.position
    if position is None or not 0 <= position < chunk_plan.size:
        return None
    return position
