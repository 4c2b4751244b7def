"""An array that submitted calls have again and again is written once, while it stays as it is."""

import contextlib
import functools
import gc
import os
import pickle
import sys
import threading
from concurrent.futures import wait
from itertools import pairwise, repeat
from unittest import mock

import numpy as np
import pandas as pd
import pytest

import parmap
from parmap.backends.processes import kept_arrays, shared_memory
from parmap.errors import SessionClosed
from tests.test_recurring import SIZE, counted, doubled, total, two, written

__all__ = ["two"]

NBYTES = 8 * SIZE


def entries(session):
    return list(session.executor._queue.broadcast.recurring.kept._kept.values())


def kept(session):
    """List the sizes of the blocks that a session keeps."""
    return [entry.size for entry in entries(session) if entry.size]


def first(array, *_):
    return float(array.reshape(-1)[0])


def results(futures):
    return [future.result() for future in futures]


def test_a_hundred_calls_with_one_array_write_it_once(two):
    array = np.ones(SIZE)
    with counted() as counts:
        futures = [parmap.submit(total, array, i) for i in range(100)]
        assert results(futures) == [SIZE + i for i in range(100)]
    assert counts["blocks"] == 1
    assert counts["bytes"] < NBYTES + (1 << 20)  # the first one is sent
    assert kept(two) == [NBYTES]


MAPS = {
    "captured": lambda array: parmap.pmap(lambda i: total(array, i), range(4), chunks=1),
    "repeated": lambda array: parmap.pmap(total, repeat(array), range(4), chunks=1),
    "list": lambda array: parmap.pmap(total, [array] * 4, range(4), chunks=1),
    "rows": lambda array: parmap.starmap(total, [(array, i) for i in range(4)], chunks=1),
    "axis": lambda array: [
        value for _, value in parmap.pgrid(total, {"array": [array], "i": range(4)}, chunks=1)
    ],
    "graph": lambda array: parmap.compute([parmap.delayed(total)(array, i) for i in range(4)]),
}


@pytest.mark.parametrize("way", MAPS)
def test_maps_keep_what_their_functions_and_elements_hold(two, way):
    array = np.ones(SIZE)
    with counted() as counts:
        for call in range(6):
            array[0] = 1 + (call > 3)  # it changes once
            expected = [SIZE + i + (call > 3) for i in range(4)]
            assert list(MAPS[way](array)) == expected
            assert list(MAPS["captured"](array)) == expected
    # The first two calls, one each; after the change at most as many.
    assert counts["blocks"] <= 4
    assert kept(two) == [NBYTES]
    del array
    assert kept(two) == []


