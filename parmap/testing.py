"""The conformance suite: what every plan promises, as tests for pytest.

Changing the plan changes only the time. So the oracle of every test is the built-in `map`,
and whoever writes a plan proves it in three lines::

    class TestMine(PlanContract):
        plan = parmap.plan("mine", workers=3)

The tests stand in one class per promise; `PlanContract` is all of them. They need pytest
and hypothesis, which no other part of parmap imports.
"""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import array
import asyncio
import collections
import contextvars
import ctypes
import functools
import itertools
import math
import operator
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import parmap
from parmap.errors import Failure, FailureGroup

__all__ = ["PlanContract"]

# Each example makes calls on real workers, so there are few. A first one may wait for them
# to start: no deadline. The tests are inherited, so one runs in many classes: that is meant.
_examples = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)

# For what cannot be seen to hang: long enough for a loaded machine, never waited for.
_LONG = 60.0

_FACTOR = 3

_Make = Callable[[], Iterable[Any]]


# -- what is called -------------------------------------------------------------------------


def _scaled(x: Any) -> Any:
    return _FACTOR * x


class _Scale:
    """A callable object, and one with a method to bind."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: Any) -> Any:
        return self.factor * x

    def method(self, x: Any) -> Any:
        return self.factor * x


def _functions() -> dict[str, Callable[[Any], Any]]:
    factor = 3

    def closure(x: Any) -> Any:
        return factor * x

    def recursive(x: int) -> int:
        return 0 if x == 0 else 3 + recursive(x - 1)

    def defaulting(x: Any, by: int = factor) -> Any:
        return x * by

    def keyword(x: Any, *, by: int) -> Any:
        return x * by

    return {
        "a lambda": lambda x: 3 * x,
        "a closure": closure,
        "a recursive closure": recursive,
        "a function with a default": defaulting,
        "a partial": functools.partial(operator.mul, factor),
        "a partial with a keyword": functools.partial(keyword, by=factor),
        "a bound method": _Scale(factor).method,
        "a callable object": _Scale(factor),
        "a bound method of a builtin": factor.__mul__,
        "a function that uses a global": _scaled,
    }


class _Coded(Exception):  # noqa: N818
    """An error whose constructor takes other arguments than its args."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


class _Prefixed(Exception):  # noqa: N818
    """An error whose constructor accepts its own args, and changes them again."""

    def __init__(self, text: str) -> None:
        super().__init__(f"bad: {text}")


