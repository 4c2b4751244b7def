"""Arrays that recur in the elements of a call are written once, and each task has its own."""

import contextlib
import os
from unittest import mock

import numpy as np
import pytest

import parmap
from parmap.backends.processes import kept_arrays, protocol, recurring

SIZE = 1 << 18  # numbers: 2 MiB


@contextlib.contextmanager
def counted():
    """Count the blocks that are made for arrays that recur, and bytes that go by channels."""
    counts = {"blocks": 0, "bytes": 0}
    block, gather = recurring.Block, protocol._gather

    def made(frames):
        counts["blocks"] += 1
        return block(frames)

    def sent(channel, views):
        counts["bytes"] += sum(view.nbytes for view in views)
        return gather(channel, views)

    with (
        mock.patch.object(recurring, "Block", made),
        mock.patch.object(kept_arrays, "Block", made),
        mock.patch.object(protocol, "_gather", sent),
    ):
        yield counts


@pytest.fixture
def two():
    with parmap.plan("processes", workers=2) as session:
        parmap.pmap(abs, range(10))
        yield session


def total(array, i):
    return float(array.sum()) + i


def written(array, i):
    array[0] += i
    return float(array[0])


def doubled(array):
    array *= 2
    return float(array.sum())


def both(a, b, i):
    a[0], b[0] = b[0] + i, a[0]
    return float(a.sum()), float(b.sum())


def test_one_that_all_rows_have_is_written_once(two):
    array = np.ones(SIZE)
    with counted() as counts:
        found = parmap.starmap(total, [(array, i) for i in range(8)])
    assert found == [SIZE + i for i in range(8)]
    assert counts["blocks"] == 1
    assert counts["bytes"] < 1 << 20


@pytest.mark.parametrize("kind", [tuple, list])
def test_those_that_some_rows_have_are_written_at_the_second(two, kind):
    arrays = [np.full(SIZE, k) for k in range(3)]
    rows = kind((arrays[i % 3], i) for i in range(9))
    with counted() as counts:
        assert parmap.starmap(total, rows) == [SIZE * (i % 3) + i for i in range(9)]
    assert counts["blocks"] == 3
    assert counts["bytes"] < 3 * (8 * SIZE) + (1 << 20)


def test_a_list_a_grid_and_a_graph(two):
    first, second = np.ones(SIZE), np.full(SIZE, 2.0)
    expected = [SIZE + 0, 2 * SIZE + 1, SIZE + 2, 2 * SIZE + 3]
    delayed = [parmap.delayed(total)(array, i) for i in range(4) for array in [first]]
    with counted() as counts:
        assert parmap.pmap(total, [first, second] * 2, range(4)) == expected
        grid = parmap.pgrid(total, {"array": [first, second], "i": range(3)}, chunks=1)
        sums = [SIZE + i for i in range(3)] + [2 * SIZE + i for i in range(3)]
        assert [value for _, value in grid] == sums
        assert list(parmap.compute(*delayed)) == [SIZE + i for i in range(4)]
    assert counts["blocks"] == 2 + 2  # the second is for all calls that follow
    assert counts["bytes"] < 4 * (8 * SIZE) + (1 << 20)


def test_each_task_may_write_to_its_own(two):
    array = np.ones(SIZE)
    rows = [(array, i) for i in range(8)]
    for chunks in (1, 4):
        one_task = [sum(range(k - k % chunks, k + 1)) for k in range(8)]
        assert parmap.starmap(written, rows, chunks=chunks) == [1 + x for x in one_task]
    assert array[0] == 1


def test_calls_of_a_graph_that_hold_one_have_it_written_once(two):
    array = np.ones(SIZE)
    calls = [parmap.delayed(total)([array][0], i) for i in range(8)]
    with counted() as counts:
        assert list(parmap.compute(*calls)) == [SIZE + i for i in range(8)]
    assert counts["blocks"] == 1
    assert counts["bytes"] < 1 << 20


def test_calls_of_a_graph_may_write_to_theirs(two):
    """As to a small one; neither another chunk nor the caller sees it."""
    for array in (np.ones(10), np.ones(SIZE), np.ones((SIZE, 2), order="F")):
        calls = [parmap.delayed(doubled)(array) for _ in range(6)]
        assert list(parmap.compute(*calls, chunks=1)) == [2.0 * array.size] * 6
        assert (array == 1).all()


@pytest.mark.parametrize(
    "array",
    [
        np.ones(SIZE)[:],
        np.ones(SIZE, dtype="M8[s]"),
        np.ones((SIZE, 2), order="F"),
        np.ones(SIZE, dtype=[("x", "f8")]),
    ],
    ids=["a view", "times", "Fortran's", "records"],
)
def test_arrays_of_all_kinds_in_calls_of_a_graph(two, array):
    def told(x):
        return x.dtype.str, x.shape, x.flags.f_contiguous, x.flags.writeable, x.tobytes("A")[:40]

    calls = [parmap.delayed(told)(array) for _ in range(8)]
    with counted() as counts:
        assert list(parmap.compute(*calls)) == [told(array)] * 8
    assert counts["blocks"] == 1
    assert counts["bytes"] < 1 << 20


