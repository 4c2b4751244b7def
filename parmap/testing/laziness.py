"""What is lazy stays lazy."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parmap
from parmap.testing.material import (
    Contract,
    FailingInput,
    an_error,
    examples,
    failing,
    failures_of_some,
)

__all__ = ["LazinessContract"]

_MEGABYTE = 1_000_000


class _Image:
    """An object of the user's, which is not asked how large it is."""

    __slots__ = ("pixels",)

    def __init__(self) -> None:
        self.pixels = np.zeros(_MEGABYTE // 8)


_LARGE: dict[str, Callable[[int], Any]] = {
    "arrays": lambda _: np.zeros(_MEGABYTE // 8),
    "texts": lambda x: str(x % 10) * _MEGABYTE,
    "objects": lambda _: _Image(),
    "rows": lambda x: (x, {"pixels": [bytes(_MEGABYTE)]}),
    "results": lambda x: x,
    "both": lambda _: np.zeros(_MEGABYTE // 8),
}


class LazinessContract(Contract):
    """The iterator imap pulls input only as results are consumed."""

    @examples
    @given(st.data())
    def test_imap_gives_what_map_gives(self, data: st.DataObject) -> None:
        """In order as map does; unordered the same results, in some order."""
        numbers = data.draw(st.lists(st.integers(), max_size=60))
        options: dict[str, Any] = {
            "chunks": data.draw(st.sampled_from(["auto", "dynamic"]) | st.integers(1, 70)),
            "window": data.draw(st.none() | st.integers(1, 30)),
        }
        expected = [-x for x in numbers]
        assert list(parmap.imap(operator.neg, iter(numbers), **options)) == expected
        unordered = parmap.imap(operator.neg, iter(numbers), ordered=False, **options)
        assert sorted(unordered) == sorted(expected)

    def test_the_input_may_be_endless(self) -> None:
        """As many results as are asked for, of an input without end."""
        squares = parmap.imap(lambda x, y: x * y, itertools.count(), itertools.count())
        assert list(itertools.islice(squares, 500)) == [x * x for x in range(500)]
        squares.close()

    @pytest.mark.parametrize("ordered", [True, False])
    @pytest.mark.parametrize("window", [1, 2, 7, 100])
    def test_the_window_is_kept(self, window: int, ordered: bool) -> None:  # noqa: FBT001
        """No more than `window` elements are ever pulled but not yet consumed."""
        consumed = 0
        excess = []

        def source() -> Iterator[int]:
            for x in range(300):
                if x + 1 - consumed > window:
                    excess.append((x, consumed))
                yield x

        results = parmap.imap(abs, source(), window=window, ordered=ordered)
        seen = []
        for x in results:
            consumed += 1
            seen.append(x)
        assert sorted(seen) == list(range(300))
        assert excess == []

    def test_nothing_runs_before_it_is_asked_for(self) -> None:
        """Making the iterator neither pulls nor calls."""
        pulled: list[int] = []
        results = parmap.imap(abs, map(pulled.append, range(5)))
        assert pulled == []
        results.close()
        assert pulled == []

    @pytest.mark.parametrize("ordered", [True, False])
    @pytest.mark.parametrize("kind", ["arrays", "texts", "objects", "rows", "results", "both"])
    def test_large_elements_are_few(self, kind: str, ordered: bool) -> None:  # noqa: FBT001
        """By default 64 MB are ahead at most, of elements and results, whatever the chunks."""
        taken, ahead = 0, []

        def source() -> Iterator[Any]:
            for x in itertools.count(1):
                ahead.append(x - taken)
                yield _LARGE[kind](x)

        def fn(x: Any) -> Any:
            return np.zeros(_MEGABYTE // 8) if kind in ("results", "both") else type(x).__name__

        results = parmap.imap(fn, source(), chunks=200, ordered=ordered)
        for _ in itertools.islice(results, 70):
            taken += 1
        results.close()
        assert max(ahead) <= (32 if kind == "both" else 64)

    def test_a_window_of_ones_own_is_kept_whatever_elements_weigh(self) -> None:
        """Who gives a number knows the elements."""
        pulled: list[int] = []

        def source() -> Iterator[bytes]:
            for x in range(100):
                pulled.append(x)
                yield bytes(_MEGABYTE)

        results = parmap.imap(len, source(), chunks=100, window=200 * self.session.workers)
        assert next(results) == _MEGABYTE
        results.close()
        assert len(pulled) == 100

    @pytest.mark.parametrize("ordered", [True, False])
    def test_closing_early_cancels_the_rest(self, ordered: bool) -> None:  # noqa: FBT001
        """After close nothing more is pulled or given, and the session is free again."""
        pulled: list[int] = []

        def source() -> Iterator[int]:
            for x in itertools.count():
                pulled.append(x)
                yield x

        results = parmap.imap(lambda x: x + 1, source(), window=40, ordered=ordered)
        assert next(results) >= 1
        results.close()
        before = len(pulled)
        assert list(results) == []
        assert parmap.pmap(abs, range(50)) == list(range(50))
        assert len(pulled) == before <= 41

    def test_an_input_that_raises_midway_gives_its_results_first(self) -> None:
        """All results of what came before the input's error are given, then the error."""

        def broken() -> Iterator[int]:
            yield from range(7)
            raise LookupError("no more")

        seen: list[int] = []
        with pytest.raises(LookupError, match="no more"):
            seen.extend(parmap.imap(abs, broken(), chunks=3))
        # list.extend keeps what came before the error.
        assert seen == list(range(7))

    @examples
    @given(failures_of_some())
    def test_an_error_comes_after_the_results_before_it(self, case: FailingInput) -> None:
        """The results of all elements before the failing one are given, then its error."""
        seen: list[int] = []
        first = min(case.bad)
        with pytest.raises(type(an_error(first, first)), match=f"element {first}"):
            seen.extend(parmap.imap(failing(case.bad), range(case.count), chunks=case.chunks))
        assert seen == [2 * x for x in range(first)]

    def test_unordered_results_do_not_wait_for_slow_ones(self, tmp_path: Path) -> None:
        """With two workers or more, an element that is stuck holds up nobody else's result."""
        self.need_same_host()
        self.need_two_workers()
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)

        def fn(x: int) -> int:
            if x == 0:
                fifo.read_bytes()  # waits until the test opens the other end
            return x

        results = parmap.imap(fn, range(4), ordered=False, chunks=1)
        # One worker waits, so the three others all come from the rest.
        assert sorted(itertools.islice(results, 3)) == [1, 2, 3]
        fifo.write_bytes(b"go")
        assert list(results) == [0]