class _Locked(Exception):  # noqa: N818
    """An error that holds what cannot travel."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.kept = text
        self.lock = threading.Lock()


@dataclass(frozen=True)
class _Frozen(Exception):  # noqa: N818
    """An error on which nothing can be set: no note, no cause."""

    code: int


class _Unusual(BaseException):
    """An error outside of Exception."""


def _error(kind: int, index: int) -> Exception:
    kinds: list[Callable[..., Exception]] = [ValueError, KeyError, ZeroDivisionError, OSError]
    return kinds[kind % len(kinds)](index, f"element {index}")


def _failing(bad: Iterable[int]) -> Callable[[int], int]:
    """Make a function that fails for some numbers, with various errors."""
    some = frozenset(bad)

    def fn(x: int) -> int:
        if x in some:
            raise _error(x, x)
        return 2 * x

    return fn


def _raiser(error: Callable[[], BaseException]) -> Callable[[int], int]:
    """Make a function that raises a new error for the element 1, and gives the others back."""

    def fn(x: int) -> int:
        if x == 1:
            raise error()
        return x

    return fn


def _exit_at_once() -> None:
    os._exit(3)


def _fault() -> None:
    ctypes.string_at(0)


def _be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# -- what it is called on -------------------------------------------------------------------

_KINDS: dict[str, Callable[[list[int]], Iterable[Any]]] = {
    "list": list,
    "tuple": tuple,
    "range": lambda xs: range(len(xs)),
    "str": lambda xs: "".join(chr(65 + x % 26) for x in xs),
    "bytes": lambda xs: bytes(x % 256 for x in xs),
    "array": lambda xs: np.array(xs, dtype=np.int64),
    "strided array": lambda xs: np.repeat(np.array(xs, dtype=np.float64), 2)[::2],
    "rows of a matrix": lambda xs: np.array([[x, -x] for x in xs]).reshape(-1, 2),
    "array.array": lambda xs: array.array("q", xs),
    "deque": collections.deque,
    "keys of a dict": lambda xs: dict.fromkeys(xs).keys(),
    "iterator": iter,
    "generator": lambda xs: (x for x in xs),
    "map": lambda xs: map(abs, xs),
}


@dataclass(frozen=True)
class _Input:
    """Iterables to map over, made anew for each call, for some can be read only once."""

    kinds: tuple[str, ...]
    numbers: tuple[tuple[int, ...], ...]

    def iterables(self) -> list[Iterable[Any]]:
        return [_KINDS[kind](list(xs)) for kind, xs in zip(self.kinds, self.numbers, strict=True)]

    def __len__(self) -> int:
        return min(len(list(iterable)) for iterable in self.iterables())


@st.composite
def _inputs(draw: st.DrawFn) -> _Input:
    numbers = st.lists(st.integers(-999, 999), max_size=60).map(tuple)
    columns = draw(st.lists(numbers, min_size=1, max_size=3))
    kinds = [draw(st.sampled_from(sorted(_KINDS))) for _ in columns]
    return _Input(tuple(kinds), tuple(columns))


def _length_of_repr(*row: Any) -> float:
    return len(repr(row))


@st.composite
def _chunks(draw: st.DrawFn, count: int) -> Any:
    """Draw any value of ``chunks=`` that fits a call of `count` elements."""
    words = st.sampled_from(["auto", "static", "dynamic", "guided"])
    costs = st.lists(st.floats(0, 9), min_size=count, max_size=count)
    order: dict[str, Any] = draw(
        st.one_of(
            st.just({}),
            st.builds(lambda seed: {"shuffle": seed}, st.booleans() | st.integers(0, 9)),
            st.builds(lambda cost: {"cost": cost}, st.just(_length_of_repr) | costs),
        )
    )
    few = st.integers(1, 20)
    policies = st.one_of(
        st.builds(lambda cyclic: parmap.Static(cyclic=cyclic, **order), st.booleans()),
        st.builds(lambda size: parmap.Dynamic(size=size, **order), few),
        st.builds(lambda smallest: parmap.Guided(smallest=smallest, **order), few),
        st.builds(
            lambda target: parmap.Auto(target=target, **order), st.sampled_from([1e-6, 0.05])
        ),
    )
    return draw(st.one_of(words, st.integers(1, 70), policies))


@dataclass(frozen=True)
class _Failures:
    """A number of elements, those of them that fail, and how they are cut."""

    count: int
    bad: frozenset[int]
    chunks: Any


@st.composite
def _failures(draw: st.DrawFn) -> _Failures:
    count = draw(st.integers(1, 60))
    bad = draw(st.frozensets(st.integers(0, count - 1), min_size=1, max_size=8))
    return _Failures(count, bad, draw(_chunks(count)))


def _ending(call: Callable[[], Any]) -> tuple[Any, ...]:
    """Describe how a call ends, so that two ends can be compared: values, types, and errors."""
    try:
        return ("returned", repr(call()))
    except FailureGroup as group:
        return ("raised", type(group), repr(group.results), group.message, len(group.exceptions))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other plan must raise it
        return ("raised", type(error), error.args)


# -- the promises ---------------------------------------------------------------------------


class _Plan:
    """What all parts of the contract have: a plan, and its session, open for the class."""

    plan: ClassVar[parmap.Plan]
    session: ClassVar[parmap.Session]

    @classmethod
    def setup_class(cls) -> None:
        """Open the session; a class that overrides this sets `plan` first, then calls it."""
        cls.session = cls.plan.__enter__()

    @classmethod
    def teardown_class(cls) -> None:
        """Close the session."""
        cls.plan.__exit__(None, None, None)

    def teardown_method(self) -> None:
        """Whatever a test did, the session still works."""
        assert self.session.map(abs, [-1, 2]) == [1, 2]

    def shares_memory(self) -> bool:
        """Tell whether tasks see the objects of the test itself."""
        return self.plan.place().shares_memory

    def need_same_host(self) -> None:
        """Leave out a test whose tasks meet through files, where workers are elsewhere."""
        if not self.plan.place().same_host:
            pytest.skip("the workers of this plan may not see the files of this machine")

    def need_two_workers(self) -> None:
        """Leave out a test in which two tasks must run at once, where one worker runs all."""
        if self.session.workers < 2:
            pytest.skip("this plan has one worker")

    def need_replacement(self) -> None:
        """Leave out a test that ends workers, where nobody replaces them."""
        if not self.plan.place().replaces_workers:
            pytest.skip("this plan does not replace a worker that dies")


class ResultsContract(_Plan):
    """The results are those of the built-in map, in its order."""

    @_examples
    @given(st.data())
    def test_results_are_those_of_map(self, data: st.DataObject) -> None:
        """Values, types and order are those of map, whatever the input and the chunks."""
        given_ = data.draw(_inputs())
        chunks = data.draw(_chunks(len(given_)))
        tag = object.__name__

        def fn(*row: Any) -> Any:
            return (tag, *row)

        expected = list(map(fn, *given_.iterables()))
        assert repr(parmap.pmap(fn, *given_.iterables(), chunks=chunks)) == repr(expected)

    @_examples
    @given(st.data())
    def test_starmap_is_that_of_itertools(self, data: st.DataObject) -> None:
        """Starmap spreads tuples, lists and other rows, of unequal lengths, as itertools does."""
        rows = data.draw(
            st.lists(st.lists(st.integers(), max_size=3) | st.tuples(st.integers(), st.text()))
        )
        chunks = data.draw(_chunks(len(rows)))
        # The policy's cost is a function of an element's arguments: here of one row.
        expected = list(itertools.starmap(lambda *row: row, rows))
        assert parmap.starmap(lambda *row: row, iter(rows), chunks=chunks) == expected

    @_examples
    @given(st.data())
    def test_every_plan_ends_a_call_as_the_sequential_one(self, data: st.DataObject) -> None:
        """The same call ends the same here and on the plan "sequential", failing or not."""
        case = data.draw(_failures())
        errors = data.draw(st.sampled_from(["raise", "group"]))
        retries = data.draw(st.integers(0, 1))

        def call() -> list[int]:
            options: Any = {"errors": errors, "retries": retries, "chunks": case.chunks}
            return parmap.pmap(_failing(case.bad), range(case.count), **options)

        here = _ending(call)
        with parmap.plan("sequential"):
            # Where it ran stands in no part of what is compared but the notes, which are not.
            assert _ending(call) == here

    @pytest.mark.parametrize("empty", [[], (), range(0), iter(()), {}, np.zeros(0), ""], ids=repr)
    def test_nothing_in_nothing_out(self, empty: Any) -> None:
        """An empty input gives an empty list, with any options."""
        assert parmap.pmap(abs, empty) == []
        assert parmap.pmap(abs, empty, chunks="static", errors="group", retries=2) == []
        assert parmap.pmap(abs, empty, chunks=parmap.Guided(shuffle=True), errors="return") == []
        assert parmap.starmap(pow, empty, timeout=_LONG) == []
        assert list(parmap.imap(abs, empty)) == []
        assert parmap.pmap(pow, [1, 2, 3], empty) == []

    def test_large_arrays_come_through_whole(self) -> None:
        """Arrays of megabytes, contiguous or not, go there and come back as they were."""
        whole = np.arange(600_000, dtype=np.float64).reshape(600, 1000)
        given_ = [whole, whole[::2], whole.T, whole[:, 5], np.asfortranarray(whole), whole[:0]]
        results: list[Any] = parmap.pmap(lambda x: (x + 1, x.sum()), given_, chunks=2)
        for x, (shifted, total) in zip(given_, results, strict=True):
            assert np.array_equal(shifted, x + 1)
            assert total == x.sum()

    def test_results_can_be_written_to(self) -> None:
        """A result belongs to the caller, who may change it."""
        result = parmap.pmap(lambda n: np.zeros(n), [10, 100_000])  # noqa: PLW0108
        for x in result:
            np.add(x, 1, out=x)
            assert x.all()

    def test_many_callers_share_a_session(self) -> None:
        """Calls made from several threads at once do not mix up."""
        context = contextvars.copy_context

        def caller(factor: int) -> list[int]:
            return parmap.pmap(lambda x: factor * x, range(200), chunks=7)

        with ThreadPoolExecutor(4) as callers:
            futures = [callers.submit(context().run, caller, factor) for factor in range(8)]
        expected = [[factor * x for x in range(200)] for factor in range(8)]
        assert [future.result() for future in futures] == expected

    def test_elements_run_at_the_same_time(self, tmp_path: Path) -> None:
        """With two workers or more, two elements that wait for each other both end."""
        self.need_same_host()
        self.need_two_workers()
        # Opening a FIFO waits until the other end is opened, too.
        fifo = os.fspath(tmp_path / "fifo")
        os.mkfifo(fifo)

        def fn(mode: str) -> str:
            with open(fifo, mode):
                return mode

        assert parmap.pmap(fn, ["r", "w"], chunks=1) == ["r", "w"]


class FailuresContract(_Plan):
    """A failing element fails alone, with its own error."""

    @_examples
    @given(_failures())
    def test_raises_what_map_meets_first(self, case: _Failures) -> None:
        """The error of the first element in the input's order is raised, however many fail."""
        first = min(case.bad)
        expected = _error(first, first)
        with pytest.raises(type(expected)) as caught:
            parmap.pmap(_failing(case.bad), range(case.count), chunks=case.chunks)
        assert type(caught.value) is type(expected)
        assert caught.value.args == expected.args

    def test_the_error_says_which_element_it_was(self) -> None:
        """A note names element and label; the traceback shows the line in the function."""
        with pytest.raises(ValueError, match="element 4") as caught:
            parmap.pmap(_failing([4]), range(9), label="fits", chunks=3)
        (note,) = caught.value.__notes__
        assert "element 4 of fits" in note
        shown = "".join(traceback.format_exception(caught.value))
        assert "raise _error(x, x)" in shown
        assert note in shown

    @_examples
    @given(_failures())
    def test_failures_stand_in_their_places(self, case: _Failures) -> None:
        """With errors="return" there is a Failure for each failing element, and nowhere else."""
        results: list[Any] = parmap.pmap(
            _failing(case.bad),
            range(case.count),
            errors="return",
            chunks=case.chunks,
            label="this",
        )
        assert len(results) == case.count
        for i, result in enumerate(results):
            if i not in case.bad:
                assert result == 2 * i
                continue
            assert isinstance(result, Failure)
            assert (result.index, result.label) == (i, "this")
            assert repr(result.error) == repr(_error(i, i))
            assert "raise _error" in result.traceback
            assert result.host
            assert result.pid > 0
            with pytest.raises(type(result.error)):
                result.reraise()

    @_examples
    @given(_failures())
    def test_a_group_holds_all_failures_and_all_results(self, case: _Failures) -> None:
        """With errors="group" all elements run, and one group carries errors and results."""
        with pytest.raises(FailureGroup) as caught:
            parmap.pmap(_failing(case.bad), range(case.count), errors="group", chunks=case.chunks)
        group = caught.value
        expected = [repr(_error(i, i)) for i in sorted(case.bad)]
        assert [repr(error) for error in group.exceptions] == expected
        assert all(
            f"element {i}" in error.__notes__[-1]
            for i, error in zip(sorted(case.bad), group.exceptions, strict=True)
        )
        kept = [2 * i for i in range(case.count) if i not in case.bad]
        assert [x for x in group.results if not isinstance(x, Failure)] == kept

    def test_without_failures_there_is_no_group(self) -> None:
        """With errors="group" and no failure, the results are returned."""
        assert parmap.pmap(abs, [-1, 2], errors="group") == [1, 2]

    @pytest.mark.parametrize("chunks", [1, 4, "auto"])
    def test_a_retried_element_may_succeed(self, tmp_path: Path, chunks: Any) -> None:
        """An element that fails twice succeeds with two retries; no other runs again."""
        self.need_same_host()

        def fn(x: int) -> int:
            with open(tmp_path / str(x), "a") as attempts:
                attempts.write("x")
                attempts.flush()
                if x % 3 == 0 and attempts.tell() <= 2:
                    raise OSError(x)
            return x

        assert parmap.pmap(fn, range(10), retries=2, chunks=chunks) == list(range(10))
        attempts = [len((tmp_path / str(x)).read_text()) for x in range(10)]
        assert attempts == [3 if x % 3 == 0 else 1 for x in range(10)]

    def test_retries_come_to_an_end(self, tmp_path: Path) -> None:
        """An element that always fails runs once, and once more for each retry."""
        self.need_same_host()

        def fn(x: int) -> int:
            with open(tmp_path / str(x), "a") as attempts:
                attempts.write("x")
            if x == 1:
                raise OSError(x)
            return x

        results: list[Any] = parmap.pmap(fn, range(3), retries=3, errors="return", chunks=3)
        assert [results[0], results[2]] == [0, 2]
        assert isinstance(results[1].error, OSError)
        assert (tmp_path / "1").read_text() == "xxxx"

    def test_an_element_that_takes_too_long_fails_alone(self) -> None:
        """It fails with TaskTimeout, a TimeoutError; the results of all others are kept."""
        # Where it can be stopped, it would sleep for ever; elsewhere it fails on its return.
        long = 3600.0 if self.plan.place().replaces_workers else 1.5

        def fn(x: int) -> int:
            if x == 2:
                time.sleep(long)
            return x

        results: list[Any] = parmap.pmap(fn, range(5), timeout=1.0, errors="return", chunks=3)
        failure = results.pop(2)
        assert results == [0, 1, 3, 4]
        assert failure.index == 2
        assert isinstance(failure.error, parmap.TaskTimeout)
        assert isinstance(failure.error, TimeoutError)
        assert "timeout=1" in str(failure.error)

    def test_elements_within_their_time_succeed(self) -> None:
        """A timeout that nobody reaches changes nothing."""
        assert parmap.pmap(abs, range(-5, 5), timeout=_LONG, chunks=3) == [
            *range(5, 0, -1),
            *range(5),
        ]

    def test_an_input_that_raises_midway(self) -> None:
        """The input's error is raised, as map does, if no element before it failed."""

        def broken() -> Iterator[int]:
            yield from range(7)
            raise LookupError("no more")

        for errors in ("raise", "return", "group"):
            with pytest.raises(LookupError, match="no more"):
                parmap.pmap(abs, broken(), errors=errors, chunks=2)
        with pytest.raises(LookupError, match="no more"):
            parmap.pmap(abs, broken(), chunks=parmap.Static(shuffle=True))
        with pytest.raises(type(_error(3, 3)), match="element 3"):
            parmap.pmap(_failing([3]), broken(), chunks=2)


