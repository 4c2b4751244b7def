"""What a death costs."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import parmap
from parmap.failures import Failure
from parmap.testing.material import LONG, Contract, be_killed, exit_at_once, fault

__all__ = ["DeathsContract"]


class DeathsContract(Contract):
    """Where workers are replaced, a death costs the element that caused it, and no other."""

    @pytest.mark.parametrize(
        ("die", "exitcode"),
        [(exit_at_once, 3), (fault, -signal.SIGSEGV), (be_killed, -signal.SIGKILL)],
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
        assert failure.error.pid == failure.pid
        known = [exitcode] if self.session.traits.sees_deaths else [exitcode, None]
        assert failure.error.exitcode in known
        with pytest.raises(parmap.WorkerDied) as caught:
            parmap.pmap(fn, range(12))
        assert caught.value.exitcode in known
        assert str(caught.value.signal or caught.value.exitcode or "is gone") in str(caught.value)

    def test_a_fault_shows_its_crash_report(self) -> None:
        """The error of a segmentation fault shows the Python stack at the fault."""
        self.need_replacement()
        if not self.session.traits.sees_deaths:
            pytest.skip("nobody reads the crash reports of this plan's workers")
        error = parmap.submit(fault).exception(LONG)
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
