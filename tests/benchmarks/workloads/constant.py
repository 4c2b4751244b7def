"""One large array that all tasks read."""

import multiprocessing
import tempfile
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np

from tests.benchmarks.contenders import POOLS
from tests.benchmarks.targets import Target
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, clocked

READS = 8
PEERS = ("multiprocessing.Pool", "concurrent.futures", "loky", "joblib", "mpire")
THREADS = "parmap, threads"
MAPPED, GLOBAL, OBJECTS = (
    "joblib, memory-mapped file",
    "multiprocessing.Pool, a global before fork",
    "mpire, shared_objects",
)
FORKED = "multiprocessing.Pool, forked in the call"  # no warm pool: a floor

_array = None  # what forked workers inherit


def total(array, _):
    return float(array.sum())


def global_total(_):
    return float(_array.sum())


def by_closure(parmap, array):
    return parmap.pmap(lambda i: total(array, i), range(READS))


def by_list(parmap, array):
    return parmap.pmap(total, [array] * READS, range(READS))


def by_rows(parmap, array):
    return parmap.starmap(total, [(array, i) for i in range(READS)])


def by_delayed(parmap, array):
    return parmap.compute([parmap.delayed(total)(array, i) for i in range(READS)])


def by_grid(parmap, array):
    return [value for _, value in parmap.pgrid(total, {"array": [array], "_": range(READS)})]


WAYS = {
    "closure": by_closure,
    "list": by_list,
    "starmap": by_rows,
    "delayed": by_delayed,
    "pgrid": by_grid,
}


def cases(quick):
    timed = timed_cases((40 if quick else 400) * 10**6)
    return [*timed, *map(watched, timed)]


def timed_cases(size):
    first = (THREADS, "parmap", FORKED, *PEERS)
    shared = (THREADS, "parmap", GLOBAL, MAPPED, OBJECTS)
    label = f"{size // 10**6} MB, "
    return [
        Case("first", f"{label}first call", size, first, reference=THREADS),
        Case("shared", f"{label}shared before", size, shared, reference=THREADS),
        *(
            Case(
                *(f"{when} {way}", f"{label}{when}, {way}", size, (THREADS, "parmap")),
                reference=THREADS,
                data=way,
            )
            for when in ("first", "again")
            for way in WAYS
        ),
    ]


def watched(case):
    """Make the case that watches the memory of a timed one; without peers that take very long."""
    slow = ("concurrent.futures", "loky", "mpire", THREADS if case.data else "")
    return replace(
        case,
        key=f"{case.key}, memory",
        label=f"{case.label.partition(', ')[2]}: extra copies",
        contenders=tuple(name for name in case.contenders if name not in slow),
        reference="",
        unit="copies",
        peak=True,
    )


def trial(case, name):
    if case.key.startswith("shared"):
        return shared_before(case, name)
    return again(case, name) if case.key.startswith("again") else first_calls(case, name)


def again(case, name):
    """The calls get an array that an earlier call had."""
    contender, way = POOLS[name], WAYS[case.data]
    pool = contender.open(WORKERS)
    array = fresh(case, number=1)
    wanted = [case.size // 8] * READS
    assert way(pool[0], array) == wanted
    try:
        yield None
        while True:
            took, found = clocked(lambda: way(pool[0], array))
            assert found == wanted
            yield Sample(took)
    finally:
        contender.close(pool)


def fresh(case, number):
    """Give an array that nobody has seen, for joblib remembers those that it has."""
    array = np.ones(case.size // 8)
    array[0] = number
    return array


def first_calls(case, name):
    """Each call gets a new array, which is made before the clock runs."""
    global _array
    forks = name == FORKED  # its pool must start after the array is there: in the call
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
                took, found = clocked(lambda array=array: read(case, name, pool, array))
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


def read(case, name, pool, array):
    """Have an array read by all tasks, the way that a library offers for it."""
    if name.startswith("parmap"):
        parmap, _ = pool
        if case.data:
            return WAYS[case.data](parmap, array)
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


def to_threads(key):
    return lambda m: m(key, "parmap") / m(key, THREADS)


def copies(key):
    return lambda m: m(f"{key}, memory", "parmap")


def targets():
    ways = {"": "an argument"} | {f" {way}": way for way in WAYS}
    for way, name in ways.items():
        for key, when, limit, most in (
            (f"first{way}", "first call", 1.9, 1.01),
            (f"again{way}" if way else "shared", "again" if way else "shared before", 0.9, 0.01),
        ):
            yield Target(f"400 MB, {name}, {when}: by threads", limit, to_threads(key))
            # A hundredth is what the interpreter itself needs meanwhile.
            yield Target(f"400 MB, {name}, {when}: extra copies", most, copies(key))


WORKLOAD = Workload(
    name="constant",
    title="an array that all tasks read",
    what="An array that eight tasks read on a warm pool: in the first call with it, as an argument "
    "of each library; where it was shared before, by `parmap.share` and what peers have for that; "
    "and by each way to write it with parmap, in the first call and in a later one. Threads copy "
    "nothing. A Pool that is forked in the call has the array, and is no warm pool. Extra copies "
    "are the most memory held at any time during the call, beyond what was held before it, in "
    "arrays.",
    cases=cases,
    trial=trial,
    packages={MAPPED: "joblib", OBJECTS: "mpire"},
    targets=tuple(targets()),
)
