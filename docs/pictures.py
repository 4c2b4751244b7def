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


def chunks(axes, ink):
    """Who ran what, and who waited, by policy."""
    for ax, (name, policy) in zip(axes, POLICIES.items(), strict=True):
        runs = RUNS[name] = RUNS.get(name) or parmap.pmap(task, COSTS, chunks=policy)
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


RUNS = {}


def sizes(ax, ink):
    """How many elements each chunk takes, one after the other."""
    names = ["static", "guided", "dynamic", "auto"]
    for row, name in enumerate(names):
        cut = SIZES.get(name) or SIZES.setdefault(name, list(sizes_of(name)))
        left = 0
        for size, colour in zip(cut, itertools.cycle([BLUE, ORANGE]), strict=False):
            ax.barh(row, size, left=left, color=colour, height=0.6, linewidth=0)
            left += size
        ax.text(0, row - 0.42, f"{name}: {len(cut)} chunks", fontsize=10, color=ink)
    ax.set_yticks([])
    ax.set_xlabel("elements, in the input's order")
    ax.invert_yaxis()


SIZES = {}
MANY = 400


def sizes_of(name):
    """Cut many elements of 5 ms: by the policy itself, or as it went in a real call."""
    if name != "auto":
        chunker, left = parmap.engine.chunking.policy_named(name).begin(MANY, WORKERS), MANY
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


def gil(ax, ink):
    """Three kinds of work on three plans."""
    if not TIMES:
        for plan, (kind, fn) in itertools.product(PLANS, KINDS.items()):
            with parmap.plan(plan):
                parmap.pmap(fn, range(2))
                # The best of some, for other work may disturb one.
                TIMES[plan, kind] = min(eight(fn) for _ in range(3))
    for (group, kind), (row, plan) in itertools.product(enumerate(KINDS), enumerate(PLANS)):
        place, seconds = 4 * group + row, TIMES[plan, kind]
        ax.barh(place, seconds, color=[GREY, ORANGE, BLUE][row])
        ax.text(seconds, place, f" {plan.partition('(')[0]}", va="center", fontsize=9, color=ink)
    ax.set_yticks([1, 5, 9], KINDS)
    ax.set_xlim(0, max(TIMES.values()) * 1.25)
    ax.set_xlabel("seconds for 8 tasks, 2 workers")
    ax.invert_yaxis()


def eight(fn):
    """Time eight calls."""
    began = time.perf_counter()
    parmap.pmap(fn, range(8))
    return time.perf_counter() - began


TIMES = {}


def graph(folder):
    """The calls of the page on nested loops."""
    load, clean, total = map(parmap.delayed, (load_, clean_, total_))
    total(*(clean(load(name)) for name in ["north", "south", "east"])).visualize(
        str(folder / "graph.svg")
    )


def load_():
    """Stand for a function of that name."""


def clean_():
    """Stand for a function of that name."""


def total_():
    """Stand for a function of that name."""


for stand_in in (load_, clean_, total_):
    stand_in.__name__ = stand_in.__name__.rstrip("_")


def save(folder, name, draw, **layout):
    """Draw once for light pages, once for dark ones, from the same run."""
    for mode, ink in INK.items():
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        with mpl.rc_context({**dict.fromkeys(inked, ink), "svg.fonttype": "none"}):
            figure, axes = plt.subplots(**layout, layout="constrained")
            draw(axes, ink)
            for ax in np.ravel(axes):
                ax.spines[["top", "right", "left"]].set_visible(False)
            figure.savefig(folder / f"{name}-{mode}.svg", transparent=True)
            plt.close(figure)


def draw_all(folder):
    """Run what is shown, and draw it."""
    folder.mkdir(parents=True, exist_ok=True)
    with parmap.plan("processes", workers=WORKERS):
        parmap.pmap(task, [0.05] * WORKERS, chunks=1)  # the workers are there
        save(folder, "chunks", chunks, nrows=len(POLICIES), figsize=(7, 7), sharex=True)
        save(folder, "sizes", sizes, figsize=(7, 3.2))
    save(folder, "gil", gil, figsize=(7, 3.6))
    graph(folder)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
