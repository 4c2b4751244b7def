import concurrent.futures
import multiprocessing
import os
import signal
import socket
import sys
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest

import parmap
from parmap.testing import PlanContract

GUARD = 60  # against hangs; never waited for when all is well


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


@pytest.mark.long
class TestForkserverPool(AdoptedContract):
    @staticmethod
    def make():
        return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver"))


class PoolContract(PlanContract):
    """Opens the pool for the class, and sees that it still works afterwards."""

    @classmethod
    def setup_class(cls):
        cls.pool = cls.make()
        cls.plan = parmap.plan(cls.pool)
        super().setup_class()

    @classmethod
    def teardown_class(cls):
        super().teardown_class()
        assert cls.pool.apply(abs, (-1,)) == 1
        cls.pool.terminate()
        cls.pool.join()


@pytest.mark.brief  # what travels is as on `TestSpawnedPool`
class TestPool(PoolContract):
    @staticmethod
    def make():
        return multiprocessing.get_context("spawn").Pool(2)


@pytest.mark.brief  # what travels is as on `TestThreadPool`
class TestThreadsOfMultiprocessing(PoolContract):
    @staticmethod
    def make():
        return ThreadPool(2)


@pytest.mark.skipif(
    not hasattr(concurrent.futures, "InterpreterPoolExecutor"),
    reason="interpreters as workers came with Python 3.14",
)
class TestInterpreters:
    @pytest.fixture
    def pool(self):
        with concurrent.futures.InterpreterPoolExecutor(1) as pool:
            yield pool

    def test_a_pool_of_interpreters_is_refused_with_another_plan_to_use(self, pool):
        for make in (
            lambda: parmap.plan(pool),
            lambda: parmap.plan(["threads", pool]),
            lambda: parmap.set_plan(pool),
            lambda: parmap.plan(type("Mine", (type(pool),), {})(1)),
        ):
            with pytest.raises(parmap.PlanError, match=r"NumPy.*Use plan\('processes'\)"):
                make()
        assert pool.submit(abs, -1).result(GUARD) == 1

    def test_the_reason_holds(self, pool):
        """If this fails, NumPy can be imported there, and the pool can be served."""
        pool.submit(exec, f"import sys; sys.path[:] = {sys.path!r}").result(GUARD)
        with pytest.raises(ImportError, match="subinterpreters"):
            pool.submit(exec, "import numpy").result(GUARD)


# From Python 3.12 on, a fork of a process with threads warns, and rightly; a pool has threads.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def pool():
    # Forks take a task as soon as they are there, before the pool knows of them.
    pool = multiprocessing.get_context("fork").Pool(2)
    yield pool
    pool.terminate()
    pool.join()


