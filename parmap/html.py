"""What notebooks show: values as small pieces of HTML, in the notebook's own colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["details", "table"]

_LONGEST = 80  # characters of a value in a cell


def _short(value: object) -> str:
    """Write a value as text that fits into a cell of a table."""
    try:
        text = f"{value:.6g}" if type(value) is float else str(value)
    except Exception:  # noqa: BLE001 - a user's __str__ or __repr__: the table is shown all the same
        text = f"<{type(value).__name__}>"
    text = text.partition("\n")[0]
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def table(
    caption: str, rows: Iterable[Sequence[object]], head: Sequence[object] = (), more: str = ""
) -> str:
    """Write a table.

    Parameters
    ----------
    caption : str
        What it shows.
    rows : iterable of sequence
        The cells; the first of each row is its name.
    head : sequence, default ()
        The names of the columns.
    more : str, default ""
        A line below the table.
    """
    parts = [f"<table><caption>{escape(caption)}</caption>"]
    if head:
        parts.append(f"<thead><tr>{''.join(_cell('th', name) for name in head)}</tr></thead>")
    parts.append("<tbody>")
    for first, *others in rows:
        cells = "".join(_cell("td", value) for value in others)
        parts.append(f"<tr>{_cell('th', first)}{cells}</tr>")
    parts.append("</tbody></table>")
    if more:
        parts.append(f"<p>{escape(more)}</p>")
    return "".join(parts)


def details(summary: str, text: str) -> str:
    """Write a line that opens into a longer text."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def _cell(kind: str, value: object) -> str:
    return f'<{kind} style="text-align: left">{escape(_short(value))}</{kind}>'
