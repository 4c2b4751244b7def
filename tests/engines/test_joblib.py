"""Plan ``joblib``, on its own backends and on one that a package registers."""

import os
import signal
import sys

import pytest

import parmap
from parmap.testing import PlanContract

joblib = pytest.importorskip("joblib")


class TestLoky(PlanContract):
    plan = parmap.plan("joblib", workers=2)


class TestThreading(PlanContract):
    plan = parmap.plan("joblib", backend="threading", workers=2)


class TestMultiprocessing(PlanContract):
    plan = parmap.plan("joblib", backend="multiprocessing", workers=2)


class TestOneWorker(PlanContract):
    plan = parmap.plan("joblib", workers=1)


def test_an_unknown_backend_is_refused_with_those_that_there_are():
    with pytest.raises(parmap.PlanError, match=r"did you mean 'loky'\?\). Backends: .*loky, mult"):
        parmap.plan("joblib", backend="lokyy").start()


def test_a_backend_that_cannot_start_says_why(monkeypatch):
    def unready(**options):
        raise ValueError("no cluster yet")

    monkeypatch.setitem(joblib.parallel.BACKENDS, "unready", unready)
    with pytest.raises(parmap.PlanError, match="'unready' cannot start: no cluster yet"):
        parmap.plan("joblib", backend="unready", workers=2).start()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(parmap.BackendUnavailable, match=r"pip install 'parmap-plans\[joblib\]'"):
        parmap.plan("joblib").start()


def test_a_worker_of_loky_that_is_killed_while_it_idles_is_replaced():
    with parmap.plan("joblib", workers=2):
        for _ in range(3):
            (pid,) = parmap.pmap(lambda _: os.getpid(), [1])
            os.kill(pid, signal.SIGKILL)
            assert parmap.pmap(lambda x: -x, range(20), chunks=1) == [-x for x in range(20)]


def double(x):
    return 2 * x


def test_the_user_may_call_joblib_at_the_same_time():
    # loky's executor is one for the process, and made anew for other options.
    with parmap.plan("joblib", workers=2):
        results = []
        for result in parmap.imap(double, range(40), chunks=1):
            results.append(result)
            if result % 20 == 0:
                own = joblib.Parallel(n_jobs=3)(joblib.delayed(double)(i) for i in range(4))
                assert own == [0, 2, 4, 6]
    assert results == [2 * x for x in range(40)]


def test_setup_runs_once_in_each_worker():
    def setup():
        os.environ["SET_UP"] = os.environ.get("SET_UP", "") + "x"

    with parmap.plan("joblib", workers=2, setup=setup):
        for _ in range(2):
            assert set(parmap.pmap(lambda _: os.environ.get("SET_UP"), range(6), chunks=1)) == {"x"}
