"""Single calls, as futures."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import asyncio
import contextlib
import math
import operator
import sys
import threading
import traceback
from concurrent.futures import CancelledError, as_completed, wait
from queue import SimpleQueue
from typing import Any

import pytest

import parmap
from parmap.testing.material import LONG, Contract, an_error, failing

__all__ = ["FuturesContract"]


class FuturesContract(Contract):
    """What submit gives is a future of the standard library."""

    def test_result_and_keywords(self) -> None:
        """The future has the call's result; keywords reach the function."""
        assert parmap.submit(pow, 2, 10).result(LONG) == 1024
        assert parmap.submit(int, "ff", base=16).result(LONG) == 255
        assert parmap.submit(sorted, [2, 3, 1], reverse=True).result(LONG) == [3, 2, 1]
        assert self.session.submit(math.sqrt, 4).result(LONG) == 2.0

    def test_the_exception_is_the_calls_own(self) -> None:
        """The future has what the function raised, with the line that raised it."""
        error = parmap.submit(failing([5]), 5).exception(LONG)
        assert repr(error) == repr(an_error(5, 5))
        assert "raise an_error" in "".join(traceback.format_exception(error))
        exited = parmap.submit(sys.exit, 4).exception(LONG)
        assert isinstance(exited, SystemExit)

    def test_many_with_as_completed(self) -> None:
        """as_completed gives each future once, done."""
        futures = {parmap.submit(operator.neg, x): x for x in range(40)}
        seen = {futures[future]: future.result() for future in as_completed(futures, LONG)}
        assert seen == {x: -x for x in range(40)}

    def test_cancelled_futures_wake_those_who_wait(self) -> None:
        """However many can be cancelled: all end, each as a result or as cancelled."""
        futures = [parmap.submit(operator.neg, x) for x in range(40)]
        cancelled = [future.cancel() for future in futures]
        assert wait(futures, LONG).not_done == set()
        assert set(as_completed(futures, LONG)) == set(futures)
        for x, future in enumerate(futures):
            if cancelled[x]:
                with pytest.raises(CancelledError):
                    future.result()
            else:
                assert future.result() == -x

    def test_futures_can_be_awaited(self) -> None:
        """Asyncio waits for them as for its own."""

        async def main() -> list[int]:
            futures = [parmap.submit(operator.neg, x) for x in range(10)]
            return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

        assert asyncio.run(main()) == [-x for x in range(10)]

    def test_callbacks_may_submit(self) -> None:
        """A future's callback may submit the next call."""
        later: list[Any] = []
        called = threading.Event()

        def follow(future: Any) -> None:
            later.append(self.session.submit(operator.neg, future.result()))
            called.set()

        parmap.submit(abs, -3).add_done_callback(follow)
        assert called.wait(LONG)
        assert later[0].result(LONG) == -3

    def test_callbacks_may_make_calls_and_wait(self) -> None:
        """A callback may map, submit and wait: it never runs in a thread that must resolve that."""
        count = 2 * self.session.workers + 1
        came: SimpleQueue[Any] = SimpleQueue()

        def follow(future: Any) -> None:
            more = [self.session.submit(operator.neg, x) for x in range(3)]
            wait(more, LONG)
            values = [one.result() for one in as_completed(more[:1], LONG)]
            came.put((future.result(), self.session.map(operator.neg, [1, 2]), values))

        for x in range(count):
            self.session.submit(operator.neg, x).add_done_callback(follow)
        seen = sorted(came.get(timeout=LONG) for _ in range(count))
        assert seen == [(-x, [-1, -2], [0]) for x in reversed(range(count))]

    def test_callbacks_find_the_plan_where_they_were_added(self) -> None:
        """A call in a callback runs where one beside it would have run, whoever resolves it."""
        came: SimpleQueue[Any] = SimpleQueue()

        def follow(_: object) -> None:
            came.put((parmap.current_plan(), parmap.pmap(operator.neg, range(3))))

        parmap.submit(abs, -3).add_done_callback(follow)
        assert came.get(timeout=LONG) == (self.plan, [0, -1, -2])

    @pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
    def test_callbacks_that_raise_harm_nobody(
        self, kind: type[BaseException], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The next callback runs, the session goes on, and the error is logged, not lost."""
        came: SimpleQueue[Any] = SimpleQueue()
        started = threading.Event()

        def fail(_: object) -> None:
            started.set()
            raise kind("in a callback")

        future = self.session.submit(abs, -3)
        # If it is done, the callback is called here, where an interrupt is the caller's own.
        with contextlib.suppress(KeyboardInterrupt):
            future.add_done_callback(fail)
            future.add_done_callback(came.put)
            assert came.get(timeout=LONG) is future
            assert "in a callback" in caplog.text
        assert started.is_set()
        assert self.session.map(operator.neg, [1, 2]) == [-1, -2]

    def test_each_callback_runs_once(self) -> None:
        """However many are added, before the future is done and after."""
        came: SimpleQueue[Any] = SimpleQueue()
        future = self.session.submit(abs, -3)
        for x in range(20):
            future.add_done_callback(lambda _, x=x: came.put(x))  # type: ignore[misc]
        assert sorted(came.get(timeout=LONG) for _ in range(20)) == list(range(20))
        future.add_done_callback(came.put)
        assert came.get(timeout=LONG) is future
        assert came.empty()