class ErrorsContract(_Plan):
    """An error arrives as it was raised, whatever its class."""

    def raised(self, error: Callable[[], BaseException], **options: Any) -> BaseException:
        """Give the error that arrives when the second of three elements raises one."""
        results: list[Any] = parmap.pmap(
            _raiser(error), range(3), errors="return", chunks=3, **options
        )
        assert [results[0], results[2]] == [0, 2]
        assert isinstance(results[1], Failure)
        return results[1].error

    def test_a_constructor_with_other_arguments(self) -> None:
        """An error whose class wants other arguments than its args arrives whole."""
        error = self.raised(lambda: _Coded(7, reason="lost"))
        assert type(error) is _Coded
        assert error.code == 7
        assert error.args == ("lost (7)",)

    def test_a_constructor_that_changes_its_argument(self) -> None:
        """The message of an error is not changed on its way."""
        error = self.raised(lambda: _Prefixed("egg"))
        assert type(error) is _Prefixed
        assert error.args == ("bad: egg",)

    def test_attributes_that_cannot_travel(self) -> None:
        """An error that holds a lock arrives with all but the lock, where memory is not shared."""
        error = self.raised(lambda: _Locked("stuck"))
        assert type(error) is _Locked
        assert error.args == ("stuck",)
        assert error.kept == "stuck"
        assert hasattr(error, "lock") == self.shares_memory()

    def test_an_argument_that_cannot_travel(self) -> None:
        """An error whose argument is a lock keeps its type and shows the lock."""
        error = self.raised(lambda: ValueError("held", threading.Lock()))
        assert type(error) is ValueError
        assert error.args[0] == "held"
        assert "lock" in str(error.args[1])

    def test_a_local_class(self) -> None:
        """A class made inside a function is the same class when its error comes back."""

        class Local(Exception):  # noqa: N818
            pass

        assert type(self.raised(lambda: Local("here"))) is Local
        with pytest.raises(Local, match="here"):
            parmap.pmap(_raiser(lambda: Local("here")), range(3))

    def test_an_error_that_takes_no_notes(self) -> None:
        """An error that refuses new attributes is still the one that is raised."""
        assert self.raised(lambda: _Frozen(5)) == _Frozen(5)
        with pytest.raises(_Frozen) as caught:
            parmap.pmap(_raiser(lambda: _Frozen(5)), range(3))
        assert caught.value.code == 5

    def test_an_error_with_notes_and_a_cause(self) -> None:
        """The function's own notes stay, and the traceback shows the cause."""

        def fn(x: int) -> int:
            try:
                return 1 // x
            except ZeroDivisionError as cause:
                error = ValueError("no inverse")
                error.add_note("a note of mine")
                raise error from cause

        with pytest.raises(ValueError, match="no inverse") as caught:
            parmap.pmap(fn, [1, 0])
        assert caught.value.__notes__[0] == "a note of mine"
        assert "ZeroDivisionError" in "".join(traceback.format_exception(caught.value))

    def test_a_group_of_errors(self) -> None:
        """An ExceptionGroup arrives with its members."""
        error = self.raised(lambda: ExceptionGroup("two", [ValueError(1), KeyError(2)]))
        assert isinstance(error, ExceptionGroup)
        assert [repr(member) for member in error.exceptions] == ["ValueError(1)", "KeyError(2)"]

    def test_stop_iteration_does_not_end_the_call(self) -> None:
        """A function that raises StopIteration fails; it does not cut the results short."""
        for options in ({}, {"timeout": _LONG}, {"retries": 1}):
            error = self.raised(StopIteration, **options)
            assert isinstance(error, RuntimeError)
            assert "StopIteration" in str(error)

    def test_exits_are_failures(self) -> None:
        """An element that calls sys.exit fails; the program and its workers go on."""
        error = self.raised(lambda: SystemExit(5))
        assert isinstance(error, SystemExit)
        assert error.code == 5
        with pytest.raises(SystemExit):
            parmap.pmap(_raiser(lambda: SystemExit(5)), range(3))
        with pytest.raises(FailureGroup) as caught:
            parmap.pmap(_raiser(lambda: SystemExit(5)), range(3), errors="group")
        (exited,) = caught.value.exceptions
        assert isinstance(exited, parmap.TaskExited)
        assert "exit(5)" in str(exited)

    def test_errors_outside_of_exception(self) -> None:
        """An error that is no Exception fails its element like any other."""
        error = self.raised(lambda: _Unusual("odd"))
        assert type(error) is _Unusual
        assert error.args == ("odd",)

    @pytest.mark.parametrize("errors", ["raise", "return", "group"])
    @pytest.mark.parametrize("retries", [0, 2])
    def test_an_interrupt_in_a_task_ends_the_call(self, errors: Any, retries: int) -> None:
        """KeyboardInterrupt is no failure of an element: it ends the call, retried or not."""
        with pytest.raises(KeyboardInterrupt):
            parmap.pmap(
                _raiser(KeyboardInterrupt), range(9), errors=errors, retries=retries, chunks=2
            )


