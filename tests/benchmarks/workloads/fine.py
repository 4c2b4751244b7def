"""Tiny tasks: x + 1 for a thousand to ten million numbers, and for other kinds of elements."""

import numpy as np

from tests.benchmarks.contenders import LOCAL, POOLS
from tests.benchmarks.timing import repeated
from tests.benchmarks.workload import WORKERS, Budget, Case, Sample, Workload, power

# For these a million elements take many seconds: they get so many, and are scaled.
LIMITS = {
    "joblib": 10**5,
    "mpire": 10**5,
    **dict.fromkeys(("concurrent.futures", "loky", "dask.bag"), 10**6),
}


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
    sizes = {"ints": (10**3, 10**5) if quick else tuple(10**n for n in range(3, 8))}
    for kind in ("floats", "tuples", "strings", "rows"):
        sizes[kind] = (10**4,) if quick else (10**6,)
    everybody = ("list comprehension", *LOCAL)
    return [
        Case(
            key=f"{kind} {size}",
            label=f"{power(size)} {kind}",
            size=size,
            contenders=everybody,
            reference="multiprocessing.Pool",
            floor="list comprehension",
            data=kind,
        )
        for kind, all_ in sizes.items()
        for size in all_
    ]


def trial(case, name):
    contender = POOLS[name]
    count = min(case.size, LIMITS.get(name, case.size))
    f, make = KINDS[case.data]
    items = make(count)
    if name == "mpire" and case.data == "rows":
        items = list(items)  # of an array it gives chunks, not rows
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
    what="A task that adds one, for each of many elements, on a warm pool; "
    "tuples go to a function of two arguments, rows are those of an array.",
    cases=cases,
    trial=trial,
    lines="ints",
    budgets=(
        Budget(
            "10⁶ times x + 1 on two processes, by multiprocessing.Pool.map",
            0.6,
            lambda m: m("ints 1000000", "parmap") / m("ints 1000000", "multiprocessing.Pool"),
        ),
    ),
)
