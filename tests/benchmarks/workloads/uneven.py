"""Tasks of unequal length: how near is the time to the best that two workers can do?"""

import random
import time

import numpy as np

from tests.benchmarks.contenders import POOLS, SINGLY
from tests.benchmarks.workload import WORKERS, Budget, Case, Sample, Workload, clocked

IDEAL = "no overhead, in this order"
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


def nap(seconds):
    time.sleep(seconds)
    return seconds


def lognormal(count):
    """Draw costs of 5 ms on average, a few of which are many times that."""
    costs = np.random.default_rng(7).lognormal(0, 1, count)
    return [float(cost) for cost in 0.005 * costs / costs.mean()]


def optimum(costs, workers=WORKERS):
    """Give the least time that any schedule can take."""
    return max(sum(costs) / workers, *costs)


def in_order(costs, workers=WORKERS):
    """Give the time if each worker takes the next task at no cost."""
    busy = [0.0] * workers
    for cost in costs:
        first = busy.index(min(busy))
        busy[first] += cost
    return max(busy)


def cases(quick):
    count = 40 if quick else 200
    work = {f"slow {name}": (spin, costs) for name, costs in ORDERS.items()}
    work["lognormal, busy"] = (spin, lognormal(count))
    work["lognormal, asleep"] = (nap, lognormal(count))
    return [
        Case(
            *(key, key, len(data[1]), (IDEAL, KNOWN, *SINGLY)),
            unit="of the optimum",
            data=data,
        )
        for key, data in work.items()
    ]


def trial(case, name):
    f, costs = case.data
    best = optimum(costs)
    if name == IDEAL:
        yield None
        while True:
            yield Sample(best / in_order(costs))
    contender = POOLS["parmap" if name == KNOWN else name]
    pool = contender.open(WORKERS)
    assert contender.each(pool, f, [0.001] * 8) == [0.001] * 8
    try:
        yield None
        while True:
            took, found = clocked(lambda: mapped(name, pool, f, costs))
            assert found == costs
            yield Sample(best / took)
    finally:
        contender.close(pool)


def mapped(name, pool, f, costs):
    if name == KNOWN:
        parmap, _ = pool
        return parmap.pmap(f, costs, chunks=parmap.Dynamic(cost=costs))
    return POOLS[name].each(pool, f, costs)


WORKLOAD = Workload(
    name="uneven",
    what="16 tasks, four of them of 80 ms and the rest of 20 ms, in four orders, and tasks of "
    "lognormal length, 5 ms on average: the least time that two workers can take, by the time "
    "they took; 1 is the best. Peers get the tasks one by one. Without overhead is arithmetic: "
    "what taking the next task at no cost would give.",
    cases=cases,
    trial=trial,
    packages={KNOWN: "parmap"},
    budgets=(
        Budget(
            "16 uneven tasks, worst of four orders: share of the best that two workers can do",
            0.97,
            lambda m: min(m(f"slow {order}", "parmap") for order in ORDERS),
            least=True,
        ),
    ),
)