class LazinessContract(_Plan):
    """The iterator imap pulls input only as results are consumed."""

    @_examples
    @given(st.data())
    def test_imap_gives_what_map_gives(self, data: st.DataObject) -> None:
        """In order as map does; unordered the same results, in some order."""
        numbers = data.draw(st.lists(st.integers(), max_size=60))
        options: dict[str, Any] = {
            "chunks": data.draw(st.sampled_from(["auto", "dynamic"]) | st.integers(1, 70)),
            "window": data.draw(st.none() | st.integers(1, 30)),
        }
        expected = [-x for x in numbers]
        assert list(parmap.imap(operator.neg, iter(numbers), **options)) == expected
        unordered = parmap.imap(operator.neg, iter(numbers), ordered=False, **options)
        assert sorted(unordered) == sorted(expected)

    def test_the_input_may_be_endless(self) -> None:
        """As many results as are asked for, of an input without end."""
        squares = parmap.imap(lambda x, y: x * y, itertools.count(), itertools.count())
        assert list(itertools.islice(squares, 500)) == [x * x for x in range(500)]
        squares.close()  # type: ignore[attr-defined]

    @pytest.mark.parametrize("ordered", [True, False])
    @pytest.mark.parametrize("window", [1, 2, 7, 100])
    def test_the_window_is_kept(self, window: int, ordered: bool) -> None:  # noqa: FBT001
        """No more than `window` elements are ever pulled but not yet consumed."""
        consumed = 0
        excess = []

        def source() -> Iterator[int]:
            for x in range(300):
                if x + 1 - consumed > window:
                    excess.append((x, consumed))
                yield x

        results = parmap.imap(abs, source(), window=window, ordered=ordered)
        seen = []
        for x in results:
            consumed += 1
            seen.append(x)
        assert sorted(seen) == list(range(300))
        assert excess == []

    def test_nothing_runs_before_it_is_asked_for(self) -> None:
        """Making the iterator neither pulls nor calls."""
        pulled: list[int] = []
        results = parmap.imap(abs, map(pulled.append, range(5)))
        assert pulled == []
        results.close()  # type: ignore[attr-defined]
        assert pulled == []

    @pytest.mark.parametrize("ordered", [True, False])
    def test_closing_early_cancels_the_rest(self, ordered: bool) -> None:  # noqa: FBT001
        """After close nothing more is pulled or given, and the session is free again."""
        pulled: list[int] = []

        def source() -> Iterator[int]:
            for x in itertools.count():
                pulled.append(x)
                yield x

        results = parmap.imap(lambda x: x + 1, source(), window=40, ordered=ordered)
        assert next(results) >= 1
        results.close()  # type: ignore[attr-defined]
        before = len(pulled)
        assert list(results) == []
        assert parmap.pmap(abs, range(50)) == list(range(50))
        assert len(pulled) == before <= 41

    def test_an_input_that_raises_midway_gives_its_results_first(self) -> None:
        """All results of what came before the input's error are given, then the error."""

        def broken() -> Iterator[int]:
            yield from range(7)
            raise LookupError("no more")

        seen: list[int] = []
        with pytest.raises(LookupError, match="no more"):
            seen.extend(parmap.imap(abs, broken(), chunks=3))
        # list.extend keeps what came before the error.
        assert seen == list(range(7))

    @_examples
    @given(_failures())
    def test_an_error_comes_after_the_results_before_it(self, case: _Failures) -> None:
        """The results of all elements before the failing one are given, then its error."""
        seen: list[int] = []
        first = min(case.bad)
        with pytest.raises(type(_error(first, first)), match=f"element {first}"):
            seen.extend(parmap.imap(_failing(case.bad), range(case.count), chunks=case.chunks))
        assert seen == [2 * x for x in range(first)]

    def test_unordered_results_do_not_wait_for_slow_ones(self, tmp_path: Path) -> None:
        """With two workers or more, an element that is stuck holds up nobody else's result."""
        self.need_same_host()
        self.need_two_workers()
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)

        def fn(x: int) -> int:
            if x == 0:
                fifo.read_bytes()  # waits until the test opens the other end
            return x

        results = parmap.imap(fn, range(4), ordered=False, chunks=1)
        # One worker waits, so the three others all come from the rest.
        assert sorted(itertools.islice(results, 3)) == [1, 2, 3]
        fifo.write_bytes(b"go")
        assert list(results) == [0]


