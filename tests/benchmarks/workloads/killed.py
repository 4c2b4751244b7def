"""A worker is killed in the middle of a map of short tasks."""

import os
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.benchmarks.contenders import POOLS, SINGLY
from tests.benchmarks.targets import Target
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, clocked

WATCHED = 5  # seconds after which a map is taken to hang
FAMILY = ("parmap", *(name for name in SINGLY if name != "parmap"))


def fragile(marker, i):
    """Take 20 ms; one task kills its process, the first time."""
    time.sleep(0.02)
    if i == 10 and marker is not None:
        try:
            Path(marker).touch(exist_ok=False)
        except FileExistsError:
            return i
        os.kill(os.getpid(), signal.SIGKILL)
    return i


def cases(quick):
    count = 20 if quick else 40
    label = f"{count} tasks of 20 ms: time lost"
    return [Case("killed", label, count, FAMILY)]


def trial(case, name):
    contender = POOLS[name]
    pool = contender.open(WORKERS)
    items = list(range(case.size))
    contender.each(pool, partial(fragile, None), items[: 2 * WORKERS])
    unharmed, found = clocked(lambda: contender.each(pool, partial(fragile, None), items))
    assert found == items
    with tempfile.TemporaryDirectory() as folder:
        yield None
        task = partial(fragile, os.path.join(folder, "killed"))
        yield outcome(lambda: contender.each(pool, task, items), items, unharmed)


def outcome(call, items, unharmed):
    """Say what became of a map."""
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, WATCHED)
    began = time.perf_counter()
    try:
        found = call()
    except TimeoutError:
        return Sample(note=f"hangs (watched for {WATCHED} s)")
    except Exception as error:
        took = time.perf_counter() - began
        return Sample(note=f"all results lost: {type(error).__name__} after {took:.1f} s")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    kept = sum(one == i for one, i in zip(found, items, strict=True))
    lost = time.perf_counter() - began - unharmed
    note = f"{kept} of {len(items)} results kept"
    return Sample(max(0.0, lost) if kept == len(items) else None, note)


def late(*_):
    raise TimeoutError


WORKLOAD = Workload(
    name="killed",
    title="a worker is killed",
    what="A map of short tasks, one of which kills its worker with `kill -9` the first time it "
    "runs: the seconds lost against the same map unharmed, and what becomes of the results.",
    cases=cases,
    trial=trial,
    fresh=True,
    targets=(
        Target(
            "a worker killed, every result kept: seconds lost",
            0.1,
            lambda m: m("killed", "parmap"),
        ),
    ),
)
