"""Graphs of lazy calls."""

from tests.benchmarks.contenders import executor_open
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, clocked

PROCESSES, THREADS, CLIENT = (
    "dask.delayed, processes",
    "dask.delayed, threads",
    "dask.delayed, client",
)


def add(x, y):
    return x + y


def chain(delayed, count):
    """Each call needs the one before."""
    value = delayed(add)(0, 1)
    for _ in range(count - 1):
        value = delayed(add)(value, 1)
    return [value], [count]


def tree(delayed, count):
    """Pairs are added up, then pairs of those."""
    values = [delayed(add)(i, 0) for i in range(count)]
    while len(values) > 1:
        values = [delayed(add)(x, y) for x, y in zip(values[::2], values[1::2], strict=True)]
    return values, [count * (count - 1) // 2]


def wide(delayed, count):
    """No call needs another one."""
    return [delayed(add)(i, 1) for i in range(count)], [i + 1 for i in range(count)]


SHAPES = {"chain": chain, "tree": tree, "wide": wide}


def cases(quick):
    small = {"chain": 50, "tree": 2**5, "wide": 200}
    full = {"chain": 1_000, "tree": 2**12, "wide": 10_000}
    labels = {"chain": "chain of {:,}", "tree": "tree of {:,} leaves", "wide": "{:,} independent"}
    return [
        Case(
            *(key, labels[key].format(count), count),
            contenders=("parmap", PROCESSES, THREADS, CLIENT),
            reference=PROCESSES,
        )
        for key, count in (small if quick else full).items()
    ]


def trial(case, name):
    delayed, compute, close = OPENED.get(name, by_dask)(name)

    def run(count):
        calls, wanted = SHAPES[case.key](delayed, count)
        assert list(compute(calls)) == wanted

    run(8)
    try:
        yield None
        while True:
            yield Sample(clocked(lambda: run(case.size))[0])
    finally:
        close()


def by_parmap(_):
    import parmap

    session = parmap.plan("processes", workers=WORKERS).__enter__()
    return parmap.delayed, parmap.compute, session.close


def by_dask(name):
    import dask

    pool = executor_open(WORKERS) if name == PROCESSES else None
    how = {"scheduler": "processes", "pool": pool} if pool else {"scheduler": "threads"}
    return (
        dask.delayed,
        lambda calls: dask.compute(*calls, **how, num_workers=WORKERS),
        pool.shutdown if pool else lambda: None,
    )


def by_client(_):
    import dask
    import distributed

    cluster = distributed.LocalCluster(
        n_workers=WORKERS, threads_per_worker=1, dashboard_address=None
    )
    client = distributed.Client(cluster)

    def close():
        client.close()
        cluster.close()

    return dask.delayed, lambda calls: dask.compute(*calls, scheduler=client), close


OPENED = {"parmap": by_parmap, CLIENT: by_client}

WORKLOAD = Workload(
    name="graph",
    title="graphs of delayed calls",
    what="Graphs of tiny lazy calls, made and computed: each needs the one before; a tree of "
    "sums; none needs another one.",
    cases=cases,
    trial=trial,
    packages={PROCESSES: "dask", THREADS: "dask", CLIENT: "distributed"},
)
