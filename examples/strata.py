"""Stratified analysis of one large array, which no task copies.

    python examples/strata.py
    PARMAP_PLAN=processes python examples/strata.py

Eight tasks read the same array, each its own stratum. The function captures the array, and it
travels once, not once for each task; on one machine all workers read the same memory. The
table is the same on every plan, to the last digit; how much memory the whole took goes to
standard error. ``--full`` makes the array of 400 MB.
"""

import os
import resource
import sys
import time

import numpy as np

import parmap

parmap.set_plan(os.environ.get("PARMAP_PLAN", "processes"))

rng = np.random.default_rng(1)
x = rng.normal(size=50_000_000 if "--full" in sys.argv else 5_000_000)
STRATA = 8
FAR = 3


def summary(stratum):
    """Mean, deviation and a tail of one stratum: a slice, so nothing is copied."""
    part = np.array_split(x, STRATA)[stratum]
    return part.mean(), part.std(ddof=1), (np.abs(part) > FAR).mean()


began = time.perf_counter()
rows = parmap.pmap(summary, range(STRATA))
took = time.perf_counter() - began

print(f"{'stratum':8} {'mean':>10} {'sd':>8} {f'|x| > {FAR}':>9}")
for stratum, (mean, deviation, tail) in enumerate(rows):
    print(f"{stratum:<8} {mean:10.6f} {deviation:8.5f} {tail:9.6f}")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / x.nbytes
print(f"this process's peak is {peak:.1f} times the array", file=sys.stderr)
print(f"{took:.2f} s on {parmap.current_plan()}")
