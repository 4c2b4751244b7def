"""What many tasks read travels once, and is to each of them what it is to the caller."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parmap
from parmap.testing.material import LONG, Contract, chunk_options, examples

__all__ = ["SharingContract"]

# So many numbers are more than a mebibyte, from where on a value needs to travel only once.
_MANY = 150_000


def _pick(data: Any, place: int) -> tuple[str, Any]:
    return type(data).__name__, data[place]


def _pick_named(place: int, *, data: Any) -> tuple[str, Any]:
    return _pick(data, place)


def _pick_row(row: tuple[Any, int]) -> tuple[str, Any]:
    return _pick(*row)


_lazy_pick, _lazy_pick_named = parmap.delayed(_pick), parmap.delayed(_pick_named)

# Every way to give a function the same argument three times, once with each of these places.
_PLACES = (4, 0, 2)
_WAYS: dict[str, Callable[[parmap.Session, Any], Iterable[Any]]] = {
    "elements of a list": lambda _, x: parmap.pmap(_pick, [x] * 3, _PLACES),
    "elements of an iterator": lambda _, x: parmap.pmap(_pick, iter([x] * 3), iter(_PLACES)),
    "repeated": lambda _, x: parmap.pmap(_pick, repeat(x), _PLACES),
    "repeated, lazily": lambda _, x: parmap.imap(_pick, repeat(x), iter(_PLACES), window=2),
    "in tuples": lambda _, x: parmap.starmap(_pick, [(x, i) for i in _PLACES]),
    "a partial's argument": lambda _, x: parmap.pmap(functools.partial(_pick, x), _PLACES),
    "a partial's keyword": lambda _, x: parmap.pmap(
        functools.partial(_pick_named, data=x), _PLACES
    ),
    "on a grid's axis": lambda _, x: (
        parmap.pgrid(_pick_named, {"data": [x], "place": _PLACES}).values
    ),
    "a partial's, on a grid": lambda _, x: (
        parmap.pgrid(functools.partial(_pick_named, data=x), {"place": _PLACES}).values
    ),
    "in delayed calls": lambda _, x: parmap.compute([_lazy_pick(x, i) for i in _PLACES]),
    "in delayed calls, by name": lambda _, x: parmap.compute(
        [_lazy_pick_named(i, data=x) for i in _PLACES]
    ),
    "a partial's, delayed": lambda _, x: parmap.compute(
        [parmap.delayed(functools.partial(_pick, x))(i) for i in _PLACES]
    ),
    "submitted": lambda _, x: [parmap.submit(_pick, x, i).result(LONG) for i in _PLACES],
    "submitted by name": lambda _, x: [
        parmap.submit(_pick_named, i, data=x).result(LONG) for i in _PLACES
    ],
    "submitted in a partial": lambda _, x: [
        parmap.submit(functools.partial(_pick, x), i).result(LONG) for i in _PLACES
    ],
    "the session's own map": lambda session, x: session.map(_pick, repeat(x), _PLACES),
    "the session's own submit": lambda session, x: [
        session.submit(_pick, x, i).result(LONG) for i in _PLACES
    ],
    "beside a random stream": lambda _, x: parmap.pmap(
        lambda data, place, rng: _pick(data, place) if rng else None, repeat(x), _PLACES, rng=1
    ),
    "watched": lambda _, x: parmap.pmap(_pick, repeat(x), _PLACES, timeout=LONG, retries=1),
    "in a call inside of a task": lambda _, x: parmap.pmap(
        lambda data, place: parmap.pmap(_pick, repeat(parmap.share(data)), [place])[0],
        repeat(x),
        _PLACES,
    ),
}


@dataclass
class _Holder:
    """Somebody's object that holds something."""

    held: Any


class _Odd:
    """Something that cannot say how large it is."""

    @property
    def nbytes(self) -> int:
        raise RuntimeError("not now")


