"""Plan ``slurm``, on a real Slurm with three nodes: by jobs, and inside of one."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import parmap
from parmap.testing import PlanContract
from tests.cluster import lab, strangers
from tests.cluster.nested import table
from tests.cluster.tasks import waited, where
from tests.pages import scripts

pytest.importorskip("dask_jobqueue")

ROOT = Path(__file__).parents[2]
INSIDE = "SLURM_JOB_ID" in os.environ
# Stated in the documentation: seconds until nothing is left of a client that was killed.
LEFT = 20.0
GUARD = 100
# So much memory that each job has a node of its own.
JOBS = {
    "jobs": 3,
    "cores": 2,
    "workers": 1,
    "memory": "2500MB",
    "min_workers": 3,
    "start_timeout": 60,
}

# Dask's own threads draw from `random` at times, also while hypothesis draws an example.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
outside = pytest.mark.skipif(INSIDE, reason="this is for login nodes")


@pytest.fixture
def plan(slurm, tmp_path):
    yield parmap.plan("slurm", **JOBS, folder=os.fspath(tmp_path / "folder"))
    lab.until(lambda: not jobs(), "the end of all jobs", LEFT)
    # No file is left, either.
    assert not [*(tmp_path / "folder").glob("*/*")]


def jobs():
    return lab.run("squeue", "-h", "-o", "%A").split()


@outside
@pytest.mark.brief  # its jobs run the agent and the executor of plan ssh, which has the contract
@pytest.mark.usefixtures("slurm")
class TestJobs(PlanContract):
    plan = parmap.plan("slurm", **JOBS)


@pytest.mark.skipif(not INSIDE, reason="this runs in a job, which another test submits")
class TestInside(PlanContract):
    plan = parmap.plan("slurm", workers=1)


@outside
@pytest.mark.parametrize(
    ("some", "count"),
    [("death or random or results or error", 30), pytest.param("", 300, marks=pytest.mark.long)],
)
def test_the_suite_passes_inside_of_a_job(slurm, tmp_path, some, count):
    command = f"{sys.executable} -m pytest -q {__file__}::TestInside -k '{some}'"
    out = tmp_path / "out"
    done = subprocess.run(
        [
            *("sbatch", "--wait", "--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=2"),
            *("--mem=2000", f"--output={out}", "--wrap", command),
        ],
        cwd=ROOT,
        timeout=300,
    )
    said = out.read_text()
    assert done.returncode == 0, said
    passed = re.search(r"(\d+) passed", said.splitlines()[-1])
    assert passed, said
    assert int(passed[1]) > count, said


@outside
@pytest.mark.parametrize("script", [s for s in scripts() if s.on_a_cluster], ids=str)
@pytest.mark.usefixtures("slurm")
def test_code_of_the_pages_runs_as_it_stands(script, hosts, tmp_path):
    # As in a user's configuration, so that "ssh" alone leads to the hosts.
    (tmp_path / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/{hosts} "$@"\n')
    (tmp_path / "ssh").chmod(0o755)
    script.run(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")


@outside
def test_without_the_command_that_is_told_whatever_else_is_missing(monkeypatch):
    # Nobody needs that package who does without security.
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(parmap.BackendUnavailable, match="by qsub, and here is no such command"):
        parmap.plan("pbs", security=None).start()


# -- faults --------------------------------------------------------------------------------


def busy(plan, disturb):
    """Run a map, and disturb it once its tasks run; give the results."""
    results = []
    with plan:
        for x in parmap.imap(waited, range(60), chunks=1):
            if x == 3:
                disturb()
            results.append(x)
    return results


@outside
def test_a_worker_that_is_killed_costs_no_result(plan):
    def kill():
        pids = [p for n in lab.NODES for p in lab.processes(n, "parmap.backends.dask.worker")]
        os.kill(pids[0], signal.SIGKILL)

    assert busy(plan, kill) == list(range(60))


@outside
def test_a_job_that_is_cancelled_costs_no_result_and_is_replaced(plan, caplog):
    with plan as session:
        assert session.workers == 3
        one, *_ = jobs()
        results = []
        for x in parmap.imap(waited, range(60), chunks=1):
            if x == 3:
                lab.run("scancel", one)
            results.append(x)
        assert results == list(range(60))
        lab.until(lambda: len(jobs()) == 3 and one not in jobs(), "another job in its place")
        lab.until(lambda: session.workers == 3, "its worker")
    assert f"Job {one} has ended (CANCELLED): another takes its place" in caplog.text


@outside
def test_a_node_that_is_set_down_costs_no_result(plan):
    node = lab.NODES[0]

    def down():
        lab.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    try:
        assert busy(plan, down) == list(range(60))
    finally:
        lab.run("scontrol", "update", f"nodename={node}", "state=resume")
        lab.until(lambda: "down" not in lab.run("sinfo", "-h", "-o", "%T"), "its return")


@outside
def test_a_connection_that_is_cut_costs_no_result(plan):
    assert busy(plan, lambda: lab.cut(lab.NODES[0])) == list(range(60))
    lab.join(lab.NODES[0])
    lab.until(lambda: "idle*" not in lab.run("sinfo", "-h", "-o", "%T"), "its return", LEFT)


@outside
def test_jobs_follow_the_load(plan, monkeypatch):
    from parmap.backends.remote import jobs as ours

    monkeypatch.setattr(ours, "IDLE", 5.0)
    with plan.replace(adapt=(1, 3), min_workers=1, memory="500MB") as session:
        assert len(jobs()) == 1
        results = parmap.imap(waited, range(200), chunks=1)
        got = [next(results) for _ in range(10)]
        lab.until(lambda: got.append(next(results)) or session.workers == 3, "more workers")
        assert [*got, *results] == list(range(200))
        lab.until(lambda: len(jobs()) == 1, "the end of jobs that idle", 30)
        assert parmap.pmap(abs, [-1]) == [1]


# -- jobs that do not stay -----------------------------------------------------------------


ONE = {"jobs": 1, "min_workers": 1, "memory": "500MB"}
# Stated in the documentation: seconds until a call says that no job is left.
TOLD = 60.0


def running():
    return lab.run("squeue", "-h", "-t", "R", "-o", "%A").split()


def excluded():
    shown = [lab.run("scontrol", "-o", "show", "job", one).split() for one in jobs()]
    return [w.partition("=")[2] for words in shown for w in words if w.startswith("ExcNodeList=")]


@contextlib.contextmanager
def outcome(session):
    """Begin a map in another thread; give its future, and see its end."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(session.map, waited, range(1000))
        try:
            yield future
        finally:
            session.executor.shutdown(wait=False, cancel_futures=True)


