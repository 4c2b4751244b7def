"""Methods of very different cost: how the input is cut decides how long workers wait.

    python examples/uneven_methods.py
    PARMAP_PLAN="threads(workers=4)" python examples/uneven_methods.py

Four methods, one of them fifty times as costly as the others, four times over. The results are
the same with every policy, and on every plan, to the last digit; what each policy took, and how
long workers waited for the last one, goes to standard error. ``--full`` is ten times as much;
``--picture FILE`` draws who ran what, and who waited (with matplotlib).
"""

import os
import sys
import threading
import time

import numpy as np
from scipy.special import gammaln

import parmap

parmap.set_plan(os.environ.get("PARMAP_PLAN", "processes"))

ONE = 200_000 if "--full" in sys.argv else 20_000
SIZES = [50 * ONE, ONE, ONE, ONE] * 4
# The costs of the methods can be told beforehand, and then the costly ones start first.
POLICIES = {
    "static": "static",
    "static, dealt": parmap.Static(cyclic=True),
    "dynamic": "dynamic",
    "guided": "guided",
    "by cost": parmap.Dynamic(cost=SIZES),
}


def draw(runs, path):
    """Draw a row for each worker, a panel for each policy; what is white at the end is waiting."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(runs), sharex=True, figsize=(7, 7), layout="constrained")
    for ax, (name, results) in zip(axes, runs.items(), strict=True):
        start = min(begin for _, begin, _, _ in results)
        workers = list(dict.fromkeys(worker for *_, worker in results))
        for _, begin, stop, worker in results:
            row = workers.index(worker)
            ax.barh(row, stop - begin, left=begin - start, edgecolor="white", color="#0072b2")
        ax.set(title=name, yticks=range(len(workers)), ylabel="worker")
    axes[-1].set_xlabel("seconds")
    figure.savefig(path)


def method(size, rng):
    """Estimate a mean that has no closed form; tell when it ran."""
    began = time.time()
    mean = gammaln(np.exp(rng.normal(size=size))).mean()
    return mean, began, time.time(), (os.getpid(), threading.get_ident())


began = time.perf_counter()
tables, runs = {}, {}
for name, chunks in POLICIES.items():
    start = time.time()
    results = parmap.pmap(method, SIZES, chunks=chunks, rng=1)
    tables[name], runs[name] = [mean for mean, *_ in results], results
    end = max(stop for _, _, stop, _ in results)
    last = {worker: stop for _, _, stop, worker in sorted(results, key=lambda row: row[2])}
    waits = ", ".join(f"{end - stop:.2f}" for stop in last.values())
    print(f"{name}: {end - start:.2f} s; workers waited {waits} s at the end", file=sys.stderr)

print(f"{'size':>10} {'mean':>10}")
for size, mean in zip(SIZES[:4], tables["static"][:4], strict=True):
    print(f"{size:10,} {mean:10.6f}")
assert all(table == tables["static"] for table in tables.values())
if "--picture" in sys.argv:
    draw(runs, sys.argv[sys.argv.index("--picture") + 1])
print(f"all {len(POLICIES)} policies agree")
print(f"{time.perf_counter() - began:.1f} s on {parmap.current_plan()}")
