"""Retries: how often, for which errors, after what wait."""

from __future__ import annotations

import itertools
import pickle

import pytest

import parmap
from parmap.engine import recovery
from tests.hand import HandSession, hand_call


class Clock:
    """Stands in for the time module: it goes on only when told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(recovery, "time", clock)
    return clock


def collect(call):
    return list(itertools.chain.from_iterable(call.results()))


def test_a_wait_doubles_up_to_the_longest():
    retry = parmap.Retry(9, wait=1, longest=5)
    assert [retry.delay(failed) for failed in (1, 2, 3, 4, 10_000)] == [1, 2, 4, 5, 5]
    assert parmap.Retry(3).delay(3) == 0


def test_only_the_errors_named_are_retried():
    retry = parmap.Retry(2, on=(OSError, KeyError))
    assert retry.applies(FileNotFoundError(), 1)
    assert retry.applies(KeyError(), 2)
    assert not retry.applies(KeyError(), 3)
    assert not retry.applies(ValueError(), 1)
    assert not parmap.Retry(2).applies(SystemExit(), 1)


def test_what_waits_holds_up_nobody_and_comes_in_its_turn(clock):
    """Element 0 waits 10 s, then 20; the others run meanwhile; the order stays."""
    session, ran, tries = HandSession(workers=1), [], []

    def fn(x):
        ran.append(x)
        if x == 0:
            tries.append(clock.now)
            if len(tries) < 3:
                raise OSError(x)
        return x

    def step():
        if session.flying:
            session.flying[0].run()
        else:
            clock.now += 5.0  # nobody works: only time goes on

    call = hand_call(session, step, fn, range(5), retries=parmap.Retry(2, wait=10))
    assert collect(call) == [0, 1, 2, 3, 4]
    assert ran == [0, 1, 2, 3, 4, 0, 0]
    assert tries == [100.0, 110.0, 130.0]


def test_a_retry_that_is_due_waits_for_room_and_not_in_a_loop(clock):
    """The one worker has its two chunks when element 0 may be tried again."""
    session, looks = HandSession(workers=1), []

    def fn(x):
        if x == 0 and not looks:
            raise OSError(x)
        return x

    def step():
        if len(session.sent) == 3:
            clock.now += 20.0
            looks.append(call.due)
        session.flying[0].run()

    call = hand_call(session, step, fn, range(3), retries=parmap.Retry(1, wait=10))
    assert collect(call) == [0, 1, 2]
    assert looks == [None]


def test_a_failure_before_it_ends_what_waits(clock):
    """Element 3 would be tried again in an hour; element 1 has failed for good."""
    session = HandSession(workers=1)

    def fn(x):
        if x == 3:
            raise OSError(x)
        if x == 1:
            raise ValueError(x)
        return x

    def step():
        later = [sent for sent in session.flying if sent.elements != [1]]
        (later or session.flying)[0].run()

    call = hand_call(
        session, step, fn, [0, 1, 2, 3], retries=parmap.Retry(5, on=OSError, wait=3600)
    )
    with pytest.raises(ValueError) as caught:
        collect(call)
    assert caught.value.args == (1,)
    assert clock.now == 100.0


def test_what_waits_before_a_failure_is_still_run(clock):
    """Element 0 may yet be the first to fail: it is tried to the end."""
    session, tries = HandSession(workers=1), []

    def fn(x):
        if x == 0:
            tries.append(x)
            raise OSError(x)
        raise ValueError(x)

    def step():
        if session.flying:
            session.flying[-1].run()
        else:
            clock.now += 5.0

    call = hand_call(session, step, fn, range(2), retries=parmap.Retry(2, on=OSError, wait=10))
    with pytest.raises(OSError) as caught:
        collect(call)
    assert caught.value.args == (0,)
    assert len(tries) == 3


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=2)", "processes(workers=2)"])
def test_retries_wait_on_every_plan(plan, tmp_path):
    def fn(x):
        with open(tmp_path / str(x), "a+") as marks:
            marks.write("x")
            marks.seek(0)
            count = len(marks.read())
        if count < 3:
            raise ConnectionError(x)
        return x

    with parmap.plan(plan):
        retry = parmap.Retry(2, on=ConnectionError, wait=0.01)
        assert parmap.pmap(fn, range(4), retries=retry) == [0, 1, 2, 3]
        results = parmap.pmap(
            fn, range(4, 6), retries=parmap.Retry(5, on=KeyError), errors="return"
        )
    assert [type(result.error) for result in results] == [ConnectionError] * 2
    assert (tmp_path / "5").read_text() == "x"


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"times": -1}, ValueError, "retries=-1"),
        ({"times": 1.5}, TypeError, "retries=1.5"),
        ({"times": True}, TypeError, "retries=True"),
        ({"on": "OSError"}, TypeError, "on='OSError'"),
        ({"on": (OSError, 3)}, TypeError, "on="),
        ({"wait": -1}, ValueError, "wait=-1"),
        ({"wait": float("nan")}, ValueError, "wait=nan"),
        ({"wait": "1"}, TypeError, "wait='1'"),
        ({"longest": float("inf")}, ValueError, "longest=inf"),
    ],
)
def test_a_wrong_retry_says_what_is_wrong(wrong, error, says):
    with pytest.raises(error, match=says):
        parmap.Retry(**wrong)


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=1)", "processes(workers=1)"])
@pytest.mark.parametrize("wait", [1e10, 1e308, 10**400], ids=["1e10", "1e308", "10**400"])
def test_a_wait_of_centuries_holds_up_nobody(plan, wait):
    """The system's own clocks refuse it."""

    def fn(x):
        if x == 0:
            raise ConnectionError(x)
        return x

    retry = parmap.Retry(1, wait=wait, longest=wait)
    with parmap.plan(plan):
        results = parmap.imap(fn, range(2), ordered=False, chunks=1, retries=retry)
        assert next(results) == 1
        results.close()


def test_a_retry_is_a_value():
    retry = parmap.Retry(3, on=OSError, wait=1)
    assert pickle.loads(pickle.dumps(retry)) == retry
    assert hash(retry) == hash(parmap.Retry(3, on=OSError, wait=1))
