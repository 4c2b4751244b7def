"""What it takes to hand out tasks: many chunks of one element, and many workers that wait."""

import time

from tests.benchmarks.contenders import POOLS
from tests.benchmarks.targets import Target
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, clocked

LOWER = "lower bound"
NAP, MANY = 0.01, 192
ONE_BY_ONE = ("parmap", "multiprocessing.Pool", "concurrent.futures", "loky", "mpire")
# The others start too many interpreters for one machine.
BY_FORK = ("parmap", "multiprocessing.Pool", "concurrent.futures")


def add_one(x):
    return x + 1


def nap(seconds):
    time.sleep(seconds)
    return seconds


def cases(quick):
    chunks, many, each = (500, 8, 5) if quick else (5_000, MANY, 20)
    return [
        Case(
            *("chunks", f"{chunks:,} chunks of one element: each", chunks, ONE_BY_ONE),
            reference="multiprocessing.Pool",
            data=WORKERS,
            at_most=1.0,
        ),
        Case(
            *("asleep", f"{many} workers, {each} × {NAP * 1e3:g} ms asleep each", many * each),
            contenders=(LOWER, *BY_FORK),
            reference=LOWER,
            data=many,
        ),
    ]


def trial(case, name):
    if name == LOWER:
        yield None
        while True:
            yield Sample(case.size * NAP / case.data)
    contender = POOLS[name]
    pool = contender.open(case.data)
    f, items = (nap, [NAP] * case.size) if case.key == "asleep" else (add_one, [1] * case.size)
    wanted = [f(items[0])] * len(items)
    call = singly if name == "parmap" else contender.each
    assert call(pool, f, items) == wanted
    try:
        yield None
        while True:
            took, found = clocked(lambda: call(pool, f, items))
            assert found == wanted
            yield Sample(took / case.size if case.key == "chunks" else took)
    finally:
        contender.close(pool)


def singly(pool, f, items):
    parmap, _ = pool
    return parmap.pmap(f, items, chunks=1)


WORKLOAD = Workload(
    name="dispatch",
    title="tasks handed out one by one",
    what="Tiny tasks that one caller hands out one by one (`chunks=1`, `chunksize=1`), and tasks "
    "that sleep, on many more workers than there are cores: the lower bound is their sleep, "
    "shared out. There only pools that fork take part.",
    cases=cases,
    trial=trial,
    targets=(
        Target(
            "single chunks per second, by one caller",
            12_000,
            lambda m: 1 / m("chunks", "parmap"),
            least=True,
        ),
        Target(
            "192 workers, 10 ms asleep: the lower bound by the time",
            0.8,
            lambda m: m("asleep", LOWER) / m("asleep", "parmap"),
            least=True,
        ),
    ),
)