class FuturesContract(_Plan):
    """What submit gives is a future of the standard library."""

    def test_result_and_keywords(self) -> None:
        """The future has the call's result; keywords reach the function."""
        assert parmap.submit(pow, 2, 10).result(_LONG) == 1024
        assert parmap.submit(int, "ff", base=16).result(_LONG) == 255
        assert parmap.submit(sorted, [2, 3, 1], reverse=True).result(_LONG) == [3, 2, 1]
        assert self.session.submit(math.sqrt, 4).result(_LONG) == 2.0

    def test_the_exception_is_the_calls_own(self) -> None:
        """The future has what the function raised, with the line that raised it."""
        error = parmap.submit(_failing([5]), 5).exception(_LONG)
        assert repr(error) == repr(_error(5, 5))
        assert "raise _error" in "".join(traceback.format_exception(error))
        exited = parmap.submit(sys.exit, 4).exception(_LONG)
        assert isinstance(exited, SystemExit)

    def test_many_with_as_completed(self) -> None:
        """as_completed gives each future once, done."""
        futures = {parmap.submit(operator.neg, x): x for x in range(40)}
        seen = {futures[future]: future.result() for future in as_completed(futures, _LONG)}
        assert seen == {x: -x for x in range(40)}

    def test_cancelled_futures_wake_those_who_wait(self) -> None:
        """However many can be cancelled: all end, each as a result or as cancelled."""
        futures = [parmap.submit(operator.neg, x) for x in range(40)]
        cancelled = [future.cancel() for future in futures]
        assert wait(futures, _LONG).not_done == set()
        assert set(as_completed(futures, _LONG)) == set(futures)
        for x, future in enumerate(futures):
            if cancelled[x]:
                with pytest.raises(CancelledError):
                    future.result()
            else:
                assert future.result() == -x

    def test_futures_can_be_awaited(self) -> None:
        """Asyncio waits for them as for its own."""

        async def main() -> list[int]:
            futures = [parmap.submit(operator.neg, x) for x in range(10)]
            return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

        assert asyncio.run(main()) == [-x for x in range(10)]

    def test_callbacks_may_submit(self) -> None:
        """A future's callback may submit the next call."""
        later: list[Any] = []
        called = threading.Event()

        def follow(future: Any) -> None:
            later.append(self.session.submit(operator.neg, future.result()))
            called.set()

        parmap.submit(abs, -3).add_done_callback(follow)
        assert called.wait(_LONG)
        assert later[0].result(_LONG) == -3


