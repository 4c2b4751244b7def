"""Large results, and many arrays there and back."""

import time

import numpy as np

from tests.benchmarks.contenders import POOLS, SINGLY
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, clocked

MB = 10**6
LENGTH = 12_500  # numbers in 100 kB


def make(i, size):
    return np.full(size // 8, float(i))


def double(array):
    return 2 * array


def cases(quick):
    size, count = (MB, 1_000) if quick else (8 * MB, 10_000)
    everybody = ("parmap, threads", *SINGLY)
    return [
        Case(
            *("large", f"20 results of {size // MB} MB", 20 * size, everybody),
            reference="parmap, threads",
        ),
        Case(
            *("large, memory", "memory at most, by their size", 20 * size, everybody),
            unit="× their size",
            peak=True,
        ),
        Case(
            *("many", f"{count:,} arrays of 100 kB, both ways", count, everybody),
            reference="parmap, threads",
        ),
    ]


def large(contender, pool, size):
    found = contender.starmap(pool, make, [(i, size) for i in range(20)])
    assert [float(one[-1]) for one in found] == list(range(20))


def large_held(contender, pool, size):
    """Keep the results until who watches the memory has seen them."""
    found = contender.starmap(pool, make, [(i, size) for i in range(20)])
    time.sleep(0.3)
    assert len(found) == 20


def many(contender, pool, arrays):
    found = contender.map(pool, double, arrays)
    ends = [float(one[-1]) for one in found]
    assert ends == [2.0 * (i + LENGTH - 1) for i in range(len(arrays))]


def trial(case, name):
    contender = POOLS[name]
    pool = contender.open(WORKERS)
    if case.key.startswith("large"):
        run, data, little = (large_held if case.peak else large), case.size // 20, 8
    else:
        # Windows on one array: each is pickled by itself, and all together take no memory.
        base = np.arange(float(LENGTH + case.size))
        run, data = many, [base[i : i + LENGTH] for i in range(case.size)]
        little = data[:20]
    run(contender, pool, little)
    try:
        yield None
        while True:
            yield Sample(clocked(lambda: run(contender, pool, data))[0])
    finally:
        contender.close(pool)


WORKLOAD = Workload(
    name="results",
    what="Tasks that give large arrays; and tasks that take an array and give one, on a warm pool. "
    "On threads nothing is copied. The memory is the most that caller and workers held at any "
    "time, beyond what they held before; the results themselves are 1.",
    cases=cases,
    trial=trial,
)
