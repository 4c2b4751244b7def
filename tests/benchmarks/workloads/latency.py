"""One tiny task there and back, and maps of up to a thousand of them."""

import sys

from tests.benchmarks.contenders import POOLS, SINGLY
from tests.benchmarks.timing import repeated
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload

SIZES = (1, 2, 10, 100, 1_000)
POOLS_ALONE = ("parmap", "multiprocessing.Pool", "concurrent.futures", "loky")
# A lambda cannot be pickled by these: in its rows they have the importable function, as a note
# says. loky is there with either.
FUNCTION_ONLY = "with a function: it cannot pickle a lambda"
WITH_FUNCTION = "loky, a function"


def add_one(x):
    return x + 1


def cases(quick):
    del quick  # it is quick
    sizes = {"one": 0} | {names(size): size for size in SIZES}
    found = []
    for key, size in sizes.items():
        label = f"a map of {size:,}" if size else "one call"
        everybody = SINGLY if size < 10 else POOLS_ALONE
        floor = ("bare pipe",) if size <= WORKERS else ()
        reference = floor[0] if floor else "multiprocessing.Pool"
        with_lambda = (*floor, *POOLS_ALONE, WITH_FUNCTION)
        found += [
            Case(key, label, max(size, 1), (*floor, *everybody), reference, at_most=0.6),
            Case(
                *(f"lambda, {key}", f"{label}, a lambda", max(size, 1), with_lambda, reference),
                data="lambda",
                at_most=0.6,
            ),
        ]
    return found


def names(size):
    return f"map of {({1: 'one', 2: 'two'}).get(size, size)}"


def call_of(case, contender, pool, f):
    """Give a call without arguments, whose last result is 2."""
    if case.key.removeprefix("lambda, ") == "one":
        return lambda: contender.one(pool, f(), 1)
    # Few go one by one, many in each library's own chunks.
    run = contender.each if case.size <= WORKERS else contender.map
    items = [1] * case.size
    return lambda: run(pool, f(), items)[-1]


def function_of(case, name):
    """Give what makes the function of a call, and a note about it."""
    if case.data != "lambda" or name in ("bare pipe", WITH_FUNCTION):
        return lambda: add_one, ""
    if name in ("multiprocessing.Pool", "concurrent.futures"):
        return lambda: add_one, FUNCTION_ONLY
    # Of the script, and a new one for each call, as where it stands in the call.
    return eval("lambda: lambda x: x + 1", vars(sys.modules["__main__"])), ""


def trial(case, name):
    contender = POOLS["loky" if name == WITH_FUNCTION else name]
    f, note = function_of(case, name)
    pool = contender.open(WORKERS)
    call = call_of(case, contender, pool, f)
    assert call() == 2
    try:
        yield None
        while True:
            yield Sample(repeated(call, least=0.07), note)
    finally:
        contender.close(pool)


WORKLOAD = Workload(
    name="latency",
    title="one tiny task, and maps of few",
    what="One tiny task there and back on a warm pool, again and again, by the call for a single "
    "task, and maps of few tiny tasks; with an importable function, and with a lambda of the "
    "script, a new one for each call. The floor is a pipe to a process. Pool and "
    "concurrent.futures cannot pickle a lambda: in these rows they, too, have the importable "
    "function, and parmap's lambda is compared with the fastest of all.",
    cases=cases,
    trial=trial,
    packages={WITH_FUNCTION: "loky"},
    lines="map of",
)
