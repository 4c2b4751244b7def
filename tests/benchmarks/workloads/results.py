"""Large results, and many arrays there and back."""

import time

import numpy as np

from tests.benchmarks.contenders import POOLS, SINGLY
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, clocked

MB = 10**6
COUNT = 16
LENGTHS = {"100 kB": 12_500, "80 B": 10}  # in numbers


def make(i, size):
    return np.full(size // 8, float(i))


def double(array):
    return 2 * array


def cases(quick):
    small, large, arrays, many = (1, 2, 500, 10_000) if quick else (8, 50, 2_000, 300_000)
    everybody = ("parmap, threads", *SINGLY)
    by_threads = {"reference": "parmap, threads", "at_most": 1.0}
    results = [
        Case(
            *(f"results {key}", f"{COUNT} results of {size} MB", size * MB, everybody),
            **by_threads,
        )
        for key, size in {"large": large, "small": small}.items()
    ]
    return [
        *results,
        Case(
            *("memory", f"{COUNT} of {small} MB: memory at most", COUNT * small * MB, everybody),
            unit="× their size",
            peak=True,
        ),
        Case("100 kB", f"{arrays:,} arrays of 100 kB, both ways", arrays, everybody, **by_threads),
        Case("80 B", f"{many:,} arrays of 80 bytes, both ways", many, everybody, **by_threads),
    ]


def large(contender, pool, size):
    found = contender.starmap(pool, make, [(i, size) for i in range(COUNT)])
    assert [float(one[-1]) for one in found] == list(range(COUNT))


def large_held(contender, pool, size):
    """Keep the results until who watches the memory has seen them."""
    found = contender.starmap(pool, make, [(i, size) for i in range(COUNT)])
    time.sleep(0.3)
    assert len(found) == COUNT


def many(contender, pool, arrays):
    found = contender.map(pool, double, arrays)
    assert len(found) == len(arrays)
    for i in (0, len(arrays) // 2, -1):
        assert float(found[i][-1]) == 2 * float(arrays[i][-1])


def work_of(case):
    """Give what a case calls, with its data, and with little data."""
    if case.peak:
        return large_held, case.size // COUNT, 8
    if case.key.startswith("results"):
        return large, case.size, 8
    # Windows on one array: each is pickled by itself, and all together take no memory.
    length = LENGTHS[case.key]
    base = np.arange(float(length + case.size))
    arrays = [base[i : i + length] for i in range(case.size)]
    return many, arrays, arrays[:20]


def trial(case, name):
    contender = POOLS[name]
    pool = contender.open(WORKERS)
    run, data, little = work_of(case)
    run(contender, pool, little)
    try:
        yield None
        while True:
            yield Sample(clocked(lambda: run(contender, pool, data))[0])
    finally:
        contender.close(pool)


WORKLOAD = Workload(
    name="results",
    title="large results, and many arrays",
    what="Tasks that return large arrays; and tasks that take an array and return one, on a warm "
    "pool. On threads nothing is copied. The memory is the most that caller and workers held at "
    "any time, beyond what they held before; the results themselves are 1.",
    cases=cases,
    trial=trial,
)
