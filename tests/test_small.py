"""Small maps: sent before there is a loop, which is made only where something is left to do."""

from __future__ import annotations

import contextvars
import gc
import math
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import parmap
from parmap.backends.processes.handles import Channel
from parmap.engine import loop
from parmap.transport.payload import pack_within

GUARD = 60


@pytest.fixture(scope="module")
def session():
    gc.collect()  # other tests may have left handles, and where there are any no map is small
    with parmap.plan("processes", workers=2) as session:
        session.map(abs, range(4))
        yield session


@pytest.fixture(autouse=True)
def paces(monkeypatch):
    """Have no function known yet; give what is kept of those that are."""
    kept = {}
    monkeypatch.setattr("parmap.engine.small._paces", kept)
    return kept


@pytest.fixture
def loops():
    """Count the loops that are made."""
    made = []
    begin = loop.Call.__init__

    def counted(self, *args, **options):
        made.append(self)
        begin(self, *args, **options)

    with mock.patch.object(loop.Call, "__init__", counted):
        yield made


@pytest.fixture
def messages():
    """List the kinds of messages to workers."""
    sent = []
    send = Channel.send

    def listed(self, *some):
        sent.extend(kind.name for kind, _, _ in some)
        send(self, *some)

    with mock.patch.object(Channel, "send", listed):
        yield sent


def half(x):
    return x / 2


@pytest.fixture
def patient(monkeypatch):
    """Have the caller wait for all results: a worker may be slow to wake."""
    monkeypatch.setattr("parmap.engine.small._SOON", GUARD)


@pytest.mark.usefixtures("session", "patient")
@pytest.mark.parametrize("fn", [half, lambda x: x / 2])
@pytest.mark.parametrize("data", [[4], [1, 2.5], list(range(10)), range(1000), (True, 3)])
def test_a_small_map_is_one_message_to_each_worker(loops, messages, fn, data):
    assert parmap.pmap(fn, data) == [x / 2 for x in data]
    assert messages.count("TASK") == min(2, len(data))
    assert "BROADCAST" not in messages
    assert loops == []


@pytest.mark.usefixtures("session", "patient")
def test_a_function_that_was_quick_gets_one_worker(messages, paces):
    for _ in range(3):  # defined anew each time
        paces.update(dict.fromkeys(paces, 1e-7))  # however busy the machine is
        assert parmap.pmap(lambda x: x / 2, range(10)) == [x / 2 for x in range(10)]
    assert messages.count("TASK") == 2 + 1 + 1
    assert len(paces) == 1


@pytest.mark.usefixtures("session", "patient")
@pytest.mark.parametrize(("seconds", "workers"), [(0, 1), (1e-5, 1), (3e-5, 2), (1, 2)])
def test_so_many_workers_as_there_is_work_for(messages, paces, seconds, workers):
    paces[half.__code__] = seconds
    assert parmap.pmap(half, range(10)) == [x / 2 for x in range(10)]
    assert messages.count("TASK") == workers


@pytest.mark.usefixtures("session")
def test_a_function_that_is_slow_for_once_goes_to_all_workers_again(messages, paces):
    def naps(x):
        time.sleep(x)
        return x

    paces[naps.__code__] = 0.0
    assert parmap.pmap(naps, [0.05, 0]) == [0.05, 0]
    assert paces == {}
    messages.clear()
    assert parmap.pmap(naps, [0, 0]) == [0, 0]
    assert messages.count("TASK") == 2


@pytest.mark.usefixtures("session", "patient")
def test_no_object_of_the_users_is_kept_with_its_pace(paces):
    class Callable:
        def __call__(self, x):
            return x

        def __hash__(self):
            raise AssertionError("asked for its hash")

        __eq__ = None

    for fn in (math.sqrt, Callable(), Callable().__call__, str):
        assert len(parmap.pmap(fn, [1, 4])) == 2
    assert paces == {}
    paces.update((number, 0.0) for number in range(250))
    for i in range(20):
        parmap.pmap(eval(f"lambda x: x + {i}"), [1, 2])
        assert len(paces) <= 256


@pytest.mark.usefixtures("session", "patient")
def test_rows_and_several_iterables_are_small_maps_too(loops):
    assert parmap.starmap(pow, [(2, 5), (3, 2), (10, 3)]) == [32, 9, 1000]
    assert parmap.pmap(pow, [2, 3, 4], range(2, 9), (5,)) == [2**2 % 5]
    assert parmap.pmap(max, range(10**30), [2]) == [2]
    assert loops == []


LARGE = "x" * 20_000
OTHER = [
    ("no list", lambda: parmap.pmap(half, iter([1, 2])), [0.5, 1.0]),
    ("nothing", lambda: parmap.pmap(half, []), []),
    ("too many", lambda: parmap.pmap(half, range(5000)), [x / 2 for x in range(5000)]),
    ("an option", lambda: parmap.pmap(half, [1, 2], chunks=1), [0.5, 1.0]),
    ("objects", lambda: parmap.pmap(len, [[1], []]), [1, 0]),
    ("long texts", lambda: parmap.pmap(len, [LARGE, ""]), [20_000, 0]),
    ("a large function", lambda: parmap.pmap(lambda x, text=LARGE: len(text) + x, [1]), [20_001]),
    ("an array", lambda: parmap.pmap(lambda x, a=np.ones(3): a.sum() + x, [1]), [4.0]),
    ("rows that are lists", lambda: parmap.starmap(pow, [[2, 5]]), [32]),
]


