"""Which session a call has, whoever makes it, and how long that stays open."""

import asyncio
import os
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import ClassVar

import psutil
import pytest

import parmap
from parmap.backends.once_future import OnceFuture
from parmap.plans import current
from parmap.plans.spare_threads import _Entry, _Group

GUARD = 60.0


@pytest.fixture(autouse=True)
def said(monkeypatch):
    """Have the warning about threads without a plan said already; give what keeps it."""
    said = {"said"}
    monkeypatch.setattr(current, "_warned", said)
    return said


@pytest.fixture
def process_wide():
    """Set back the process-wide plan."""
    before = parmap.current_plan()
    yield
    parmap.set_plan(before)


def replaced(spec, **options):
    """Set the process-wide plan; give the one before."""
    before = parmap.current_plan()
    parmap.set_plan(spec, **options)
    return before


def children():
    return psutil.Process().children(recursive=True)


def none_of(processes):
    _, alive = psutil.wait_procs(processes, timeout=GUARD)
    return not alive


def in_a_thread(call):
    """What a call gives in a new thread, or its error."""
    future = Future()

    def run():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


# -- the process-wide plan that is replaced ------------------------------------------------------


def test_plans_that_are_replaced_leave_no_workers(process_wide):
    before = set(children())
    for workers in (1, 2, 3):
        parmap.set_plan("processes", workers=workers)
        assert parmap.pmap(abs, [-1, -2]) == [1, 2]
        assert len(set(children()) - before) == workers + 1
    parmap.set_plan("sequential")
    assert set(children()) <= before


def test_a_replaced_plan_stays_as_long_as_it_is_used(process_wide, tmp_path):
    """By iterators, begun or not, and by single calls; the last of them closes it."""
    before = set(children())
    parmap.set_plan("processes", workers=1)
    begun, early = parmap.imap(abs, range(-9, 0), chunks=1), parmap.imap(abs, range(-9, 0))
    assert next(begun) == 9
    future = parmap.submit(abs, -3)
    workers = set(children()) - before
    parmap.set_plan("threads", workers=1)
    assert parmap.current_plan() == parmap.plan("threads", workers=1)
    assert future.result(GUARD) == 3
    assert list(begun) == list(range(8, 0, -1))
    assert workers <= set(children())
    assert list(early) == list(range(9, 0, -1))
    assert none_of(workers)


@pytest.mark.parametrize("begun", [True, False])
def test_a_forgotten_iterator_keeps_no_plan(process_wide, begun):
    before = set(children())
    parmap.set_plan("processes", workers=1)
    results = parmap.imap(abs, range(-9, 0), chunks=1)
    if begun:
        assert next(results) == 9
    parmap.pmap(abs, [-1])
    workers = set(children()) - before
    parmap.set_plan("sequential")
    del results
    assert none_of(workers)


def opened(path):
    with open(path):
        pass


@pytest.mark.parametrize("plan", ["processes", "threads"])
def test_a_callback_may_replace_the_plan(process_wide, plan, tmp_path):
    """Even where it runs in a thread of the pool that is closed."""
    before = set(children())
    parmap.set_plan(plan, workers=1)
    os.mkfifo(tmp_path / "fifo")
    done = Future()
    future = parmap.submit(opened, os.fspath(tmp_path / "fifo"))
    future.add_done_callback(lambda _: done.set_result(replaced("sequential")))
    (tmp_path / "fifo").write_text("")  # now the task ends
    assert done.result(GUARD) == parmap.plan(plan, workers=1)
    assert none_of(set(children()) - before)
    assert parmap.pmap(abs, [-1]) == [1]


def test_a_task_may_replace_the_plan_that_runs_it(process_wide):
    parmap.set_plan("threads", workers=2)
    parmap.pmap(lambda n: parmap.set_plan("threads", workers=n), [3, 4], chunks=2)
    assert parmap.current_plan() == parmap.plan("threads", workers=4)
    assert parmap.pmap(abs, [-1]) == [1]


