"""The engine loop, every order of events forced by hand."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmap.engine import chunkers
from parmap.engine.chunks import ChunkPlan
from parmap.engine.policies import Auto, Dynamic, Static
from parmap.engine.recovery import after_death
from parmap.engine.single_call import single
from parmap.engine.source import Source
from parmap.engine.traits import Traits
from parmap.errors import SerializationError, SessionClosed, TaskTimeout, WorkerDied
from parmap.failures import Failure
from parmap.observe import events
from parmap.transport.messages import CallSpec, Chunk
from parmap.worker import elements, run
from tests.hand import HandSession, hand_call


def collect(call) -> list:
    return list(itertools.chain.from_iterable(call.results()))


POLICIES = st.sampled_from(
    [
        *("auto", "static", "dynamic", "guided", 1, 2, 7),
        *(Static(cyclic=True), Auto(shuffle=5), Dynamic(size=3, cost=lambda x: x % 7)),
    ]
)


@given(
    n=st.integers(0, 60),
    workers=st.integers(1, 5),
    chunks=POLICIES,
    lazy=st.booleans(),
    data=st.data(),
)
def test_results_come_in_the_inputs_order_whatever_lands_first(n, workers, chunks, lazy, data):
    session = HandSession(workers)

    def step():
        data.draw(st.sampled_from(session.flying)).run()

    numbers = iter(range(n)) if lazy else range(n)
    call = hand_call(session, step, lambda x: x * x, numbers, chunks=chunks)
    assert collect(call) == [x * x for x in range(n)]
    assert session.dropped == [call._spec]


def noting(runs, bad):
    """Make a function that notes each element, and fails for some."""

    def fn(x):
        runs.append(x)
        if x in bad:
            raise ValueError(x)
        return -x

    return fn


def running_or_killing(session, data):
    """Make a step that runs some chunk, whole or in part, or kills its worker."""
    kills = iter(range(3))  # more in one place would convict an element

    def step():
        sent = data.draw(st.sampled_from(session.flying))
        if data.draw(st.integers(0, 4)) == 0 and next(kills, None) is not None:
            sent.die(exitcode=-9)
        else:
            sent.run(brief=data.draw(st.booleans()))

    return step


@given(
    n=st.integers(0, 60),
    workers=st.integers(1, 5),
    bad=st.sets(st.integers(0, 59), max_size=3),
    window=st.sampled_from([None, 1, 7]),
    retries=st.integers(0, 1),
    data=st.data(),
)
def test_chunks_that_end_themselves_lose_nothing(n, workers, bad, window, retries, data):
    session, runs = HandSession(workers, traits=Traits(replaces_workers=True)), []
    fn, step = noting(runs, bad), running_or_killing(session, data)
    options = {"errors": "return", "retries": retries, "window": window}
    with mock.patch.object(chunkers.Learning, "_MANY", 1):
        results = collect(hand_call(session, step, fn, range(n), chunks=Auto(), **options))
    for x, result in enumerate(results):
        assert result.error.args == (x,) if x in bad else result == -x
    assert sorted(runs) == sorted([*range(n), *(retries * [x for x in bad if x < n])])


@given(
    n=st.integers(0, 60),
    workers=st.integers(2, 5),
    bad=st.sets(st.integers(0, 59), max_size=3),
    window=st.sampled_from([None, 1, 7]),
    errors=st.sampled_from(["raise", "return"]),
    data=st.data(),
)
def test_chunks_that_are_recalled_lose_nothing(n, workers, bad, window, errors, data):
    session, runs = HandSession(workers, traits=Traits(recalls=True, replaces_workers=True)), []
    ticks = itertools.count(step=0.01)
    fn, run_or_kill = noting(runs, bad), running_or_killing(session, data)

    def recalled(chunk):
        if data.draw(st.booleans()):
            return None
        return data.draw(st.integers(1, chunk.size)), data.draw(st.booleans())

    def step():
        if data.draw(st.booleans()):  # else only time goes on
            run_or_kill()

    session.recalled = recalled
    call = hand_call(session, step, fn, range(n), chunks=Auto(), errors=errors, window=window)
    failed = sorted(x for x in bad if x < n)
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    names = ("parmap.engine.chunks.time", "parmap.engine.loop.time")
    with mock.patch(names[0], clock), mock.patch(names[1], clock):
        if failed and errors == "raise":
            with pytest.raises(ValueError) as caught:
                collect(call)
            assert caught.value.args == (failed[0],)
            assert sorted(set(runs)) == sorted(runs)
            assert set(range(failed[0])) <= set(runs)
            return
        results = collect(call)
    for x, result in enumerate(results):
        assert result.error.args == (x,) if x in bad else result == -x
    assert sorted(runs) == list(range(n))


def test_a_trial_is_shared_out_and_what_did_not_run_is_cut_by_what_it_took():
    session = HandSession(2, traits=Traits())

    def step():
        session.flying[0].run(brief=True)

    assert collect(hand_call(session, step, abs, range(2000), chunks="auto")) == list(range(2000))
    sizes = [sent.chunk.size for sent in session.sent]
    trials = [sent.chunk.seconds for sent in session.sent if sent.chunk.seconds is not None]
    assert sizes[:2] == [1000, 1000]
    assert trials == [0.001] * 2
    # One element was slow to start, as it is when measured alone; the others come in large chunks.
    assert len(sizes) < 30


@pytest.mark.parametrize(
    ("elements", "traits"),
    [
        ([[1]] * 2000, Traits()),  # may be of any size
        (["x" * 1000] * 2000, Traits()),
        ([(1, [2])] * 2000, Traits()),
        ([np.zeros(100)] * 2000, Traits()),
        (np.zeros((2000, 100)), Traits()),
        (np.array([None] * 2000), Traits()),
        (iter(range(2000)), Traits()),  # are pulled only as they are needed
        (range(2000), Traits(shares_memory=True)),  # single ones cost little there
        (range(1998), Traits()),  # few: none shall wait for another
    ],
)
def test_where_much_might_come_back_elements_go_singly_at_first(elements, traits):
    session = HandSession(2, traits=traits)
    call = hand_call(session, lambda: session.flying[0].run(), id, elements, chunks="auto")
    next(call.results())
    assert [sent.chunk.size for sent in session.sent[:4]] == [1] * 4
    assert {sent.chunk.seconds for sent in session.sent} == {None}


@pytest.mark.parametrize(
    "elements",
    [
        list(range(2000)),
        tuple("abcdefghij" * 200),
        b"x" * 2000,
        [(1, 2.0, "x")] * 2000,
        np.zeros((2000, 8)),
        np.arange(2000),
    ],
)
def test_small_elements_go_in_trials(elements):
    session = HandSession(2, traits=Traits())
    call = hand_call(session, lambda: session.flying[0].run(), id, elements, chunks="auto")
    assert len(collect(call)) == 2000
    assert [sent.chunk.size for sent in session.sent] == [1000, 1000]


def test_few_small_elements_that_are_fast_take_few_messages():
    session = HandSession(2, traits=Traits())
    call = hand_call(
        session, lambda: session.flying[0].run(seconds=1e-7), id, range(1000), chunks="auto"
    )
    assert len(collect(call)) == 1000
    sizes = [sent.chunk.size for sent in session.sent]
    assert sizes == [1, 1, 1, 1, 500, 496]
    # They end themselves, for the single ones may have been the only fast ones.
    assert [sent.chunk.seconds for sent in session.sent] == [None] * 4 + [0.001] * 2


def test_costly_elements_that_go_first_are_not_held_up_by_trials():
    session = HandSession(2, traits=Traits())
    chunks = Auto(cost=lambda x: x)
    collect(hand_call(session, lambda: session.flying[0].run(), abs, range(2000), chunks=chunks))
    assert [sent.elements for sent in session.sent[:3]] == [[1999], [1998], [1997]]


@given(
    n=st.integers(1, 40),
    workers=st.integers(1, 4),
    chunks=POLICIES,
    bad=st.sets(st.integers(0, 39), max_size=6),
    data=st.data(),
)
def test_the_error_raised_is_the_one_that_map_would_meet_first(n, workers, chunks, bad, data):
    session = HandSession(workers)

    def fn(x):
        if x in bad:
            raise ValueError(x)
        return x

    def step():
        data.draw(st.sampled_from(session.flying)).run()

    call = hand_call(session, step, fn, range(n), chunks=chunks)
    expected = min((x for x in bad if x < n), default=None)
    if expected is None:
        assert collect(call) == list(range(n))
    else:
        with pytest.raises(ValueError) as caught:
            collect(call)
        assert caught.value.args == (expected,)
        assert f"element {expected} failed" in caught.value.__notes__[0]


def test_what_comes_before_a_failure_is_awaited_and_what_comes_after_is_stopped():
    session = HandSession(workers=2)

    def fn(x):
        if x in (1, 2):
            raise ValueError(x)
        return x

    def step():
        zero, one, two, three = session.sent  # two per worker, and none after the failure
        if not two.future.done():
            three.begin()  # runs, so it cannot be cancelled
            two.run()
        else:
            assert session.abandoned == [three.future]
            (one if zero.future.done() else zero).run()

    with pytest.raises(ValueError) as caught:
        collect(hand_call(session, step, fn, range(100)))
    assert caught.value.args == (1,)
    assert len(session.sent) == 4


def test_a_queued_chunk_after_a_failure_is_cancelled():
    session = HandSession(workers=2)

    def fn(x):
        raise ValueError(x)

    call = hand_call(session, lambda: session.sent[0].run(), fn, range(100))
    with pytest.raises(ValueError):
        collect(call)
    assert [sent.future.cancelled() for sent in session.sent] == [False, True, True, True]


def test_a_failure_in_shuffled_order_still_runs_what_comes_before_it():
    session = HandSession(workers=1)
    ran = []

    def fn(x):
        ran.append(x)
        if x >= 5:
            raise ValueError(x)
        return x

    call = hand_call(
        session, lambda: session.flying[0].run(), fn, range(10), chunks=Dynamic(cost=lambda x: x)
    )
    with pytest.raises(ValueError) as caught:
        collect(call)
    assert caught.value.args == (5,)
    assert sorted(ran) == list(range(10))  # 9 first, and then all below what failed


@given(
    n=st.integers(1, 40),
    workers=st.integers(1, 4),
    chunks=POLICIES,
    bad=st.sets(st.integers(0, 39), max_size=4),
    killers=st.sets(st.integers(0, 39), max_size=3),
    locates=st.booleans(),
    data=st.data(),
)
@settings(max_examples=200)
def test_deaths_and_failures_cost_only_their_own_elements(
    n, workers, chunks, bad, killers, locates, data
):
    session = HandSession(workers)
    chance_kills = data.draw(st.integers(0, 3))  # from outside; four would convict

    def fn(x):
        if x in bad:
            raise ValueError(x)
        return x

    def step():
        nonlocal chance_kills
        sent = data.draw(st.sampled_from(session.flying))
        killer = next((i for i, x in enumerate(sent.elements) if x in killers), None)
        if killer is not None:
            sent.die(-11, killer if locates and sent.chunk.careful else None)
        elif chance_kills and data.draw(st.booleans()):
            chance_kills -= 1
            position = data.draw(st.integers(0, sent.chunk.size - 1))
            sent.die(-9, position if locates and sent.chunk.careful else None)
        else:
            sent.run()

    results = collect(hand_call(session, step, fn, range(n), chunks=chunks, errors="return"))
    assert len(results) == n
    for i, result in enumerate(results):
        if i in killers:
            assert isinstance(result, Failure)
            assert isinstance(result.error, WorkerDied)
            assert result.index == i
        elif i in bad:
            assert isinstance(result, Failure)
            assert isinstance(result.error, ValueError)
            assert result.index == i
        else:
            assert result == i


@given(
    window=st.integers(1, 30),
    workers=st.integers(1, 4),
    chunks=st.sampled_from(["auto", 1, 5]),
    ordered=st.booleans(),
    data=st.data(),
)
def test_no_more_than_the_window_is_pulled_and_not_consumed(window, workers, chunks, ordered, data):
    session = HandSession(workers)
    pulled = consumed = most = 0

    def numbers():
        nonlocal pulled, most
        for pulled in itertools.count(1):
            most = max(most, pulled - consumed)
            yield pulled

    def step():
        data.draw(st.sampled_from(session.flying)).run()

    call = hand_call(
        session, step, lambda x: x, numbers(), chunks=chunks, ordered=ordered, window=window
    )
    results = call.results()
    seen = []
    while len(seen) < 60:
        values = next(results)
        seen += values
        consumed += len(values)
    results.close()
    # What a list of results holds counts as consumed once it is given out.
    assert most <= window + 1
    assert seen == sorted(seen) if ordered else len(set(seen)) == len(seen)


def test_closing_early_cancels_what_waits_and_abandons_what_runs():
    session = HandSession(workers=2)

    def step():
        session.sent[0].run()
        session.sent[1].begin()

    results = hand_call(session, step, lambda x: x, itertools.count()).results()
    assert next(results) == [0]
    results.close()
    assert session.abandoned == [session.sent[1].future]
    assert all(sent.future.cancelled() for sent in session.sent[2:])
    assert len(session.dropped) == 1


def test_ctrl_c_while_waiting_cancels_everything():
    session = HandSession(workers=2)

    def step():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(hand_call(session, step, lambda x: x, range(10)))
    assert all(sent.future.cancelled() for sent in session.sent)
    assert len(session.dropped) == 1


def test_a_keyboard_interrupt_in_a_task_ends_the_call_even_where_failures_are_returned():
    session = HandSession(workers=1)

    def fn(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(hand_call(session, lambda: session.sent[0].run(), fn, range(5), errors="return"))


def test_a_failing_element_is_retried_and_keeps_its_place():
    session = HandSession(workers=1)
    tries = dict.fromkeys(range(6), 0)
    seen = []

    def fn(x):
        tries[x] += 1
        if x % 2 and tries[x] <= 2:
            raise ValueError(x)
        return x

    call = hand_call(
        session,
        lambda: session.flying[0].run(),
        fn,
        range(6),
        chunks=3,
        retries=2,
        observers=(seen.append,),
    )
    assert collect(call) == list(range(6))
    assert tries == {0: 1, 1: 3, 2: 1, 3: 3, 4: 1, 5: 3}
    assert sum(isinstance(event, events.ElementRetried) for event in seen) == 6


def test_an_interrupt_just_after_the_last_element_is_that_ones(monkeypatch):
    class Forks:
        """Ctrl-C comes when the worker asks whether the function has forked."""

        reads = 0

        @property
        def generation(self):
            self.reads += 1
            if self.reads == 2:
                raise KeyboardInterrupt
            return 0

    monkeypatch.setattr(elements, "forks", Forks())
    outcome = run.run_chunk(CallSpec(abs, crosses=False), Chunk(([-1, -2],)))
    (element_error,) = outcome.element_errors
    assert element_error.offset == 1
    assert isinstance(element_error.error.error, KeyboardInterrupt)
    # After the first part of a chunk it ends the chunk.
    monkeypatch.setattr(elements, "forks", Forks())
    ran = []
    spec, chunk = CallSpec(ran.append, crosses=False), Chunk(([1, 2, 3],), seconds=math.inf)
    (element_error,) = run.run_chunk(spec, chunk).element_errors
    assert element_error.offset == 0
    assert isinstance(element_error.error.error, KeyboardInterrupt)
    assert ran == [1]


def test_retries_end():
    session = HandSession(workers=1)
    tries = 0

    def fn(x):
        nonlocal tries
        tries += 1
        raise ValueError(tries)

    with pytest.raises(ValueError) as caught:
        collect(hand_call(session, lambda: session.flying[0].run(), fn, [0], retries=3))
    assert caught.value.args == (4,)


def test_an_element_that_cannot_travel_fails_alone():
    def refuse(chunk):
        if 3 in chunk.columns[0]:
            raise SerializationError("args[3] cannot travel")

    session = HandSession(workers=2, refuse=refuse)
    call = hand_call(
        session, lambda: session.flying[0].run(), lambda x: x, range(8), chunks=4, errors="return"
    )
    results = collect(call)
    assert isinstance(results[3].error, SerializationError)
    assert [r for i, r in enumerate(results) if i != 3] == [0, 1, 2, 4, 5, 6, 7]


def test_an_input_that_raises_midway_fails_after_what_came_before_it():
    session = HandSession(workers=2)

    def numbers():
        yield from range(5)
        raise OSError("the disk")

    given_out = []
    with pytest.raises(OSError, match="the disk"):
        for values in hand_call(
            session, lambda: session.flying[-1].run(), lambda x: x, numbers(), chunks=3
        ).results():
            given_out += values
    assert given_out == [0, 1, 2, 3, 4]


def test_an_element_that_fails_before_the_input_does_comes_first():
    session = HandSession(workers=2)

    def numbers():
        yield from range(5)
        raise OSError("the disk")

    def fn(x):
        raise ValueError(x)

    with pytest.raises(ValueError) as caught:
        collect(hand_call(session, lambda: session.flying[-1].run(), fn, numbers(), chunks=3))
    assert caught.value.args == (0,)


def test_a_session_closed_by_another_thread_is_told():
    session = HandSession(workers=1)

    def step():
        session.sent[0].future.cancel()
        session.sent[0].future.set_running_or_notify_cancel()

    with pytest.raises(SessionClosed):
        collect(hand_call(session, step, lambda x: x, range(5)))


def test_an_error_of_the_place_itself_ends_the_call():
    session = HandSession(workers=1)

    def step():
        session.sent[0].begin()
        session.sent[0].future.set_exception(RuntimeError("the place is on fire"))

    with pytest.raises(RuntimeError, match="on fire"):
        collect(hand_call(session, step, lambda x: x, range(5), errors="return"))
    assert session.sent[1].future.cancelled()


def test_an_input_whose_length_lies_is_still_mapped_whole():
    class Liar:
        def __init__(self, says):
            self.says = says

        def __len__(self):
            return self.says

        def __iter__(self):
            return iter(range(10))

    for says in (0, 3, 25):
        for chunks in ("auto", "static", "guided", 4, Static(cyclic=True)):
            session = HandSession(workers=2)
            call = hand_call(
                session, lambda s=session: s.flying[0].run(), lambda x: x, Liar(says), chunks=chunks
            )
            assert collect(call) == list(range(10)), (says, chunks)


def test_observers_hear_of_everything_in_order():
    session, heard = HandSession(workers=1), []

    def fn(x):
        if x == 1:
            raise ValueError(x)
        return x

    call = hand_call(
        session,
        lambda: session.flying[0].run(),
        fn,
        range(2),
        errors="return",
        observers=(heard.append,),
    )
    collect(call)
    assert [type(event).__name__ for event in heard] == [
        *("CallStarted", "ChunkSent", "ChunkSent", "ChunkFinished"),
        *("ElementFailed", "ChunkFinished", "CallFinished"),
    ]
    assert heard[0] == events.CallStarted("", 2, 1)


def test_an_observer_that_raises_ends_the_call():
    session = HandSession(workers=1)

    def observe(event):
        if isinstance(event, events.ChunkFinished):
            raise RuntimeError("observer")

    with pytest.raises(RuntimeError, match="observer"):
        collect(
            hand_call(session, lambda: session.flying[0].run(), int, range(5), observers=(observe,))
        )
    assert session.sent[1].future.cancelled()


def chunk_plan(n: int, **history) -> ChunkPlan:
    return ChunkPlan(range(10, 10 + n), Chunk((list(range(n)),)), **history)


def test_a_first_death_runs_the_chunk_again_with_each_element_noted():
    offset, again = after_death(chunk_plan(4), WorkerDied(1, -11))
    assert offset is None
    assert [part.chunk.careful for part in again] == [True]
    assert again[0].indices == range(10, 14)


def test_a_noted_death_isolates_the_suspect_and_frees_the_others():
    offset, again = after_death(chunk_plan(4).careful(), WorkerDied(1, -11, position=2))
    assert offset is None
    assert [list(part.indices) for part in again] == [[12], [10, 11], [13]]
    assert [part.deaths for part in again] == [1, 0, 0]
    assert not any(part.chunk.careful for part in again)


def test_without_notes_a_chunk_is_cut_until_the_suspect_is_alone():
    for whole in (chunk_plan(40).careful(), chunk_plan(40)):
        offset, again = after_death(whole, WorkerDied(1), noted=False)
        assert offset is None
        assert {part.size for part in again} == {3, 1}
        assert all(part.chunk.careful for part in again)
        assert [i for part in again for i in part.indices] == list(range(10, 50))
    # One that was not alone may be innocent, however often its workers died.
    offset, again = after_death(chunk_plan(1), WorkerDied(1, times=9), noted=False)
    assert offset is None
    assert [(part.deaths, part.chunk.careful) for part in again] == [(0, True)]
    offset, again = after_death(again[0], WorkerDied(1, times=2), noted=False)
    assert offset is None
    assert [(part.deaths, part.chunk.careful) for part in again] == [(2, True)]
    assert after_death(again[0], WorkerDied(1, times=2), noted=False) == (0, [])


@pytest.mark.parametrize(
    ("exitcode", "deaths", "convicted"),
    [
        *((-11, 0, False), (-11, 1, True), (3, 0, False), (3, 1, True)),
        *((-9, 0, False), (-9, 2, False), (-9, 3, True), (None, 2, False), (-15, 2, False)),
    ],
)
def test_own_deaths_convict_at_the_second_and_kills_from_outside_at_the_fourth(
    exitcode, deaths, convicted
):
    offset, again = after_death(chunk_plan(1, deaths=deaths), WorkerDied(1, exitcode))
    assert (offset == 0) is convicted
    assert [part.deaths for part in again] == ([] if convicted else [deaths + 1])


def test_a_timeout_convicts_at_once_and_spares_the_others():
    session = HandSession(workers=1)

    def step():
        sent = session.flying[0]
        if 2 in sent.elements:
            sent.die(1, sent.elements.index(2), 'Timeout (0:00:01)!\n  File "a.py", line 3 in f')
        else:
            sent.run()

    call = hand_call(session, step, lambda x: x, range(4), chunks=4, errors="return", timeout=60)
    results = collect(call)
    assert isinstance(results[2].error, TaskTimeout)
    assert 'File "a.py", line 3 in f' in str(results[2].error)
    assert [r for i, r in enumerate(results) if i != 2] == [0, 1, 3]


@pytest.mark.parametrize("count", [1, 4])
def test_where_the_watchdog_rings_too_early_nobody_is_to_blame(count):
    death = WorkerDied(1, 1, position=None, last_words="Timeout (0:00:01)!")
    offset, (again,) = after_death(chunk_plan(count), death)
    assert offset is None
    assert again.chunk.careful
    assert (again.size, again.deaths) == (count, 0)


@given(
    kinds=st.lists(
        st.sampled_from(["range", "list", "tuple", "iter", "dict"]), min_size=1, max_size=3
    ),
    lengths=st.lists(st.integers(0, 20), min_size=3, max_size=3),
    sizes=st.lists(st.integers(1, 7), min_size=25, max_size=25),
)
def test_a_source_gives_what_zip_gives(kinds, lengths, sizes):
    make = {
        "range": range,
        "list": lambda n: list(range(n)),
        "tuple": lambda n: tuple(range(n)),
        "iter": lambda n: iter(range(n)),
        "dict": lambda n: dict.fromkeys(range(n)),
    }
    source = Source([make[kind](n) for kind, n in zip(kinds, lengths, strict=False)])
    rows = []
    for size in sizes:
        columns = source.cut(size)
        if columns is None:
            break
        assert 1 <= len(columns[0]) <= size
        rows += zip(*columns, strict=True)
    assert rows == list(zip(*map(range, lengths[: len(kinds)]), strict=False))


def test_ranges_and_arrays_are_cut_as_what_they_are():
    numpy = pytest.importorskip("numpy")
    assert Source([range(10)]).cut(4) == (range(4),)
    array = numpy.zeros((6, 2))
    (rows,) = Source([array]).cut(3)
    assert rows.base is array


def test_where_nobody_sees_who_killed_the_worker_suspects_run_alone():
    session = HandSession(workers=2, traits=Traits(replaces_workers=True))
    seen = []

    def step():
        flying = session.flying
        seen.append([(sent.elements, sent.chunk.careful) for sent in flying])
        (sent, *_) = [one for one in flying if 5 in one.elements] or flying
        if 5 in sent.elements:
            sent.die(None)
        else:
            sent.run()

    call = hand_call(session, step, abs, range(12), chunks=4, errors="return")
    results = list(itertools.chain.from_iterable(call.results()))
    failure = results.pop(5)
    assert isinstance(failure.error, WorkerDied)
    assert results == [0, 1, 2, 3, 4, *range(6, 12)]
    # The first death may be anyone's doing: so all of its chunk are tried, each alone.
    assert seen[0] == [([0, 1, 2, 3], False), ([4, 5, 6, 7], False), ([8, 9, 10, 11], False)]
    alone = [flying for flying in seen if any(careful for _, careful in flying)]
    assert alone == [[([x], True)] for x in (4, 5, 5, 5, 5, 6, 7)]


def test_a_single_result_goes_with_its_future_and_waits_for_no_collector():
    session = HandSession()
    gc.disable()
    try:
        future = single(session, set, ((1, 2),), {})
        session.sent.pop().run()
        result = weakref.ref(future.result())
        assert result() == {1, 2}
        del future
        assert result() is None
    finally:
        gc.enable()
