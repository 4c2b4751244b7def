"""A long generator through a lazy map: what an element costs, and what stays in memory."""

from tests.benchmarks.contenders import POOLS
from tests.benchmarks.memory import resident
from tests.benchmarks.workload import WORKERS, Budget, Case, Sample, Workload, clocked, power

PEERS = ("multiprocessing.Pool", "concurrent.futures", "joblib", "mpire")
LIMITS = {"joblib": 10**5, "mpire": 10**5}  # ten million would take minutes
MB = 10**6
LOOK = 1 << 16  # results between two looks at the memory
SMALL, LARGE = 10**3, 10**7


def add_one(x):
    return x + 1


def cases(quick):
    sizes = (10**3, 10**5) if quick else tuple(10**n for n in range(3, 8))
    everybody = ("parmap", *PEERS)
    timed = [
        Case(
            *(f"cost {size}", f"{power(size)}, each", size, everybody),
            reference="multiprocessing.Pool",
        )
        for size in sizes
    ]
    size = sizes[-1]
    return [*timed, Case("growth", f"{power(size)}, growth", size, everybody, unit="MB")]


def consumed(results, before=None):
    """Add all results up; where there is a `before`, give by how much memory grew at most, too."""
    total, most = 0, 0
    for number, result in enumerate(results):
        total += result
        if before is not None and not number % LOOK:
            most = max(most, resident() - before)
    return total, most


def trial(case, name):
    contender = POOLS[name]
    count = min(case.size, LIMITS.get(name, case.size))
    pool = contender.open(WORKERS)
    note = "" if count == case.size else f"of {power(count)}"

    def run(count, before=None):
        numbers = (x for x in range(count))
        found, most = consumed(contender.stream(pool, add_one, numbers), before)
        assert found == count * (count + 1) // 2
        return most

    run(SMALL)
    try:
        yield None
        while True:
            if case.key == "growth":
                yield Sample(run(count, resident()) / MB, note)
            else:
                # A short one is over before the clock is sure.
                times = max(1, 10**4 // count)
                took = clocked(lambda times=times: [run(count) for _ in range(times)])[0]
                yield Sample(took / times / count, note)
    finally:
        contender.close(pool)


WORKLOAD = Workload(
    name="generator",
    what="x + 1 for all that a generator gives, by the lazy map of each library (for peers in "
    "chunks of 1,000): the time by the number of elements, and by how much the memory of caller "
    "and workers grows at most.",
    cases=cases,
    trial=trial,
    lines="cost",
    budgets=(
        Budget("10⁷ elements through imap: growth in MB", 50, lambda m: m("growth", "parmap")),
        Budget(
            "imap, cost of an element of 10⁷, by that of one of 10³",
            1.1,
            lambda m: m(f"cost {LARGE}", "parmap") / m(f"cost {SMALL}", "parmap"),
        ),
    ),
)
