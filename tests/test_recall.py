"""Elements that a worker has not begun are taken back, and each runs once."""

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import parmap
from parmap.backends.processes import recall as module
from parmap.backends.processes.notes import Notes
from parmap.backends.processes.recall import Begun, recall
from parmap.worker import context

PLANS = [
    parmap.plan("processes", workers=2),
    parmap.plan("processes", workers=2, start="fork"),
    parmap.plan("processes", workers=3),
]


@pytest.fixture
def notes():
    notes = Notes()
    yield notes
    notes.close()


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def begun(notes):
    return Begun(notes.fd, memoryview(mmap.mmap(notes.fd, context.NOTES)))


def test_half_of_what_has_not_begun_comes_back(notes, clock):
    worker = begun(notes)
    assert worker.begin(7, 20, 4) == 4
    assert recall(notes.fd, 7, only_slow=True) is None
    assert recall(notes.fd, 7, only_slow=False) == (12, False)  # 4 run, 8 stay, 8 come back
    assert worker.begin(7, 20, 10) == 10
    assert recall(notes.fd, 7, only_slow=False) == (11, False)
    assert recall(notes.fd, 7, only_slow=False) == (10, False)
    assert recall(notes.fd, 7, only_slow=False) == (10, False)  # nothing is left
    assert worker.begin(7, 20, 14) == 10


@pytest.mark.parametrize("only_slow", [True, False])
def test_all_comes_back_where_an_element_is_slow(notes, clock, only_slow):
    worker = begun(notes)
    worker.begin(7, 20, 1)
    clock.now += 0.004
    assert recall(notes.fd, 7, only_slow=only_slow) == (1, True)
    assert worker.begin(7, 20, 3) == 1
    assert worker.begin(8, 20, 3) == 3  # the next chunk is whole


def test_nothing_comes_back_of_another_chunk(notes, clock):
    assert recall(notes.fd, 1, only_slow=False) is None  # no worker has come to it
    begun(notes).begin(2, 20, 1)
    assert recall(notes.fd, 1, only_slow=False) is None
    assert begun(notes).begin(2, 20, 20) == 20


HOLDS = """
import fcntl, sys
fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX, 32, 8)
print("held", flush=True)
sys.stdin.read()
"""


def test_who_is_stopped_at_the_lock_keeps_its_elements(notes, clock):
    begun(notes).begin(7, 20, 1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(notes.fd)],
        pass_fds=[notes.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"held\n"
        assert recall(notes.fd, 7, only_slow=False) is None
        other.kill()
        other.wait()
    assert recall(notes.fd, 7, only_slow=False) == (10, False)  # the system has taken the lock


def meet(folder, count, waits, x):
    """Have element `waits` wait until all others have run."""
    others = Path(folder)
    if x == waits:
        while len(os.listdir(others)) < count - 1:
            time.sleep(0.001)
    else:
        (others / str(x)).touch()
    return -x


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("waits", [0, 9])
@pytest.mark.parametrize(
    "options", [{}, {"timeout": 60}, {"rng": 1}, {"errors": "return"}, {"chunks": parmap.Auto()}]
)
def test_no_element_waits_for_another(plan, waits, options, tmp_path):
    """One runs until all others have: it would for ever, if its worker kept any of them."""

    def fn(x, rng=None):
        return meet(tmp_path, 10, waits, x)

    with plan:
        assert parmap.pmap(fn, range(10), **options) == [-x for x in range(10)]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_stream_does_not_wait_for_what_comes_after_it(plan, tmp_path):
    with plan:
        results = parmap.imap(lambda x: meet(tmp_path, 10, 0, x), range(10))
        assert list(results) == [-x for x in range(10)]


def ran(path, x, naps):
    with open(path, "ab", buffering=0) as file:
        file.write(b"%d\n" % x)
    time.sleep(naps[x])
    return x


@pytest.mark.parametrize("workers", [2, 3])
def test_each_element_runs_once(workers, tmp_path):
    @settings(deadline=None, max_examples=30)
    @given(
        naps=st.lists(st.sampled_from([0.0, 0.0005, 0.004, 0.02]), min_size=1, max_size=40),
        fails=st.sets(st.integers(0, 39)),
    )
    def check(naps, fails):
        path = tmp_path / "log"
        path.write_bytes(b"")

        def fn(x):
            ran(path, x, naps)
            if x in fails:
                raise ValueError(x)
            return x

        values = parmap.pmap(fn, range(len(naps)), errors="return")
        for x, value in enumerate(values):
            assert value == x or (x in fails and value.index == x)
        assert sorted(map(int, path.read_text().split())) == list(range(len(naps)))

    with parmap.plan("processes", workers=workers):
        check()


def test_what_was_recalled_is_not_run_again_after_a_death(tmp_path):
    """The worker that keeps element 0 dies when another has run all others."""

    def fn(x):
        with open(tmp_path / f"{x}.log", "ab", buffering=0) as file:
            file.write(b"!")
        if x == 0:
            others = [tmp_path / f"{other}.log" for other in range(1, 10)]
            while not all(path.exists() for path in others):
                time.sleep(0.001)
            if (tmp_path / "0.log").stat().st_size == 1:
                os._exit(3)
        return -x

    with parmap.plan("processes", workers=2):
        assert parmap.pmap(fn, range(10)) == [-x for x in range(10)]
    sizes = [(tmp_path / f"{x}.log").stat().st_size for x in range(10)]
    assert sizes == [2] + [1] * 9


def test_a_small_map_is_one_message_for_each_worker():
    with parmap.plan("processes", workers=2) as session:
        parmap.pmap(abs, range(10))
        given, submit = [], session._backend.submit
        session._backend.submit = lambda *call: given.append(call) or submit(*call)
        assert parmap.pmap(abs, range(-10, 0)) == list(range(10, 0, -1))
    assert len(given) == 2
