"""What every bare executor of parmap's does with single calls, whatever pickler its engine has."""

import os
import random
import threading
import traceback
from concurrent.futures import wait

import pytest

import parmap
from tests.mapping import ChunksContract

LONG = 60


class Odd(Exception):
    """An error whose class cannot be called with its ``args``."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.second = second


def told(future):
    return "".join(traceback.format_exception(future.exception(LONG)))


def forked(x):
    pid = os.fork()
    if pid == 0:
        return "a fork that goes on"
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) + x


class CallsContract(ChunksContract):
    """For executors whose tasks leave this process; derive a class, and set `plan`."""

    def test_functions_and_classes_of_the_script_travel(self, executor):
        class Point:
            def __init__(self, x):
                self.x = x

        def moved(point, *, by):
            return Point(point.x + by)

        assert executor.submit(moved, Point(1), by=2).result(LONG).x == 3
        assert list(executor.map(lambda point: point.x, [Point(3), Point(4)])) == [3, 4]
        assert executor.submit(lambda: lambda: 5).result(LONG)() == 5

    def test_keywords_are_the_functions_own(self, executor):
        given = {"fn": 1, "args": 2, "key": 3, "pure": 4, "workers": 5, "task": 6, "self": 7}
        assert executor.submit(dict, **given).result(LONG) == given

    def test_what_cannot_travel_is_named(self, executor):
        with open(__file__) as file:
            future = executor.submit(lambda: file.readline())
            with pytest.raises(parmap.SerializationError, match="file"):
                future.result(LONG)
        future = executor.submit(lambda: threading.Lock())
        with pytest.raises(parmap.SerializationError, match="result"):
            future.result(LONG)
        assert executor.submit(abs, -1).result(LONG) == 1

    def test_an_error_is_the_calls_own(self, executor):
        def fail():
            raise Odd(1, 2)

        future = executor.submit(fail)
        assert isinstance(future.exception(LONG), Odd)
        assert future.exception().second == 2
        assert "raise Odd(1, 2)" in told(future)

    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_no_error_ends_a_worker(self, executor, kind):
        def leave():
            raise kind("now")

        futures = [executor.submit(leave) for _ in range(4)]
        assert [type(future.exception(LONG)) for future in futures] == [kind] * 4
        assert executor.submit(abs, -1).result(LONG) == 1

    def test_the_generators_of_workers_are_not_copies(self, executor):
        drawn = list(executor.map(random.gauss, [0.0] * 40, [1.0] * 40))
        assert len(set(drawn)) == 40

    def test_a_fork_ends_with_its_call(self, executor):
        assert [executor.submit(forked, x).result(LONG) for x in range(3)] == [0, 1, 2]


class EndContract(CallsContract):
    """For executors that are parmap's own."""

    def test_a_callback_may_close_the_executor(self):
        executor = self.plan.start()
        closed, raised = threading.Event(), []

        def close(_):
            try:
                executor.shutdown()
            except BaseException as error:
                raised.append(error)
            closed.set()

        first = executor.submit(abs, -1)
        others = [executor.submit(abs, x) for x in range(8)]
        first.add_done_callback(close)
        assert closed.wait(LONG)
        assert raised == []
        assert [other.result(LONG) for other in others] == list(range(8))
        executor.shutdown()

    def test_what_is_cancelled_at_the_end_wakes_those_who_wait(self):
        executor = self.plan.start()
        futures = [executor.submit(abs, x) for x in range(100)]
        executor.shutdown(wait=False, cancel_futures=True)
        assert not wait(futures, LONG).not_done
        with pytest.raises((RuntimeError, parmap.ParmapError)):
            executor.submit(abs, 1)
        executor.shutdown()