class TravelContract(_Plan):
    """Any function can be sent; what cannot travel is named."""

    @pytest.mark.parametrize("kind", list(_functions()))
    def test_functions_of_every_kind(self, kind: str) -> None:
        """A function of any kind gives what it gives here."""
        fn = _functions()[kind]
        assert parmap.pmap(fn, range(5), chunks=2) == [0, 3, 6, 9, 12]
        assert parmap.submit(fn, 4).result(_LONG) == 12

    def test_an_argument_that_cannot_travel(self) -> None:
        """A lock as an element fails alone, and the error names it; in one memory it is fine."""
        given_ = [1, threading.Lock(), 3]
        results: list[Any] = parmap.pmap(
            lambda x: type(x).__name__, given_, errors="return", chunks=3
        )
        assert [results[0], results[2]] == ["int", "int"]
        if self.shares_memory():
            assert results[1] == "lock"
            return
        assert results[1].index == 1
        assert isinstance(results[1].error, parmap.SerializationError)
        assert "_thread.lock" in str(results[1].error)
        with pytest.raises(parmap.SerializationError, match=r"_thread\.lock"):
            parmap.submit(repr, threading.Lock()).result(_LONG)

    def test_a_function_that_cannot_travel(self) -> None:
        """The error names the path to what the function holds; in one memory it is fine."""
        lock = threading.Lock()

        def fn(x: int) -> int:
            with lock:
                return x

        if self.shares_memory():
            assert parmap.pmap(fn, range(3)) == [0, 1, 2]
            return
        with pytest.raises(parmap.SerializationError, match=r"fn\.__closure__\['lock'\]"):
            parmap.pmap(fn, range(3))
        with pytest.raises(parmap.SerializationError, match=r"fn\.__closure__\['lock'\]"):
            parmap.submit(fn, 1).result(_LONG)

    def test_a_result_that_cannot_travel(self) -> None:
        """A result that holds a lock fails alone, and the error names the path to it."""

        def fn(x: int) -> Any:
            return {"held": [threading.Lock()]} if x == 1 else x

        results: list[Any] = parmap.pmap(fn, range(3), errors="return", chunks=3)
        assert [results[0], results[2]] == [0, 2]
        if self.shares_memory():
            assert "held" in results[1]
            return
        assert isinstance(results[1].error, parmap.SerializationError)
        assert "result['held'][0]" in str(results[1].error)
        with pytest.raises(parmap.SerializationError, match="result"):
            parmap.submit(fn, 1).result(_LONG)

    def test_what_cannot_be_read_again(self) -> None:
        """An element or result that fails to be unpickled fails alone, where it travels."""
        if self.shares_memory():
            pytest.skip("nothing is pickled on this plan")
        results: list[Any] = parmap.pmap(lambda x: x, [1, _Trap(), 3], errors="return", chunks=3)
        assert [results[0], results[2]] == [1, 3]
        assert isinstance(results[1].error, parmap.SerializationError)
        assert "sprung" in str(results[1].error)
        results = parmap.pmap(
            lambda x: _Trap() if x == 2 else x, [1, 2, 3], errors="return", chunks=3
        )
        assert [results[0], results[2]] == [1, 3]
        assert isinstance(results[1].error, parmap.SerializationError)

    def test_tasks_run_the_rest_of_the_plan(self) -> None:
        """Inside a task the nested plans are in force; without any, "sequential"."""
        nested = self.plan.nested
        inside = str(parmap.plan(list(nested))) if nested else "sequential"
        assert set(parmap.pmap(lambda _: str(parmap.current_plan()), range(4))) == {inside}
        assert parmap.submit(lambda: str(parmap.current_plan())).result(_LONG) == inside

    def test_calls_inside_of_tasks(self) -> None:
        """A task may itself call pmap and imap, and its errors come through."""

        def inner(y: int) -> float:
            return 1 / y

        def outer(x: int) -> float:
            return sum(parmap.pmap(inner, range(1, x))) + sum(parmap.imap(inner, range(1, x)))

        expected = [2 * sum(1 / y for y in range(1, x)) for x in range(6)]
        assert parmap.pmap(outer, range(6), chunks=2) == expected
        with pytest.raises(ZeroDivisionError) as caught:
            parmap.pmap(lambda x: parmap.pmap(inner, range(x)), [0, 3])
        assert ["element 0" in note for note in caught.value.__notes__] == [True, False]
        assert "element 1" in caught.value.__notes__[1]


