"""Calls from other threads than the one that has opened the plan."""

from __future__ import annotations

import contextvars
import operator
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import parmap
from parmap.plans import current
from parmap.testing.material import LONG, Contract

__all__ = ["CallersContract"]


def _in_a_thread(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or raise what it raises, in a new thread."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            out.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG)
    value, error = out[0]  # or the thread waits for ever
    if error is not None:
        raise error
    return value


class CallersContract(Contract):
    """A call may come from any thread."""

    def test_a_thread_without_a_plan_uses_the_one_that_is_open(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its first call warns, and says what to do; later calls in the process do not."""
        monkeypatch.setattr(current, "_warned", set())

        def calls() -> list[Any]:
            plan = parmap.current_plan()
            mapped = parmap.pmap(operator.neg, range(9))
            single = parmap.submit(operator.neg, 3).result(LONG)
            return [plan, mapped, single, list(parmap.imap(operator.neg, range(3)))]

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            seen = [_in_a_thread(calls) for _ in range(2)]
        assert seen == [[self.plan, [-x for x in range(9)], -3, [0, -1, -2]]] * 2
        texts = [str(one.message) for one in caught if "no plan of its own" in str(one.message)]
        assert len(texts) == 1
        assert str(self.plan) in texts[0]
        assert "contextvars.copy_context().run" in texts[0]
        assert "parmap.set_plan" in texts[0]

    def test_a_thread_that_has_the_context_has_the_plan(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As the warning says; then it is silent."""
        monkeypatch.setattr(current, "_warned", set())
        here = contextvars.copy_context()

        def calls() -> tuple[parmap.Plan, list[int]]:
            return parmap.current_plan(), parmap.pmap(operator.neg, range(9))

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert _in_a_thread(lambda: here.run(calls)) == (self.plan, [-x for x in range(9)])

    def test_threads_of_tasks_may_make_calls_and_wait(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If all workers wait for such calls, these still run."""
        monkeypatch.setattr(current, "_warned", {"said"})

        def task(x: int) -> list[Any]:
            out: list[Any] = []

            def calls() -> None:
                out.append(parmap.pmap(operator.neg, range(x, x + 5), chunks=1))
                out.append(parmap.submit(operator.neg, x).result())
                out.append(list(parmap.imap(operator.neg, range(3))))

            thread = threading.Thread(target=calls, daemon=True)
            thread.start()
            thread.join(LONG)
            return out

        count = 2 * self.session.workers + 1
        assert parmap.pmap(task, range(count), chunks=1) == [
            [[-y for y in range(x, x + 5)], -x, [0, -1, -2]] for x in range(count)
        ]
