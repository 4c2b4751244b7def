"""What the tests of the contract are made of: functions, errors, inputs, chunks."""

# ruff: noqa: D102, D103, PLR2004 - the names say it; the numbers are what should come out

from __future__ import annotations

import array
import collections
import ctypes
import functools
import operator
import os
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import parmap
from parmap.failures import FailureGroup

__all__ = [
    "CALLS",
    "FACTOR",
    "KINDS",
    "LONG",
    "Coded",
    "Contract",
    "FailingInput",
    "Frozen",
    "Input",
    "Locked",
    "Make",
    "Prefixed",
    "Scale",
    "Unusual",
    "an_error",
    "be_killed",
    "chunk_options",
    "ending",
    "examples",
    "exit_at_once",
    "failing",
    "failures_of_some",
    "fault",
    "functions",
    "inputs",
    "length_of_repr",
    "raiser",
    "scaled",
]

# Each example makes calls on real workers, so there are few. A first one may wait for them
# to start: no deadline. The tests are inherited, so one runs in many classes: that is meant.
examples = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)

# For what cannot be seen to hang: long enough for a loaded machine, never waited for.
LONG = 60.0

FACTOR = 3

Make = Callable[[], Iterable[Any]]


def scaled(x: Any) -> Any:
    return FACTOR * x


class Scale:
    """A callable object, and one with a method to bind."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: Any) -> Any:
        return self.factor * x

    def method(self, x: Any) -> Any:
        return self.factor * x


def functions() -> dict[str, Callable[[Any], Any]]:
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
        "a bound method": Scale(factor).method,
        "a callable object": Scale(factor),
        "a bound method of a builtin": factor.__mul__,
        "a function that uses a global": scaled,
    }


class Coded(Exception):  # noqa: N818
    """An error whose constructor takes other arguments than its args."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


class Prefixed(Exception):  # noqa: N818
    """An error whose constructor accepts its own args, and changes them again."""

    def __init__(self, text: str) -> None:
        super().__init__(f"bad: {text}")


class Locked(Exception):  # noqa: N818
    """An error that holds what cannot travel."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.kept = text
        self.lock = threading.Lock()


@dataclass(frozen=True)
class Frozen(Exception):  # noqa: N818
    """An error on which nothing can be set: no note, no cause."""

    code: int


class Unusual(BaseException):
    """An error outside of Exception."""


def an_error(kind: int, index: int) -> Exception:
    kinds: list[Callable[..., Exception]] = [ValueError, KeyError, ZeroDivisionError, OSError]
    return kinds[kind % len(kinds)](index, f"element {index}")


def failing(bad: Iterable[int]) -> Callable[[int], int]:
    """Make a function that fails for some numbers, with various errors."""
    some = frozenset(bad)

    def fn(x: int) -> int:
        if x in some:
            raise an_error(x, x)
        return 2 * x

    return fn


def raiser(error: Callable[[], BaseException]) -> Callable[[int], int]:
    """Make a function that raises a new error for the element 1, and gives the others back."""

    def fn(x: int) -> int:
        if x == 1:
            raise error()
        return x

    return fn


def exit_at_once() -> None:
    os._exit(3)


def fault() -> None:
    ctypes.string_at(0)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# The ways to call a function on each element of a list.
CALLS: dict[str, Callable[[Callable[[Any], Any], list[Any]], list[Any]]] = {
    "pmap": lambda fn, xs: parmap.pmap(fn, xs, chunks=2),
    "starmap": lambda fn, xs: parmap.starmap(fn, [(x,) for x in xs]),
    "imap": lambda fn, xs: list(parmap.imap(fn, iter(xs))),
    # By a function of that parameter: the grid gives it by name.
    "pgrid": lambda fn, xs: list(parmap.pgrid(lambda x: fn(x), {"x": xs}).nested()),  # noqa: PLW0108
    "compute": lambda fn, xs: list(parmap.compute([parmap.delayed(fn)(x) for x in xs])),
    "submit": lambda fn, xs: [parmap.submit(fn, x).result(LONG) for x in xs],
    "timeout": lambda fn, xs: parmap.pmap(fn, xs, timeout=LONG),
    "careful": lambda fn, xs: parmap.pmap(fn, xs, retries=1),
}


KINDS: dict[str, Callable[[list[int]], Iterable[Any]]] = {
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
class Input:
    """Iterables to map over, made anew for each call, for some can be read only once."""

    kinds: tuple[str, ...]
    numbers: tuple[tuple[int, ...], ...]

    def iterables(self) -> list[Iterable[Any]]:
        return [KINDS[kind](list(xs)) for kind, xs in zip(self.kinds, self.numbers, strict=True)]

    def __len__(self) -> int:
        return min(len(list(iterable)) for iterable in self.iterables())


@st.composite
def inputs(draw: st.DrawFn) -> Input:
    numbers = st.lists(st.integers(-999, 999), max_size=60).map(tuple)
    columns = draw(st.lists(numbers, min_size=1, max_size=3))
    kinds = [draw(st.sampled_from(sorted(KINDS))) for _ in columns]
    return Input(tuple(kinds), tuple(columns))


def length_of_repr(*row: Any) -> float:
    return len(repr(row))


@st.composite
def chunk_options(draw: st.DrawFn, count: int) -> Any:
    """Draw any value of ``chunks=`` that fits a call of `count` elements."""
    words = st.sampled_from(["auto", "static", "dynamic", "guided"])
    costs = st.lists(st.floats(0, 9), min_size=count, max_size=count)
    order: dict[str, Any] = draw(
        st.one_of(
            st.just({}),
            st.builds(lambda seed: {"shuffle": seed}, st.booleans() | st.integers(0, 9)),
            st.builds(lambda cost: {"cost": cost}, st.just(length_of_repr) | costs),
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
class FailingInput:
    """A number of elements, those of them that fail, and how they are cut."""

    count: int
    bad: frozenset[int]
    chunks: Any


@st.composite
def failures_of_some(draw: st.DrawFn) -> FailingInput:
    count = draw(st.integers(1, 60))
    bad = draw(st.frozensets(st.integers(0, count - 1), min_size=1, max_size=8))
    return FailingInput(count, bad, draw(chunk_options(count)))


def ending(call: Callable[[], Any]) -> tuple[Any, ...]:
    """Describe how a call ends, so that two ends can be compared: values, types, and errors."""
    try:
        return ("returned", repr(call()))
    except FailureGroup as group:
        return ("raised", type(group), repr(group.results), group.message, len(group.exceptions))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other plan must raise it
        return ("raised", type(error), error.args)


class Contract:
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
        return self.session.traits.shares_memory

    def need_same_host(self) -> None:
        """Leave out a test whose tasks meet through files, where workers are elsewhere."""
        if not self.session.traits.same_host:
            pytest.skip("the workers of this plan may not see the files of this machine")

    def need_two_workers(self) -> None:
        """Leave out a test in which two tasks must run at once, where one worker runs all."""
        if self.session.workers < 2:
            pytest.skip("this plan has one worker")

    def need_replacement(self) -> None:
        """Leave out a test that ends workers, where nobody replaces them."""
        if not self.session.traits.replaces_workers:
            pytest.skip("this plan does not replace a worker that dies")
