"""The picture that leads the page: parmap by the fastest other library, row by row."""

import math
from itertools import groupby
from pathlib import Path

from tests.benchmarks.runs import Standing

# Of Okabe and Ito's palette, ahead and behind; the shapes tell them apart, too.
COLOURS = {"light": ("#0072b2", "#d55e00"), "dark": ("#56b4e9", "#e69f00")}
# As in `docs/pictures.py`; and what is less important.
INK = {"light": ("#222222", "#777777"), "dark": ("#dddddd", "#999999")}
WIDTH, ROW = 7.4, 0.165  # inches
TICKS = (0.001, 0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100)


def draw(found: list[Standing], folder: Path) -> None:
    """Draw the picture for light pages and for dark ones."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    settings = {"svg.fonttype": "none", "svg.hashsalt": "parmap", "font.size": 8}
    for mode, (ink, faint) in INK.items() if found else ():
        inked = dict.fromkeys(("text.color", "xtick.color", "ytick.color"), ink)
        with mpl.rc_context({**settings, **inked, "axes.edgecolor": faint}):
            figure = drawn(plt, found, mode)
            path = folder / f"standings-{mode}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None})
            plt.close(figure)


def drawn(plt, found: list[Standing], mode: str):
    """Draw a row for each case, under the name of its workload."""
    lines = list(placed(found))
    figure, axis = plt.subplots(figsize=(WIDTH, ROW * (len(lines) + 4)), layout="constrained")
    frame(axis, found, len(lines), INK[mode][0])
    for height, line in enumerate(lines):
        if isinstance(line, Standing):
            point(axis, height, line, COLOURS[mode])
        else:
            at = axis.get_xlim()[0], height
            axis.text(*at, f" {line.title}", va="center", color=INK[mode][1], style="italic")
    names = [line.label if isinstance(line, Standing) else line.name for line in lines]
    axis.set_yticks(range(len(lines)), names)
    for label, line in zip(axis.get_yticklabels(), lines, strict=True):
        if not isinstance(line, Standing):
            label.set_fontweight("bold")
        elif line.behind:
            label.set_color(COLOURS[mode][1])
    return figure


def placed(found: list[Standing]):
    """List the rows from the top, each workload before its own."""
    for workload, rows in groupby(found, key=lambda one: one.workload):
        yield workload
        yield from rows


def point(axis, height: int, line: Standing, colours: tuple[str, str]) -> None:
    """Draw one row, and write its number and the peer at the right."""
    colour, marker = colours[line.behind], "oD"[line.behind]
    axis.plot((line.low, line.high), (height, height), color=colour, lw=1, alpha=0.6)
    axis.plot(line.ratio, height, marker, color=colour, ms=4.5 if line.behind else 4)
    number = f"{line.ratio:.2g}" if line.ratio < 0.1 else f"{line.ratio:.2f}"
    text = "failed" if math.isnan(line.ratio) else f"{number} × {line.peer}"
    axis.text(
        *(1.01, height, text),
        transform=axis.get_yaxis_transform(),
        va="center",
        **({"color": colour, "fontweight": "bold"} if line.behind else {}),
    )


def frame(axis, found: list[Standing], count: int, ink: str) -> None:
    """Set the bounds and the scale, above the rows, and draw the line at 1."""
    bounds = [bound for one in found for bound in (one.low, one.high) if not math.isnan(bound)]
    left, right = min(0.5, *bounds) / 1.3, max(2, *bounds) * 1.3
    axis.set(xscale="log", xlim=(left, right), ylim=(count - 0.4, -0.6))
    axis.set_xticks([tick for tick in TICKS if left <= tick <= right])
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[["right", "left", "bottom"]].set_visible(False)
    axis.axvline(1, color=ink, lw=1)
    for side, text in (("right", "← parmap is faster  "), ("left", "  slower →")):
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axis.annotate(text, (1, 1), (0, 16), ha=side, **place)
