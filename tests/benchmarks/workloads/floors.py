"""What the parts of a call cost by themselves: what no design can go below on this machine."""

import itertools
import os
import statistics
import threading
import time

import numpy as np

from tests.benchmarks.contenders import POOLS
from tests.benchmarks.timing import repeated
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, clocked
from tests.benchmarks.workloads.latency import add_one
from tests.benchmarks.workloads.uneven import ORDERS, spin

BYTES = 400_000_000


def one_core():
    """Stay on one core, with all processes that are started from here: nobody can be woken."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


def by_the_pool(_, opened):
    _, session = opened
    return session.executor.submit(add_one, 1).result()


CALLS = {
    "a pipe": ("bare pipe", lambda contender, opened: contender.one(opened, add_one, 1)),
    "the pool's own submit": ("parmap", by_the_pool),
    "parmap.submit": ("parmap", lambda contender, opened: contender.one(opened, add_one, 1)),
    "a map of one": ("parmap", lambda contender, opened: contender.each(opened, add_one, [1])[0]),
}


def allocated(data):
    from parmap.backends.processes.system_unix import anonymous_memory

    descriptor = anonymous_memory(data.nbytes)
    os.posix_fallocate(descriptor, 0, data.nbytes)
    os.close(descriptor)


def written(data):
    from parmap.backends.processes.shared_memory import Block

    Block([memoryview(data)]).close()


def copied(data):
    from parmap.backends.processes.system_unix import fresh_memory

    np.frombuffer(fresh_memory(data.nbytes), data.dtype)[:] = data


def summed(data):
    halves = [threading.Thread(target=half.sum) for half in np.array_split(data, WORKERS)]
    for half in halves:
        half.start()
    for half in halves:
        half.join()


MEMORY = {
    "allocate it, shared": allocated,
    "write it, shared": written,
    "copy it into huge pages": copied,
    "sum it up in threads": summed,
}


def noted(seconds):
    """Be busy; tell by whom, and when it began and ended."""
    began = time.perf_counter()
    spin(seconds)
    return os.getpid(), began, time.perf_counter()


def between(costs):
    """Give what one map loses, in seconds: before, between two tasks of one worker, and after."""
    import parmap

    began = time.perf_counter()
    times = parmap.pmap(noted, costs)
    ended = time.perf_counter()
    rows = [sorted(row[1:] for row in times if row[0] == pid) for pid in {row[0] for row in times}]
    gaps = [b[0] - a[1] for row in rows for a, b in itertools.pairwise(row)]
    return {
        "before the first": min(row[0][0] for row in rows) - began,
        "between two": statistics.median(gaps),
        "after the last": ended - max(row[-1][1] for row in rows),
    }


BETWEEN = ("before the first", "between two", "after the last")


def cases(quick):
    size = BYTES // 100 if quick else BYTES
    return [
        Case("call", "one call, on one core", 1, tuple(CALLS), reference="a pipe"),
        Case("memory", f"{size // 10**6} MB", size, tuple(MEMORY)),
        Case("between", "16 uneven tasks", 16, BETWEEN),
    ]


def trial(case, name):
    if case.key == "call":
        one_core()
        pool, call = CALLS[name]
        contender = POOLS[pool]
        opened = contender.open(1)
        assert call(contender, opened) == 2
        try:
            yield None
            while True:
                yield Sample(repeated(lambda: call(contender, opened), least=0.15))
        finally:
            contender.close(opened)
    elif case.key == "memory":
        data = np.ones(case.size // 8)
        yield None
        while True:
            yield Sample(clocked(lambda: MEMORY[name](data))[0])
    else:
        import parmap

        with parmap.plan("processes", workers=WORKERS):
            between([0.001] * 8)
            yield None
            while True:
                yield Sample(between(ORDERS["mixed"])[name])


WORKLOAD = Workload(
    name="floors",
    title="what parts of a call cost",
    what="What parts of the work cost by themselves: one call where all processes share one core, "
    "so that nobody has to be woken; a large array that comes into memory which processes share, "
    "and its sum where it lies; and what 16 uneven tasks lose on two workers.",
    cases=cases,
    trial=trial,
)
