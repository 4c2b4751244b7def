"""What becomes of tasks that run, and that nobody waits for any more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

import parmap
from parmap.testing.material import LONG, Contract

__all__ = ["NeighboursContract"]


class NeighboursContract(Contract):
    """Where workers are the plan's own, a task that nobody waits for holds up nobody."""

    def need_freeing(self) -> None:
        """Leave out a test where a task cannot be ended, or sees no files of this machine."""
        if not self.session.traits.frees:
            pytest.skip("a task of this plan that runs cannot be stopped")
        self.need_same_host()

    def test_a_call_does_not_wait_for_the_neighbour_of_a_failure(self, tmp_path: Path) -> None:
        """An element fails while its neighbour runs, and would run for ever: the next call runs."""
        self.need_freeing()
        self.need_two_workers()
        wait = _waiting(tmp_path, ["neighbour"])

        def fn(x: int) -> str:
            if x == 1:
                return wait("neighbour")
            (tmp_path / "neighbour").read_bytes()  # until it runs
            raise LookupError(x)

        with pytest.raises(LookupError):
            parmap.pmap(fn, range(2), chunks=1)
        assert parmap.pmap(abs, range(-4, 0), chunks=1) == [4, 3, 2, 1]
        self._be_whole(tmp_path)

    def test_a_call_does_not_wait_for_what_was_cancelled(self, tmp_path: Path) -> None:
        """All workers run what would run for ever, and is cancelled: the next call runs."""
        self.need_freeing()
        names = [f"task {number}" for number in range(self.session.workers)]
        wait = _waiting(tmp_path, names)
        futures = [self.session.submit(wait, name) for name in names]
        for name in names:
            (tmp_path / name).read_bytes()  # until it runs
        last = self.session.submit(abs, -3)
        for future in futures:
            assert future.cancel()
        # Also what was waiting behind them.
        assert last.result(LONG) == 3  # noqa: PLR2004
        assert parmap.pmap(abs, range(-4, 0), chunks=1) == [4, 3, 2, 1]
        self._be_whole(tmp_path)

    def _be_whole(self, folder: Path) -> None:
        """Let go what still waits, and call until all workers are back, for the next test."""
        with contextlib.suppress(OSError):  # nobody does
            os.close(os.open(folder / "never", os.O_WRONLY | os.O_NONBLOCK))
        while self.session.workers < self.whole:
            self.session.map(abs, range(4))

    whole: ClassVar[int] = 1

    @classmethod
    def setup_class(cls) -> None:
        """Count the workers."""
        super().setup_class()
        cls.whole = cls.session.workers


def _waiting(folder: Path, names: list[str]) -> Callable[[str], str]:
    """Make a function that lets a reader of a pipe go on, and then waits for ever."""
    for name in ("never", *names):
        os.mkfifo(folder / name)

    def wait(name: str) -> str:
        (folder / name).write_text("it runs")
        return (folder / "never").read_text()  # nobody writes

    return wait
