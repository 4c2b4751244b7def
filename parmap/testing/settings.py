"""What the script has set: its tasks see it, as a loop would, and workers are then as before."""

from __future__ import annotations

import contextlib
import decimal
import importlib
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parmap
from parmap.engine import script_settings
from parmap.testing.material import CALLS, LONG, Contract, be_killed, ending

__all__ = ["SettingsContract"]

_NAME = "CONTRACT_OF_PLANS"
_LOGGER = "parmap_contract.settings"


def _divided(x: int) -> float:
    return float(np.float64(1) / np.float64(x))


def _third(x: int) -> str:
    return str(decimal.Decimal(1) / (x + 3))


def _warned(x: int) -> float:
    try:
        warnings.warn(f"element {x}", RuntimeWarning, stacklevel=1)
    except RuntimeWarning:
        return math.inf
    return x


def _warned_uncaught(x: int) -> int:
    if x == 1:
        warnings.warn("element 1", RuntimeWarning, stacklevel=1)
    return x


def _variable(name: str) -> str | None:
    return os.environ.get(name)


def _directory(_: int) -> str:
    return os.getcwd()


def _hash(meeting: str, mode: str) -> tuple[int, int]:
    with open(meeting, mode):  # each waits for the other
        return os.getpid(), hash("parmap")


def _imported(name: str) -> Any:
    return importlib.import_module(name).number(0)


def _hour(_: int) -> int:
    return time.localtime(0).tm_hour


def _depth(x: int) -> int:
    return 0 if x == 0 else 1 + _depth(x - 1)


def _levels(_: int) -> tuple[int, int, bool]:
    logger = logging.getLogger(_LOGGER)
    return logger.level, logging.getLogger().level, logger.isEnabledFor(logging.DEBUG)


def _killed_or_divided(x: int) -> float:
    if x < 0:
        be_killed()
    return _divided(x)


def _own_environment(name: str) -> str | None:
    before = os.environ.get(name)
    os.environ[name] = "a task's own"
    return before


