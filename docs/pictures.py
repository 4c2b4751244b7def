"""The pictures of the pages, drawn from real runs when the pages are built.

    python docs/pictures.py FOLDER

Each is drawn twice, for light and for dark pages.
"""

import itertools
import os
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np

import parmap
from parmap.engine.policies import policy_named

mpl.use("svg")
from matplotlib import pyplot as plt

BLUE, ORANGE, GREY = "#0072b2", "#e69f00", "#999999"  # of Okabe and Ito's palette
INK = {"light": "#222222", "dark": "#dddddd"}
WORKERS = 4
POLICIES = {
    "static": parmap.Static(),
    "static, cyclic": parmap.Static(cyclic=True),
    "guided": parmap.Guided(),
    "dynamic": parmap.Dynamic(),
    "dynamic, by cost": parmap.Dynamic(cost=lambda seconds: seconds),
}
# The slow ones come last, as they do where costs rise along the input.
COSTS = [0.04] * 13 + [0.25] * 3


def task(cost):
    """Wait; tell who ran, from when to when."""
    began = time.time()
    time.sleep(cost)
    return os.getpid(), began, time.time()


def runs_by_policy():
    """Run the uneven elements once by each policy."""
    return {name: parmap.pmap(task, COSTS, chunks=policy) for name, policy in POLICIES.items()}


def chunks(axes, ink, by_policy):
    """Who ran what, and who waited, by policy."""
    for ax, (name, runs) in zip(axes, by_policy.items(), strict=True):
        start, end = min(r[1] for r in runs), max(r[2] for r in runs)
        rows = {pid: row for row, pid in enumerate(dict.fromkeys(pid for pid, *_ in runs))}
        for pid, began, ended in runs:
            colour = ORANGE if ended - began > max(COSTS) / 2 else BLUE
            left, width = began - start, ended - began
            ax.barh(rows[pid], width, left=left, color=colour, edgecolor="white", height=0.8)
        for pid, row in rows.items():
            free = max(ended for other, _, ended in runs if other == pid) - start
            ax.barh(row, end - start - free, left=free, color=GREY, alpha=0.35, height=0.8)
        ax.set_title(f"{name}: {end - start:.2f} s", loc="left", fontsize=10, color=ink)
        ax.set_yticks([])
        ax.set_xlim(0, sum(COSTS[-4:]) * 1.1)
        ax.invert_yaxis()
    axes[-1].set_xlabel("seconds")


def sizes_by_policy():
    """Cut many elements of 5 ms: by each policy itself; by the default as in a real call."""
    return {name: list(sizes_of(name)) for name in ("static", "guided", "dynamic", "auto")}


def sizes(ax, ink, by_policy):
    """How many elements each chunk takes, one after the other."""
    for row, (name, cut) in enumerate(by_policy.items()):
        left = 0
        for size, colour in zip(cut, itertools.cycle([BLUE, ORANGE]), strict=False):
            ax.barh(row, size, left=left, color=colour, height=0.6, linewidth=0)
            left += size
        ax.text(0, row - 0.42, f"{name}: {len(cut)} chunks", fontsize=10, color=ink)
    ax.set_yticks([])
    ax.set_xlabel("elements, in the input's order")
    ax.invert_yaxis()


MANY = 400


def sizes_of(name):
    """Give the sizes of the chunks, in the input's order."""
    if name != "auto":
        chunker, left = policy_named(name).begin(MANY, WORKERS), MANY
        while left:
            size = min(left, chunker.size(left))
            left -= size
            yield size
        return
    seen = [(r[0], i) for i, r in enumerate(parmap.pmap(task, [0.005] * MANY))]
    for _, group in itertools.groupby(seen, key=lambda one: one[0]):
        yield len(list(group))


def python_loop(_):
    """Hold the GIL."""
    return sum(i * i for i in range(400_000))


def numpy_sort(_):
    """Release the GIL."""
    return np.sort(DATA)[0]


def waiting(_):
    """Wait, as for a server."""
    time.sleep(0.05)


DATA = np.random.default_rng(1).normal(size=1_000_000)
KINDS = {"Python code": python_loop, "NumPy, sorting": numpy_sort, "waiting": waiting}
PLANS = ["sequential", "threads(workers=2)", "processes(workers=2)"]


def times_by_plan():
    """Time three kinds of work on three plans."""
    times = {}
    for plan, (kind, fn) in itertools.product(PLANS, KINDS.items()):
        with parmap.plan(plan):
            parmap.pmap(fn, range(2))
            # The best of some, for other work may disturb one.
            times[plan, kind] = min(eight(fn) for _ in range(3))
    return times


def gil(ax, ink, times):
    """Three kinds of work on three plans."""
    for (group, kind), (row, plan) in itertools.product(enumerate(KINDS), enumerate(PLANS)):
        place, seconds = 4 * group + row, times[plan, kind]
        ax.barh(place, seconds, color=[GREY, ORANGE, BLUE][row])
        ax.text(seconds, place, f" {plan.partition('(')[0]}", va="center", fontsize=9, color=ink)
    ax.set_yticks([1, 5, 9], KINDS)
    ax.set_xlim(0, max(times.values()) * 1.25)
    ax.set_xlabel("seconds for 8 tasks, 2 workers")
    ax.invert_yaxis()


def eight(fn):
    """Time eight calls."""
    began = time.perf_counter()
    parmap.pmap(fn, range(8))
    return time.perf_counter() - began


def graph(folder):
    """The calls of the page on nested loops, which are drawn and not run."""

    @parmap.delayed
    def load(name):
        return name

    @parmap.delayed
    def clean(rows):
        return rows

    @parmap.delayed
    def total(*tables):
        return tables

    calls = total(*(clean(load(name)) for name in ["north", "south", "east"]))
    calls.visualize(str(folder / "graph.svg"))


def save(folder, name, measured, draw, **layout):
    """Draw once for light pages, once for dark ones, from the same run."""
    for mode, ink in INK.items():
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        with mpl.rc_context({**dict.fromkeys(inked, ink), "svg.fonttype": "none"}):
            figure, axes = plt.subplots(**layout, layout="constrained")
            draw(axes, ink, measured)
            for ax in np.ravel(axes):
                ax.spines[["top", "right", "left"]].set_visible(False)
            figure.savefig(folder / f"{name}-{mode}.svg", transparent=True)
            plt.close(figure)


def draw_all(folder):
    """Run what is shown, and draw it."""
    folder.mkdir(parents=True, exist_ok=True)
    with parmap.plan("processes", workers=WORKERS):
        parmap.pmap(task, [0.05] * WORKERS, chunks=1)  # the workers are there
        save(
            folder,
            "chunks",
            runs_by_policy(),
            chunks,
            nrows=len(POLICIES),
            figsize=(7, 7),
            sharex=True,
        )
        save(folder, "sizes", sizes_by_policy(), sizes, figsize=(7, 3.2))
    save(folder, "gil", times_by_plan(), gil, figsize=(7, 3.6))
    graph(folder)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
