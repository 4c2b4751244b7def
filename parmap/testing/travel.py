"""What travels to and from the workers."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import threading
from typing import Any, NoReturn

import pytest

import parmap
from parmap.testing.material import LONG, Contract, functions

__all__ = ["TravelContract"]


class _Trap:
    """Can be pickled, but not read again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_spring, ())


def _spring() -> NoReturn:
    raise ValueError("sprung")


class TravelContract(Contract):
    """Any function can be sent; what cannot travel is named."""

    @pytest.mark.parametrize("kind", list(functions()))
    def test_functions_of_every_kind(self, kind: str) -> None:
        """A function of any kind gives what it gives here."""
        fn = functions()[kind]
        assert parmap.pmap(fn, range(5), chunks=2) == [0, 3, 6, 9, 12]
        assert parmap.submit(fn, 4).result(LONG) == 12

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
            parmap.submit(repr, threading.Lock()).result(LONG)

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
            parmap.submit(fn, 1).result(LONG)

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
            parmap.submit(fn, 1).result(LONG)

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
        assert parmap.submit(lambda: str(parmap.current_plan())).result(LONG) == inside

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
