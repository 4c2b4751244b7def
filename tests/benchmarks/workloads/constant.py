"""One large array that all tasks read."""

import multiprocessing
import tempfile
from contextlib import suppress
from itertools import repeat
from pathlib import Path

import numpy as np

from tests.benchmarks.contenders import POOLS
from tests.benchmarks.workload import WORKERS, Budget, Case, Sample, Workload, clocked

READS = 8
PEERS = ("multiprocessing.Pool", "concurrent.futures", "loky", "joblib", "mpire")
MAPPED, GLOBAL, OBJECTS = (
    "joblib, memory-mapped file",
    "multiprocessing.Pool, a global before fork",
    "mpire, shared_objects",
)

_array = None  # what forked workers inherit


def total(array, _):
    return float(array.sum())


def global_total(_):
    return float(_array.sum())


def cases(quick):
    size = (40 if quick else 400) * 10**6
    first = ("parmap, threads", "parmap", GLOBAL, *PEERS)
    shared = ("parmap, threads", "parmap", GLOBAL, MAPPED, OBJECTS)
    label = f"{size // 10**6} MB, "
    return [
        Case("first", f"{label}first call", size, first, reference="parmap, threads"),
        Case("shared", f"{label}shared before", size, shared, reference="parmap, threads"),
        Case("first, memory", "extra copies", size, first, unit="copies", peak=True),
        Case(
            *("shared, memory", "extra copies, shared before", size, shared),
            unit="copies",
            peak=True,
        ),
    ]


def trial(case, name):
    run = shared_before if case.key.startswith("shared") else first_calls
    return run(case, name)


def fresh(case, number):
    """Give an array that nobody has seen, for joblib remembers those that it has."""
    array = np.ones(case.size // 8)
    array[0] = number
    return array


def first_calls(case, name):
    """Each call gets a new array, which is made before the clock runs."""
    global _array
    forks = name == GLOBAL  # its pool must start after the array is there: in the call
    contender = POOLS["multiprocessing.Pool" if forks else name]
    pool = None if forks else contender.open(WORKERS)
    if pool is not None:
        contender.starmap(pool, total, [(np.ones(10), i) for i in range(READS)])
    number = 1
    array = _array = fresh(case, number)
    try:
        yield None
        while True:
            if forks:
                took, found = clocked(forked)
            else:
                took, found = clocked(lambda array=array: read(name, pool, array))
            assert found == [case.size // 8 - 1 + number] * READS
            array = _array = None
            number += 1
            array = _array = fresh(case, number)
            yield Sample(took)
    finally:
        if pool is not None:
            contender.close(pool)


def forked():
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        return pool.map(global_total, range(READS), 1)


def read(name, pool, array):
    """Have an array read by all tasks, the way that a library offers for it."""
    if name.startswith("parmap"):
        parmap, _ = pool
        return parmap.pmap(total, repeat(array), range(READS))
    if name in ("concurrent.futures", "loky"):
        return list(pool.map(total, repeat(array), range(READS)))
    if name == "joblib":
        joblib, parallel = pool
        return parallel(joblib.delayed(total)(array, i) for i in range(READS))
    rows = [(array, i) for i in range(READS)]
    if name == "mpire":
        return pool.map(total, rows, chunk_size=1)
    return pool.starmap(total, rows, 1)


def shared_before(case, name):
    """The workers have the array, or know where it is, before the clock runs."""
    array = fresh(case, 1)
    with tempfile.TemporaryDirectory() as folder:
        call, close = SHARING.get(name, by_parmap)(name, array, folder)
        try:
            yield None
            while True:
                took, found = clocked(call)
                assert found == [case.size // 8] * READS
                yield Sample(took)
        finally:
            with suppress(OSError):
                close()


def by_parmap(name, array, _):
    contender = POOLS[name]
    pool = contender.open(WORKERS)
    parmap, session = pool
    handle = session.share(array)
    parmap.pmap(total, repeat(np.ones(10)), range(READS))
    return (
        lambda: parmap.pmap(total, repeat(handle), range(READS)),
        lambda: contender.close(pool),
    )


def by_global(_, array, __):
    global _array
    _array = array
    pool = multiprocessing.get_context("fork").Pool(WORKERS)
    return lambda: pool.map(global_total, range(READS), 1), pool.terminate


def by_file(_, array, folder):
    import joblib

    path = Path(folder, "array.joblib")
    joblib.dump(array, path)
    mapped = joblib.load(path, mmap_mode="r")
    parallel = joblib.Parallel(WORKERS).__enter__()
    parallel(joblib.delayed(abs)(i) for i in range(READS))
    return (
        lambda: parallel(joblib.delayed(total)(mapped, i) for i in range(READS)),
        lambda: parallel.__exit__(None, None, None),
    )


def by_objects(_, array, __):
    import mpire

    pool = mpire.WorkerPool(WORKERS, shared_objects=array, start_method="fork", keep_alive=True)
    pool.map(lambda _, i: i, range(READS), chunk_size=1)
    return lambda: pool.map(total, range(READS), chunk_size=1), pool.terminate


SHARING = {GLOBAL: by_global, MAPPED: by_file, OBJECTS: by_objects}


def to_threads(case):
    return lambda m: m(case, "parmap") / m(case, "parmap, threads")


WORKLOAD = Workload(
    name="constant",
    what="An array that eight tasks read on a warm pool: in the first call with it, and where it "
    "was shared before, by `parmap.share` and what peers have for that. Threads copy nothing. "
    "Extra copies are the most memory held at any time during the call, beyond what was held "
    "before it, in arrays.",
    cases=cases,
    trial=trial,
    packages={MAPPED: "joblib", OBJECTS: "mpire"},
    budgets=(
        Budget("array read by 8 tasks, first call, by threads", 2.2, to_threads("first")),
        Budget("array read by 8 tasks, shared before, by threads", 1.1, to_threads("shared")),
        Budget(
            # A hundredth is what the interpreter itself needs meanwhile.
            *("first call: extra copies of the array", 1.01),
            lambda m: m("first, memory", "parmap"),
        ),
        Budget(
            *("shared before: extra copies of the array", 0.01),
            lambda m: m("shared, memory", "parmap"),
        ),
    ),
)
