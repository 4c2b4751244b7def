"""Iterables of every kind are read as the built-in map reads them."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import numpy as np
import pytest

import parmap
from parmap.testing.material import Contract

__all__ = ["IterablesContract"]

COUNT = 20


class Says:
    """An iterable that says to have some number of elements, and counts who asks for them.

    Parameters
    ----------
    says : object
        What its length is, or the error that it raises.
    """

    def __init__(self, says: Any) -> None:
        self.says, self.asked = says, 0

    def __iter__(self) -> Iterator[int]:
        self.asked += 1
        return iter(range(COUNT))

    def __len__(self) -> int:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says  # type: ignore[no-any-return]


class Hints(Says):
    """The same, of which only a hint is to be had."""

    __len__ = None  # type: ignore[assignment]

    def __length_hint__(self) -> int:
        return Says.__len__(self)


class Cursor:
    """As a database's: it gives its rows once, to whoever asks first."""

    def __init__(self) -> None:
        self.rows = iter(range(COUNT))

    def __iter__(self) -> Iterator[int]:
        return self.rows


class Bare:
    """Gives an iterator that is no iterable itself."""

    class _Rows:
        def __init__(self) -> None:
            self.next = 0

        def __next__(self) -> int:
            if self.next == COUNT:
                raise StopIteration
            self.next += 1
            return self.next - 1

    def __iter__(self) -> Any:
        return self._Rows()


class Old:
    """A sequence by the old protocol: it is asked for its items until there is none."""

    def __getitem__(self, place: int) -> int:
        if place >= COUNT:
            raise IndexError(place)
        return place


