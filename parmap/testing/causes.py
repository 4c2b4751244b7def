"""What an error refers to, and what it holds, is seen as a plain loop shows it."""

# ruff: noqa: N818 - the names say it

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any, Self

import pytest

import parmap
from parmap.errors import RemoteTraceback
from parmap.failures import FailureGroup
from parmap.testing.material import LONG, Coded, Contract, Locked, Prefixed

__all__ = ["CausesContract"]


class _Connection:
    """Of a library: most of it could travel, but for a lock."""

    def __init__(self) -> None:
        self.host, self.lock = "db1", threading.Lock()


class _Unreachable(Exception):
    def __init__(self, connection: _Connection) -> None:
        super().__init__("unreachable")
        self.connection = connection

    def __str__(self) -> str:
        return f"{self.connection.host} is unreachable"


class _Hung(Exception):
    """What it says needs what it cannot take along."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __str__(self) -> str:
        return f"hung, and locked: {self.lock.locked()}"

    def __repr__(self) -> str:
        return f"<hung: {self.lock.locked()}>"


class _Liar(Exception):
    """Its pickle gives another error of its class."""

    def __init__(self, code: int = 0) -> None:
        super().__init__("lied")
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Liar, ())


class _Refuser(Exception):
    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(code)
        self.why = why

    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("not me")


class _Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__("slotted")
        self.code = code


class _Selfish(Exception):
    """Refers to itself."""

    def __init__(self, *, code: int) -> None:
        self.me, self.code = self, code


class _Missing(OSError):
    """Has fields that only its base class's constructor sets."""

    def __init__(self, path: str, *, lock: object) -> None:
        super().__init__(2, "no such file", path)
        self.lock = lock


class _Batch(ExceptionGroup[Exception]):
    """A group with a constructor of its own."""

    code: int

    def __new__(cls, errors: list[Exception], code: int) -> Self:
        self = super().__new__(cls, "batch", errors)
        self.code = code
        return self

    def __init__(self, errors: list[Exception], code: int) -> None:
        pass


class _Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


_NOTHING: dict[str, int] = {}


def _caused() -> None:
    try:
        try:
            _NOTHING["key"]
        except KeyError as error:
            raise Coded(7, reason="lost") from error
    except Coded as error:
        error.add_note("a note")
        raise ValueError("top") from error


def _in_context() -> None:
    try:
        _lock_up()
    except Locked:
        raise Prefixed("egg")  # noqa: B904 - the context is what is tested


def _lock_up() -> None:
    raise Locked("stuck")


def _without_context() -> None:
    try:
        _NOTHING["key"]
    except KeyError:
        raise ValueError("top") from None


def _grouped() -> None:
    errors: list[Exception] = []
    for raise_one in (_caused, _in_context, _without_context):
        try:
            raise_one()
        except Exception as error:  # noqa: BLE001 - whatever it is
            errors.append(error)
    nested = ExceptionGroup("inner", errors[1:])
    raise _Batch([errors[0], nested], 5) from errors[0]


_RAISING: dict[str, Callable[[], None]] = {
    "a cause": _caused,
    "a context": _in_context,
    "no context": _without_context,
    "a group": _grouped,
}


def _seen(error: BaseException | None) -> Any:
    """Describe an error and all that it refers to, but for tracebacks of workers."""
    if error is None or isinstance(error, RemoteTraceback):
        return None
    notes = [note for note in getattr(error, "__notes__", []) if "parmap" not in note]
    members = getattr(error, "exceptions", ())
    refers = _seen(error.__cause__), _seen(error.__context__)
    code = getattr(error, "code", None)
    words = error.args if not members else ()
    return type(error), words, code, notes, refers, [_seen(member) for member in members]


def _suppresses(error: BaseException | None) -> list[bool]:
    """Tell, all the way down, whether contexts are hidden."""
    if error is None or isinstance(error, RemoteTraceback):
        return []
    return [error.__suppress_context__, *_suppresses(error.__cause__ or error.__context__)]


def _raised_by(call: Callable[[], Any]) -> BaseException:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - it is what was asked for
        return error
    raise AssertionError("nothing was raised")


