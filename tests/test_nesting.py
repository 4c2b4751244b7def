"""Plans inside of plans: which is in force, and what each may use of the cores."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

import parmap
from parmap import cores
from parmap.transport.messages import CoreShare

CORES = "parmap.plans.plan.available_cores"


@pytest.fixture
def eight(monkeypatch):
    """Make the plans of this process believe that it has eight cores."""
    monkeypatch.setattr(CORES, lambda: 8)


def twelve(root, environ):
    own = cores.share.get()
    return {"machine": 12.0} | ({} if own is None else {"worker's share": float(own)})


def where(_):
    return os.getpid(), threading.get_ident(), parmap.available_cores()


def inside(n):
    return parmap.pmap(where, range(n), chunks=1)


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "core_share"),
    [
        (8, 2, "auto", CoreShare(4, 4)),
        (8, 3, "auto", CoreShare(2, 2)),
        (8, 8, "auto", CoreShare(1, 1)),
        (2, 4, "auto", CoreShare(1, 1)),
        (8, 1, "auto", CoreShare(8, 8)),
        (8, 2, None, CoreShare(4, None)),
        (8, 2, 6, CoreShare(6, 6, exact=True)),
        (1, 1, 1, CoreShare(1, 1, exact=True)),
    ],
)
def test_the_cores_are_shared_out(cores, workers, threads, core_share):
    assert CoreShare.share(cores, workers, threads) == core_share


KEEPING = {
    "threads": {},
    "processes": {},
    "dask": {},
    "ssh": {"hosts": ["node1"]},
    "slurm": {},
    "pbs": {},
}
RESTORING = {
    "joblib": {},
    "ray": {},
    "sequential": {"threads_per_worker": 2},
    "dask(processes=False)": {},
    "dask(address='tcp://node1:8786')": {},
}


@pytest.mark.parametrize("plan", [*KEEPING, *RESTORING])
def test_only_workers_that_serve_nobody_else_keep_their_limits(plan):
    core_share = parmap.plan(plan, **{**KEEPING, **RESTORING}[plan]).core_share(1)
    assert core_share.kept is (plan in KEEPING)


def test_a_third_party_s_plan_keeps_no_limits():
    class Theirs(parmap.Plan):
        name = "theirs"

        def start(self):
            raise AssertionError

    assert not Theirs().core_share(2).kept
    with ThreadPoolExecutor(1) as pool:
        assert not parmap.plan(pool).core_share(1).kept


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "all", [2]])
def test_threads_per_worker_is_checked_at_once(threads):
    with pytest.raises(parmap.PlanError, match=r"threads_per_worker=.*: give a whole number"):
        parmap.plan("threads", threads_per_worker=threads)


def test_threads_per_worker_is_part_of_the_plans_text():
    for text in ("threads(threads_per_worker=2)", "processes(threads_per_worker=None)"):
        assert str(parmap.plan(text)) == text
    assert str(parmap.plan("threads", threads_per_worker="auto")) == "threads"


@pytest.mark.parametrize("plan", ["threads", "processes", "processes(start='fork')"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_tasks_see_what_they_are_told(eight, plan):
    with parmap.plan(plan, workers=4, threads_per_worker=1):
        assert {cores for _, _, cores in inside(8)} == {1}
    # Two of a machine that has as few as one or two: the least counts, whoever says it.
    with parmap.plan(plan, workers=4):
        assert {cores for _, _, cores in inside(8)} == {min(2, parmap.available_cores())}


def test_threads_inside_of_processes():
    with parmap.plan(["processes(workers=2)", "threads(workers=2)"]) as session:
        found = parmap.pmap(inside, [6, 6], chunks=1)
        pids = set(session.executor.pids)
    for one in found:
        assert len({pid for pid, _, _ in one}) == 1
        assert {pid for pid, _, _ in one} <= pids
        assert {cores for _, _, cores in one} == {1}
    assert os.getpid() not in pids


def test_processes_inside_of_threads():
    with parmap.plan(["threads(workers=2)", "processes(workers=2)"]):
        found = parmap.pmap(inside, [6, 6], chunks=1)
    pids = {pid for one in found for pid, _, _ in one}
    assert os.getpid() not in pids
    assert {cores for one in found for _, _, cores in one} == {1}
    # The session of the inner plan is opened once, for all threads of this process.
    assert len(pids) <= 2


def test_processes_inside_of_processes_leave_nothing():
    me = psutil.Process()
    before = set(me.children(recursive=True))
    with parmap.plan(["processes(workers=2)", "processes(workers=2)"]) as session:
        found = parmap.pmap(inside, [4, 4], chunks=1)
        outer = set(session.executor.pids)
    inner = {pid for one in found for pid, _, _ in one}
    assert not inner & (outer | {os.getpid()})
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in inner if psutil.pid_exists(pid)], timeout=30
    )
    assert not alive
    assert set(me.children(recursive=True)) <= before


def test_beyond_the_list_calls_are_sequential():
    def deepest(_):
        return parmap.pmap(lambda _: (str(parmap.current_plan()), threading.get_ident()), range(3))

    def middle(_):
        return parmap.pmap(deepest, range(2), chunks=1), threading.get_ident()

    with parmap.plan(["threads(workers=2)", "threads(workers=2)"]):
        for found, _ in parmap.pmap(middle, range(2), chunks=1):
            for plans in found:
                assert {plan for plan, _ in plans} == {"sequential"}
                assert len({thread for _, thread in plans}) == 1


def test_the_budget_is_split_at_each_level(monkeypatch):
    """Twelve cores: three workers with four each, and in each of them two with two each."""

    def shares(_):
        return [parmap.plan("threads", workers=n).core_share(n).cores for n in (1, 2, 4, 8)]

    monkeypatch.setattr("parmap.cores._grants", twelve)
    with parmap.plan("threads", workers=3):
        assert parmap.pmap(shares, range(3)) == [[4, 2, 1, 1]] * 3
        assert parmap.available_cores() == 12


def test_joblib_inside_of_a_task_starts_no_processes(eight):
    """Its ``n_jobs=-1`` is the worker's share: with one core it runs in the worker itself."""
    pytest.importorskip("joblib", reason="joblib comes with scikit-learn")

    def task(_):
        from joblib import Parallel, delayed

        pids = Parallel(n_jobs=-1)(delayed(os.getpid)() for _ in range(4))
        return set(pids) == {os.getpid()}, len(psutil.Process().children(recursive=True))

    with parmap.plan("processes", workers=8):
        assert set(parmap.pmap(task, range(4), chunks=1)) == {(True, 0)}


def test_scikit_learn_inside_of_a_task_starts_no_processes(eight):
    pytest.importorskip("sklearn", reason="scikit-learn is an optional dependency")

    def task(seed):
        from sklearn.datasets import make_classification
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV

        x, y = make_classification(60, random_state=seed)
        search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, n_jobs=-1, cv=3)
        search.fit(x, y)
        return search.best_params_["C"], len(psutil.Process().children(recursive=True))

    with parmap.plan("processes", workers=8):
        found = parmap.pmap(task, range(2), chunks=1)
    assert [children for _, children in found] == [0, 0]
    assert [best for best, _ in found] == [task(seed)[0] for seed in range(2)]
