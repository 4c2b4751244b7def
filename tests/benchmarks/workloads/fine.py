"""Tiny tasks: x + 1 for a thousand to ten million numbers, and for other kinds of elements."""

import numpy as np

from tests.benchmarks.contenders import LOCAL, POOLS
from tests.benchmarks.targets import Target
from tests.benchmarks.timing import repeated
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, power

# For these a million elements take many seconds: they get so many, and are scaled.
LIMITS = {
    "joblib": 10**5,
    "mpire": 10**5,
    **dict.fromkeys(("concurrent.futures", "loky", "dask.bag"), 10**6),
}
# The rest are slower by so much that one kind of elements shows it.
QUICK = ("list comprehension", "parmap", "multiprocessing.Pool", "concurrent.futures", "loky")


def add_one(x):
    return x + 1


def add(x, y):
    return x + y


def shout(text):
    return text + "!"


def row_sum(row):
    return float(row.sum())


KINDS = {
    "ints": (add_one, range),
    "floats": (add_one, lambda n: [i / 2 for i in range(n)]),
    "tuples": (add, lambda n: [(i, 1) for i in range(n)]),
    "strings": (shout, lambda n: [str(i) for i in range(n)]),
    "rows": (row_sum, lambda n: np.arange(4.0 * n).reshape(n, 4)),
}


def cases(quick):
    all_sizes = (10**4, 10**5) if quick else tuple(10**n for n in range(4, 8))
    sizes = dict.fromkeys(KINDS, all_sizes)
    sizes |= {"ints": (10**3, *all_sizes), "rows": all_sizes[-2:-1]}
    return [
        Case(
            key=f"{kind} {size}",
            label=f"{power(size)} {kind}",
            size=size,
            contenders=("list comprehension", *LOCAL) if kind == "ints" else QUICK,
            reference="multiprocessing.Pool",
            floor="list comprehension",
            data=kind,
            # A thousand are held against another target, in `latency`.
            at_most=1.0 if size > 10**3 else None,
        )
        for kind, some in sizes.items()
        for size in some
    ]


def count_of(case, name):
    """Give how many elements a contender gets, in some seconds."""
    if case.data == "rows" and name in LIMITS:
        return min(case.size, 10**5)
    return min(case.size, LIMITS.get(name, case.size))


def trial(case, name):
    contender = POOLS[name]
    count = count_of(case, name)
    f, make = KINDS[case.data]
    items = make(count)
    pool = contender.open(WORKERS)
    call = contender.starmap if case.data == "tuples" else contender.map
    wanted = [f(*x) if case.data == "tuples" else f(x) for x in items]
    assert call(pool, f, items) == wanted
    del wanted
    note = "" if count == case.size else f"scaled from {power(count)}"
    try:
        yield None
        while True:
            yield Sample(repeated(lambda: call(pool, f, items)) * case.size / count, note)
    finally:
        contender.close(pool)


WORKLOAD = Workload(
    name="fine",
    title="x + 1 for each of many elements",
    what="A task that adds one, for each of many elements, on a warm pool; "
    "tuples go to a function of two arguments, rows are those of an array. The slowest libraries "
    "are there for ints only.",
    cases=cases,
    trial=trial,
    lines="ints",
    targets=(
        Target(
            "10⁶ ints: by multiprocessing.Pool",
            0.55,
            lambda m: m("ints 1000000", "parmap") / m("ints 1000000", "multiprocessing.Pool"),
        ),
    ),
)
