"""Matrix products: how many threads of BLAS should each worker have?"""

import os

import numpy as np

from tests.benchmarks.contenders import POOLS
from tests.benchmarks.targets import Target
from tests.benchmarks.workload import Case, Sample, Workload, clocked

# Sizes of matrices, and so many products that a map takes some tenths of a second.
WORK = {200: 600, 1_000: 16}
DEFAULT = "parmap"
MANUAL = {
    **{f"parmap, threads_per_worker={n}": n for n in sorted({1, 2, os.cpu_count() or 1})},
    "parmap, threads_per_worker=None": None,
}
PEERS = ("multiprocessing.Pool", "joblib")


def product(i, matrix):
    return float((matrix @ matrix)[0, 0]) + 0 * i


def cases(quick):
    work = {200: 100} if quick else WORK
    return [
        Case(
            key=f"{workers} {size}",
            label=f"workers={workers}, {size} × {size}",
            size=count,
            contenders=(DEFAULT, *MANUAL, *PEERS),
            reference=DEFAULT,
            data=(workers, size),
        )
        for workers in ((1, 2) if quick else (1, 2, 4))
        for size, count in work.items()
    ]


def trial(case, name):
    workers, size = case.data
    matrix = np.random.default_rng(1).standard_normal((size, size))
    wanted = product(0, matrix)
    yield None
    while True:
        # A pool for each round: those that wait would spin, and take cores from the others.
        took, found = run(name, workers, matrix, case.size)
        assert np.allclose(found, wanted)
        yield Sample(took)


def run(name, workers, matrix, count):
    """Time a map on a pool whose workers have done something before."""
    if name in PEERS:
        contender = POOLS[name]
        pool = contender.open(workers)
        try:
            rows = [(i, matrix) for i in range(count)]
            contender.starmap(pool, product, rows[: 2 * workers])
            return clocked(lambda: contender.starmap(pool, product, rows))
        finally:
            contender.close(pool)
    import parmap

    threads = "auto" if name == DEFAULT else MANUAL[name]
    with parmap.plan("processes", workers=workers, threads_per_worker=threads):
        parmap.pmap(lambda i: product(i, matrix), range(2 * workers), chunks=1)
        return clocked(lambda: parmap.pmap(lambda i: product(i, matrix), range(count)))


def worst(lookup):
    """Give the default by the best manual setting, in the case where that is worst."""
    ratios = []
    for case in cases(quick=False):
        try:
            manual = min(lookup(case.key, choice) for choice in MANUAL)
            ratios.append(lookup(case.key, DEFAULT) / manual)
        except KeyError:
            continue
    if not ratios:
        raise KeyError("blas")
    return max(ratios)


WORKLOAD = Workload(
    name="blas",
    title="matrix products",
    what="Matrix products of float64 by workers whose BLAS has so many threads each; "
    "`parmap` alone is the default, which shares out the cores.",
    cases=cases,
    trial=trial,
    packages=dict.fromkeys(MANUAL, "parmap"),
    targets=(
        Target("matrix products: the default by the best setting by hand, worst case", 1.05, worst),
    ),
)