def cancelled(times):
    """Cancel each job that runs, so many times."""
    for _ in range(times):
        lab.until(running, "a job")
        (one,) = running()
        lab.run("scancel", one)
        lab.until(lambda one=one: one not in running(), "its end")


@outside
def test_a_job_that_is_cancelled_again_and_again_breaks_the_call_with_the_reason(plan):
    with plan.replace(**ONE) as session, outcome(session) as call:
        cancelled(3)
        error = call.exception(TOLD)
        with pytest.raises(parmap.PoolBroken, match="end as soon as they run"):
            parmap.pmap(abs, [-1])
        with pytest.raises(parmap.PoolBroken, match="end as soon as they run"):
            parmap.submit(abs, -1)
    assert isinstance(error, parmap.PoolBroken)
    # The queue's words, and the job's.
    assert re.search(r"job \d+: CANCELLED after \d+ s on node", str(error))
    assert re.search(r"JOB \d+ ON node\d CANCELLED", str(error))


@outside
def test_one_bad_node_costs_that_node_only(plan):
    bad = plan.replace(prologue=["[ $(hostname) = node1 ] && exit 7"], jobs=3, min_workers=2)
    with bad as session:
        lab.until(lambda: "node1" in excluded(), "a job that is not for node1")
        assert set(parmap.pmap(where, [0.05] * 40, chunks=1)) == {"node2", "node3"}
        assert session.workers == 2
    # One of the user's own stays excluded.
    with bad.replace(**ONE, extra=["--exclude=node3"]):
        assert set(parmap.pmap(where, [0.05] * 4, chunks=1)) == {"node2"}
        assert excluded() == ["node[1,3]"]


@outside
def test_jobs_that_all_fail_after_the_start_break_the_call_with_the_reason(plan, tmp_path):
    stop = tmp_path / "stop"
    with (
        plan.replace(prologue=[f"[ -e {stop} ] && echo no disk >&2 && exit 3"]) as session,
        outcome(session) as call,
    ):
        stop.touch()
        lab.run("scancel", *jobs())
        error = call.exception(TOLD)
    assert isinstance(error, parmap.PoolBroken)
    assert str(error).count("FAILED (NonZeroExitCode) after") == 3
    assert str(error).endswith("log:\n  no disk")


@outside
def test_jobs_that_are_refused_after_the_start_break_the_call_with_the_reason(plan):
    try:
        with plan.replace(**ONE) as session, outcome(session) as call:
            lab.run("scontrol", "update", "partitionname=normal", "state=inactive")
            lab.run("scancel", *jobs())
            error = call.exception(TOLD)
    finally:
        lab.run("scontrol", "update", "partitionname=normal", "state=up")
    assert isinstance(error, parmap.PoolBroken)
    assert "the next job is refused: sbatch: error: Batch job submission failed" in str(error)


@outside
def test_a_job_that_waits_in_the_queue_is_not_given_up(plan, caplog):
    try:
        with plan.replace(**ONE) as session:
            lab.run("scontrol", "update", "partitionname=normal", "state=down")
            call = session.submit(waited, 1)
            lab.run("scancel", *jobs())
            lab.until(lambda: "PartitionDown (1)" in caplog.text, "a word on the queue", TOLD)
            assert not call.done()
            lab.run("scontrol", "update", "partitionname=normal", "state=up")
            assert call.result(TOLD) == 1
    finally:
        lab.run("scontrol", "update", "partitionname=normal", "state=up")