def test_a_graph_of_no_more_calls_than_workers(two):
    array = np.ones(SIZE)
    for _ in range(2):
        with counted() as counts:
            calls = [parmap.delayed(doubled)(array) for _ in range(2)]
            assert list(parmap.compute(*calls)) == [2.0 * SIZE] * 2
        assert counts["bytes"] < 1 << 20


def test_other_large_values_of_several_calls_are_shared_as_before(two):
    """Those whose memory is not sent as it lies, or is another class's."""
    strided = np.ones((SIZE, 2))[:, 0]
    masked = np.ma.masked_equal(np.ones(SIZE), 2.0)
    objects = np.array([1.0, None] * (SIZE // 2), dtype=object)
    for value in (strided, masked, objects):
        calls = [parmap.delayed(len)(value) for _ in range(6)]
        with counted() as counts:
            assert list(parmap.compute(*calls)) == [SIZE] * 6
        assert counts["blocks"] == 0


def test_one_in_the_order_of_fortran(two):
    array = np.ones((SIZE, 2), order="F")
    rows = [(array.T, i) for i in range(2)] + [(array, i) for i in range(8)]
    with counted() as counts:
        found = parmap.starmap(total, rows)
    assert found == [2 * SIZE + i for i in range(2)] + [2 * SIZE + i for i in range(8)]
    assert counts["blocks"] == 1
    found = parmap.pmap(
        lambda x, _: (x.shape, x.flags.f_contiguous, x[3].tolist()), [array] * 2, "ab"
    )
    assert found == [((SIZE, 2), True, [1.0, 1.0])] * 2


def test_two_in_one_row(two):
    a, b = np.ones(SIZE), np.full(SIZE, 3.0)
    with counted() as counts:
        found = parmap.starmap(both, [(a, b, i) for i in range(6)], chunks=1)
    assert found == [(SIZE + 2.0 + i, 3.0 * SIZE - 2.0) for i in range(6)]
    assert counts["blocks"] == 2


def test_the_next_call_sees_what_has_changed_since(two):
    array = np.zeros(SIZE)
    rows = [(array, 0)] * 4
    for k in range(3):
        array[:] = k
        assert parmap.starmap(total, rows) == [k * SIZE] * 4


@pytest.mark.parametrize("lazy", [False, True])
def test_an_input_that_may_change_is_sent_as_it_is_then(two, lazy):
    array = np.zeros(SIZE)

    def rows():
        for k in range(6):
            array[:] = k
            yield array, 0

    if lazy:
        found = list(parmap.imap(lambda row: total(*row), rows()))
    else:
        found = parmap.starmap(total, rows())
    assert found == [k * SIZE for k in range(6)]


def test_copies_that_pickling_makes_are_not_taken_for_each_other(two):
    """An array that is not contiguous is copied to be sent; the next copy may lie in its place."""
    wide = np.arange(12.0 * SIZE).reshape(SIZE, 12)
    rows = [(wide[:, k], 0) for k in range(12)]
    assert parmap.starmap(total, rows, chunks=1) == [float(wide[:, k].sum()) for k in range(12)]


def test_after_a_death_it_is_there_again(two, tmp_path):
    array = np.ones(SIZE)

    def fn(array, i):
        if i == 3 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(3)
        return total(array, i)

    assert parmap.starmap(fn, [(array, i) for i in range(6)]) == [SIZE + i for i in range(6)]


def test_nothing_stays_after_the_call(two):
    array = np.ones(SIZE)
    parmap.starmap(total, [(array, i) for i in range(8)])
    assert two.executor._queue.broadcast.recurring.calls == {}


def test_beside_a_large_one_that_waits_in_the_queue(two):
    """That one is copied to a block of its own: a message has several."""
    array = np.ones(SIZE)
    rows = [(array, np.full(5_000_000, k), k) for k in range(5)]
    found = parmap.starmap(lambda a, b, k: (float(a.sum()), b[0], b[-1], k), rows, chunks=1)
    assert found == [(SIZE, k, k, k) for k in range(5)]


def test_where_no_block_can_be_made_it_goes_by_the_channel(two):
    array = np.ones(SIZE)
    with mock.patch.object(recurring, "Block", side_effect=OSError(28, "No space left")):
        found = parmap.starmap(total, [(array, i) for i in range(4)])
    assert found == [SIZE + i for i in range(4)]


def test_a_task_of_the_executors_own_users(two):
    """Arrays by name beside a reference: it is no chunk of a call."""
    arrays, executor = [np.ones(SIZE), np.full(SIZE, 2.0)], two.executor
    reference = executor.put(3.0)
    future = executor.submit(
        lambda x, a, b: float(x + a.sum() + b.sum()),
        reference,
        **dict(zip("ab", arrays, strict=True)),
    )
    assert future.result() == 3 * SIZE + 3
    assert executor._queue.broadcast.recurring.calls == {}
    executor.drop(reference)
