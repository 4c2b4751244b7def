"""Elements with a limit run in blocks: which runs, which is late, how often a thread starts."""

import itertools
import os
import time
from types import SimpleNamespace

import pytest

import parmap
from parmap.backends.processes import notes
from parmap.observe import events
from parmap.worker import context, watchdog


@pytest.fixture
def worker(monkeypatch):
    """Notes as a pool's worker has them, in this process."""
    slot = memoryview(bytearray(context.NOTES))
    monkeypatch.setattr(context, "worker", context.Worker(is_worker=True, slot=slot, words=2))
    return SimpleNamespace(read=lambda: notes._read(bytes(slot)))


@pytest.fixture
def clock(monkeypatch):
    """A clock that this test sets, and the limits with which the thread was started."""
    clock = SimpleNamespace(now=100.0, limits=[])
    faulthandler = SimpleNamespace(
        dump_traceback_later=lambda limit, **_: clock.limits.append(limit),
        cancel_dump_traceback_later=lambda: None,
    )
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(watchdog, "faulthandler", faulthandler)
    return clock


def test_the_notes_say_which_element_of_a_block_runs(worker):
    seen = []
    calls = (seen.append(worker.read()) for _ in range(9))
    blocks = watchdog.Blocks(calls, 60, ends=True)
    try:
        for position, size in [(0, 1), (1, 2), (3, 6)]:
            blocks.run(position, size, [])
    finally:
        blocks.close()
    assert seen == [(position, True) for position in range(9)]
    assert worker.read() == (-1, True)


def test_one_that_runs_alone_is_not_taken_for_one_of_a_block(worker):
    blocks = watchdog.Blocks(map(abs, range(9)), 60, ends=True)
    blocks.run(0, 9, [])
    blocks.close()
    context.worker.note(3)
    assert worker.read() == (3, True)


def test_values_before_an_error_are_there(worker):
    values = []
    blocks = watchdog.Blocks(map((1).__floordiv__, [1, 1, 0, 1]), 60, ends=True)
    with pytest.raises(ZeroDivisionError):
        blocks.run(0, 4, values)
    assert values == [1, 1]
    assert worker.read()[0] == 2
    blocks.run(3, 1, values)
    blocks.close()
    assert values == [1, 1, 1]


def test_each_element_has_the_limit_for_itself(clock):
    def wait(seconds):
        clock.now += seconds

    blocks = watchdog.Blocks(map(wait, [4.0, 6.0, 0.0, 5.0, 5.5, 1.0]), 5.0, ends=False)
    blocks.run(10, 6, [])
    assert blocks.late(10, 6) == [(11, 6.0), (14, 5.5)]
    assert blocks.late(10, 1) == []
    assert blocks.late(10, 0) == []
    assert clock.limits == []  # nobody would start another worker


def test_nobody_is_to_blame_where_the_thread_rings_and_none_had_its_time(clock, worker):
    clock.now, said = 100.0, []

    def wait(seconds):
        clock.now += seconds
        said.append(worker.read())

    blocks = watchdog.Blocks(map(wait, [0.5, 0.5, 7.0, 0.0]), 8.0, ends=True)
    blocks.run(0, 4, [])
    blocks.close()
    assert clock.limits == [9.0]
    # It rings at 109. The last one began at 108: it has had one second.
    assert said == [(0, True), (1, True), (2, True), (3, False)]


def test_blocks_become_longer_while_they_take_little_of_the_limit(clock, worker):
    costs = {"each": 0.0}

    def wait(_):
        clock.now += costs["each"]

    sizes, blocks = [], watchdog.Blocks(map(wait, itertools.count()), 64.0, ends=True)
    for costs["each"] in [0.0] * 11 + [0.01] * 5:
        blocks.run(0, blocks.size, [])
        sizes.append(blocks.size)
    blocks.close()
    assert sizes == [2**i for i in range(1, 11)] + [1024, 512, 256, 128, 64, 64]


def test_the_thread_is_started_once_for_many_quick_elements(clock, worker):
    def wait(_):
        clock.now += 1e-5

    blocks, done = watchdog.Blocks(map(wait, range(100_000)), 60.0, ends=True), []
    while len(done) < 100_000:
        blocks.run(len(done), min(blocks.size, 100_000 - len(done)), done)
    blocks.close()
    assert clock.limits == [67.5]


def no_calls():
    """Of an element that calls nothing itself."""


def calls_inside():
    parmap.pmap(abs, range(5), timeout=60)
    with parmap.plan("threads", workers=1):
        parmap.pmap(abs, range(5), timeout=60)


@pytest.mark.parametrize(("before", "at", "count"), [(no_calls, 300, 500), (calls_inside, 30, 40)])
def test_what_hangs_in_the_middle_of_a_block_fails_alone(tmp_path, before, at, count):
    def fn(x):
        before()
        if x == at:
            with open(tmp_path / "runs", "a") as runs:
                runs.write("x")
            time.sleep(3600)
        return x

    with parmap.plan("processes", workers=1):
        results = parmap.pmap(fn, range(count), timeout=1.0, errors="return", chunks=count)
    failure = results.pop(at)
    assert results == [*range(at), *range(at + 1, count)]
    assert isinstance(failure.error, parmap.TaskTimeout)
    # It was known at once which one it was: a call inside of an element leaves its notes alone.
    assert (tmp_path / "runs").read_text() == "x"


def test_where_a_block_becomes_slow_all_run_again_alone(monkeypatch):
    lost, tell = [], events.WorkerLost

    def fn(x):
        if x == 0:  # in this worker, blocks become longer however slow the machine is
            watchdog._LONG = 10.0
        # A block of 64 begins here.
        time.sleep(0.02 * (x >= 63))
        return os.getpid()

    def told(death):
        lost.append(death)
        return tell(death)

    monkeypatch.setattr(events, "WorkerLost", told)
    with parmap.plan("processes", workers=1):
        pids = parmap.pmap(fn, range(127), timeout=1.0, chunks=127, progress=lambda _: None)
    assert len(pids) == 127
    assert [(death.position, death.timed_out) for death in lost] == [(None, True)]
    assert lost[0].pid not in pids
