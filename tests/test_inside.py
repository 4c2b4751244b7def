"""Third parties' executors that run tasks in the caller's process, or in workers of others."""

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cloudpickle
import pytest
import sklearn.linear_model  # noqa: F401 - brings OpenMP, of which each thread has a number
import threadpoolctl

import parmap
from parmap.testing.core_share import CoreShareContract
from parmap.testing.surroundings import SurroundingsContract, surroundings

SHARED = parmap.Traits(shares_memory=True)


class Here(Executor):
    """Runs each task at once, in the thread that submits it."""

    workers = 1

    def __init__(self, traits=None):
        self.traits = traits

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(self.call(fn, *args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def call(self, fn, /, *args, **kwargs):
        return fn(*args, **kwargs)


class HerePacked(Here):
    """As `Here`, on copies."""

    def call(self, fn, /, *args, **kwargs):
        return _unpacked(cloudpickle.dumps((fn, args, kwargs)))


class Threads(ThreadPoolExecutor):
    """Threads of this process."""

    traits = SHARED


class ThreadsPacked(ThreadPoolExecutor):
    """Threads of this process, which run tasks on copies."""

    def submit(self, fn, /, *args, **kwargs):
        packed = cloudpickle.dumps((fn, args, kwargs))
        return super().submit(_unpacked, packed)


class Processes(ProcessPoolExecutor):
    """Processes that have limits of their own, and are not shut down with the session."""

    def __init__(self):
        context = multiprocessing.get_context("fork")
        super().__init__(1, context, threadpoolctl.threadpool_limits, (5,))

    def submit(self, fn, /, *args, **kwargs):
        return super().submit(_unpacked, cloudpickle.dumps((fn, args, kwargs)))

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Stay: it may serve others."""


def _unpacked(packed):
    fn, args, kwargs = pickle.loads(packed)
    return fn(*args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Made(parmap.Plan):
    """Starts an executor that a function makes."""

    name = "made"
    make: Any = None

    def start(self):
        return self.make()


def made(make, **options):
    return Made(make=make, **{"workers": 2, **options})


class InsideContract(CoreShareContract, SurroundingsContract):
    """What an executor can do to its caller."""


class TestHere(InsideContract):
    plan = made(lambda: Here(SHARED._replace(same_thread=True)))


class TestHerePacked(InsideContract):
    plan = made(HerePacked)


class TestThreads(InsideContract):
    plan = made(lambda: Threads(2))


class TestThreadsPacked(InsideContract):
    plan = made(lambda: ThreadsPacked(2))


PLANS = [TestHere.plan, TestHerePacked.plan, TestThreadsPacked.plan]


def _numbers():
    return {one["filepath"]: one["num_threads"] for one in threadpoolctl.threadpool_info()}


@pytest.fixture
def many():
    """More threads than a worker's share, and nothing of a task's when the test is over."""
    with threadpoolctl.threadpool_limits(7):
        before = surroundings()
        yield
        after = surroundings()
        assert after == before


def test_a_limit_is_given_back_when_the_last_task_in_the_process_ends(many):
    first, second, over = threading.Event(), threading.Event(), threading.Event()
    _events.update(first=first, second=second, over=over)
    with made(lambda: ThreadsPacked(2)) as session:
        short = session.submit(_short)
        long = session.submit(_long)
        assert short.result(60) == {1}
        # The process's own number is still limited, for the task that runs.
        assert set(_blas().values()) == {1}
        over.set()
        assert long.result(60) == {1}
    assert set(_blas().values()) == {7}


_events: dict[str, threading.Event] = {}


def _blas():
    infos = threadpoolctl.threadpool_info()
    return {one["filepath"]: one["num_threads"] for one in infos if one["user_api"] == "blas"}


def _short():
    _events["first"].set()
    assert _events["second"].wait(60)
    return set(_numbers().values())


def _long():
    assert _events["first"].wait(60)
    _events["second"].set()
    assert _events["over"].wait(60)
    return set(_numbers().values())


@pytest.mark.parametrize("plan", PLANS, ids=str)
class TestTask:
    def test_that_limits_libraries_itself(self, plan, many):
        def task(x):
            threadpoolctl.threadpool_limits(x)
            return set(_numbers().values())

        with plan:
            assert parmap.pmap(task, [2, 4], chunks=2) == [{2}, {4}]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
    def test_that_raises(self, plan, error, many):
        def task(x):
            raise error(x)

        with plan, pytest.raises(error):
            parmap.pmap(task, [1, 2])

    def test_that_makes_calls(self, plan, many):
        def outer(x):
            with made(HerePacked, threads_per_worker=1):
                inner = parmap.pmap(lambda _: set(_numbers().values()), [x, x])
            return inner, set(_numbers().values())

        with plan.replace(threads_per_worker=4):
            assert parmap.pmap(outer, [1, 2], chunks=2) == [([{1}, {1}], {4})] * 2


def test_a_foreign_process_is_as_it_was_after_each_chunk():
    pool = Processes()
    try:
        before = pool.submit(_process).result(60)
        assert set(before[0].values()) == {5}
        with made(lambda: pool, workers=1, threads_per_worker=2):
            limits = parmap.pmap(lambda _: set(_numbers().values()), range(3), chunks=1)
            assert limits == [{2}] * 3
            assert pool.submit(_process).result(60) == before
    finally:
        ProcessPoolExecutor.shutdown(pool)


def _process():
    return _numbers(), dict(os.environ)


# In a fork of the script, with a plan whose tasks run in it. They are packed, as for workers.
FORKED = """
import os, sys, warnings
import numpy as np
import parmap
warnings.simplefilter("ignore", DeprecationWarning)  # the fork of a process that has threads
{plan}
assert parmap.pmap(abs, [-1]) == [1]  # all is loaded
np.random.seed(1)
expected = np.random.RandomState(1).random()
parmap.set_plan("threads", workers=1)
sys.stdout.flush()
if os.fork() == 0:
    with plan as session:
        assert parmap.pmap(lambda x: x + 1, range(9)) == list(range(1, 10))
        assert session.submit(abs, -1).result() == 1
    with plan.start() as executor:
        assert executor.submit(abs, -1).result() == 1
    assert np.random.random() == expected
    print(parmap.current_plan())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_fork_of_the_script_keeps_its_generators_and_its_plan(run):
    """It is no worker that a pool has forked, though what runs in it comes as to one."""
    plan = """
from concurrent.futures import Executor, Future
class Here(Executor):
    workers = 1
    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future
class Mine(parmap.Plan):
    name = "mine"
    def start(self):
        return Here()
plan = Mine()
"""
    assert run(FORKED.format(plan=plan)) == "threads(workers=1)\n"