def test_a_function_that_holds_too_many_to_keep(two):
    arrays = [np.full(SIZE // 2, float(i)) for i in range(kept_arrays._MOST + 1)]
    for _ in range(3):
        found = parmap.pmap(lambda i: first(arrays[i]), range(len(arrays)), chunks=9)
        assert found == list(range(len(arrays)))
    assert entries(two) == []


def test_one_that_changes_between_calls_is_sent_as_it_is_then(two):
    array, futures = np.zeros(SIZE), []
    with counted() as counts:
        for i in range(100):
            array[0] = i
            futures.append(parmap.submit(first, array))
    assert results(futures) == list(range(100))
    assert counts["blocks"] < 10  # it is written seldom, where that was of no use


@pytest.mark.parametrize("place", [0, 1, SIZE // 2, SIZE - 1])
def test_every_byte_counts(two, place):
    array = np.zeros(SIZE, dtype="u1").repeat(8)[:-3]
    place = min(8 * place, array.size - 1)
    for i in range(8):
        if i > 3:
            array[place] = i
        expected = [i * (i > 3), int(array.sum())]
        futures = [parmap.submit(lambda a: [int(a[place]), int(a.sum())], array) for _ in range(2)]
        assert results(futures) == [expected] * 2


def test_what_differs_only_as_a_number_counts(two):
    """The bytes are compared: a NaN is what it was, and -0.0 is not 0.0."""
    array = np.full(SIZE, np.nan)
    with counted() as counts:
        assert all(np.isnan(parmap.submit(first, array).result()) for _ in range(5))
    assert counts["blocks"] == 1
    array = np.zeros(SIZE)
    signs = []
    for _ in range(6):
        array *= -1
        signs.append(np.signbit(parmap.submit(first, array).result()))
    assert signs == [True, False] * 3


def test_one_that_changes_now_and_then_is_written_at_each_change(two):
    array, found = np.zeros(SIZE), []
    with counted() as counts:
        for i in range(5):
            array[:] = i
            found += [parmap.submit(total, array, 0) for _ in range(8)]
    assert results(found) == [SIZE * i for i in range(5) for _ in range(8)]
    assert counts["blocks"] == 5
    assert counts["bytes"] < NBYTES + (1 << 20)


@pytest.mark.parametrize("size", [1250, SIZE])
def test_each_task_may_write_to_its_own(two, size):
    array = np.ones(size)
    assert results([parmap.submit(doubled, array) for _ in range(6)]) == [2.0 * size] * 6
    found = results([parmap.submit(written, array, i) for i in range(6)])
    assert found == [1.0 + i for i in range(6)]
    assert (array == 1).all()


def test_small_ones_are_not_looked_at(two):
    array = np.ones(1250)
    with mock.patch.object(kept_arrays, "large_array", side_effect=AssertionError):
        assert results([parmap.submit(total, array, i) for i in range(4)]) == [
            1250 + i for i in range(4)
        ]
    assert kept(two) == []


def test_read_only_ones_stay_read_only(two):
    array = np.ones(SIZE)
    array.flags.writeable = False
    with counted() as counts:
        futures = [parmap.submit(lambda a: a.flags.writeable, array) for _ in range(5)]
        assert results(futures) == [False] * 5
    assert counts["blocks"] == 1


def test_views_of_one_memory(two):
    """Each call may make its own object of the same memory, as `x.T` and `x[1:]` do."""
    array = np.arange(4.0 * SIZE).reshape(2, -1)
    views = {
        "rows": lambda: array[1:],
        "transposed": lambda: array.T,
        "times": lambda: array.view("M8[ns]"),
        "another shape": lambda: array.reshape(-1, 2),
    }
    for name, view in views.items():
        expected = view().tobytes("A")
        with counted() as counts:
            for _ in range(5):
                assert parmap.submit(lambda a: a.tobytes("A"), view()).result() == expected, name
        assert counts["blocks"] <= 1, name
    shapes = [array.T.shape, array.shape]
    assert results([parmap.submit(np.shape, one) for one in (array.T, array)]) == shapes


def test_two_objects_of_one_memory_in_one_call(two):
    array = np.arange(float(SIZE))
    for i in range(5):
        array[0] = i // 3
        found = parmap.submit(
            lambda a, b, c: (a[0], b[0], c[0], a[-1], b[-1]), array, array[:], array
        )
        assert found.result() == (i // 3, i // 3, i // 3, SIZE - 1, SIZE - 1)


def test_two_in_one_call_and_large_ones_beside(two):
    a, b = np.ones(SIZE), np.full(SIZE, 2.0)
    futures = [
        parmap.submit(lambda *x: [float(one[-1]) for one in x], a, np.full(SIZE, 3.0 + i), b, a[5:])
        for i in range(6)
    ]
    assert results(futures) == [[1.0, 3.0 + i, 2.0, 1.0] for i in range(6)]


def test_one_whose_shape_changes(two):
    array = np.arange(2.0 * SIZE)
    shapes = []
    for shape in [(2, SIZE), (SIZE, 2), (2 * SIZE,)] * 2:
        array.shape = shape
        shapes.append(parmap.submit(np.shape, array).result())
    assert shapes == [(2, SIZE), (SIZE, 2), (2 * SIZE,)] * 2


def test_one_that_is_resized_between_two_calls(two):
    """NumPy refuses that where somebody has a weak reference to the array."""
    array = np.arange(2.0 * SIZE)
    for size in (2 * SIZE, SIZE + 1, 2 * SIZE):
        array.resize(size, refcheck=False)
        found = parmap.submit(lambda a: (len(a), float(a.sum())), array).result()
        assert found == (size, float(array.sum()))


class Own(np.ndarray):
    pass


@pytest.mark.parametrize(
    "value",
    [
        np.ones(SIZE).view(Own),
        np.ma.masked_equal(np.arange(float(SIZE)), 3.0),
        np.array([1.0, None] * (SIZE // 2), dtype=object),
        np.ones((SIZE, 2))[:, 1],
        pd.DataFrame({"a": np.arange(float(SIZE)), "b": 1.5, "c": "text"}),
        pd.Series(np.arange(float(SIZE))),
        bytes(NBYTES),
    ],
    ids=["subclass", "masked", "objects", "strided", "frame", "series", "bytes"],
)
def test_other_values_come_whole_each_time(two, value):
    def told(value):
        data = value.to_numpy() if isinstance(value, (pd.DataFrame, pd.Series)) else value
        return type(value).__name__, len(value), repr(data[:5]), repr(data[-5:])

    for i in range(4):
        if isinstance(value, np.ndarray):
            value[-1] = i + 1
        elif isinstance(value, pd.Series):
            value.iloc[-1] = i + 1.0
        elif isinstance(value, pd.DataFrame):
            value.iloc[-1, 0] = i + 1.0
        assert parmap.submit(told, value).result() == told(value)


def test_a_block_goes_with_its_array(two):
    array = np.ones(SIZE)
    results([parmap.submit(total, array, i) for i in range(4)])
    (one,) = entries(two)
    descriptor = one._block.descriptor
    assert os.fstat(descriptor).st_size == NBYTES
    del one, array
    gc.collect()
    assert kept(two) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_an_array_is_not_kept_for_its_block(two):
    """Nobody holds the caller's memory when the futures are done."""
    array = np.ones(SIZE)
    references = sys.getrefcount(array)
    results([parmap.submit(total, array, i) for i in range(4)])
    assert sys.getrefcount(array) == references


def test_nothing_stays_after_the_session():
    array = np.ones(SIZE)
    with parmap.plan("processes", workers=2) as session:
        results([parmap.submit(total, array, i) for i in range(4)])
        (one,) = entries(session)
        descriptor = one._block.descriptor
        del one
    assert kept(session) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    for _ in range(3):
        with pytest.raises(SessionClosed):
            session.executor.submit(total, array, 0)
    assert entries(session) == []


def test_no_more_are_kept_than_there_is_room_for(two):
    arrays = [np.full(SIZE, float(i)) for i in range(6)]
    with mock.patch.object(kept_arrays, "_ROOM", 3 * NBYTES):
        for _ in range(3):
            for array in arrays:
                found = [parmap.submit(total, array, 0) for _ in range(3)]
                assert results(found) == [float(array.sum())] * 3
                assert sum(kept(two)) <= 3 * NBYTES
    with mock.patch.object(kept_arrays, "_MOST", 2):
        parmap.submit(total, arrays[0], 0).result()
        assert len(kept(two)) == 2
        for i in range(6):
            parmap.submit(total, np.full(2 * SIZE + i, 1.0), 0).result()
        assert len(entries(two)) == 4


def test_those_of_one_call_are_kept_though_they_are_large(two):
    arrays = [np.full(SIZE, float(i)) for i in range(4)]
    with mock.patch.object(kept_arrays, "_ROOM", NBYTES), counted() as counts:
        for _ in range(6):
            found = parmap.submit(lambda *arrays: [a[0] for a in arrays], *arrays)
            assert found.result() == [0.0, 1.0, 2.0, 3.0]
    assert counts["blocks"] == 4


def test_where_no_block_can_be_made_it_goes_by_the_channel(two):
    array = np.ones(SIZE)
    with mock.patch.object(kept_arrays, "Block", side_effect=OSError(28, "No space left")):
        assert results([parmap.submit(total, array, i) for i in range(5)]) == [
            SIZE + i for i in range(5)
        ]


def test_threads_that_submit_one_array_while_another_changes_it(two):
    """What the tasks see is not promised; each has one number or another in each place."""
    array, changes = np.zeros(SIZE), threading.Event()
    barrier = threading.Barrier(4)
    found: list[object] = []

    def change():
        barrier.wait()
        while not changes.is_set():
            array[:] += 1

    def submits():
        barrier.wait()
        futures = [two.submit(lambda a: (len(a), float(a.min()) >= 0), array) for _ in range(30)]
        found.extend(results(futures))

    threads = [threading.Thread(target=submits) for _ in range(3)]
    changing = threading.Thread(target=change)
    for thread in (*threads, changing):
        thread.start()
    for thread in threads:
        thread.join()
    changes.set()
    changing.join()
    assert found == [(SIZE, True)] * 90
    array[:] = 7
    assert results([parmap.submit(total, array, 0) for _ in range(4)]) == [7.0 * SIZE] * 4
    assert len(entries(two)) == 1


def test_threads_with_arrays_of_their_own(two):
    def work(number):
        array = np.full(SIZE, float(number))
        for i in range(10):
            array[i] = 0
            found = [two.submit(total, array, 0) for _ in range(2)]
            assert results(found) == [number * (SIZE - i - 1.0)] * 2

    with parmap.plan("threads", workers=3) as threads:
        wait(futures := [threads.submit(work, number) for number in range(1, 4)])
    assert results(futures) == [None] * 3


def test_after_a_death_it_is_there_again(two, tmp_path):
    array = np.ones(SIZE)
    expected = [SIZE + i for i in range(3)]
    assert results([parmap.submit(total, array, i) for i in range(3)]) == expected
    with pytest.raises(parmap.WorkerDied):
        parmap.submit(lambda a: os._exit(3), array).result()
    assert results([parmap.submit(total, array, i) for i in range(3)]) == expected


def test_what_an_object_holds_that_an_iterator_gives(two):
    """It is no copy, so it recurs; and where it changes, each element is as it was then."""

    class Held:
        def __init__(self, array):
            self.array = array

    def objects(*, changes):
        array = np.zeros(SIZE)
        for i in range(8):
            array[0] += changes * i
            yield Held(array)

    for changes in (0, 1):
        found = list(
            parmap.imap(
                lambda held: first(held.array), objects(changes=changes), chunks=1, window=1
            )
        )
        assert found == list(np.cumsum(np.arange(8) * changes))


class Part:
    """Pickles a part of an array that others have parts of, too."""

    def __init__(self, array, start):
        self.array, self.start = array, start

    def __reduce_ex__(self, protocol):
        view = memoryview(self.array)[self.start : self.start + SIZE]
        return np.frombuffer, (pickle.PickleBuffer(view),)


def test_parts_of_one_array_that_are_no_arrays(two):
    """Each frame's memory belongs to the same object, and is another part of it."""
    array = np.arange(4.0 * SIZE)
    starts = [0, 1, SIZE, 2 * SIZE, 3 * SIZE] * 2
    parts = [Part(array, start) for start in starts]
    expected = [(float(start), float(start + SIZE - 1)) for start in starts]

    def ends(part, *_):
        return float(part[0]), float(part[-1])

    assert results([parmap.submit(ends, part) for part in parts]) == expected
    assert parmap.starmap(ends, [(part, 0) for part in parts], chunks=1) == expected
    assert parmap.compute([parmap.delayed(ends)(part) for part in parts], chunks=1) == expected


class Large:
    """Pickles many bytes that are no array's."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Large, (pickle.PickleBuffer(self.data),)


def test_tasks_that_wait_have_large_bytes_between_kept_arrays():
    """All arguments have other places; those that are no arrays are written while tasks wait."""
    arrays = [np.full(SIZE, float(i)) for i in range(3)]
    texts = [Large(bytearray(bytes([i])) * (20 << 20)) for i in (65, 66, 67)]
    given = [texts[0], arrays[0], texts[1], arrays[1], arrays[2], texts[2]]

    def seen(*given):
        return [bytes(one.data[:1]) if type(one) is Large else float(one[0]) for one in given]

    with parmap.plan("processes", workers=1):
        found = [parmap.submit(seen, *given) for _ in range(4)]
        assert results(found) == [[b"A", 0.0, b"B", 1.0, 2.0, b"C"]] * 4


def test_forks_have_them_too():
    array = np.ones(SIZE)
    with parmap.plan("processes", workers=2, start="fork"):
        with counted() as counts:
            found = [parmap.submit(total, array, i) for i in range(6)]
            assert results(found) == [SIZE + i for i in range(6)]
        assert counts["blocks"] == 1


def test_a_fork_of_the_script_is_refused(run):
    out = run(
        """
        import os, numpy as np, parmap
        array = np.ones(1 << 18)
        with parmap.plan("processes", workers=1) as session:
            print([session.submit(len, array).result() for _ in range(4)])
            pid = os.fork()
            if not pid:
                try:
                    session.executor.submit(len, array)
                except parmap.SessionClosed:
                    os._exit(7)
                os._exit(1)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            print(session.submit(len, array).result())
        """
    )
    assert out.splitlines() == [str([SIZE] * 4), "7", str(SIZE)]


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("size", [1, 1 << 18, (1 << 18) + 1, 3_000_000, 4 << 20, (12 << 20) + 5])
def test_a_block_tells_whether_it_holds_the_same(size, maps):
    """With or without a mapping."""
    data = np.arange(size // 4 + 1, dtype="u4").view("u1")[:size].copy()
    block = shared_memory.Block([memoryview(data)])

    def holds(data):
        return block.holds(memoryview(data), data.ctypes.data)

    fails = mock.patch.object(shared_memory, "same_as_memory", side_effect=OSError(12, "no room"))
    with contextlib.nullcontext() if maps else fails:
        assert holds(data)
        for place in {0, size // 2, size - 1}:
            data[place] ^= 1
            assert not holds(data)
            data[place] ^= 1
        data.flags.writeable = False
        assert holds(data)
        # A longer one would end behind the block's last page, or among zeros.
        assert not holds(np.concatenate([data, [1]]).astype("u1"))
        assert not holds(np.concatenate([data, np.zeros(5000)]).astype("u1"))


def test_waiting_grows_where_a_block_was_of_no_use():
    array = np.zeros(SIZE)
    place = kept_arrays._Place(id(array), array.ctypes.data, NBYTES)
    one = kept_arrays._Kept(place)
    written_at = []
    for i in range(200):
        array[0] = i
        if one.current(memoryview(array).cast("B"), recurs=False) is not None:
            written_at.append(i)
    gaps = [b - a for a, b in pairwise(written_at)]
    assert written_at[0] == 1
    assert gaps == sorted(gaps)
    assert gaps[-1] > kept_arrays._LONGEST


def test_arrays_that_come_to_lie_where_others_lay(two):
    """What is freed after each call leaves its place to the next; it is not taken for the same."""
    with counted() as counts:
        found = [parmap.submit(total, np.full(SIZE, float(i)), 0).result() for i in range(60)]
    assert found == [float(i * SIZE) for i in range(60)]
    assert counts["blocks"] < 20
    assert kept(two) == []


def test_functions_of_functools(two):
    array = np.ones(SIZE)
    call = functools.partial(total, i=3)
    with counted() as counts:
        assert results([parmap.submit(call, array) for _ in range(5)]) == [SIZE + 3.0] * 5
        assert (
            results([parmap.submit(total, array=array, i=1) for _ in range(5)]) == [SIZE + 1.0] * 5
        )
    assert counts["blocks"] == 1
