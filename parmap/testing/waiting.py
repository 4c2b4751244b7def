"""Results that are waited for: in an event loop, and in several threads."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import parmap
from parmap.testing.material import LONG, Contract

__all__ = ["WaitingContract"]


def _run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine; fail, rather than hang, where it does not end."""
    return asyncio.run(asyncio.wait_for(main(), LONG))


class _Gate:
    """Where element 2 waits, in whatever process."""

    def __init__(self, folder: Path) -> None:
        self._paths = [str(folder / name) for name in ("begun", "go")]
        for path in self._paths:
            os.mkfifo(path)
        # Open both ways, so that to open them waits for nobody.
        self._begun, self._go = [os.open(path, os.O_RDWR) for path in self._paths]

    def fn(self, x: int) -> int:
        """Return the opposite number."""
        if x == 2:
            with open(self._paths[0], "wb", buffering=0) as file:
                file.write(b"!")
            with open(self._paths[1], "rb", buffering=0) as file:
                file.read(1)
        return -x

    def begun(self) -> None:
        """Wait until an element waits here."""
        os.read(self._begun, 1)

    def open(self, count: int = 1) -> None:
        """Let so many elements go."""
        os.write(self._go, b"!" * count)

    def close(self) -> None:
        """Remove the files."""
        # First of all: an element of a call that was closed may begin later, and would wait for
        # ever for somebody at the other end. So it fails, and nobody hears of it.
        for path in self._paths:
            os.unlink(path)
        os.close(self._begun)
        os.close(self._go)


class WaitingContract(Contract):
    """Whoever waits for a result can stop waiting, and nothing is lost."""

    @pytest.fixture
    def gate(self, tmp_path: Path) -> Iterator[_Gate]:
        """Give a gate."""
        gate = _Gate(tmp_path)
        yield gate
        gate.close()

    def need_a_free_loop(self) -> None:
        """Leave out a test in which the event loop runs on during an element."""
        if self.session.traits.same_thread:
            pytest.skip("elements of this plan run in the event loop's own thread")

    def test_async_for_gives_what_map_gives(self) -> None:
        """Of input at hand, and of an iterator."""

        async def main() -> list[list[int]]:
            inputs = [range(30), iter(range(30))]
            return [[x async for x in parmap.imap(abs, one, chunks=4)] for one in inputs]

        assert _run(main) == [list(range(30))] * 2

    @pytest.mark.parametrize("ordered", [True, False])
    @pytest.mark.parametrize("at_hand", [True, False])
    def test_a_cancelled_anext_loses_nothing(
        self,
        gate: _Gate,
        ordered: bool,  # noqa: FBT001
        at_hand: bool,  # noqa: FBT001
    ) -> None:
        """The next one gives the element that the cancelled one waited for."""
        self.need_a_free_loop()
        self.need_same_host()

        async def main() -> list[int]:
            data = range(2, 8) if at_hand else iter(range(2, 8))
            results = parmap.imap(gate.fn, data, chunks=1, window=1, ordered=ordered)
            waiting = asyncio.ensure_future(anext(results))
            await asyncio.to_thread(gate.begun)
            for _ in range(3):
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                waiting = asyncio.ensure_future(anext(results))
                await asyncio.sleep(0)
            gate.open()
            return [await waiting, *[x async for x in results]]

        assert _run(main) == [-2, -3, -4, -5, -6, -7]

    def test_another_thread_can_close_it(self, gate: _Gate) -> None:
        """The thread that waits finds the end of the results."""
        self.need_same_host()
        results = parmap.imap(gate.fn, range(2, 50), chunks=1)
        seen: list[Any] = []

        def consume() -> None:
            try:
                seen.append(list(results))
            except BaseException as error:  # noqa: BLE001 - told to the test
                seen.append(error)

        consumer = threading.Thread(target=consume)
        consumer.start()
        gate.begun()
        results.close()
        results.close()
        gate.open()
        consumer.join(LONG)
        assert seen == [[]]
        assert list(results) == []
        assert parmap.pmap(abs, [-1, -2]) == [1, 2]

    def test_cancelling_the_task_that_iterates_closes_the_map(
        self, gate: _Gate, tmp_path: Path
    ) -> None:
        """No other element begins; whoever reads on is told why there are no more."""
        self.need_a_free_loop()
        self.need_same_host()
        folder = tmp_path / "ran"
        folder.mkdir()

        def fn(x: int) -> int:
            (folder / str(x)).touch()
            return gate.fn(x)

        async def main() -> None:
            results = parmap.imap(fn, range(2, 200), chunks=1, window=8)

            async def read() -> list[int]:
                return [x async for x in results]

            task = asyncio.create_task(read())
            await asyncio.to_thread(gate.begun)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            gate.open()
            with pytest.raises(parmap.SessionClosed, match="cancelled"):
                await anext(results)
            assert [x async for x in results] == []

        _run(main)
        assert parmap.pmap(abs, [-1, -2]) == [1, 2]
        assert len(list(folder.iterdir())) <= 8

    def test_streams_that_wait_hold_no_threads(self, gate: _Gate) -> None:
        """However many wait at once, the event loop's own threads are free."""
        self.need_a_free_loop()
        self.need_same_host()
        count = 40

        async def main() -> list[list[int]]:
            async def read() -> list[int]:
                return [x async for x in parmap.imap(gate.fn, [2], chunks=1)]

            tasks = [asyncio.create_task(read()) for _ in range(count)]
            await asyncio.to_thread(gate.begun)
            # Each stream would take one of these threads.
            await asyncio.gather(*[asyncio.to_thread(abs, x) for x in range(count)])
            gate.open(count)
            return list(await asyncio.gather(*tasks))

        assert _run(main) == [[-2]] * count