class _Noted:
    """Something that writes down where it is unpickled.

    Parameters
    ----------
    file : path
        Where to.
    size : int
        How many bytes it is to have.
    """

    def __init__(self, file: Any, size: int) -> None:
        self.file, self.rest = file, bytes(size)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        with open(self.file, "a", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")


def _sizes(*args: Any) -> list[int]:
    return [len(arg.rest) for arg in args if isinstance(arg, _Noted)]


class SharingContract(Contract):
    """Handles and constants are to a function the arguments that they stand for."""

    @pytest.mark.parametrize("way", list(_WAYS))
    def test_a_handle_that_is_an_argument_is_its_value(self, way: str) -> None:
        """The function gets the value, however it is given the handle."""
        data = [5, 6, 7, 8, 9]
        expected = [("list", data[place]) for place in _PLACES]
        assert list(_WAYS[way](self.session, data)) == expected
        assert list(_WAYS[way](self.session, parmap.share(data))) == expected
        assert list(_WAYS[way](self.session, self.session.share(data))) == expected

    @pytest.mark.parametrize("size", [10, 1_000_000])
    @pytest.mark.parametrize("count", [1, 6])
    def test_a_shared_value_is_unpickled_once_per_worker(
        self, tmp_path: Any, count: int, size: int
    ) -> None:
        """Not once per chunk, and not anew for another call; however many values there are."""
        self.need_same_host()
        files = [tmp_path / str(number) for number in range(count)]
        handles = [parmap.share(_Noted(file, size)) for file in files]
        expected = [[size] * count] * 8
        assert parmap.pmap(_sizes, *map(repeat, handles), range(8), chunks=1) == expected
        assert parmap.starmap(_sizes, [(*handles, i) for i in range(8)], chunks=1) == expected
        futures = [parmap.submit(_sizes, *handles, i) for i in range(8)]
        assert [future.result(LONG) for future in futures] == expected
        for file in files:
            times = len(file.read_text().split()) if file.exists() else 0
            assert times <= (0 if self.shares_memory() else self.session.workers)

    def test_a_cost_function_gets_the_value(self) -> None:
        """What sets the order is a function of the arguments, too."""
        data = parmap.share([5, 6, 7, 8, 9])
        costly = parmap.Dynamic(cost=lambda data, place: data[place])
        expected = [("list", 9), ("list", 5), ("list", 7)]
        assert parmap.pmap(_pick, repeat(data), _PLACES, chunks=costly) == expected

    @pytest.mark.parametrize("hold", [list, tuple, set, _Holder, dict], ids=repr)
    def test_a_handle_inside_of_something_stays_a_handle(self, hold: Any) -> None:
        """It has the value as its attribute, and comes back as a handle, too."""
        handle = parmap.share([5, 6])
        held = {"held": handle} if hold is dict else _Holder(handle) if hold is _Holder else None
        held = hold([handle]) if held is None else held

        def fn(holder: Any, place: int) -> tuple[str, Any, Any]:
            holder = vars(holder) if isinstance(holder, _Holder) else holder
            (inner,) = holder.values() if isinstance(holder, dict) else holder
            return type(inner).__name__, inner.value[place], inner

        for results in (
            parmap.pmap(fn, [held, held], [0, 1]),
            parmap.pmap(fn, repeat(held), [0, 1]),
            parmap.starmap(fn, [(held, 0), (held, 1)]),
            [parmap.submit(fn, held, place).result(LONG) for place in (0, 1)],
            parmap.compute([parmap.delayed(fn)(held, place) for place in (0, 1)]),
        ):
            assert [result[:2] for result in results] == [("Shared", 5), ("Shared", 6)]
            assert [result[2].value for result in results] == [[5, 6], [5, 6]]

    def test_a_captured_handle_stays_a_handle(self) -> None:
        """The function that captures it asks it for the value, in calls inside as well."""
        handle = parmap.share([5, 6, 7])
        assert parmap.pmap(lambda place: handle.value[place], range(3)) == [5, 6, 7]
        assert parmap.submit(lambda: handle.value).result(LONG) == [5, 6, 7]
        inside = parmap.pmap(lambda i: parmap.pmap(_pick, repeat(handle), [i]), [2])
        assert inside == [[("list", 7)]]

    def test_handles_of_several_values(self) -> None:
        """They do not mix up, nor do those inside of a value that is itself shared."""
        first, second = parmap.share([1, 2]), parmap.share([10, 20])
        outer = parmap.share({"inner": second, "more": [first]})

        def fn(a: Any, b: Any, c: Any, place: int) -> list[int]:
            return [a[place], b[place], c["inner"].value[place], c["more"][0].value[place]]

        expected = [[1, 10, 10, 1], [2, 20, 20, 2]]
        for _ in range(2):
            results = parmap.pmap(fn, [first, first], repeat(second), repeat(outer), [0, 1])
            assert results == expected
        assert parmap.pmap(lambda place: first.value[place] + second.value[place], [1]) == [22]

    def test_many_calls_with_one_handle(self) -> None:
        """It is as good for the hundredth call as for the first."""
        data = parmap.share(np.arange(float(_MANY)))
        for place in range(100):
            assert parmap.pmap(lambda x, i: x[i], repeat(data), [place]) == [place]

    def test_a_handle_pickled_by_hand_carries_its_value(self) -> None:
        """Where no session places it, it travels whole."""
        handle = parmap.share([5, 6])
        copy = pickle.loads(pickle.dumps(handle))
        assert type(copy) is parmap.Shared
        assert copy.value == [5, 6]
        packed = pickle.dumps({"held": handle})
        assert parmap.pmap(lambda data: pickle.loads(data)["held"].value, [packed]) == [[5, 6]]

    def test_handles_that_the_input_makes(self) -> None:
        """Those of a generator live only as long as their element is on its way."""
        living: list[weakref.ref[Any]] = []

        def source() -> Iterator[Any]:
            for x in range(30):
                handle = parmap.share(np.full(_MANY if x % 3 else 10, x))
                living.append(weakref.ref(handle))
                yield handle

        results = parmap.imap(lambda data, i: int(data[i]), source(), repeat(5), window=4)
        assert list(results) == list(range(30))
        gc.collect()
        assert [ref for ref in living if ref() is not None] == []

    def test_a_handle_that_goes_while_the_call_runs(self) -> None:
        """The call that was given it has it to the end; nobody keeps it for longer."""
        handle: Any = parmap.share(np.arange(float(_MANY)))
        gone = weakref.ref(handle)
        results = parmap.imap(lambda data, i: data[i], repeat(handle), range(40), window=3)
        assert next(results) == 0
        del handle
        gc.collect()
        assert list(results) == list(range(1, 40))
        del results
        gc.collect()
        assert gone() is None

    def test_what_cannot_be_shared_is_named(self) -> None:
        """A value that cannot travel says so where it must; in one memory it is fine."""
        handle = parmap.share({"lock": threading.Lock()})
        if self.shares_memory():
            assert parmap.pmap(lambda held, _: list(held), repeat(handle), [1]) == [["lock"]]
            return
        with pytest.raises(parmap.SerializationError, match=r"_thread\.lock"):
            parmap.pmap(lambda held, _: list(held), repeat(handle), [1])

    @examples
    @given(st.data())
    def test_constants_are_as_any_other_argument(self, data: st.DataObject) -> None:
        """Repeated arguments give what map gives, wherever they stand, with any chunks."""
        count = data.draw(st.integers(0, 40))
        chunks = data.draw(chunk_options(count))
        places = data.draw(st.lists(st.sampled_from(["repeat", "list", "generator", "same"])))
        numbers = list(range(count))

        def columns() -> list[Any]:
            # At least one counts the elements, each of the others may be endless.
            made: list[Any] = [repeat("first", count)]
            for place, kind in enumerate(places):
                match kind:
                    case "repeat":
                        made.append(repeat(place))
                    case "list":
                        made.append(numbers)
                    case "generator":
                        made.append(x * place for x in itertools.count())
                    case "same":
                        made.append([place] * count)
            return made

        def fn(*row: Any) -> tuple[Any, ...]:
            return row

        expected = list(map(fn, *columns()))
        assert parmap.pmap(fn, *columns(), chunks=chunks) == expected
        assert list(parmap.imap(fn, *columns(), chunks=5, window=9)) == expected

    @pytest.mark.parametrize("order", [{"cyclic": True}, {"cost": [3, 1, 2] * 4}, {"shuffle": 1}])
    def test_large_constants_in_any_order(self, order: dict[str, Any]) -> None:
        """A large array that is repeated, captured, bound or all of a list, is itself each time."""
        x = np.arange(float(_MANY))
        chunks = parmap.Static(**order)
        expected = [float(i) for i in range(12)]

        def captured(place: int) -> float:
            return float(x[place])

        def fn(data: Any, place: int) -> float:
            return float(data[place])

        assert parmap.pmap(captured, range(12), chunks=chunks) == expected
        assert parmap.pmap(fn, repeat(x), iter(range(12)), chunks=chunks) == expected
        assert parmap.pmap(fn, [x] * 12, range(12), chunks=chunks) == expected
        assert parmap.pmap(functools.partial(fn, x), range(12), chunks=chunks) == expected
        assert parmap.pmap(len, repeat(x, 12), chunks=chunks) == [_MANY] * 12

    def test_a_list_in_which_not_all_are_one(self) -> None:
        """Only what is the same object everywhere is the same everywhere."""
        x, y = np.zeros(_MANY), np.ones(_MANY)
        for given_ in ([x, y, x], [x, x, y, x], [x, x.copy(), x], [y], []):
            assert parmap.pmap(np.sum, given_) == [values.sum() for values in given_]

    def test_one_repetition_given_twice(self) -> None:
        """Two arguments that draw on the same iterator share what it has, as for map."""

        def columns() -> list[Any]:
            again = repeat(1, 5)
            return [again, again]

        expected = list(zip(*columns(), strict=False))
        assert parmap.pmap(lambda *row: row, *columns()) == expected
        assert list(parmap.imap(lambda *row: row, *columns())) == expected

    def test_a_copy_of_a_handle_is_the_handle(self) -> None:
        """Neither a copy nor a pickle of it changes what the caller may do with the value."""
        value = np.zeros(3)
        handle = parmap.share(value)
        held = {"data": handle}
        assert copy.copy(handle) is handle
        assert copy.deepcopy(held)["data"] is handle
        buffers: list[pickle.PickleBuffer] = []
        text = pickle.dumps(handle, 5, buffer_callback=buffers.append)
        other = pickle.loads(text, buffers=buffers)
        assert not other.value.flags.writeable
        value[0] = 1
        assert parmap.pmap(_pick, [copy.copy(handle)], [0]) == [("ndarray", 1.0)]
        value[0] = 2

    def test_something_that_cannot_say_how_large_it_is(self) -> None:
        """To look for large values asks nobody for more than they can give."""
        odd = _Odd()
        assert parmap.pmap(lambda x: type(x).__name__, [odd, odd]) == ["_Odd", "_Odd"]
        assert parmap.compute(parmap.delayed(lambda x: type(x).__name__)(odd)) == "_Odd"