@pytest.mark.usefixtures("session", "patient")
@pytest.mark.parametrize(("call", "values"), [o[1:] for o in OTHER], ids=[o[0] for o in OTHER])
def test_what_is_no_small_map_is_the_loops(loops, call, values):
    assert call() == values
    assert len(loops) == 1


@pytest.mark.usefixtures("session")
def test_where_there_are_handles_there_is_a_loop(loops):
    handle = parmap.share([1, 2, 3])
    assert parmap.pmap(lambda i: handle.value[i], [0, 2]) == [1, 3]
    assert len(loops) == 1


@pytest.mark.usefixtures("session", "patient")
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_failure_is_raised_as_the_loop_does(loops, count):
    def reciprocal(x):
        return 1 / (x - count + 1)

    with pytest.raises(ZeroDivisionError) as caught:
        parmap.pmap(reciprocal, range(count))
    assert f"element {count - 1} failed" in caught.value.__notes__[0]
    assert len(loops) == 1  # which has sent nothing anew: see below


@pytest.mark.usefixtures("session")
def test_each_element_runs_once_whatever_happens(tmp_path):
    draw = random.Random(5)
    for call in range(30):
        log = tmp_path / f"log{call}"
        naps = [draw.choice([0, 0, 0, 0, 0.002, 0.01]) for _ in range(draw.randint(1, 20))]
        bad = draw.randint(0, 40)
        name = os.fspath(log)

        def noted(i, naps=naps, name=name, bad=bad):
            with open(name, "ab", 0) as file:
                file.write(b"%d\n" % i)
            time.sleep(naps[i])
            if i == bad:
                raise ValueError(i)
            return -i

        if bad < len(naps):
            with pytest.raises(ValueError, match=f"^{bad}\n"):
                parmap.pmap(noted, range(len(naps)))
        else:
            assert parmap.pmap(noted, range(len(naps))) == [-i for i in range(len(naps))]
        ran = [int(line) for line in log.read_text().split()]
        assert len(ran) == len(set(ran))
        assert set(range(min(bad + 1, len(naps)))) <= set(ran)


@pytest.mark.usefixtures("session")
def test_a_death_costs_one_element(loops):
    def ends(x):
        if x == 3:
            os._exit(1)
        return x

    with pytest.raises(parmap.WorkerDied) as caught:
        parmap.pmap(ends, range(6))
    assert "element 3" in caught.value.__notes__[0]
    assert parmap.pmap(half, [2, 4]) == [1.0, 2.0]


@pytest.mark.usefixtures("session")
def test_draws_are_warned_of_as_the_loop_does():
    draw = np.random.random_sample  # which the function's code does not name
    with pytest.warns(parmap.UnseededRandomWarning):
        parmap.pmap(lambda _: draw(), range(5))


@pytest.mark.usefixtures("session", "patient")
def test_results_that_cannot_travel_are_told_one_by_one():
    with pytest.raises(parmap.SerializationError) as caught:
        parmap.pmap(lambda x: threading.Lock() if x == 2 else x, range(4))
    assert "element 2" in caught.value.__notes__[0]


ATOMS = st.one_of(
    *(st.integers(), st.floats(), st.complex_numbers(), st.booleans(), st.none()),
    *(st.text(max_size=20), st.binary(max_size=20)),
)


def same(x):
    return x


@pytest.mark.usefixtures("session")
@hypothesis.given(data=st.lists(ATOMS, max_size=30), many=st.sampled_from([list, tuple]))
@hypothesis.settings(deadline=None, max_examples=50)
def test_values_come_back_as_they_were(data, many):
    for given, came in zip(data, parmap.pmap(same, many(data)), strict=True):
        assert type(came) is type(given)
        assert repr(came) == repr(given)


@pytest.mark.usefixtures("session")
def test_many_threads_at_once():
    def calls(start):
        for i in range(start, start + 40):
            assert parmap.pmap(half, [i, i + 1, i + 2]) == [i / 2, (i + 1) / 2, (i + 2) / 2]
        return start

    contexts = [contextvars.copy_context() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        done = [threads.submit(one.run, calls, start) for start, one in enumerate(contexts)]
        assert [one.result(GUARD) for one in done] == list(range(8))


def test_a_function_is_pickled_only_as_far_as_it_is_small():
    class Large:
        """Its second half is never asked for."""

        asked = 0

        def __reduce__(self):
            type(self).asked += 1
            return bytes, (b"x" * 100_000,)

    assert pack_within([Large(), Large()], 1000) is None
    assert Large.asked < 2
    assert pack_within(math.sqrt, 1000) is not None
    assert pack_within(np.ones(3), 1000) is None  # arrays are shared
