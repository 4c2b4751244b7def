"""One task, there and back."""

from tests.benchmarks.contenders import POOLS, SINGLY
from tests.benchmarks.timing import repeated
from tests.benchmarks.workload import WORKERS, Budget, Case, Sample, Workload


def add_one(x):
    return x + 1


CALLS = {
    "one": lambda contender, pool: contender.one(pool, add_one, 1),
    "map of one": lambda contender, pool: contender.each(pool, add_one, [1])[0],
    "map of two": lambda contender, pool: contender.each(pool, add_one, [1, 1])[1],
}


def cases(quick):
    del quick  # it is quick
    labels = {"one": "one call", "map of one": "a map of one", "map of two": "a map of two"}
    return [
        Case(key, label, 1, ("bare pipe", *SINGLY), reference="bare pipe")
        for key, label in labels.items()
    ]


def trial(case, name):
    contender, call = POOLS[name], CALLS[case.key]
    pool = contender.open(WORKERS)
    assert call(contender, pool) == 2
    try:
        yield None
        while True:
            yield Sample(repeated(lambda: call(contender, pool), least=0.15))
    finally:
        contender.close(pool)


WORKLOAD = Workload(
    name="latency",
    what="One tiny task there and back on a warm pool, again and again: by the call for a single "
    "task, by a map of one, and by a map of two. The floor is a pipe to a process.",
    cases=cases,
    trial=trial,
    budgets=(
        Budget(
            "one tiny task on a warm pool, by a bare pipe's round trip",
            1.7,
            lambda m: m("one", "parmap") / m("one", "bare pipe"),
        ),
    ),
)
