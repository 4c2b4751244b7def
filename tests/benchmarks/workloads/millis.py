"""Tasks of one millisecond."""

from tests.benchmarks.contenders import LOCAL, POOLS
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, clocked
from tests.benchmarks.workloads.uneven import spin

BEST = "no overhead"


def cases(quick):
    count = 200 if quick else 2_000
    return [Case("millis", f"{count:,} × 1 ms", count, (BEST, *LOCAL), reference=BEST)]


def trial(case, name):
    costs = [0.001] * case.size
    if name == BEST:
        yield None
        while True:
            yield Sample(sum(costs) / WORKERS)
    contender = POOLS[name]
    pool = contender.open(WORKERS)
    assert contender.map(pool, spin, costs[:8]) == costs[:8]
    try:
        yield None
        while True:
            took, found = clocked(lambda: contender.map(pool, spin, costs))
            assert found == costs
            yield Sample(took)
    finally:
        contender.close(pool)


WORKLOAD = Workload(
    name="millis",
    what="Tasks that are busy for one millisecond each, on a warm pool.",
    cases=cases,
    trial=trial,
)
