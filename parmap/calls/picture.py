"""Pictures of graphs: by Graphviz where it is installed, else a plain SVG of our own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from html import escape
from typing import TypeAlias

__all__ = ["drawn"]

Box: TypeAlias = tuple[str, str, tuple[int, ...]]  # name, state, the boxes that it needs

# Told apart without red against green, and in grey: Okabe and Ito's palette.
_COLOURS = {"waiting": "#ffffff", "done": "#9ad0f0", "failed": "#e69f00", "not run": "#d0d0d0"}
_WIDTH, _HEIGHT, _GAP = 130, 30, 28


def drawn(boxes: Sequence[Box]) -> str:
    """Draw calls as boxes, with arrows from what they need; give SVG.

    Parameters
    ----------
    boxes : sequence of (str, str, tuple of int)
        Name, state, and the places of the boxes that it needs, all of them before it.
    """
    dot = shutil.which("dot")
    if dot is None:
        return "\n".join(_svg(boxes))
    done = subprocess.run(
        [dot, "-Tsvg"], input="\n".join(_dot(boxes)), capture_output=True, text=True, check=True
    )
    return done.stdout


def _dot(boxes: Sequence[Box]) -> Iterator[str]:
    yield "digraph {"
    yield 'node [shape=box, style="filled,rounded", fontname="sans-serif"]'
    for place, (name, state, needs) in enumerate(boxes):
        label = name.replace("\\", "\\\\").replace('"', '\\"')
        yield f'{place} [label="{label}", fillcolor="{_COLOURS[state]}", tooltip="{state}"]'
        yield from (f"{need} -> {place}" for need in needs)
    yield "}"


def _svg(boxes: Sequence[Box]) -> Iterator[str]:
    """Lay boxes out in rows, each below all that it needs."""
    rows: list[int] = []
    places: list[tuple[int, int]] = []
    counts: list[int] = []
    for _, _, needs in boxes:
        row = 1 + max((rows[need] for need in needs), default=-1)
        rows.append(row)
        counts += [0] * (row + 1 - len(counts))
        x = _GAP + counts[row] * (_WIDTH + _GAP)
        places.append((x, _GAP + row * (_HEIGHT + 2 * _GAP)))
        counts[row] += 1
    width = _GAP + max(counts, default=0) * (_WIDTH + _GAP)
    height = len(counts) * (_HEIGHT + 2 * _GAP)
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
    yield '<g font-family="sans-serif" font-size="12" text-anchor="middle" stroke="#555">'
    for (x, y), (_, _, needs) in zip(places, boxes, strict=True):
        for need in needs:
            from_x, from_y = places[need]
            yield (
                f'<line x1="{from_x + _WIDTH // 2}" y1="{from_y + _HEIGHT}" '
                f'x2="{x + _WIDTH // 2}" y2="{y}"/>'
            )
    for (x, y), (name, state, _) in zip(places, boxes, strict=True):
        yield (
            f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" '
            f'fill="{_COLOURS[state]}"><title>{state}</title></rect>'
        )
        short = name if len(name) <= 18 else name[:17] + "…"  # noqa: PLR2004 - what fits
        yield (
            f'<text x="{x + _WIDTH // 2}" y="{y + _HEIGHT // 2 + 4}" stroke="none" '
            f'fill="#000">{escape(short)}</text>'
        )
    yield "</g>"
    yield "</svg>"
