"""The results are those of the built-in map, in its order."""

from __future__ import annotations

import contextvars
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parmap
from parmap.testing.material import (
    LONG,
    Contract,
    chunk_options,
    ending,
    examples,
    failing,
    failures_of_some,
    inputs,
)

__all__ = ["ResultsContract"]


class ResultsContract(Contract):
    """The results are those of the built-in map, in its order."""

    @examples
    @given(st.data())
    def test_results_are_those_of_map(self, data: st.DataObject) -> None:
        """Values, types and order are those of map, whatever the input and the chunks."""
        given_ = data.draw(inputs())
        chunks = data.draw(chunk_options(len(given_)))
        tag = object.__name__

        def fn(*row: Any) -> Any:
            return (tag, *row)

        expected = list(map(fn, *given_.iterables()))
        assert repr(parmap.pmap(fn, *given_.iterables(), chunks=chunks)) == repr(expected)

    @examples
    @given(st.data())
    def test_starmap_is_that_of_itertools(self, data: st.DataObject) -> None:
        """Starmap spreads tuples, lists and other rows, of unequal lengths, as itertools does."""
        rows = data.draw(
            st.lists(st.lists(st.integers(), max_size=3) | st.tuples(st.integers(), st.text()))
        )
        chunks = data.draw(chunk_options(len(rows)))
        # The policy's cost is a function of an element's arguments: here of one row.
        expected = list(itertools.starmap(lambda *row: row, rows))
        assert parmap.starmap(lambda *row: row, iter(rows), chunks=chunks) == expected

    @examples
    @given(st.data())
    def test_every_plan_ends_a_call_as_the_sequential_one(self, data: st.DataObject) -> None:
        """The same call ends the same here and on the plan "sequential", failing or not."""
        case = data.draw(failures_of_some())
        errors = data.draw(st.sampled_from(["raise", "group"]))
        retries = data.draw(st.integers(0, 1))

        def call() -> list[int]:
            options: Any = {"errors": errors, "retries": retries, "chunks": case.chunks}
            return parmap.pmap(failing(case.bad), range(case.count), **options)

        here = ending(call)
        with parmap.plan("sequential"):
            # Where it ran stands in no part of what is compared but the notes, which are not.
            assert ending(call) == here

    @pytest.mark.parametrize(
        "empty", [[], (), range(0), iter(()), {}, np.zeros(0), ""], ids=lambda x: type(x).__name__
    )
    def test_nothing_in_nothing_out(self, empty: Any) -> None:
        """An empty input gives an empty list, with any options."""
        assert parmap.pmap(abs, empty) == []
        assert parmap.pmap(abs, empty, chunks="static", errors="group", retries=2) == []
        assert parmap.pmap(abs, empty, chunks=parmap.Guided(shuffle=True), errors="return") == []
        assert parmap.starmap(pow, empty, timeout=LONG) == []
        assert list(parmap.imap(abs, empty)) == []
        assert parmap.pmap(pow, [1, 2, 3], empty) == []

    def test_large_arrays_come_through_whole(self) -> None:
        """Arrays of megabytes, contiguous or not, go there and come back as they were."""
        whole = np.arange(600_000, dtype=np.float64).reshape(600, 1000)
        given_ = [whole, whole[::2], whole.T, whole[:, 5], np.asfortranarray(whole), whole[:0]]
        results: list[Any] = parmap.pmap(lambda x: (x + 1, x.sum()), given_, chunks=2)
        for x, (shifted, total) in zip(given_, results, strict=True):
            assert np.array_equal(shifted, x + 1)
            assert total == x.sum()

    def test_results_can_be_written_to(self) -> None:
        """A result belongs to the caller, who may change it."""
        result = parmap.pmap(lambda n: np.zeros(n), [10, 100_000])  # noqa: PLW0108
        for x in result:
            np.add(x, 1, out=x)
            assert x.all()

    def test_a_function_that_copies_what_it_changes(self) -> None:
        """One object may stand for several elements; who writes to it, writes to a copy.

        A function that writes to the element itself sees what other elements left there, on
        plans that share the caller's memory: no plan promises more than what is tested here.
        """
        row: list[int] = []
        array = np.zeros((4, 3))

        def longer(row: list[int]) -> int:
            row = [*row]
            row.append(1)
            return len(row)

        def raised(x: Any) -> Any:
            x = x.copy()
            x += 1
            return x.sum()

        for chunks in ("auto", 1, 2):
            assert parmap.pmap(longer, [row] * 4, chunks=chunks) == [1] * 4
            assert parmap.starmap(longer, [(row,)] * 4, chunks=chunks) == [1] * 4
            assert parmap.pmap(raised, array, chunks=chunks) == [3.0] * 4
            assert parmap.pmap(raised, [array[0]] * 4, chunks=chunks) == [3.0] * 4
        assert row == []
        assert not array.any()

    def test_many_callers_share_a_session(self) -> None:
        """Calls made from several threads at once do not mix up."""
        context = contextvars.copy_context

        def caller(factor: int) -> list[int]:
            return parmap.pmap(lambda x: factor * x, range(200), chunks=7)

        with ThreadPoolExecutor(4) as callers:
            futures = [callers.submit(context().run, caller, factor) for factor in range(8)]
        expected = [[factor * x for x in range(200)] for factor in range(8)]
        assert [future.result() for future in futures] == expected

    def test_elements_run_at_the_same_time(self, tmp_path: Path) -> None:
        """With two workers or more, two elements that wait for each other both end."""
        self.need_same_host()
        self.need_two_workers()
        # Opening a FIFO waits until the other end is opened, too.
        fifo = os.fspath(tmp_path / "fifo")
        os.mkfifo(fifo)

        def fn(mode: str) -> str:
            with open(fifo, mode):
                return mode

        assert parmap.pmap(fn, ["r", "w"], chunks=1) == ["r", "w"]
