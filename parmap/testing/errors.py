"""Errors come through as they are."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

import parmap
from parmap.failures import Failure, FailureGroup
from parmap.testing.material import LONG, Coded, Contract, Frozen, Locked, Prefixed, Unusual, raiser

__all__ = ["ErrorsContract"]


class ErrorsContract(Contract):
    """An error arrives as it was raised, whatever its class."""

    def raised(self, error: Callable[[], BaseException], **options: Any) -> BaseException:
        """Give the error that arrives when the second of three elements raises one."""
        results: list[Any] = parmap.pmap(
            raiser(error), range(3), errors="return", chunks=3, **options
        )
        assert [results[0], results[2]] == [0, 2]
        assert isinstance(results[1], Failure)
        return results[1].error

    def test_a_constructor_with_other_arguments(self) -> None:
        """An error whose class wants other arguments than its args arrives whole."""
        error = self.raised(lambda: Coded(7, reason="lost"))
        assert type(error) is Coded
        assert error.code == 7
        assert error.args == ("lost (7)",)

    def test_a_constructor_that_changes_its_argument(self) -> None:
        """The message of an error is not changed on its way."""
        error = self.raised(lambda: Prefixed("egg"))
        assert type(error) is Prefixed
        assert error.args == ("bad: egg",)

    def test_attributes_that_cannot_travel(self) -> None:
        """An error that holds a lock arrives with all but the lock, for which something stands."""
        error = self.raised(lambda: Locked("stuck"))
        assert type(error) is Locked
        assert error.args == ("stuck",)
        assert error.kept == "stuck"
        assert "lock" in repr(error.lock)
        assert hasattr(error.lock, "acquire") == self.shares_memory()

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
            parmap.pmap(raiser(lambda: Local("here")), range(3))

    def test_an_error_that_takes_no_notes(self) -> None:
        """An error that refuses new attributes is still the one that is raised."""
        assert self.raised(lambda: Frozen(5)) == Frozen(5)
        with pytest.raises(Frozen) as caught:
            parmap.pmap(raiser(lambda: Frozen(5)), range(3))
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
        for options in ({}, {"timeout": LONG}, {"retries": 1}):
            error = self.raised(StopIteration, **options)
            assert isinstance(error, RuntimeError)
            assert "StopIteration" in str(error)

    def test_exits_are_failures(self) -> None:
        """An element that calls sys.exit fails; the program and its workers go on."""
        error = self.raised(lambda: SystemExit(5))
        assert isinstance(error, SystemExit)
        assert error.code == 5
        with pytest.raises(SystemExit):
            parmap.pmap(raiser(lambda: SystemExit(5)), range(3))
        with pytest.raises(FailureGroup) as caught:
            parmap.pmap(raiser(lambda: SystemExit(5)), range(3), errors="group")
        (exited,) = caught.value.exceptions
        assert isinstance(exited, parmap.TaskExited)
        assert "exit(5)" in str(exited)

    def test_errors_outside_of_exception(self) -> None:
        """An error that is no Exception fails its element like any other."""
        error = self.raised(lambda: Unusual("odd"))
        assert type(error) is Unusual
        assert error.args == ("odd",)

    @pytest.mark.parametrize("errors", ["raise", "return", "group"])
    @pytest.mark.parametrize("retries", [0, 2])
    def test_an_interrupt_in_a_task_ends_the_call(self, errors: Any, retries: int) -> None:
        """KeyboardInterrupt is no failure of an element: it ends the call, retried or not."""
        with pytest.raises(KeyboardInterrupt):
            parmap.pmap(
                raiser(KeyboardInterrupt), range(9), errors=errors, retries=retries, chunks=2
            )
