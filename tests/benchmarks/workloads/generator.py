"""A long generator through a lazy map: what an element costs, and what stays in memory."""

from tests.benchmarks.contenders import POOLS
from tests.benchmarks.memory import resident
from tests.benchmarks.targets import Target
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, clocked, power

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
    ahead = (("parmap",), "", "", "MB")
    return [
        *timed,
        Case("growth", f"{power(size)}, growth", size, everybody, unit="MB"),
        Case("ahead", "elements of 1 MB, read ahead", 50 if quick else 300, *ahead),
    ]


def consumed(results, before=None):
    """Add all results up; where there is a `before`, give by how much memory grew at most, too."""
    total, most = 0, 0
    for number, result in enumerate(results):
        total += result
        if before is not None and not number % LOOK:
            most = max(most, resident() - before)
    return total, most


def ahead(stream, count):
    """Consume large elements; count how many are read, and not yet consumed, at most."""
    read = 0

    def elements():
        nonlocal read
        for number in range(count):
            read += 1
            yield bytes([number % 256]) * MB

    most = 0
    for number, result in enumerate(stream(len, elements())):
        assert result == MB
        most = max(most, read - number)
    return most


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
            if case.key == "ahead":
                yield Sample(ahead(lambda f, items: contender.stream(pool, f, items), case.size))
            elif case.key == "growth":
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
    title="x + 1 for all that a generator gives",
    what="x + 1 for all that a generator gives, by the lazy map of each library (for peers in "
    "chunks of 1,000): the time by the number of elements, and by how much the memory of caller "
    "and workers grows at most. Of elements of 1 MB, how much parmap reads ahead at most of the "
    "results that are consumed; the peers read all that there is.",
    cases=cases,
    trial=trial,
    lines="cost",
    targets=(
        Target("10⁷ elements through imap: growth in MB", 50, lambda m: m("growth", "parmap")),
        Target("elements of 1 MB through imap: MB ahead", 64, lambda m: m("ahead", "parmap")),
        Target(
            "imap, cost of an element of 10⁷, by that of one of 10³",
            1.1,
            lambda m: m(f"cost {LARGE}", "parmap") / m(f"cost {SMALL}", "parmap"),
        ),
    ),
)