class Refuses:
    """Raises as soon as it is asked for an iterator."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __iter__(self) -> NoReturn:
        raise self.error


def _generator() -> Iterator[int]:
    yield from range(COUNT)


def _first(x: float, *_: float) -> float:
    return x


_LIES = (0, 2, 10**9, -3, "x", TypeError("unknown"), RuntimeError("closed"), OverflowError("much"))
_KINDS = {
    "a cursor": Cursor,
    "an iterator without __iter__": Bare,
    "items alone": Old,
    "a generator": _generator,
    "a dict": lambda: dict.fromkeys(range(COUNT)),
    "an iterator of a list": lambda: iter(list(range(COUNT))),
}
_CHUNKS = ("auto", "static", parmap.Guided(shuffle=True), parmap.Dynamic(cost=_first))
_NAMES = ("auto", "static", "shuffled", "costly first")
chunked = pytest.mark.parametrize("chunks", _CHUNKS, ids=_NAMES)


class IterablesContract(Contract):
    """Iterables of every kind are read as the built-in map reads them."""

    @chunked
    @pytest.mark.parametrize("kind", [Says, Hints])
    def test_a_length_may_lie(self, kind: type[Says], chunks: Any) -> None:
        """It may also raise. The iterable is asked for its elements, once, and all are there."""
        expected = list(range(COUNT))
        for says in _LIES:
            given = kind(says)
            assert parmap.pmap(abs, given, chunks=chunks) == expected, says
            assert given.asked == 1
            assert parmap.pmap(max, given, itertools.count(), chunks=chunks) == expected, says
            assert given.asked == 2
            try:
                results = parmap.imap(abs, kind(says), chunks=chunks)
            except ValueError as error:  # it needs a number, and none is to be had
                assert "no length" in str(error)  # noqa: PT017 - the call may also succeed
                continue
            assert list(results) == expected, says

    @chunked
    @pytest.mark.parametrize("kind", _KINDS)
    def test_what_can_be_read_once_is_read_once(self, kind: str, chunks: Any) -> None:
        """Whatever gives the elements, pmap, starmap and pgrid give what loops give."""
        make: Any = _KINDS[kind]
        expected = list(range(COUNT))
        assert parmap.pmap(abs, make(), chunks=chunks) == expected
        assert parmap.starmap(abs, zip(make(), strict=True), chunks=chunks) == expected
        axes = {"x": make(), "y": iter([100, 200])}
        points = [x + y for x in expected for y in (100, 200)]
        grid = parmap.pgrid(lambda x, y: x + y, axes, chunks=3)
        assert list(grid.values) == points

    @pytest.mark.parametrize("error", [LookupError("no"), TypeError("mine"), RuntimeError("x")])
    def test_an_iterable_that_refuses(self, error: Exception) -> None:
        """Its own error is raised, at once, and what is no iterable is named."""
        with pytest.raises(type(error), match=str(error.args[0])):
            parmap.pmap(abs, Refuses(error))
        with pytest.raises(type(error), match=str(error.args[0])):
            parmap.imap(pow, [1, 2], Refuses(error))
        with pytest.raises(TypeError, match="argument 2 after the function"):
            parmap.pmap(pow, [1, 2], 3)  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            parmap.pmap(abs, np.array(3))

    @pytest.mark.parametrize("chunks", ["auto", 1, 3, "static"])
    @pytest.mark.parametrize("sizes", [(3, 5), (5, 3), (4, 4), (5, 0)])
    def test_iterators_are_advanced_as_by_map(self, sizes: tuple[int, int], chunks: Any) -> None:
        """The shortest ends the call; those before it have given one element more."""

        def two() -> list[Iterator[int]]:
            return [iter(range(size)) for size in sizes]

        oracle, ours, lazily = two(), two(), two()
        expected = list(map(pow, *oracle))
        assert parmap.pmap(pow, *ours, chunks=chunks) == expected
        assert list(parmap.imap(pow, *lazily, chunks=2)) == expected
        rest = [list(one) for one in oracle]
        assert [list(one) for one in ours] == rest
        assert [list(one) for one in lazily] == rest

    def test_ranges_longer_than_any_list(self) -> None:
        """What no list can hold is cut as it is needed."""
        long = range(10**20)
        assert list(itertools.islice(parmap.imap(abs, long), 3)) == [0, 1, 2]
        assert list(itertools.islice(parmap.imap(abs, range(10**400)), 3)) == [0, 1, 2]
        assert parmap.pmap(max, long, [5, 6, 7]) == [5, 6, 7]
        assert parmap.starmap(max, zip(long, [5, 6, 7], strict=False)) == [5, 6, 7]
        far = range(10**20 + 5, 10**20, -2)
        assert parmap.pmap(abs, far) == list(far)
        with pytest.raises(ValueError, match="no length"):
            parmap.imap(abs, long, chunks="static")

    def test_numbers_without_end_as_options(self) -> None:
        """A window, a chunk or a number of retries may be larger than any input."""
        much = 10**30
        expected = list(range(COUNT))
        for given in (range(COUNT), _generator):
            make: Any = given if callable(given) else lambda given=given: given
            assert list(parmap.imap(abs, make(), window=much)) == expected
            assert list(parmap.imap(abs, make(), chunks=much)) == expected
            assert parmap.pmap(abs, make(), chunks=much, retries=much) == expected
            assert parmap.pmap(abs, make(), chunks=parmap.Guided(smallest=much)) == expected

    @pytest.mark.parametrize("chunks", ["auto", 1, 2, parmap.Static(cyclic=True)])
    def test_a_list_is_that_of_the_beginning(self, chunks: Any) -> None:
        """What a function, or the reader of results, does to the list changes no element."""
        given = list(range(COUNT))

        def fn(x: int, *_: int) -> int:
            if given:
                given.pop()
            return x

        assert parmap.pmap(fn, given, chunks=chunks) == list(range(COUNT))
        given = list(range(COUNT))
        assert parmap.pmap(fn, range(COUNT), given, chunks=chunks) == list(range(COUNT))
        given, seen = [1, 2, 3], []
        for result in parmap.imap(abs, given, chunks=chunks):
            seen.append(result)
            given += [7]
        assert seen == [1, 2, 3]

    @pytest.mark.parametrize(
        "chunks", ["auto", 1, parmap.Static(cyclic=True), parmap.Dynamic(cost=lambda a, b: a * b)]
    )
    def test_rows_that_can_be_read_once(self, chunks: Any) -> None:
        """A row of arguments may be an iterator, also where its cost is asked for."""

        def rows() -> Iterator[Iterable[int]]:
            yield iter([7, 2])
            yield (x for x in (5, 1))
            yield [3, 2]

        assert parmap.starmap(lambda a, b: a - b, rows(), chunks=chunks) == [5, 4, 1]

    def test_a_row_that_cannot_be_read(self) -> None:
        """Its error is that of its element."""

        def broken() -> Iterator[int]:
            yield 1
            raise LookupError("half a row")

        with pytest.raises(LookupError, match="half a row") as caught:
            parmap.starmap(pow, [(1, 2), broken(), (3, 4)])
        assert "element 1" in caught.value.__notes__[0]
        given = [(1, 2), broken(), (3, 4)]
        results: list[Any] = parmap.starmap(pow, given, errors="return")
        assert [results[0], results[2]] == [1, 81]
        assert type(results[1].error) is LookupError

    def test_costs_are_iterated_once(self) -> None:
        """Costs may come from any iterable, and are as many as the elements."""
        costs = parmap.Dynamic(cost=(float(x) for x in range(COUNT)))  # type: ignore[arg-type]
        assert parmap.pmap(abs, range(COUNT), chunks=costs) == list(range(COUNT))
        lying = parmap.Dynamic(cost=Says(7))  # type: ignore[arg-type]
        assert parmap.pmap(abs, Says(3), chunks=lying) == list(range(COUNT))
        endless = parmap.Dynamic(cost=itertools.count())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="numbers for 20 elements"):
            parmap.pmap(abs, range(COUNT), chunks=endless)