@pytest.fixture
def fifo(tmp_path):
    """A FIFO: to read it is to wait until it is written to."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def word(fifo):
    """Wait for a word; not for the end, for a process that is forked meanwhile can write, too."""
    with open(fifo, "rb", buffering=0) as file:
        return file.read(2)


@forks
def test_a_death_fails_only_the_task_of_that_process(pool, fifo):
    with parmap.plan(pool) as session:
        other = session.executor.submit(word, fifo)
        for code in (0, 1, 0):  # also one that looks like a good end
            error = session.executor.submit(os._exit, code).exception(GUARD)
            assert isinstance(error, parmap.WorkerDied)
            assert error.exitcode in (code, None)  # None: the pool itself asked at that moment
        fifo.write_bytes(b"go")
        assert other.result(GUARD) == b"go"


@forks
def test_an_exit_of_a_task_is_a_death(pool):
    with parmap.plan(pool) as session:
        error = session.executor.submit(os._exit, 0).exception(GUARD)
        assert isinstance(error, parmap.WorkerDied)
        assert session.map(abs, [-1]) == [1]


@forks
def test_a_process_that_is_killed_from_outside(pool, fifo):
    with parmap.plan(pool) as session:
        future = session.executor.submit(pid_and_wait, fifo)
        os.kill(int(fifo.read_text()), signal.SIGKILL)
        assert isinstance(future.exception(GUARD), parmap.WorkerDied)
        assert session.map(abs, [-1]) == [1]


def pid_and_wait(fifo):
    fifo.write_text(str(os.getpid()))
    signal.pause()


@forks
def test_a_death_is_known_while_a_child_of_the_process_lives(pool, fifo):
    with parmap.plan(pool) as session:
        future = session.executor.submit(fork_and_die, fifo)
        child = int(fifo.read_text())
        assert isinstance(future.exception(GUARD), parmap.WorkerDied)
        os.kill(child, signal.SIGKILL)


def fork_and_die(fifo):
    if os.fork() == 0:
        pid_and_wait(fifo)
    os._exit(1)


def test_processes_that_end_after_some_tasks_are_not_dead(tmp_path):
    def fn(x):
        with open(tmp_path / str(x), "a") as runs:
            runs.write("x")
        return x

    with multiprocessing.get_context("forkserver").Pool(2, maxtasksperchild=2) as pool:
        with parmap.plan(pool):
            assert parmap.pmap(fn, range(20), chunks=1) == list(range(20))
        pool.close()
        pool.join()
    assert {len(path.read_text()) for path in tmp_path.iterdir()} == {1}


def test_a_pool_that_its_owner_ends_in_the_middle_of_a_call(fifo):
    pool = multiprocessing.get_context("forkserver").Pool(2)

    def end():
        assert fifo.read_text().isdecimal()
        pool.terminate()

    ender = threading.Thread(target=end)
    ender.start()
    with parmap.plan(pool), pytest.raises(parmap.ParmapError, match="owner"):
        parmap.pmap(pid_and_wait, [fifo])
    ender.join(GUARD)
    pool.join()


@forks
def test_one_session_after_the_other_on_one_pool(pool):
    for _ in range(3):
        with parmap.plan(pool) as outer, parmap.plan(pool) as inner:
            for session in (outer, inner, outer):
                assert session.map(abs, range(5)) == list(range(5))
                assert isinstance(session.submit(os._exit, 1).exception(GUARD), parmap.WorkerDied)
        assert pool.apply(abs, (-1,)) == 1
    names = {thread.name for thread in threading.enumerate()}
    assert "parmap-death-watch" not in names


@forks
def test_an_end_waits_for_what_is_out(pool, fifo):
    executor = parmap.plan(pool).start()
    waits, dies = executor.submit(word, fifo), executor.submit(os._exit, 1)
    executor.shutdown(wait=False)
    assert isinstance(dies.exception(GUARD), parmap.WorkerDied)
    fifo.write_bytes(b"go")
    executor.shutdown()
    assert waits.done()


@forks
def test_what_strangers_say_is_not_heard(pool):
    with parmap.plan(pool) as session:
        address = session.executor._death_watch.address
        for words in (b"", b"hello", bytes(8), bytes(range(200))):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(address)
                stranger.sendall(words)
            assert session.map(abs, [-1]) == [1]
        assert isinstance(session.submit(os._exit, 1).exception(GUARD), parmap.WorkerDied)


@pytest.mark.parametrize("make", [ThreadPool, multiprocessing.get_context("forkserver").Pool])
def test_a_closed_pool_says_so(make):
    pool = make(1)
    pool.close()
    with parmap.plan(pool), pytest.raises(parmap.ParmapError, match="only its owner can"):
        parmap.pmap(abs, [1])
    pool.join()


@pytest.mark.parametrize("make", [ThreadPool, multiprocessing.get_context("forkserver").Pool])
def test_what_is_cancelled_wakes_who_waits_for_it(make, fifo):
    with make(1) as pool:
        with parmap.plan(pool) as session:
            assert session.workers == 1
            first = session.executor.submit(fifo.read_bytes)
            second = session.executor.submit(abs, -1)
            assert second.cancel()
            assert wait([second], GUARD).done == {second}
            fifo.write_bytes(b"go")
            assert first.result(GUARD) == b"go"
        pool.close()
        pool.join()


def test_a_cancelled_task_never_begins_in_a_thread(fifo, tmp_path):
    mark = tmp_path / "mark"
    with ThreadPool(1) as pool, parmap.plan(pool) as session:
        first = session.executor.submit(fifo.read_bytes)
        assert session.executor.submit(mark.touch).cancel()
        fifo.write_bytes(b"go")
        first.result(GUARD)
        assert session.map(abs, [-1]) == [1]
    assert not mark.exists()


def test_a_pool_of_another_kind_is_asked_for_no_more_than_it_promises():
    class Plain:
        closed = False

        def apply_async(self, func, args=(), kwds=None, callback=None, error_callback=None):
            if self.closed:
                raise ValueError("no longer")
            try:
                value = func(*args, **(kwds or {}))
            except BaseException as error:
                error_callback(error)
            else:
                callback(value)

    pool = Plain()
    with parmap.plan(pool, workers=3) as session:
        assert session.workers == 3
        assert parmap.pmap(lambda x: x + 1, range(10)) == list(range(1, 11))
        assert isinstance(session.executor.submit(int, "x").exception(GUARD), ValueError)
        assert session.executor.submit(int, "f", base=16).result(GUARD) == 15
        pool.closed = True
        with pytest.raises(parmap.ParmapError, match="only its owner can"):
            parmap.pmap(abs, [1])


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
    from parmap.transport.messages import CallSpec

    class Plain(Executor):
        workers = 1

        def shutdown(self, wait=True, *, cancel_futures=False):
            pass

    def key():
        with parmap.plan(Plain()) as session:
            return session.broadcast(CallSpec(abs)).spec.key[0]

    answer = Path(tmp_path / "key")
    pid = os.fork()
    if pid == 0:
        answer.write_text(repr(key()))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    theirs, ours = answer.read_text(), repr(key())
    assert theirs != ours
    assert repr(key()) == ours
