"""Context variables that functions name: tasks see the values of the call's context."""

from __future__ import annotations

import contextlib
import decimal
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import parmap
from parmap.testing.material import CALLS, LONG, Contract, ending

__all__ = ["ContextVariablesContract"]

tenant: ContextVar[Any] = ContextVar("tenant", default="nobody")
unset: ContextVar[int] = ContextVar("unset")


def _tenant(_: int) -> Any:
    return tenant.get()


def _unset(_: int) -> Any:
    return unset.get("nothing")


class _Reader:
    """A callable object that reads a variable by way of a method, and of a function."""

    def __call__(self, x: int) -> Any:
        return self._read(x)

    def _read(self, x: int) -> Any:
        return _tenant(x)


def _third(x: int) -> str:
    return str(decimal.Decimal(1) / (x + 3))


@contextlib.contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


class ContextVariablesContract(Contract):
    """A context variable that a function names has the value that it has in the call's context."""

    def same(self, fn: Callable[[Any], Any], xs: Any) -> None:
        """Compare with the built-in map."""
        assert ending(lambda: parmap.pmap(fn, xs, chunks=1)) == ending(lambda: list(map(fn, xs)))

    @pytest.mark.parametrize("call", CALLS)
    def test_a_context_variable_has_the_script_s_value(self, call: str) -> None:
        """In each way to call, one after the other."""
        for value in ("mine", ["yours"], None):
            with _set(tenant, value):
                assert CALLS[call](_tenant, [1, 2, 3]) == [value] * 3
                assert CALLS[call](_Reader(), [1, 2]) == [value] * 2
        assert CALLS[call](_tenant, [1, 2]) == ["nobody"] * 2
        assert CALLS[call](_unset, [1, 2]) == ["nothing"] * 2
        with _set(unset, 3):
            assert CALLS[call](_unset, [1, 2]) == [3, 3]
        assert CALLS[call](_unset, [1, 2]) == ["nothing"] * 2

    def test_a_context_variable_of_a_function_s_own(self) -> None:
        """It travels by value, and so it may be an argument."""
        own: ContextVar[int] = ContextVar("own", default=1)
        other: ContextVar[int] = ContextVar("other")

        def fn(x: int) -> tuple[int, int]:
            return own.get() + x, other.get(x)

        self.same(fn, range(4))
        with _set(own, 10), _set(other, 5):
            self.same(fn, range(4))
            assert parmap.pmap(lambda variable: variable.get(), [own, other]) == [10, 5]
        self.same(fn, range(4))

    def test_calls_of_several_threads_have_their_own_values(self) -> None:
        """Their chunks alternate in the same workers."""
        got: dict[str, list[Any]] = {}
        both = threading.Barrier(2)

        def call(value: str) -> None:
            with _set(tenant, value), decimal.localcontext() as context:
                context.prec = 5 if value == "a" else 9
                both.wait(LONG)
                got[value] = self.session.map(lambda x: (tenant.get(), _third(x)), [0] * 40)

        threads = [threading.Thread(target=call, args=(value,)) for value in "ab"]
        for one in threads:
            one.start()
        for one in threads:
            one.join(LONG)
        assert got == {"a": [("a", "0.33333")] * 40, "b": [("b", "0.333333333")] * 40}

    def test_a_context_variable_whose_value_cannot_travel_is_named(self) -> None:
        """It is not the default."""
        with _set(tenant, threading.Lock()):
            if self.shares_memory():
                assert len(parmap.pmap(_tenant, range(2))) == 2  # noqa: PLR2004 - of two
            else:
                with pytest.raises(parmap.SerializationError, match="context variable 'tenant'"):
                    parmap.pmap(lambda _: tenant.get(), range(2))
            assert parmap.pmap(_unset, [1]) == ["nothing"]  # which does not name it

    def test_an_iterator_keeps_the_values_of_its_beginning(self) -> None:
        """Though its results are asked for later."""
        if self.session.traits.same_thread:
            pytest.skip("tasks run as their results are asked for, in the context that asks")
        with _set(tenant, "early"):
            results = parmap.imap(_tenant, [0] * 30, chunks=1)
            assert next(results) == "early"
        assert list(results) == ["early"] * 29