def test_a_plan_for_tasks_is_closed_with_the_plan_around_it():
    before = set(children())
    for workers in (1, 2):
        with parmap.plan(["threads(workers=2)", f"processes(workers={workers})"]):
            mapped = parmap.pmap(lambda _: parmap.pmap(abs, [-1, -2]), range(2), chunks=1)
            assert mapped == [[1, 2]] * 2
        assert set(children()) <= before


# -- threads without a plan ----------------------------------------------------------------------


def test_a_call_outlives_the_block_whose_plan_it_uses(said):
    """The block does not wait for it; the last such call closes the session."""
    before = set(children())
    begun, left = threading.Event(), threading.Event()

    def calls():
        results = parmap.imap(abs, range(-50, 0), chunks=1, window=1)
        first = next(results)
        begun.set()
        assert left.wait(GUARD)
        rest = list(results)
        return [first, *rest], str(parmap.current_plan()), parmap.pmap(abs, [-1])

    with parmap.plan("processes", workers=1) as session:
        future = in_a_thread(calls)
        assert begun.wait(GUARD)
        workers = set(children()) - before
    assert "open" in repr(session)
    assert str(parmap.current_plan()) == "sequential"
    left.set()
    assert future.result(GUARD) == (list(range(50, 0, -1)), "sequential", [1])
    assert none_of(workers)


def test_an_error_in_the_block_ends_calls_of_other_threads():
    begun, left = threading.Event(), threading.Event()

    def calls():
        results = parmap.imap(abs, range(-50, 0), chunks=1, window=1)
        next(results)
        begun.set()
        assert left.wait(GUARD)
        return list(results)

    with pytest.raises(KeyError), parmap.plan("processes", workers=1) as session:
        future = in_a_thread(calls)
        assert begun.wait(GUARD)
        raise KeyError
    assert "closed" in repr(session)
    left.set()
    assert isinstance(future.exception(GUARD), parmap.SessionClosed)


def test_after_the_block_whoever_has_its_context_begins_no_call():
    """Also while a call of another thread keeps the session open."""
    begun, left = threading.Event(), threading.Event()

    def calls():
        results = parmap.imap(abs, range(-5, 0), chunks=1, window=1)
        next(results)
        begun.set()
        assert left.wait(GUARD)
        return len(list(results))

    async def late(ended):
        await ended.wait()
        with pytest.raises(parmap.SessionClosed, match="over"):
            parmap.pmap(abs, [-1])

    async def main():
        ended = asyncio.Event()
        with parmap.plan("threads", workers=1):
            task = asyncio.create_task(late(ended))
            future = in_a_thread(calls)
            await asyncio.to_thread(begun.wait, GUARD)
        ended.set()
        await task
        left.set()
        assert await asyncio.wrap_future(future) == 4

    asyncio.run(main())


@pytest.mark.parametrize("plans", [(1, 2), (1, 1)])
def test_of_several_open_plans_a_thread_uses_none(said, plans):
    """It runs sequentially, and is told so."""
    said.clear()
    inside, done = threading.Barrier(3, timeout=GUARD), threading.Event()

    def own(workers):
        with parmap.plan("threads", workers=workers):
            inside.wait()
            done.wait(GUARD)

    others = [in_a_thread(lambda workers=workers: own(workers)) for workers in plans]
    inside.wait()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calls = lambda: (str(parmap.current_plan()), parmap.pmap(abs, [-1]))
        assert in_a_thread(calls).result(GUARD) == ("sequential", [1])
    done.set()
    assert [other.result(GUARD) for other in others] == [None, None]
    assert ["runs sequentially. To choose" in str(one.message) for one in caught] == [True]


def test_of_plans_in_one_another_a_thread_uses_the_innermost():
    with parmap.plan("threads", workers=1), parmap.plan("threads", workers=2) as session:
        assert in_a_thread(parmap.current_plan).result(GUARD) == session.plan


