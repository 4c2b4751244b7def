"""Methods of very different cost: how the input is cut decides how long workers wait.

    python examples/uneven_methods.py
    PARMAP_PLAN="threads(workers=4)" python examples/uneven_methods.py

Four methods, one of them fifty times as costly as the others, four times over. The results are
the same with every policy, and on every plan, to the last digit; what each policy took, and how
long workers waited for the last one, goes to standard error. ``--full`` is ten times as much.
"""

import os
import sys
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


def method(size, rng):
    """Estimate a mean that has no closed form; tell when it ran."""
    began = time.time()
    mean = gammaln(np.exp(rng.normal(size=size))).mean()
    return mean, began, time.time(), os.getpid()


began = time.perf_counter()
tables = {}
for name, chunks in POLICIES.items():
    start = time.time()
    results = parmap.pmap(method, SIZES, chunks=chunks, rng=1)
    tables[name] = [mean for mean, *_ in results]
    end = max(stop for _, _, stop, _ in results)
    last = {pid: stop for _, _, stop, pid in sorted(results, key=lambda row: row[2])}
    waits = ", ".join(f"{end - stop:.2f}" for stop in last.values())
    print(f"{name}: {end - start:.2f} s; workers waited {waits} s at the end", file=sys.stderr)

print(f"{'size':>10} {'mean':>10}")
for size, mean in zip(SIZES[:4], tables["static"][:4], strict=True):
    print(f"{size:10,} {mean:10.6f}")
assert all(table == tables["static"] for table in tables.values())
print(f"all {len(POLICIES)} policies agree")
print(f"{time.perf_counter() - began:.1f} s on {parmap.current_plan()}")
