"""What becomes of elements that fail."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

import parmap
from parmap.failures import Failure, FailureGroup
from parmap.testing.material import (
    LONG,
    Contract,
    FailingInput,
    an_error,
    examples,
    failing,
    failures_of_some,
)

__all__ = ["FailuresContract"]


class FailuresContract(Contract):
    """A failing element fails alone, with its own error."""

    @examples
    @given(failures_of_some())
    def test_raises_what_map_meets_first(self, case: FailingInput) -> None:
        """The error of the first element in the input's order is raised, however many fail."""
        first = min(case.bad)
        expected = an_error(first, first)
        with pytest.raises(type(expected)) as caught:
            parmap.pmap(failing(case.bad), range(case.count), chunks=case.chunks)
        assert type(caught.value) is type(expected)
        assert caught.value.args == expected.args

    def test_the_error_says_which_element_it_was(self) -> None:
        """A note names element and label; the traceback shows the line in the function."""
        with pytest.raises(ValueError, match="element 4") as caught:
            parmap.pmap(failing([4]), range(9), label="fits", chunks=3)
        (note,) = caught.value.__notes__
        assert "element 4 of fits" in note
        shown = "".join(traceback.format_exception(caught.value))
        assert "raise an_error(x, x)" in shown
        assert note in shown

    @examples
    @given(failures_of_some())
    def test_failures_stand_in_their_places(self, case: FailingInput) -> None:
        """With errors="return" there is a Failure for each failing element, and nowhere else."""
        results: list[Any] = parmap.pmap(
            failing(case.bad),
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
            assert repr(result.error) == repr(an_error(i, i))
            assert "raise an_error" in result.traceback
            assert result.host
            assert result.pid > 0
            with pytest.raises(type(result.error)):
                result.reraise()

    @examples
    @given(failures_of_some())
    def test_a_group_holds_all_failures_and_all_results(self, case: FailingInput) -> None:
        """With errors="group" all elements run, and one group carries errors and results."""
        with pytest.raises(FailureGroup) as caught:
            parmap.pmap(failing(case.bad), range(case.count), errors="group", chunks=case.chunks)
        group = caught.value
        expected = [repr(an_error(i, i)) for i in sorted(case.bad)]
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
        facts = self.session.traits
        long = 3600.0 if facts.replaces_workers and facts.sees_deaths else 1.5

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
        assert parmap.pmap(abs, range(-5, 5), timeout=LONG, chunks=3) == [
            *range(5, 0, -1),
            *range(5),
        ]

    def test_elements_that_become_slow_have_their_time_each(self) -> None:
        """A timeout is of each element, though many of them together take longer."""

        def fn(x: int) -> int:
            time.sleep(0.02 * (x >= 63))
            return x

        assert parmap.pmap(fn, range(127), timeout=1.0, chunks=127) == [*range(127)]

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
        with pytest.raises(type(an_error(3, 3)), match="element 3"):
            parmap.pmap(failing([3]), broken(), chunks=2)
