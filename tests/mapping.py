"""What ``map`` of every executor of parmap's does: that of Python 3.14, on every Python."""

import itertools
import os
import threading
from concurrent.futures import TimeoutError as LateError

import pytest

import parmap

LONG = 60


def minus_one(x):
    return x - 1


def inverse(x):
    return 1 / x


def held(x):
    return threading.Lock() if x == 2 else x


def opened(path):
    os.close(os.open(path, os.O_RDONLY))


class MapContract:
    """Derive a test class from it, and set `plan`."""

    @classmethod
    def setup_class(cls):
        cls.writers = []  # of named pipes that tasks may still wait for

    @classmethod
    def teardown_class(cls):
        for writer in cls.writers:
            os.close(writer)

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls):
        with cls.plan.start() as executor:
            yield executor

    def test_it_says_how_many_workers_it_has(self, executor):
        assert executor._max_workers == executor.workers >= 1

    @pytest.mark.parametrize("size", [1, 2, 500])
    def test_results_are_those_of_map(self, executor, size):
        assert list(executor.map(minus_one, range(10), chunksize=size)) == list(range(-1, 9))
        rows = executor.map(pow, itertools.count(), range(7), chunksize=size)
        assert list(rows) == list(map(pow, itertools.count(), range(7)))
        assert list(executor.map(minus_one, [], chunksize=size)) == []

    @pytest.mark.parametrize("size", [1, 3, 500])
    def test_results_before_a_failure_are_given(self, executor, size):
        results = executor.map(inverse, [4, 2, 1, 0, 5], chunksize=size)
        assert [next(results), next(results), next(results)] == [0.25, 0.5, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert list(results) == []

    @pytest.mark.parametrize("size", [0, -1])
    def test_a_chunk_has_an_element(self, executor, size):
        with pytest.raises(ValueError, match=f"chunksize={size}"):
            executor.map(abs, [1], chunksize=size)

    def test_the_buffer_has_room(self, executor):
        with pytest.raises(TypeError, match="buffersize must be an integer"):
            executor.map(abs, [1], buffersize=1.5)
        with pytest.raises(ValueError, match="buffersize=0"):
            executor.map(abs, [1], buffersize=0)

    @pytest.mark.parametrize("size", [1, 3])
    def test_the_input_is_read_as_results_are_taken(self, executor, size):
        taken = []
        numbers = (taken.append(i) or i for i in itertools.count())
        results = executor.map(minus_one, numbers, chunksize=size, buffersize=2)
        first = len(taken)
        assert [next(results) for _ in range(12)] == list(range(-1, 11))
        assert 1 <= first <= 2 * size
        assert len(taken) <= 12 + 3 * size
        results.close()

    def test_a_result_in_time(self, executor):
        assert list(executor.map(minus_one, range(3), timeout=LONG)) == [-1, 0, 1]

    def test_results_after_the_time(self, tmp_path):
        if self.plan.name == "sequential":
            pytest.skip("a task ends before map returns: no result is ever late")
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        with self.plan.start() as executor:
            results = executor.map(opened, [os.fspath(fifo)], timeout=0.01)
            with pytest.raises((LateError, TimeoutError)):
                next(results)
            # Lets the task end, if it has begun or will.
            self.writers.append(os.open(fifo, os.O_RDWR))

    @pytest.mark.parametrize("size", [1, 3])
    def test_an_executor_that_is_forgotten_gives_its_results(self, size):
        executor = self.plan.start()
        results = executor.map(minus_one, range(9), chunksize=size)
        executor.shutdown()
        del executor
        assert list(results) == list(range(-1, 8))


class ChunksContract(MapContract):
    """For executors whose tasks leave this process."""

    def test_elements_travel_together(self, executor):
        sent = []
        submit = executor.submit
        executor.submit = lambda *args: sent.append(args) or submit(*args)
        try:
            assert list(executor.map(minus_one, range(1000), chunksize=500)) == list(range(-1, 999))
        finally:
            del executor.submit
        assert len(sent) == 2

    def test_what_cannot_travel_costs_no_other_its_result(self, executor):
        results = executor.map(repr, [1, 2, threading.Lock(), 4], chunksize=4)
        assert [next(results), next(results)] == ["1", "2"]
        with pytest.raises(parmap.SerializationError, match="lock"):
            next(results)
        results = executor.map(held, range(4), chunksize=4)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(parmap.SerializationError, match="result"):
            next(results)
