"""What a worker has for itself: what is computed once in it, and what ``setup=`` has made."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parmap
from parmap.testing.code import script
from parmap.testing.material import Contract
from parmap.worker import context

__all__ = ["StateContract"]

_SETUP = """
import threading

model = lock = None

def made(weight):
    global lock
    lock = threading.Lock()
    return {"weight": weight}

def load():
    global model, late
    model, late = made(3), "late"

def predict(x):
    with lock:
        return model["weight"] * x, late

def evaluated(x):
    return eval("model['weight'] * x")
"""


def _here() -> object:
    """Return what tells this worker from the others."""
    thread = threading.get_ident() if context.threaded.get() else None
    return os.getpid(), thread


class StateContract(Contract):
    """Each worker has its own, and no element's result depends on which came first."""

    def test_a_result_is_computed_once_in_each_worker(self) -> None:
        """Also over several calls of the session, and of functions that are sent anew."""

        @parmap.once_per_worker
        def made() -> bytes:
            return os.urandom(8)

        pairs = [
            pair for _ in range(3) for pair in parmap.pmap(lambda _: (_here(), made()), [0] * 8)
        ]
        pairs += [parmap.submit(lambda: (_here(), made())).result() for _ in range(3)]
        of_each: dict[object, set[bytes]] = {}
        for where, value in pairs:
            of_each.setdefault(where, set()).add(value)
        assert [len(values) for values in of_each.values()] == [1] * len(of_each)

    def test_threads_of_a_process_may_share_a_result(self) -> None:
        """Then it is computed once for all of them."""

        @parmap.once_per_worker(per_process=True)
        def made() -> bytes:
            return os.urandom(8)

        pairs = parmap.pmap(lambda _: (os.getpid(), made()), [0] * 8, chunks=1)
        assert len(set(pairs)) == len({pid for pid, _ in pairs})

    def test_an_error_is_not_kept(self, tmp_path: Path) -> None:
        """The next call tries again."""
        self.need_same_host()
        there = tmp_path / "there"

        @parmap.once_per_worker
        def made() -> str:
            return there.read_text()

        with pytest.raises(FileNotFoundError):
            parmap.pmap(lambda _: made(), [0])
        there.write_text("now")
        assert parmap.pmap(lambda _: made(), [0] * 4) == ["now"] * 4

    def test_a_function_that_is_defined_anew(self) -> None:
        """As in a notebook: other code is computed anew, the same code is not."""
        cell = """
import os, parmap

@parmap.once_per_worker
def made():
    return {}, os.urandom(8)

def value(_):
    return made()
"""
        found = []
        for number in (1, 1, 2):
            values = parmap.pmap(script(cell.format(number))["value"], [0] * 8)
            found.append({key for _, key in values})
            assert {one for one, _ in values} == {number}
        again = parmap.pmap(script(cell.format(2))["value"], [0] * 8)
        assert found[0].isdisjoint(found[2])
        if self.session.workers == 1:
            assert found[0] == found[1]
            assert {key for _, key in again} == found[2]

    def test_functions_that_capture_have_results_of_their_own(self) -> None:
        """Their code is the same, and what it captures is not."""

        def making(number: int) -> Any:
            @parmap.once_per_worker
            def made() -> int:
                return number

            return made

        one, two = making(1), making(2)
        assert parmap.pmap(lambda _: (one(), two()), [0] * 4) == [(1, 2)] * 4

    def test_random_numbers_do_not_depend_on_who_computes(self) -> None:
        """Each element draws what it would draw if the result were there before."""

        @parmap.once_per_worker
        def model() -> Any:
            return np.random.random(3).tolist()  # noqa: NPY002 - the global one

        def drawn(_: int) -> Any:
            return model(), np.random.random()  # noqa: NPY002

        def plain(_: int) -> float:
            return np.random.random()  # noqa: NPY002

        if self.session.traits.threaded or (
            self.shares_memory() and not self.session.traits.same_thread
        ):
            results = parmap.pmap(lambda _, rng: (len(model()), rng.random()), range(6), rng=7)
            with parmap.plan("sequential"):
                assert results == parmap.pmap(lambda _, rng: (3, rng.random()), range(6), rng=7)
            return
        if self.session.traits.noisy:
            pytest.skip("in these workers others draw from the global generators, too")
        results = parmap.pmap(drawn, range(6), rng=7, chunks=1)
        with parmap.plan("sequential"):
            assert [draw for _, draw in results] == parmap.pmap(plain, range(6), rng=7)
        assert [weights for weights, _ in results] == [results[0][0]] * 6  # in every worker

    def test_globals_that_setup_assigns(self) -> None:
        """They are the worker's own: functions find them there, and do not bring the caller's."""
        space = script(_SETUP)
        try:
            plan = self.plan.replace(setup=space["load"])
            with plan:
                if not self.shares_memory():
                    space["lock"] = threading.Lock()  # which cannot travel
                assert parmap.pmap(space["predict"], range(4)) == [
                    (3 * i, "late") for i in range(4)
                ]
                assert parmap.pmap(space["evaluated"], range(4)) == [0, 3, 6, 9]
                assert parmap.submit(space["predict"], 5).result() == (15, "late")
                assert parmap.pmap(lambda fn: fn(1), [space["predict"]]) == [(3, "late")]
        except parmap.PlanError as error:
            pytest.skip(f"this plan takes no setup=: {error}")
