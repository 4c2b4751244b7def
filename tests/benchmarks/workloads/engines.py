"""What an engine costs by itself, and with parmap in front of it."""

from tests.benchmarks.contenders import POOLS
from tests.benchmarks.targets import Target
from tests.benchmarks.timing import repeated
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, power

# Their cost for each element does not fall with more of them, and it is large.
LIMITS = {"client.map": 2_000, "Ray remote call": 2_000}
# Each engine is measured by itself: its processes are never quite idle.
GROUPS = {
    "dask": ("parmap on dask", "dask.bag on a client", "client.map"),
    "ray": ("parmap on ray", "Ray Pool", "Ray remote call"),
}


def add_one(x):
    return x + 1


def cases(quick):
    count = 10**4 if quick else 10**5
    found = []
    for engine, names in GROUPS.items():
        everybody = ("parmap", *names)
        singly = tuple(name for name in everybody if POOLS[name].one)
        found += [
            Case(
                *(f"{engine} fine", f"{engine}: {power(count)} × x + 1", count, everybody),
                reference=f"parmap on {engine}",
                ours=f"parmap on {engine}",
            ),
            Case(
                *(f"{engine} one", f"{engine}: one task", 1, singly),
                reference=f"parmap on {engine}",
                ours=f"parmap on {engine}",
            ),
        ]
    return found


def trial(case, name):
    contender = POOLS[name]
    pool = contender.open(WORKERS)
    count = min(case.size, LIMITS.get(name, case.size))
    note = "" if count == case.size else f"scaled from {power(count)}"

    def run():
        if case.key.endswith("one"):
            assert contender.one(pool, add_one, 1) == 2
        else:
            assert contender.map(pool, add_one, range(count)) == list(range(1, count + 1))

    run()
    try:
        yield None
        while True:
            yield Sample(repeated(run, least=0.2) * case.size / count, note)
    finally:
        contender.close(pool)


def faster(engine, contender):
    return lambda m: m(f"{engine} fine", contender) / m(f"{engine} fine", f"parmap on {engine}")


def to_processes(engine):
    return lambda m: m(f"{engine} fine", f"parmap on {engine}") / m(f"{engine} fine", "parmap")


WORKLOAD = Workload(
    name="engines",
    title="tiny tasks on Dask and Ray",
    what="Tiny tasks on two running workers of an engine: by parmap, in batches as the engine "
    "offers them, and by one task for each element. parmap on its own processes for comparison.",
    cases=cases,
    trial=trial,
    packages={"parmap on dask": "distributed", "parmap on ray": "ray"},
    targets=tuple(
        target
        for engine, contender in (("dask", "client.map"), ("ray", "Ray remote call"))
        for target in (
            Target(
                f"fine-grained, plan {engine}: times faster than {contender}",
                50,
                faster(engine, contender),
                least=True,
            ),
            Target(f"fine-grained, plan {engine}: by plan processes", 1.5, to_processes(engine)),
        )
    ),
)