def test_a_plan_that_is_set_wins_over_one_that_is_open(said, process_wide):
    """It is meant for all threads; nothing is said."""
    said.clear()
    before = replaced("threads", workers=2)
    with parmap.plan("threads", workers=1), warnings.catch_warnings():
        warnings.simplefilter("error")
        calls = lambda: (str(parmap.current_plan()), parmap.pmap(abs, [-1]))
        assert in_a_thread(calls).result(GUARD) == ("threads(workers=2)", [1])
        parmap.set_plan(before)  # what was in force as long as nobody had chosen
        assert in_a_thread(parmap.current_plan).result(GUARD) == parmap.plan("threads", workers=1)


def test_the_main_thread_uses_no_plan_of_others(said):
    said.clear()
    inside, done = threading.Event(), threading.Event()

    def own():
        with parmap.plan("threads", workers=1):
            inside.set()
            return done.wait(GUARD)

    other = in_a_thread(own)
    assert inside.wait(GUARD)
    assert str(parmap.current_plan()) == "sequential"
    assert parmap.pmap(abs, [-1]) == [1]
    done.set()
    assert other.result(GUARD)


def test_a_thread_that_had_a_plan_of_its_own_uses_no_other():
    def calls():
        with parmap.plan("threads", workers=2):
            pass
        return str(parmap.current_plan())

    with parmap.plan("threads", workers=1):
        assert in_a_thread(calls).result(GUARD) == "sequential"


# -- blocks that are left elsewhere --------------------------------------------------------------


async def fixture():
    with parmap.plan("processes", workers=1) as session:
        yield session


@pytest.mark.parametrize("own_task", [True, False])
def test_an_async_fixture_closes_its_pool_in_another_task(own_task):
    """The plan that it had opened is in force nowhere any more."""
    before = set(children())

    async def main():
        pool = fixture()
        begin = pool.__anext__()
        session = await (asyncio.create_task(begin) if own_task else begin)

        async def tear_down():
            with pytest.raises(StopAsyncIteration):
                await pool.__anext__()
            return str(parmap.current_plan())

        assert await asyncio.create_task(tear_down()) == "sequential"
        assert "closed" in repr(session)
        assert str(parmap.current_plan()) == "sequential"
        assert parmap.pmap(abs, [-1]) == [1]

    asyncio.run(main())
    assert set(children()) <= before


def test_fixtures_in_one_another_are_left_in_another_thread():
    def both():
        with parmap.plan("threads", workers=1) as outer, parmap.plan("threads", workers=2) as inner:
            yield outer, inner

    pools = both()
    sessions = in_a_thread(lambda: next(pools)).result(GUARD)
    assert list(pools) == []
    assert ["closed" in repr(session) for session in sessions] == [True, True]
    assert str(parmap.current_plan()) == "sequential"


# -- workers that wait for the threads of their tasks ---------------------------------------------


def waiting(x):
    """Wait for calls in a thread of its own."""
    return in_a_thread(lambda: sum(parmap.pmap(abs, range(-x, 0), chunks=1))).result(GUARD)


def deep(levels):
    if not levels:
        return 1
    return in_a_thread(lambda: sum(parmap.pmap(deep, [levels - 1] * 2, chunks=1))).result(GUARD)


PLANS = [
    "threads(workers=1)",
    "threads(workers=2)",
    "[threads(workers=2), threads(workers=2)]",
    "processes(workers=1)",
]


@pytest.mark.parametrize("plan", PLANS)
def test_calls_in_threads_of_tasks_end_on_the_process_wide_plan(process_wide, plan):
    parmap.set_plan(plan)
    assert parmap.pmap(waiting, range(5), chunks=1) == [0, 1, 3, 6, 10]
    assert parmap.pmap(deep, [3, 3, 3], chunks=1) == [8, 8, 8]


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ThreadPool])
def test_so_they_do_on_executors_of_others(pool):
    with pool(2) as host, parmap.plan(host):
        assert parmap.pmap(waiting, range(5), chunks=1) == [0, 1, 3, 6, 10]


