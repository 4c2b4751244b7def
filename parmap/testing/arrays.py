"""Arrays and tables come whole, and belong to whom they should."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import array
import functools
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import numpy as np
import pytest

import parmap
from parmap.testing.material import LONG, Contract

__all__ = ["ArraysContract"]

# So many numbers are more than a mebibyte; a tenth of them do not travel inside of a message.
_MANY = 150_000


def _arrays() -> dict[str, Any]:
    """Make arrays of every kind, small ones and some that are large."""
    records = [("a", "i4"), ("b", "f8", 3)]
    read_only = np.arange(7)
    read_only.flags.writeable = False
    return {
        "plain": np.arange(24.0).reshape(4, 6),
        "large": np.arange(float(_MANY)),
        "read-only": read_only,
        "Fortran": np.asfortranarray(np.arange(24.0).reshape(4, 6)),
        "large Fortran": np.asfortranarray(np.arange(float(_MANY)).reshape(300, -1)),
        "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        "structured": np.array([(1, (2, 3, 4)), (5, (6, 7, 8))], dtype=records),
        "empty": np.zeros((0, 3)),
        "empty inside": np.zeros((3, 0, 2)),
        "of no dimensions": np.array(7.5),
        "big-endian": np.arange(5, dtype=">i4"),
        "texts": np.array(["a", "bcd"]),
        "strided": np.arange(24.0).reshape(4, 6)[::2, ::3],
        "large strided": np.arange(2.0 * _MANY)[::2],
        "reversed": np.arange(24)[::-1],
        "times": np.array(["2020-01-01", "NaT"], dtype="M8[ns]"),
        "objects": np.array([1, "a", None], dtype=object),
        "masked": np.ma.array([1, 2, 3], mask=[False, True, False]),
        "records": np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]).view(np.recarray),
    }


_KINDS = list(_arrays())
# The others travel inside of the pickle, so each worker has its own.
_PLAIN = [kind for kind in _KINDS if kind not in ("objects", "masked", "records")]


def _told(values: Any) -> tuple[Any, ...]:
    """Describe an array, so that two can be compared wherever they are."""
    described = [type(values).__name__, repr(values.dtype), values.shape, values.tobytes()]
    if values.dtype == object:
        described[-1] = values.tolist()
    if isinstance(values, np.ma.MaskedArray):
        described.append(values.mask.tolist())
    return tuple(described)


def _told_with_rights(values: Any) -> tuple[Any, ...]:
    return (*_told(values), bool(values.flags.writeable))


def _cleared(values: Any) -> tuple[float, bool]:
    """Write to an array that is not zero."""
    before = float(values.sum())
    values[...] = 0
    return before, not values.any()


def _same_buffer(count: int, size: int) -> Iterator[Any]:
    """Give the same array each time, with other numbers in it."""
    buffer = np.zeros(size)
    for x in range(1, count + 1):
        buffer[:] = x
        yield buffer


def _ends(values: Any) -> tuple[float, float, int]:
    return float(values[0]), float(values[-1]), len(values)


class ArraysContract(Contract):
    """Arrays come whole: the task's own as elements, the caller's own as results."""

    @pytest.mark.parametrize("kind", _KINDS)
    def test_arrays_of_every_kind_come_whole(self, kind: str) -> None:
        """As constants, elements and results: type, dtype, shape, values, and who may write."""
        x = _arrays()[kind]
        told, writeable = _told(x), bool(x.flags.writeable)
        shared = parmap.share(x)
        results: list[Any] = [
            *parmap.pmap(lambda _: _told(x), [1]),
            *parmap.pmap(lambda data, _: _told(data), repeat(x), [1]),
            *parmap.pmap(lambda data, _: _told(data), repeat(shared), [1]),
            *parmap.pmap(_told, [shared]),
            parmap.submit(lambda: _told(shared.value)).result(LONG),
        ]
        assert results == [told] * 5
        elements = parmap.pmap(lambda data: (data, _told_with_rights(data)), [x, x.copy()])
        assert [told_there for _, told_there in elements] == [
            (*told, writeable),
            (*told, True),
        ]
        # What comes back is the caller's own, where it is not the very object.
        own = writeable or not self.shares_memory()
        assert [_told_with_rights(back) for back, _ in elements] == [
            (*told, own),
            (*told, True),
        ]

    @pytest.mark.parametrize("kind", _PLAIN)
    def test_what_all_tasks_read_cannot_be_written_to(self, kind: str) -> None:
        """Where it was sent, a plain array is read-only; in one memory it is as it is."""
        x = _arrays()[kind]
        own = bool(x.flags.writeable) and self.shares_memory()
        handle = parmap.share(x)

        def fn(data: Any, _: int) -> bool:
            return bool(data.flags.writeable)

        assert {
            "captured": parmap.pmap(lambda _: bool(x.flags.writeable), [1]),
            "repeated": parmap.pmap(fn, repeat(x), [1]),
            "bound": parmap.pmap(functools.partial(fn, x), [1]),
            "shared and repeated": parmap.pmap(fn, repeat(handle), [1]),
            "a handle's value": parmap.pmap(lambda _: bool(handle.value.flags.writeable), [1]),
        } == {
            "captured": [own],
            "repeated": [own],
            "bound": [own],
            "shared and repeated": [own],
            "a handle's value": [own],
        }

    def test_shared_elements_cannot_be_written_to(self) -> None:
        """Nor what is shared and one argument among others, of however few elements."""
        handle = parmap.share(np.ones(5))
        own = self.shares_memory()

        def fn(data: Any, *_: Any) -> bool:
            return bool(data.flags.writeable)

        assert {
            "an element": parmap.pmap(fn, [handle], [1]),
            "in a tuple": parmap.starmap(fn, [(handle, 1)]),
            "on an axis": list(parmap.pgrid(fn, {"data": [handle]}).values),
            "submitted": [parmap.submit(fn, handle).result(LONG)],
            "delayed": [parmap.compute(parmap.delayed(fn)(handle))],
            "held": parmap.pmap(lambda held: fn(held[0].value), [[handle]]),
        } == {
            "an element": [own],
            "in a tuple": [own],
            "on an axis": [own],
            "submitted": [own],
            "delayed": [own],
            "held": [own],
        }

    def test_writing_to_what_all_tasks_read_says_what_to_do(self) -> None:
        """The error has a note; on a copy the same function works, and in one memory as well."""
        x = np.ones(_MANY)

        def spoil(place: int) -> float:
            x[place] += 1
            return float(x[place])

        def mend(place: int) -> float:
            mine = x.copy()
            mine[place] += 1
            return float(mine[place])

        assert parmap.pmap(mend, [3, 4], chunks=1) == [2, 2]
        if self.shares_memory():
            assert parmap.pmap(spoil, [3, 4], chunks=1) == [2, 2]
            assert x[3] == x[4] == 2
            return
        with pytest.raises(ValueError, match="read-only") as caught:
            parmap.pmap(spoil, [3, 4], chunks=1)
        assert "x.copy()" in "".join(caught.value.__notes__)
        assert x.all()
        assert x.sum() == _MANY

    @pytest.mark.parametrize("size", [10, _MANY])
    def test_elements_are_the_tasks_own(self, size: int) -> None:
        """A task may write to them; the caller sees it only where both have one memory."""
        given_ = [np.ones(size), np.full(size, 2.0), np.full(2 * size, 3.0)]
        sums = [float(x.sum()) for x in given_]
        for chunks in (1, 3):
            copies = [x.copy() for x in given_]
            assert parmap.pmap(_cleared, copies, chunks=chunks) == [(s, True) for s in sums]
            assert [bool(x.any()) for x in copies] == [not self.shares_memory()] * 3

    @pytest.mark.parametrize("kind", _KINDS)
    def test_one_array_in_many_rows_comes_whole(self, kind: str) -> None:
        """To each of them; and as it is then, where it has changed since the last call."""
        x = _arrays()[kind]
        rows = [(x, i) for i in range(5)]
        told = _told_with_rights(x)
        assert parmap.starmap(lambda *row: (_told_with_rights(row[0]), row[1]), rows) == [
            (told, i) for i in range(5)
        ]

    @pytest.mark.parametrize("size", [10, _MANY])
    def test_one_array_in_many_rows_is_each_tasks_own(self, size: int) -> None:
        """A task may write to it; another one sees that only where all have one memory."""
        if self.shares_memory():
            return
        x = np.ones(size)
        for number in (1.0, 2.0):
            x[:] = number
            rows = [(x, i) for i in range(5)]
            expected = [(number * size, True)] * 5
            assert parmap.starmap(lambda values, _: _cleared(values), rows, chunks=1) == expected
            assert x.sum() == number * size

    @pytest.mark.parametrize("size", [10, _MANY])
    def test_single_calls_have_arguments_of_their_own(self, size: int) -> None:
        """A submitted or delayed call may write to what it is given, also by name."""

        def clear(values: Any) -> tuple[float, bool]:
            return _cleared(values)

        expected = (float(size), True)
        assert parmap.submit(clear, np.ones(size)).result(LONG) == expected
        assert parmap.submit(clear, values=np.ones(size)).result(LONG) == expected
        assert parmap.compute(parmap.delayed(clear)(np.ones(size))) == expected
        assert parmap.compute(parmap.delayed(clear)(values=np.ones(size))) == expected

    @pytest.mark.parametrize("size", [10, _MANY])
    def test_an_array_that_changes_between_single_calls(self, size: int) -> None:
        """Each call gets it as it is then, also where it did not change at every one."""
        x = np.zeros(size)
        for number in range(8):
            x[size // 2] = number // 2
            assert parmap.submit(np.sum, x).result(LONG) == number // 2

    @pytest.mark.parametrize("size", [10, _MANY])
    def test_results_are_the_callers_own(self, size: int) -> None:
        """The caller may write to a result, though it be a part of what all tasks read."""
        x = np.ones(size)
        handle = parmap.share(x)
        results = [
            *parmap.pmap(lambda i: x[i:], [0, 1]),
            *parmap.pmap(lambda data, i: data[: i + 1], repeat(handle), [0, 1]),
            *parmap.pmap(lambda data, _: data, repeat(handle), [0]),
            *parmap.pmap(lambda i: {"held": [x[i:]]}["held"][0], [0]),
            parmap.submit(lambda: x[1:]).result(LONG),
        ]
        for result in results:
            # In one memory all of them are parts of one array.
            before = result.copy()
            np.add(result, 1, out=result)
            assert np.array_equal(result, before + 1)

    @pytest.mark.parametrize("size", [12_500, 250_000])
    @pytest.mark.parametrize("window", [1, 3, None])
    def test_an_input_that_fills_one_buffer_again(self, size: int, window: int | None) -> None:
        """A generator may give the same array each time: what is in it is sent at once."""
        self._need_copies()
        expected = list(map(_ends, _same_buffer(8, size)))
        found = parmap.imap(_ends, _same_buffer(8, size), window=window, chunks=1)
        assert list(found) == expected
        assert parmap.pmap(_ends, _same_buffer(8, size), chunks=1) == expected

    @pytest.mark.parametrize(
        "chunks", [2, "auto", "static", parmap.Guided(smallest=3), parmap.Dynamic(shuffle=1)]
    )
    def test_an_input_that_fills_one_buffer_within_a_chunk(self, chunks: Any) -> None:
        """As well where several elements travel together, or in another order."""
        self._need_copies()
        expected = list(map(_ends, _same_buffer(20, 12_500)))
        assert parmap.pmap(_ends, _same_buffer(20, 12_500), chunks=chunks) == expected

    def _need_copies(self) -> None:
        if self.shares_memory():
            pytest.skip("tasks of this plan see the input's own buffer, while it is filled again")

    def test_other_buffers_come_whole(self) -> None:
        """Bytes, byte arrays and arrays of the standard library, as constants and elements."""
        for size in (10, 100_000, 2_000_000):
            data = bytes(range(10)) * (size // 10)
            for x in (data, bytearray(data), array.array("d", range(size // 8))):
                results = [
                    *parmap.pmap(lambda _, x=x: x, [1]),
                    *parmap.pmap(lambda value, _: value, repeat(x), [1]),
                    *parmap.pmap(lambda value, _: value, repeat(parmap.share(x)), [1]),
                    *parmap.pmap(lambda value: value, [x]),
                ]
                assert [type(result) for result in results] == [type(x)] * 4
                assert results == [x] * 4

    def test_tables_come_whole(self) -> None:
        """Tables of pandas, with columns of every kind, as constants, elements and results."""
        pd = pytest.importorskip("pandas")
        count = 30_000
        table = pd.DataFrame(
            {
                "numbers": np.arange(float(count)),
                "whole": np.arange(count, dtype="i4"),
                "times": pd.date_range("2020-01-01", periods=count, freq="h"),
                "texts": pd.Series(list("abc") * (count // 3)),
                "kinds": pd.Categorical(list("xyz") * (count // 3), ordered=True),
            }
        )
        for x in (table, table["numbers"], table["kinds"], table["texts"], table[::-3]):
            results = [
                *parmap.pmap(lambda _, x=x: x, [1]),
                *parmap.pmap(lambda value, _: value, repeat(parmap.share(x)), [1]),
                *parmap.pmap(lambda value: value, [x]),
            ]
            assert [type(result) for result in results] == [type(x)] * 3
            for result in results:
                assert result.equals(x)
                assert str(getattr(result, "dtypes", None)) == str(getattr(x, "dtypes", None))

    def test_tables_that_travel_can_be_changed(self) -> None:
        """By the task that is given one, and by the caller that gets one back."""
        pd = pytest.importorskip("pandas")

        def grown(table: Any) -> float:
            table.loc[0, "numbers"] = 7.0
            table["new"] = 1
            return float(table["numbers"].iloc[0] + table["new"].sum())

        for count in (10, _MANY):
            table = pd.DataFrame({"numbers": np.arange(float(count)), "texts": ["a"] * count})
            assert parmap.pmap(grown, [table.copy()]) == [7 + count]
            (back,) = parmap.pmap(lambda value: value, [table.copy()])
            assert grown(back) == 7 + count
            assert list(table.columns) == ["numbers", "texts"]