@outside
def test_where_the_queue_is_not_asked_time_decides(plan, monkeypatch):
    # As on systems other than Slurm.
    with plan.replace(**ONE, start_timeout=15) as session, outcome(session) as call:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        lab.run("scancel", *jobs())
        error = call.exception(TOLD)
    assert isinstance(error, parmap.PoolBroken)
    assert "none has come for 15 s" in str(error)


@outside
def test_jobs_that_run_without_workers_break_the_call(plan, tmp_path):
    stop = tmp_path / "stop"
    stuck = plan.replace(**ONE, start_timeout=10, prologue=[f"[ -e {stop} ] && sleep 600"])
    with stuck as session, outcome(session) as call:
        stop.touch()
        lab.run("scancel", *jobs())
        error = call.exception(TOLD)
    assert isinstance(error, parmap.PoolBroken)
    assert "All jobs run, but their workers do not connect" in str(error)


# -- who may connect -----------------------------------------------------------------------


@outside
def test_nobody_without_credentials_is_let_in(plan, tmp_path):
    with plan as session:
        strangers.refused(session, 4)
        (own,) = (tmp_path / "folder").iterdir()
        assert own.stat().st_mode & 0o777 == 0o700
        assert (own / "order.json").stat().st_mode & 0o777 == 0o600
        key = session.executor._client.security.tls_client_key.splitlines()[1].encode()
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert key not in process.read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue


# -- when nothing comes --------------------------------------------------------------------


@outside
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"partition": "fast"}, r"cannot be submitted(.|\n)*invalid partition specified: fast"),
        ({"memory": "80GB"}, r"cannot be submitted(.|\n)*Requested node configuration is not"),
        ({"extra": ["--begin=now+1hour"]}, r"came within 15 s\n3 of 3 jobs wait .*BeginTime \(3\)"),
        ({"python": "/no/python"}, r"end as soon as they run(.|\n)*log:\n(.|\n)*/no/python"),
    ],
)
def test_the_reason_is_told(plan, options, why):
    timeout = {"start_timeout": 15 if "extra" in options else 60}
    with pytest.raises(parmap.PoolBroken, match=why):
        plan.replace(**options, **timeout).start()


@outside
def test_what_does_not_fit_is_told_before_work_is_sent(plan, tmp_path):
    # There the installed version is another, as it seems.
    info = tmp_path / "parmap_plans-0.0.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parmap-plans\nVersion: 0.0.9\n")
    other = plan.replace(prologue=[f"export PYTHONPATH={tmp_path}"])
    with pytest.raises(
        parmap.PoolBroken, match=r"parmap-plans 0\.0\.9 there, .*make them the same"
    ):
        other.start()


@outside
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"jobs": 0}, "jobs=0: give a whole number"),
        ({"cores": 1.5}, "cores=1.5: give a whole number"),
        ({"min_workers": 0}, "min_workers=0: give a whole number"),
        ({"start_timeout": 0}, "start_timeout=0: give seconds"),
        ({"extra": "-x"}, "extra='-x': give a list of lines"),
        ({"adapt": (0, 3)}, r"adapt=\(0, 3\): give the least and the most"),
        ({"adapt": (3, 1)}, r"adapt=\(3, 1\): give the least and the most"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(parmap.PlanError, match=says):
        parmap.plan("slurm", **options)


@outside
def test_the_script_is_shown(tmp_path):
    plan = parmap.plan(
        "slurm", cores=4, memory="3GB", time="2:00:00", partition="normal", account="me",
        extra=["--constraint=fast"], prologue=["module load python"], folder=os.fspath(tmp_path),
    )  # fmt: skip
    script = plan.script()
    for line in ("--cpus-per-task=4", "--mem=3G", "-t 2:00:00", "-p normal", "-A me"):
        assert f"#SBATCH {line}\n" in script
    assert "#SBATCH --constraint=fast\n" in script
    assert "module load python\n" in script
    assert not list(tmp_path.iterdir())


# -- nothing is left -----------------------------------------------------------------------


@outside
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_nothing_outlives_the_client(start, plan, how):
    script = start(
        f"""
        import parmap
        from concurrent.futures import wait
        def fn(x):
            while True:
                pass
        with parmap.plan({str(plan)!r}) as session:
            futures = [session.submit(fn, x) for x in range(3)]
            print("started", flush=True)
            # In turns: a signal that comes just as a wait begins does not end it.
            while wait(futures, timeout=1).not_done:
                pass
        """
    )
    assert script.line() == "started"
    os.kill(script.process.pid, getattr(signal, how))
    status = script.process.wait(GUARD)
    # Its workers may hold the standard error open yet: what is there is read, not all.
    assert status == -getattr(signal, how), os.read(script.process.stderr.fileno(), 1 << 16)
    # The fixture looks for jobs and files; here for processes.
    for node in lab.NODES:
        lab.until(lambda node=node: not lab.leftovers(node), f"an end on {node}", LEFT)


# -- the example ---------------------------------------------------------------------------


@outside
def test_nested_loops_run_unchanged(plan):
    here, _ = table("processes(workers=2)")
    there, others = table(plan)
    assert there == here
    assert others <= set(lab.NODES)
