"""Tasks of some milliseconds, of equal and of unequal length: how near is the best time?"""

import random
import time
from dataclasses import replace

import numpy as np

from tests.benchmarks.contenders import LOCAL, POOLS, SINGLY
from tests.benchmarks.targets import Target
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, clocked

LOWER, IN_ORDER = "lower bound", "one by one, no overhead"
KNOWN = "parmap, costs given"
SHORT, LONG = 0.02, 0.08
ORDERS = {
    "first": [LONG] * 4 + [SHORT] * 12,
    "last": [SHORT] * 12 + [LONG] * 4,
    "mixed": random.Random(5).sample([LONG] * 4 + [SHORT] * 12, 16),
    "dealt": ([LONG] + [SHORT] * 3) * 4,
}


def spin(seconds):
    """Be busy by the clock, so that the best time is known whatever else the machine does."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return seconds


def lognormal(count):
    """Draw costs of 5 ms on average, a few of which are many times that."""
    costs = np.random.default_rng(7).lognormal(0, 1, count)
    return [float(cost) for cost in 0.005 * costs / costs.mean()]


def optimum(costs, workers=WORKERS):
    """Compute a time that no schedule can beat."""
    return max(sum(costs) / workers, *costs)


def in_order(costs, workers=WORKERS):
    """Compute the time if each worker takes the next task at no cost."""
    busy = [0.0] * workers
    for cost in costs:
        first = busy.index(min(busy))
        busy[first] += cost
    return max(busy)


def cases(quick):
    count, few, many = (40, 20, 200) if quick else (200, 100, 2_000)
    work = {f"slow {name}": (f"slow {name}", costs) for name, costs in ORDERS.items()}
    work["lognormal"] = (f"{count} lognormal", lognormal(count))
    work["rising"] = (f"{count} rising", [1e-4 * (i + 1) * 100 / count for i in range(count)])
    work["tens"] = (f"{few} × 10 ms", [0.01] * few)
    found = [
        Case(key, label, len(costs), (LOWER, IN_ORDER, KNOWN, *SINGLY), LOWER, data=costs)
        for key, (label, costs) in work.items()
    ]
    # So many go in each library's own chunks.
    found.append(
        Case("millis", f"{many:,} × 1 ms", many, (LOWER, *LOCAL), LOWER, data=[0.001] * many)
    )
    return [replace(case, at_most=1.0) for case in found]


def trial(case, name):
    costs = case.data
    if name in (LOWER, IN_ORDER):
        yield None
        while True:
            yield Sample((optimum if name == LOWER else in_order)(costs))
    contender = POOLS["parmap" if name == KNOWN else name]
    pool = contender.open(WORKERS)
    run = contender.map if case.key == "millis" else contender.each
    if name == KNOWN:
        run = by_cost
    assert run(pool, spin, [0.001] * 8) == [0.001] * 8
    try:
        yield None
        while True:
            took, found = clocked(lambda: run(pool, spin, costs))
            assert found == costs
            yield Sample(took)
    finally:
        contender.close(pool)


def by_cost(pool, f, costs):
    parmap, _ = pool
    return parmap.pmap(f, costs, chunks=parmap.Dynamic(cost=costs))


def share(key):
    """Compute how much of the time no schedule can spare."""
    return lambda m: m(key, LOWER) / m(key, "parmap")


WORKLOAD = Workload(
    name="uneven",
    title="tasks of some milliseconds",
    what="Tasks that are busy: 16 tasks, four of them of 80 ms and the rest of 20 ms, in four "
    "orders; tasks of lognormal length, 5 ms on average; tasks that grow from nothing to 10 ms; "
    "and many of equal length. The lower bound is arithmetic: the work, shared out, or the "
    "longest task. So is what taking the next task at no cost would give. Peers get the tasks one "
    "by one, those of 1 ms in their own chunks.",
    cases=cases,
    trial=trial,
    packages={KNOWN: "parmap"},
    targets=tuple(
        Target(f"{case.label}: the lower bound by the time", 0.985, share(case.key), least=True)
        for case in cases(quick=False)
    ),
)