@contextlib.contextmanager
def _recursion_limit(limit: int) -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(limit)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class SettingsContract(Contract):
    """Tasks see what the script has set when the call begins."""

    def need_settings(self) -> None:
        """Leave out a test of what is a process's own, where workers' processes are not ours."""
        traits = self.session.traits
        if not (traits.exclusive or traits.shares_memory or traits.inside):
            pytest.skip("the workers of this plan may run several tasks in one process")

    def same(self, fn: Callable[[Any], Any], xs: Any) -> None:
        """Compare with the built-in map."""
        assert ending(lambda: parmap.pmap(fn, xs, chunks=1)) == ending(lambda: list(map(fn, xs)))

    @pytest.mark.parametrize("call", CALLS)
    def test_numpy_raises_as_the_script_says(self, call: str) -> None:
        """In each way to call."""
        with np.errstate(divide="ignore"):
            assert CALLS[call](_divided, [1, 0]) == [1.0, math.inf]
        with np.errstate(all="raise"):
            assert CALLS[call](_divided, [1, 2]) == [1.0, 0.5]
            with pytest.raises(FloatingPointError):
                CALLS[call](_divided, [1, 0])

    @pytest.mark.parametrize("call", CALLS)
    def test_decimal_has_the_script_s_precision(self, call: str) -> None:
        """Also its traps; and not the flags, which say what has happened."""
        with decimal.localcontext() as context:
            context.prec, context.rounding = 40, decimal.ROUND_UP
            assert CALLS[call](_third, [0, 1, 2]) == list(map(_third, [0, 1, 2]))
            context.traps[decimal.Inexact] = True
            with pytest.raises(decimal.Inexact):
                CALLS[call](_third, [0, 1, 2])
        assert parmap.pmap(_third, range(2)) == list(map(_third, range(2)))

    @pytest.mark.parametrize("action", ["error", "ignore"])
    def test_warnings_are_errors_where_the_script_says_so(self, action: Any) -> None:
        """One that the function catches, it catches; and else it is the element's."""
        self.need_settings()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings(action, "element", RuntimeWarning)
            self.same(_warned, range(4))
            self.same(_warned_uncaught, range(4))

    def test_a_warning_of_the_script_s_own_class_is_an_error(self) -> None:
        """The filter's class is the one that the function warns of."""
        self.need_settings()

        class OwnWarning(UserWarning):
            pass

        def fn(x: int) -> str:
            try:
                warnings.warn("own", OwnWarning, stacklevel=1)
            except OwnWarning as error:
                return f"{x} {error}"
            return ""

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", OwnWarning)
            self.same(fn, range(4))

    def test_the_environment_is_as_the_script_has_changed_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Set, changed and deleted, while the workers run; what a task changes stays in it."""
        self.need_settings()
        parmap.pmap(abs, range(4))
        for text in ("one", "two", "", "ä\udcff"):
            monkeypatch.setenv(_NAME, text)
            self.same(_variable, [_NAME] * 4)
        monkeypatch.delenv(_NAME)
        self.same(_variable, [_NAME] * 4)
        monkeypatch.setenv(_NAME, "three")
        if not self.shares_memory() and not self.session.traits.inside:
            assert parmap.pmap(_own_environment, [_NAME] * 4, chunks=1) == ["three"] * 4

    def test_what_was_there_at_the_start_can_be_deleted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Such as HOME."""
        self.need_settings()
        monkeypatch.delenv("HOME", raising=False)
        self.same(_variable, ["HOME"] * 3)
        monkeypatch.undo()
        if self.session.traits.same_host:
            self.same(_variable, ["HOME"] * 3)

    def test_the_directory_is_the_script_s(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also when it has come back from another."""
        self.need_settings()
        self.need_same_host()
        parmap.pmap(abs, range(4))
        monkeypatch.chdir(tmp_path)
        self.same(_directory, range(4))
        monkeypatch.undo()
        self.same(_directory, range(4))

    def test_modules_are_found_where_the_script_looks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In folders that it adds while the workers run."""
        self.need_settings()
        self.need_same_host()
        parmap.pmap(abs, range(4))
        for number in range(2):  # of which one is imported with the function
            name = f"contract_module_{os.getpid()}_{type(self).__name__}_{number}"
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / f"{name}.py").write_text("def number(x):\n    return x + 7\n")
            monkeypatch.syspath_prepend(folder)
            if number:
                assert parmap.pmap(importlib.import_module(name).number, range(3)) == [7, 8, 9]
            else:
                assert parmap.pmap(_imported, [name] * 3) == [7] * 3

    def test_the_time_zone_is_the_script_s(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And is put back."""
        self.need_settings()
        if not hasattr(time, "tzset"):
            pytest.skip("this system cannot change its time zone")
        try:
            for zone in ("XYZ-11", "UTC0"):
                monkeypatch.setenv("TZ", zone)
                time.tzset()
                self.same(_hour, range(3))
        finally:
            monkeypatch.undo()
            time.tzset()
        if self.session.traits.same_host:
            self.same(_hour, range(3))

    def test_the_recursion_limit_is_the_script_s(self) -> None:
        """Higher than Python's own."""
        self.need_settings()
        with _recursion_limit(6_000):
            self.same(_depth, [10, 4_000])
        assert ending(lambda: parmap.pmap(_depth, [4_000]))[1] is RecursionError

    def test_levels_of_loggers_are_the_script_s(self) -> None:
        """Those that were set, that of the root, and what is disabled altogether."""
        self.need_settings()
        logger, root = logging.getLogger(_LOGGER), logging.getLogger()
        before = root.level
        try:
            self.same(_levels, range(2))
            logger.setLevel(logging.DEBUG)
            root.setLevel(logging.INFO)
            self.same(_levels, range(2))
            logging.disable(logging.CRITICAL)
            self.same(_levels, range(2))
            logging.disable(logging.NOTSET)
            logger.setLevel(logging.NOTSET)
            self.same(_levels, range(2))
        finally:
            logging.disable(logging.NOTSET)
            logger.setLevel(logging.NOTSET)
            root.setLevel(before)
        self.same(_levels, range(2))

    def test_many_loggers_are_no_burden(self) -> None:
        """Their levels are read when one has changed."""
        self.need_settings()
        loggers = [logging.getLogger(f"{_LOGGER}.{number}") for number in range(500)]
        try:
            self.same(_levels, range(2))
            loggers[7].setLevel(logging.DEBUG)
            fn = _level_of(loggers[7].name)
            assert parmap.pmap(fn, range(2)) == [logging.DEBUG] * 2
        finally:
            loggers[7].setLevel(logging.NOTSET)

    def test_scikit_learn_is_configured_as_in_the_script(self) -> None:
        """By `set_config`, and in a block."""
        sklearn = pytest.importorskip("sklearn")

        def config(_: int) -> Any:
            return sklearn.get_config()["assume_finite"], sklearn.get_config()["working_memory"]

        with sklearn.config_context(assume_finite=True, working_memory=7):
            self.same(config, range(3))
        self.same(config, range(3))

    def test_a_call_has_the_settings_of_its_beginning(self) -> None:
        """Though its results are asked for later."""
        if self.session.traits.same_thread:
            pytest.skip("tasks run as their results are asked for, in the context that asks")
        with decimal.localcontext() as context:
            context.prec = 4
            results = parmap.imap(_third, [0] * 30, chunks=1)
            assert next(results) == "0.3333"
        assert list(results) == ["0.3333"] * 29

    def test_workers_hash_strings_alike(self, tmp_path: Path) -> None:
        """So the order of a set of them does not depend on the worker."""
        self.need_two_workers()
        self.need_same_host()
        if not self.session.traits.exclusive:
            pytest.skip("this plan does not start the interpreters of its workers itself")
        meeting = os.fspath(tmp_path / "meeting")
        os.mkfifo(meeting)
        tasks = [self.session.submit(_hash, meeting, mode) for mode in "rw"]
        (pid, one), (other_pid, other) = [task.result(LONG) for task in tasks]
        assert (pid != other_pid, one) == (True, other)

    def test_settings_outlive_a_death(self) -> None:
        """The worker that replaces another has them, too."""
        self.need_replacement()
        with np.errstate(all="raise"):
            got: list[Any] = parmap.pmap(
                _killed_or_divided, [1, -1, 2, 0], errors="return", chunks=1
            )
        assert (got[0], got[2]) == (1.0, 0.5)
        errors = [type(got[place].error) for place in (1, 3)]
        assert errors == [parmap.WorkerDied, FloatingPointError]

    def test_a_setting_that_cannot_be_applied_is_named_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where others run tasks in the same process."""
        traits = self.session.traits
        if traits.exclusive or traits.shares_memory or traits.inside:
            pytest.skip("this plan applies all settings")
        monkeypatch.setattr(script_settings, "_said", set())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            monkeypatch.setenv(_NAME, "other")
            for _ in range(2):
                assert parmap.pmap(abs, [-1, -2]) == [1, 2]
        texts = [str(one.message) for one in caught if "environment var" in str(one.message)]
        assert len(texts) == 1


def _level_of(name: str) -> Callable[[int], int]:
    return lambda _: logging.getLogger(name).level
