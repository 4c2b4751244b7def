"""One picture for each workload: bars, or lines over the number of elements."""

import io
import math
from pathlib import Path

from tests.benchmarks.page import cell, quantity
from tests.benchmarks.runs import Finding
from tests.benchmarks.timing import Measured

OURS, VARIANT, PEER, INK = "#c8102e", "#e8a3ad", "#a6a6a6", "#4d4d4d"
WIDTH, DPI = 7.0, 100  # 700 pixels
SPREAD = 30  # from so much between the least and the most on, bars are drawn on a log scale


def colour(name: str) -> str:
    """Give parmap the one colour that is not grey; a pale one where it was set by hand."""
    if is_ours(name):
        return OURS
    return VARIANT if name.startswith("parmap") else PEER


def is_ours(name: str) -> bool:
    """Tell parmap with its defaults, on a plan that takes several cores for Python code."""
    return name == "parmap" or name.startswith("parmap on ")


def draw(finding: Finding, path: Path) -> None:
    """Draw a workload."""
    import matplotlib as mpl
    from PIL import Image

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 9,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
        }
    )
    figure = lines(plt, finding) if finding.workload.lines else bars(plt, finding)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, facecolor="white")
    plt.close(figure)
    with Image.open(buffer) as image:  # few colours make it a third as large
        image.convert("RGB").quantize(64).save(path, optimize=True)


def compared(finding: Finding) -> list[Measured]:
    """Select the cases that a picture is worth: more than two take part."""
    return [one for one in finding.cases if len(one.figures) > 2]


def bars(plt, finding: Finding):
    """Draw a panel of horizontal bars for each case."""
    panels = compared(finding)
    heights = [0.2 * len(one.figures) + 0.55 for one in panels]
    figure, axes = plt.subplots(
        *(len(panels), 1),
        figsize=(WIDTH, sum(heights) + 0.2),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axis, one in zip(axes[:, 0], panels, strict=True):
        panel(axis, one)
    return figure


def panel(axis, one: Measured) -> None:
    """Draw the bars of a case, the best first, each with its number."""
    found = {name: figure for name, figure in one.figures.items() if figure.values}
    # The axis goes upwards.
    names = sorted(found, key=lambda name: found[name].median, reverse=True)
    for name in (name for name in one.figures if name not in found):  # no number: it says why
        axis.barh(name, 0)
        axis.text(0.01, name, said(one, name), transform=axis.get_yaxis_transform(), va="center")
    if not found:
        return
    middles = [max(0.0, found[name].median) for name in names]
    bounds = [found[name].quartiles for name in names]
    errors = [
        [max(0.0, m - low) for m, (low, _) in zip(middles, bounds, strict=True)],
        [max(0.0, high - m) for m, (_, high) in zip(middles, bounds, strict=True)],
    ]
    axis.barh(names, middles, color=[colour(n) for n in names], height=0.72)
    axis.errorbar(middles, names, xerr=errors, fmt="none", ecolor=INK, elinewidth=0.8)
    some = [m for m in middles if m > 0]
    logarithmic = bool(some) and len(some) == len(middles) and max(some) > SPREAD * min(some)
    if logarithmic:
        axis.set_xscale("log")
        axis.set_xlim(min(some) / 3, max(some) * 6)
    else:
        axis.set_xlim(0, 1.25 * max(*middles, 1e-9))
    for name, middle, (_, high) in zip(names, middles, bounds, strict=True):
        text = " " + quantity(found[name].median, one.case.unit)
        weight = "bold" if is_ours(name) else "normal"
        axis.text(max(middle, high), name, text, va="center", fontsize=8, fontweight=weight)
    scale = " (log scale)" if logarithmic else ""
    axis.set_title(f"{one.case.label}{scale}")
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_visible(False)  # each bar has its number
    axis.spines["bottom"].set_visible(False)


def said(one: Measured, name: str) -> str:
    """Give in a few words why there is no number."""
    text = cell(one, name)
    return text if len(text) < 70 else f"{text[:67]}…"


def lines(plt, finding: Finding):
    """Draw the time of one element over the number of elements, a line for each contender."""
    cases = [one for one in finding.cases if one.case.key.startswith(finding.workload.lines)]
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    ends = {}
    for name in finding.contenders():
        points = [
            (one.case.size, value(one, name, each=finding.workload.name == "generator"))
            for one in cases
            if name in one.figures and one.figures[name].values
        ]
        if points:
            width = 2.4 if is_ours(name) else 1.2
            axis.plot(*zip(*points, strict=True), "o-", ms=3, color=colour(name), lw=width)
            ends[name] = points[-1]
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("elements")
    axis.set_title("ns for each element (both scales logarithmic)")
    label_ends(axis, ends, max(one.case.size for one in cases))
    return figure


def value(one: Measured, name: str, *, each: bool) -> float:
    """Give the nanoseconds of one element."""
    return 1e9 * one.figures[name].median / (1 if each else one.case.size)


def label_ends(axis, ends: dict[str, tuple[float, float]], right: float) -> None:
    """Write the names beside the ends of the lines, far enough from each other to be read."""
    low, high = (math.log10(bound) for bound in axis.get_ylim())
    apart = (high - low) / 18
    last = -math.inf
    for name, (_, end) in sorted(ends.items(), key=lambda item: item[1][1]):
        last = max(math.log10(end), last + apart)
        ours = is_ours(name)
        axis.annotate(
            *(name, (1.25 * right, 10**last)),
            va="center",
            annotation_clip=False,
            color=OURS if ours else INK,
            fontweight="bold" if ours else "normal",
        )
    axis.set_xlim(right=right * 1.1)
    axis.set_ylim(top=10 ** max(high, last + apart))