class CausesContract(Contract):
    """An error is seen with its causes and its words."""

    def calls(self, fn: Callable[[Any], Any]) -> dict[str, Callable[[], BaseException]]:
        """Give the ways by which an error comes to the caller."""

        def returned() -> BaseException:
            failure: Any = parmap.pmap(fn, [0], errors="return")[0]
            return failure.error  # type: ignore[no-any-return]

        def grouped() -> BaseException:
            group = _raised_by(lambda: parmap.pmap(fn, [0], errors="group"))
            assert isinstance(group, FailureGroup)
            return group.exceptions[0]

        return {
            "raise": lambda: _raised_by(lambda: parmap.pmap(fn, [0])),
            "return": returned,
            "group": grouped,
            "submit": lambda: _raised_by(lambda: parmap.submit(fn, 0).result(LONG)),
            "compute": lambda: _raised_by(lambda: parmap.compute(parmap.delayed(fn)(0))),
        }

    @pytest.mark.parametrize("kind", list(_RAISING))
    def test_what_an_error_refers_to(self, kind: str) -> None:
        """Cause, context, notes and members are those that the plain call shows."""
        expected = _raised_by(_RAISING[kind])
        for way, call in self.calls(lambda _: _RAISING[kind]()).items():
            error = call()
            assert _seen(error) == _seen(expected), way
            if kind != "no context":  # there the worker's traceback is the cause
                assert _suppresses(error) == _suppresses(expected), way

    @pytest.mark.parametrize("kind", list(_RAISING))
    def test_the_worker_s_traceback_is_beneath_the_causes(self, kind: str) -> None:
        """What Python prints shows the line that raised, on every plan."""
        for way, call in self.calls(lambda _: _RAISING[kind]()).items():
            error: BaseException | None = call()
            shown = "".join(traceback.format_exception(error))
            assert f"in {_RAISING[kind].__name__}" in shown, way
            if self.shares_memory():
                continue
            while error is not None and not isinstance(error, RemoteTraceback):
                hidden = error.__suppress_context__
                error = error.__cause__ or (None if hidden else error.__context__)
            assert error is not None, way
            assert f"in {_RAISING[kind].__name__}" in str(error)

    def test_a_call_inside_an_except_block(self) -> None:
        """The error keeps what it refers to, though another one is being handled."""
        try:
            _caused()
        except ValueError:
            error = _raised_by(lambda: parmap.pmap(lambda _: _in_context(), [0]))
        assert (type(error), type(error.__context__)) == (Prefixed, Locked)
        assert "in _in_context" in "".join(traceback.format_exception(error))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: _Unreachable(_Connection()),
            _Hung,
            lambda: _Liar(7),
            lambda: _Refuser(7, why="so"),
            lambda: _Slotted(7),
            lambda: _Selfish(code=7),
            lambda: _Missing("/there", lock=threading.Lock()),
            lambda: _Missing("/there", lock=None),
        ],
        ids=["part", "method", "liar", "refuser", "slots", "selfish", "oserror", "plain oserror"],
    )
    def test_what_an_error_says_and_holds(self, make: Callable[[], Exception]) -> None:
        """It can be printed as there, and has all but what cannot travel."""

        def fn(_: int) -> None:
            raise make()

        expected = make()
        for way, call in self.calls(fn).items():
            error = call()
            assert isinstance(error, type(expected)), way
            assert (str(error), error.args) == (str(expected), expected.args), way
            for name in ("code", "why", "errno", "filename", "strerror"):
                assert getattr(error, name, None) == getattr(expected, name, None), way
        if isinstance(expected, _Selfish):
            assert error.me is error  # type: ignore[attr-defined]

    def test_a_placeholder_shows_what_could_not_travel(self) -> None:
        """An attribute that is left behind is shown, and says so when it is used."""

        def fn(_: int) -> None:
            error = ValueError("refused")
            error.lock = threading.Lock()  # type: ignore[attr-defined]
            raise error

        failure: Any = parmap.pmap(fn, [0], errors="return")[0]
        there = failure.error.lock
        assert "_thread.lock" in f"{there!r}"
        assert "_thread.lock" in str(there)
        if self.shares_memory():
            assert there.acquire()
            return
        with pytest.raises(AttributeError, match=r"_thread\.lock.* could not travel"):
            there.acquire()

    def test_an_error_that_cannot_be_printed_anywhere(self) -> None:
        """It is raised, and told of, like any other."""

        def fn(_: int) -> None:
            raise _Mute(7)

        for way, call in self.calls(fn).items():
            error = call()
            assert (type(error), error.args) == (_Mute, (7,)), way
        failure: Any = parmap.pmap(fn, [0], errors="return")[0]
        assert "_Mute" in repr(failure)

    def test_a_large_error(self) -> None:
        """An error that holds an array of 64 MB arrives with it."""

        def fn(_: int) -> None:
            import numpy as np

            error = ValueError("large")
            error.data = np.arange(8_000_000)  # type: ignore[attr-defined]
            raise error

        failure: Any = parmap.pmap(fn, [0], errors="return")[0]
        assert failure.error.data[-1] == 8_000_000 - 1
        assert len(failure.traceback) < 10_000  # noqa: PLR2004
