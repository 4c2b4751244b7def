import concurrent.futures
import multiprocessing
import os
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest

import parmap
from parmap.testing import PlanContract


class AdoptedContract(PlanContract):
    """Opens the executor for the class, and sees that it is still open afterwards."""

    @classmethod
    def setup_class(cls):
        cls.executor = cls.make()
        cls.plan = parmap.plan(cls.executor)
        super().setup_class()

    @classmethod
    def teardown_class(cls):
        super().teardown_class()
        assert cls.executor.submit(abs, -1).result() == 1
        cls.executor.shutdown()


class TestThreadPool(AdoptedContract):
    @staticmethod
    def make():
        return ThreadPoolExecutor(3)


class TestSpawnedPool(AdoptedContract):
    @staticmethod
    def make():
        return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


class TestForkserverPool(AdoptedContract):
    @staticmethod
    def make():
        return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver"))


class TestPool(PlanContract):
    """A pool of multiprocessing, which forgets the task of a worker that dies."""

    @classmethod
    def setup_class(cls):
        cls.pool = multiprocessing.get_context("spawn").Pool(2)
        cls.plan = parmap.plan(cls.pool)
        super().setup_class()

    @classmethod
    def teardown_class(cls):
        super().teardown_class()
        assert cls.pool.apply(abs, (-1,)) == 1
        cls.pool.terminate()
        cls.pool.join()


class TestThreadsOfMultiprocessing(PlanContract):
    @classmethod
    def setup_class(cls):
        cls.pool = ThreadPool(2)
        cls.plan = parmap.plan(cls.pool)
        super().setup_class()

    @classmethod
    def teardown_class(cls):
        super().teardown_class()
        assert cls.pool.apply(abs, (-1,)) == 1
        cls.pool.terminate()
        cls.pool.join()


@pytest.mark.skipif(
    not hasattr(concurrent.futures, "InterpreterPoolExecutor"),
    reason="interpreters as workers came with Python 3.14",
)
class TestInterpreters(AdoptedContract):
    @staticmethod
    def make():
        return concurrent.futures.InterpreterPoolExecutor(2)


def test_a_closed_pool_says_so():
    pool = ThreadPool(1)
    pool.close()
    with parmap.plan(pool), pytest.raises(parmap.ParmapError, match="only its owner can"):
        parmap.pmap(abs, [1])
    pool.join()


@pytest.fixture(scope="module")
def one_process():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def test_its_own_number_of_workers_is_used():
    with ThreadPoolExecutor(5) as executor:
        with parmap.plan(executor) as session:
            assert session.workers == 5
        with parmap.plan(executor, workers=2) as session:
            assert session.workers == 2


def test_an_executor_that_tells_no_number():
    class Plain(Executor):
        def submit(self, fn, /, *args, **kwargs):
            future = Future()
            future.set_result(fn(*args, **kwargs))
            return future

    with parmap.plan(Plain()) as session:
        assert session.workers == parmap.available_cores()
        # What nobody knows to share memory is sent packed.
        assert parmap.pmap(lambda x: x + 1, range(10)) == list(range(1, 11))


def test_setup_is_refused():
    with ThreadPoolExecutor(1) as executor, pytest.raises(parmap.PlanError, match="initializer"):
        parmap.plan(executor, setup=print)


def test_plans_of_one_executor_are_equal():
    with ThreadPoolExecutor(1) as executor, ThreadPoolExecutor(1) as other:
        assert parmap.plan(executor) == parmap.plan(executor)
        assert hash(parmap.plan(executor)) == hash(parmap.plan(executor))
        assert parmap.plan(executor) != parmap.plan(other)


def test_its_text_says_what_it_is_and_is_refused_as_a_spec():
    with ThreadPoolExecutor(1) as executor:
        text = str(parmap.plan(executor))
    assert "ThreadPoolExecutor" in text
    with pytest.raises(parmap.PlanError):
        parmap.plan(text)
    with pytest.raises(parmap.PlanError, match="no plan named 'adopted'"):
        parmap.plan("adopted")


def test_a_closed_executor_says_so():
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with parmap.plan(executor), pytest.raises(RuntimeError, match="after shutdown"):
        parmap.pmap(abs, [1])


def test_a_broken_executor_is_the_owners_to_replace():
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor,
        parmap.plan(executor),
    ):
        with pytest.raises((parmap.ParmapError, RuntimeError)):
            parmap.pmap(os._exit, [1])
        with pytest.raises(parmap.ParmapError, match="only its owner can"):
            parmap.pmap(abs, [1])


class Counted:
    """A function that writes a mark whenever it is unpickled."""

    def __init__(self, marks):
        self.marks = marks

    def __call__(self, x):
        return x

    def __setstate__(self, state):
        self.__dict__.update(state)
        with open(self.marks, "a") as marks:
            marks.write("x")


def test_a_function_is_unpickled_once_in_each_worker(one_process, tmp_path):
    marks = tmp_path / "marks"
    with parmap.plan(one_process):
        assert parmap.pmap(Counted(marks), range(30), chunks=1) == list(range(30))
    assert marks.read_text() == "x"


def test_calls_do_not_mix_up_in_a_worker(one_process):
    with parmap.plan(one_process):
        calls = [parmap.imap(lambda x, y=y: (y, x), range(20), chunks=1) for y in range(12)]
        rounds = list(zip(*calls, strict=True))
    assert rounds == [tuple((y, x) for y in range(12)) for x in range(20)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_gives_its_functions_other_names(tmp_path):
    # A worker knows a function by its name: parent and fork may use the same workers.
    from parmap.worker.values import Job

    class Plain(Executor):
        workers = 1

        def shutdown(self, wait=True, *, cancel_futures=False):
            pass

    def key():
        with parmap.plan(Plain()) as session:
            return session.place(Job(abs)).job.key[:2]

    answer = Path(tmp_path / "key")
    pid = os.fork()
    if pid == 0:
        answer.write_text(repr(key()))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert answer.read_text() == repr((key()[0], pid))
