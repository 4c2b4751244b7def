import os
import threading
from concurrent.futures import wait

import pytest

import parmap
from parmap.testing import PlanContract

GUARD = 60  # against hangs; never waited for when all is well


class TestThreads(PlanContract):
    plan = parmap.plan("threads", workers=3)


@pytest.mark.brief  # the executor is that of `TestThreads`
class TestOneThread(PlanContract):
    plan = parmap.plan("threads", workers=1)


class TestNested(PlanContract):
    plan = parmap.plan(["threads(workers=2)", "threads(workers=2)"])


def test_tasks_see_the_callers_own_objects():
    seen = []
    things = [object() for _ in range(20)]
    with parmap.plan("threads", workers=2):
        results = parmap.pmap(lambda x: (seen.append(x), x)[1], things)
    assert all(a is b for a, b in zip(results, things, strict=True))
    assert sorted(map(id, seen)) == sorted(map(id, things))


def test_the_error_is_the_very_object_that_was_raised():
    error = ValueError("mine")

    def fail(_):
        raise error

    with parmap.plan("threads", workers=2), pytest.raises(ValueError, match="mine") as caught:
        parmap.pmap(fail, [1])
    assert caught.value is error
    assert error.__cause__ is None


def test_a_failure_stops_what_comes_after_it():
    ran = []

    def fn(x):
        ran.append(x)
        if x == 0:
            raise ValueError
        return x

    with parmap.plan("threads", workers=1), pytest.raises(ValueError):
        parmap.pmap(fn, range(1000), chunks=1)
    # The failing one, and at most what a worker has in hand while the failure is on its way.
    assert len(ran) <= 3


def test_closing_an_iterator_ends_a_chunk_after_the_element_that_runs():
    entered, go_on = threading.Event(), threading.Event()
    ran = []

    def fn(x):
        ran.append(x)
        if x == 50:
            entered.set()
            assert go_on.wait(60)
        return x

    with parmap.plan("threads", workers=1):
        results = parmap.imap(fn, range(500), chunks=50, window=500)
        assert next(results) == 0
        assert entered.wait(60)
        results.close()
        go_on.set()
    assert ran == list(range(51))


def test_a_cancelled_call_never_runs():
    entered, go_on = threading.Event(), threading.Event()
    ran = []

    def hold():
        entered.set()
        assert go_on.wait(60)

    with parmap.plan("threads", workers=1):
        first = parmap.submit(hold)
        assert entered.wait(60)
        second = parmap.submit(ran.append, 1)
        assert second.cancel()
        go_on.set()
        first.result(60)
    assert second.cancelled()
    assert ran == []


def test_an_error_in_setup_breaks_the_pool():
    def setup():
        raise OSError("no licence")

    with (
        parmap.plan("threads", workers=1, setup=setup),
        pytest.raises(parmap.PoolBroken, match="no licence"),
    ):
        parmap.pmap(abs, [1])


@pytest.mark.parametrize("plan", ["threads(workers=1)", "processes(workers=1)"])
def test_who_waits_for_what_a_bare_executor_has_cancelled_wakes(plan, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    executor = parmap.plan(plan).start()
    first = executor.submit(fifo.write_text, "")
    with fifo.open():  # it runs
        pass
    # The thread may be between two tasks: the second is held for sure.
    held = executor.submit(fifo.write_text, "")
    others = [executor.submit(abs, -x) for x in range(20)]
    mine = others[3].cancel()
    executor.shutdown(wait=False, cancel_futures=True)
    done, left = wait(others, GUARD)
    assert not left
    assert mine
    assert all(future.cancelled() for future in done)
    if not held.cancelled():  # it had begun
        with fifo.open():
            pass
    executor.shutdown(wait=True)
    assert first.done()
    assert held.done()
    with pytest.raises(RuntimeError):
        executor.submit(abs, -1)