def test_a_spare_thread_is_set_up_and_tells_errors():
    here = threading.local()

    def setup():
        here.ready = True

    def inner(x):
        assert here.ready
        return 1 // x

    def task(x):
        return in_a_thread(lambda: parmap.pmap(inner, [1, 1, x], chunks=1)).result(GUARD)

    with parmap.plan("threads", workers=1, setup=setup):
        assert parmap.pmap(task, [1], chunks=1) == [[1, 1, 1]]
        with pytest.raises(ZeroDivisionError) as caught:
            parmap.pmap(task, [0], chunks=1)
    assert any("element 2 failed" in note for note in caught.value.__notes__)


def test_only_a_caller_none_of_whose_chunks_begins_starves():
    group = _Group()
    assert not group.starves()
    group.entries = [_Entry(1, OnceFuture(), ()) for _ in range(3)]
    first, second, third = (entry.once for entry in group.entries)
    assert not group.starves()  # the first look
    assert group.starves()  # nothing has begun since
    first.resolve(None)
    assert not group.starves()  # something has
    second.future.set_running_or_notify_cancel()
    assert not group.starves()
    assert not group.starves()  # as long as one runs
    second.future.set_result(None)
    third.future.cancel()
    assert not group.starves()
    assert group.entries == []


class Slow(type(parmap.plan("threads"))):
    """A plan whose workers come when they are let."""

    name = "slow"
    begun: ClassVar[list[threading.Event]] = []
    go: ClassVar[threading.Event]

    def start(self):
        self.begun[-1].set()
        self.begun.append(threading.Event())
        assert self.go.wait(GUARD)
        return super().start()


@pytest.fixture
def slow():
    Slow.begun[:] = [threading.Event()]
    Slow.go = threading.Event()
    before = replaced(Slow(workers=2))
    yield Slow
    Slow.go.set()
    parmap.set_plan(before)


def in_thread(function, *args):
    future = Future()

    def run():
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def test_a_plan_that_opens_slowly_holds_up_only_who_needs_it(slow):
    calls = [in_thread(parmap.pmap, abs, [-1]) for _ in range(3)]
    assert slow.begun[0].wait(GUARD)
    assert in_thread(parmap.current_plan).result(GUARD) == Slow(workers=2)
    slow.go.set()
    assert [call.result(GUARD) for call in calls] == [[1]] * 3
    assert len(slow.begun) == 2  # it was started once


def test_a_plan_that_is_replaced_while_it_opens_does_not_stay(slow):
    call = in_thread(parmap.pmap, abs, [-1])
    assert slow.begun[0].wait(GUARD)
    late = in_thread(parmap.pmap, abs, [-2])
    assert in_thread(replaced, "sequential").result(GUARD) == Slow(workers=2)
    slow.go.set()
    assert (call.result(GUARD), late.result(GUARD)) == ([1], [2])
    assert len(slow.begun) == 2
    assert not any(session.plan.name == "slow" for session in _process_wide_sessions())


def _process_wide_sessions():
    return list(current._process._sessions.values())


def test_a_plan_that_cannot_be_opened_fails_each_call_that_needs_it(slow, monkeypatch):
    def start(self):
        raise OSError("no room")

    monkeypatch.setattr(Slow, "start", start)
    calls = [in_thread(parmap.pmap, abs, [-1]) for _ in range(3)]
    assert [str(call.exception(GUARD)) for call in calls] == ["no room"] * 3


@pytest.mark.parametrize("name", ["sequential", "threads", "processes"])
def test_a_thread_that_setup_opens_may_ask_for_the_plan(run, name):
    out = run(
        f"""
        import threading, parmap
        def setup():
            parmap.pmap(abs, [-1])
            thread = threading.Thread(target=parmap.current_plan)
            thread.start()
            thread.join()
        parmap.set_plan({name!r}, workers=1, setup=setup)
        print(parmap.pmap(abs, [-1]))
        """
    )
    assert out == "[1]\n"