class _Trap:
    """Can be pickled, but not read again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_spring, ())


def _spring() -> NoReturn:
    raise ValueError("sprung")


class DeathsContract(_Plan):
    """Where workers are replaced, a death costs the element that caused it, and no other."""

    @pytest.mark.parametrize(
        ("die", "exitcode"),
        [(_exit_at_once, 3), (_fault, -signal.SIGSEGV), (_be_killed, -signal.SIGKILL)],
        ids=["exit", "fault", "kill"],
    )
    def test_a_death_costs_one_element(self, die: Callable[[], None], exitcode: int) -> None:
        """Only the element that ends its worker fails, with the way that it ended."""
        self.need_replacement()

        def fn(x: int) -> int:
            if x == 7:
                die()
            return x

        results: list[Any] = parmap.pmap(fn, range(12), errors="return", chunks=5)
        failure = results.pop(7)
        assert results == [x for x in range(12) if x != 7]
        assert failure.index == 7
        assert isinstance(failure.error, parmap.WorkerDied)
        assert failure.error.exitcode == exitcode
        assert failure.error.pid == failure.pid
        with pytest.raises(parmap.WorkerDied, match=str(failure.error.signal or exitcode)):
            parmap.pmap(fn, range(12))

    def test_a_fault_shows_its_last_words(self) -> None:
        """The error of a segmentation fault shows the Python stack at the fault."""
        self.need_replacement()
        error = parmap.submit(_fault).exception(_LONG)
        assert isinstance(error, parmap.WorkerDied)
        assert error.signal == "SIGSEGV"
        assert "string_at" in str(error)

    def test_an_innocent_death_is_run_again(self, tmp_path: Path) -> None:
        """An element whose worker is killed once, from outside it seems, succeeds after all."""
        self.need_replacement()
        self.need_same_host()
        mark = tmp_path / "mark"

        def fn(x: int) -> int:
            if x == 3 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return x

        assert parmap.pmap(fn, range(8), chunks=4) == list(range(8))

    def test_every_worker_may_die(self) -> None:
        """Many deaths in one call cost as many elements."""
        self.need_replacement()

        def fn(x: int) -> int:
            if x % 5 == 0:
                os._exit(1)
            return x

        results: list[Any] = parmap.pmap(fn, range(20), errors="return")
        dead = [x for x, result in enumerate(results) if isinstance(result, Failure)]
        assert dead == [0, 5, 10, 15]

    def test_deaths_are_retried(self, tmp_path: Path) -> None:
        """An element that ends its worker thrice succeeds, given retries enough."""
        self.need_replacement()
        self.need_same_host()

        def fn(x: int) -> int:
            with open(tmp_path / str(x), "a") as attempts:
                attempts.write("x")
                attempts.flush()
                if x == 1 and attempts.tell() <= 3:
                    os._exit(1)
            return x

        assert parmap.pmap(fn, range(3), retries=2) == [0, 1, 2]


class PlanContract(
    ResultsContract,
    FailuresContract,
    ErrorsContract,
    LazinessContract,
    FuturesContract,
    TravelContract,
    DeathsContract,
):
    """All that a plan promises: derive a test class from it, and set `plan`.

    One session is open for the whole class, and after each test it must still work. Tests
    that need what a plan does not offer, such as a second worker, are skipped and say why.

    Attributes
    ----------
    plan : Plan
        The plan to test. A class that can make it only when it runs does so in
        ``setup_class``, and then calls that of this class.

    Examples
    --------
    In a file that pytest collects:

    >>> import parmap
    >>> from parmap.testing import PlanContract
    >>> class TestThreads(PlanContract):
    ...     plan = parmap.plan("threads", workers=3)
    """
