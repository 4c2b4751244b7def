"""Plan ``ssh``, on hosts with real sshds."""

import os
import random
import signal
import socket
import sys
import time
import warnings
from pathlib import Path

import psutil
import pytest

import parmap
from parmap.plans.plan import started
from parmap.testing import PlanContract
from tests.cluster import lab, strangers
from tests.cluster.nested import table
from tests.cluster.tasks import waited, where

distributed = pytest.importorskip("distributed")

# Stated in the documentation: seconds until nothing is left of a client that was killed.
LEFT = 15.0
GUARD = 90

# Dask's own threads draw from `random` at times, also while hypothesis draws an example.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


@pytest.fixture(scope="session")
def plan(hosts):
    return parmap.plan("ssh", hosts=lab.NODES, workers=1, ssh=hosts)


class TestSSH(PlanContract):
    @classmethod
    def setup_class(cls):
        cls.plan = parmap.plan("ssh", hosts=lab.NODES, workers=1, ssh=f"ssh -F {lab.FOLDER}/config")
        super().setup_class()


def test_each_host_has_its_cores_as_workers(plan):
    with plan.replace(workers=None) as session:
        assert session.workers == 3 * parmap.available_cores()
        everywhere = set(parmap.pmap(where, [0.05] * 60, chunks=1))
    assert everywhere == set(lab.NODES)


def slowly(i):
    time.sleep(0.02)  # Dask's timers go off meanwhile
    return random.random()


def test_what_is_seeded_is_as_in_the_loop(plan):
    """Dask's own threads leave the tasks' global generators alone, on hosts as here."""
    want = parmap.pmap(slowly, range(24), rng=1)
    with plan, warnings.catch_warnings():
        warnings.simplefilter("error", parmap.UnseededRandomWarning)
        for _ in range(3):
            assert parmap.pmap(slowly, range(24), rng=1) == want
        parmap.pmap(lambda i: (time.sleep(0.3), random.Random(i).random()), range(12))


def test_what_tasks_print_comes_out(plan, capfd):
    # Whole lines, also where the tests themselves run without buffers.
    with plan.replace(environ={"PYTHONUNBUFFERED": ""}):
        parmap.pmap(lambda x: print("task", x), range(5), chunks=1)
    assert sorted(capfd.readouterr().out.splitlines()) == [f"task {x}" for x in range(5)]
    with plan:  # more than a pipe holds: somebody must read it
        assert parmap.submit(lambda: print("x" * 5_000_000)).result(GUARD) is None
    assert capfd.readouterr().out == "x" * 5_000_000 + "\n"


def test_modules_beside_the_script_are_found(start, plan, tmp_path):
    (tmp_path / "beside.py").write_text("def half(x): return x / 2")
    script = start(
        f"""
        import beside, parmap
        with parmap.plan({str(plan)!r}):
            print(parmap.pmap(beside.half, range(3)))
        """,
    )
    assert script.good() == "[0.0, 0.5, 1.0]\n"


def test_the_environment_reaches_the_workers(plan):
    with plan.replace(environ={"MODEL": "small"}, threads_per_worker=2):
        assert parmap.pmap(os.getenv, ["MODEL", "OMP_NUM_THREADS"]) == ["small", "2"]


# -- faults --------------------------------------------------------------------------------


def busy(plan, disturb):
    """Run a map, and disturb it once its tasks run everywhere; give the results."""
    with plan as session:
        for node in lab.NODES:
            lab.until(lambda node=node: lab.leftovers(node), f"a worker on {node}")
        results = []
        for x in parmap.imap(waited, range(60), chunks=1):
            if x == 3:
                disturb(session)
            results.append(x)
    return results


def test_a_worker_that_is_killed_costs_no_result(plan):
    def kill(session):
        (pid, *_) = workers_on("node2")
        os.kill(pid, signal.SIGKILL)

    assert busy(plan, kill) == list(range(60))


def test_an_agent_that_is_killed_costs_no_result(plan):
    def kill(session):
        (pid,) = lab.processes("node2", "parmap.backends.remote.agent")
        os.kill(pid, signal.SIGKILL)

    assert busy(plan, kill) == list(range(60))


def test_a_connection_that_is_cut_costs_no_result(plan):
    assert busy(plan, lambda session: lab.cut("node2")) == list(range(60))


def test_a_host_that_was_lost_comes_back(plan, caplog):
    with plan as session:
        (pid,) = lab.processes("node2", "parmap.backends.remote.agent")
        os.kill(pid, signal.SIGKILL)
        lab.until(lambda: workers_on("node2"), "the return of node2")
        lab.until(lambda: "node2" in parmap.pmap(where, [0.05] * 12, chunks=1), "a task on node2")
        lab.until(lambda: session.workers == 3, "three workers")
    assert "Host node2 is lost" in caplog.text


def test_a_call_does_not_wait_for_what_was_cancelled(plan, tmp_path, capfd):
    never = tmp_path / "never"  # these hosts are one machine, and have one disk
    os.mkfifo(never)

    def wait(runs):
        runs.write_text("it runs")
        return never.read_text()

    with plan as session:
        futures = []
        for node in lab.NODES:
            os.mkfifo(tmp_path / node)
            futures.append(session.submit(wait, tmp_path / node))
            (tmp_path / node).read_text()
        for future in futures:
            assert future.cancel()
        assert parmap.pmap(abs, range(-6, 0), chunks=1) == [6, 5, 4, 3, 2, 1]
    assert "Traceback" not in capfd.readouterr().err


def test_hosts_that_are_lost_for_good_break_the_call_with_their_words(plan, tmp_path):
    stop = tmp_path / "stop"
    liar = tmp_path / "python"
    liar.write_text(f'[ -e {stop} ] && echo no disk >&2 && exit 3\nexec {sys.executable} "$@"\n')
    with plan.replace(python=f"sh {liar}", start_timeout=15) as session:
        call = session.submit(where, 600)
        stop.touch()
        for node in lab.NODES:
            (pid,) = lab.processes(node, "parmap.backends.remote.agent")
            os.kill(pid, signal.SIGKILL)
        error = call.exception(GUARD)
        with pytest.raises(parmap.PoolBroken, match="all hosts are lost"):
            parmap.pmap(abs, [-1])
    assert isinstance(error, parmap.PoolBroken)
    assert str(error).count("no disk") == 3


def test_hosts_that_are_all_back_in_time_go_on(plan):
    with plan as session:
        call = session.submit(waited, 1)
        for node in lab.NODES:
            (pid,) = lab.processes(node, "parmap.backends.remote.agent")
            os.kill(pid, signal.SIGKILL)
        assert call.result(GUARD) == 1


def workers_on(node):
    return lab.processes(node, "parmap.backends.dask.worker")


# -- who may connect -----------------------------------------------------------------------


def test_nobody_without_credentials_is_let_in(plan):
    with plan as session:
        strangers.refused(session, 4)


def test_no_key_stands_on_a_command_line_or_in_a_file(plan):
    with plan as session:
        key = session.executor._client.security.tls_client_key
        secret = key.splitlines()[1].encode()
        assert b"BEGIN" not in secret
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert secret not in process.read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
        for node in lab.NODES:
            for pid in workers_on(node):
                files = [file.path for file in psutil.Process(pid).open_files()]
                assert not [path for path in files if path.endswith((".pem", ".key"))]


def test_nothing_listens_on_more_than_it_must(plan):
    def there():
        lines = lab.run(*lab.on("node1", "ss", "-Hltn")).splitlines()
        return {line.split()[3] for line in lines}

    before = there()  # its sshd, say
    with plan:
        here = {
            connection.laddr.ip
            for connection in psutil.Process().net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        ours = there() - before
    assert here == {lab.HEAD}
    assert {at.rpartition(":")[0] for at in ours} == {lab.ADDRESSES["node1"]}


def test_no_security_is_warned_of(plan):
    with pytest.warns(UserWarning, match="security=None lets whoever can connect"):
        session = started(plan.replace(security=None))
    assert session.map(abs, [-1]) == [1]
    session.close()


# -- hosts that cannot serve ---------------------------------------------------------------


def test_a_host_that_cannot_be_reached_is_named_and_the_others_may_serve(plan, caplog):
    more = plan.replace(hosts=[*lab.NODES, "nowhere"])
    with pytest.raises(
        parmap.PoolBroken, match=r"1 of 4 hosts .*min_hosts=(.|\n)*nowhere: .*resolve"
    ):
        more.start()
    with more.replace(min_hosts=3) as session:
        assert session.workers == 3
    assert "Host nowhere is left out: ssh: Could not resolve hostname" in caplog.text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"python": "/no/such/python"}, "/no/such/python.*is what parmap runs there"),
        (
            {"python": "python3 -S"},
            "No module named 'parmap'.*install parmap-plans.ssh. for python3",
        ),
        (
            {"ssh": "ssh -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes"},
            "Host key ver",
        ),
        ({"ssh": "ssh -F {config} -o PubkeyAuthentication=no"}, "Permission denied"),
        ({"ssh": "no-such-ssh"}, "no-such-ssh cannot be run here"),
        ({"python": "sleep 60 #", "start_timeout": 2}, "no answer after 2 s"),
    ],
)
def test_the_reason_is_told(plan, options, why):
    config = lab.FOLDER / "config"
    options = {k: v.format(config=config) if isinstance(v, str) else v for k, v in options.items()}
    if options.get("ssh", "").startswith("ssh -o"):
        options["hosts"] = [lab.ADDRESSES["node1"]]
    with pytest.raises(parmap.PoolBroken, match=f"hosts cannot be used(.|\n)*{why}"):
        plan.replace(**options).start()


@pytest.mark.parametrize(
    ("has", "says", "why"),
    [
        (r"3\.[0-9]*\.[0-9]*", "3.2.1", r"Python 3\.2\.1 there, .* here: functions cannot travel"),
        ("0.1.0", "0.0.9", r"parmap-plans 0\.0\.9 there, .* here: make them the same"),
        (distributed.__version__, "1.28.1", r"distributed 1\.28\.1 there"),
    ],
)
def test_what_does_not_fit_is_told_before_work_is_sent(plan, tmp_path, has, says, why):
    # An interpreter that says so of itself.
    liar = tmp_path / "python"
    liar.write_text(f'{sys.executable} "$@" | sed \'s/"{has}"/"{says}"/\'\n')
    with pytest.raises(parmap.PoolBroken, match=why):
        plan.replace(python=f"sh {liar}").start()


def test_check_tells_what_is_there(plan):
    *good, bad = plan.replace(hosts=[*lab.NODES, "nowhere"]).check()
    assert [str(one).partition(" (")[0] for one in good] == [f"{n}: ready" for n in lab.NODES]
    assert str(bad).startswith("nowhere: ssh: Could not resolve")
    assert all(f"distributed {distributed.__version__}" in str(one) for one in good)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "hosts= names no machine"),
        ({"hosts": ["-oProxyCommand=x"]}, "hosts='-oProxyCommand=x': give names"),
        ({"hosts": ["a b"]}, "hosts='a b': give names"),
        ({"hosts": ["a", "a"]}, "names a twice"),
        ({"hosts": ["a"], "min_hosts": 2}, "min_hosts=2: give 1 to 1"),
        ({"hosts": ["a"], "start_timeout": 0}, "start_timeout=0: give seconds"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(parmap.PlanError, match=says):
        parmap.plan("ssh", **options).start()


# -- nothing is left -----------------------------------------------------------------------

SCRIPT = """
    import parmap, sys, time
    def fn(x):
        print("started", flush=True)
        while True:
            pass
    with parmap.plan({plan!r}):
        parmap.pmap(fn, range(3), chunks=1)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_nothing_outlives_the_client(start, plan, how):
    script = start(SCRIPT.format(plan=str(plan)))
    assert [script.line() for _ in range(3)] == ["started"] * 3
    os.kill(script.process.pid, getattr(signal, how))
    assert script.process.wait(GUARD) == -getattr(signal, how)
    for node in lab.NODES:
        lab.until(lambda node=node: not lab.leftovers(node), f"an end on {node}", LEFT)


def test_nothing_outlives_a_client_behind_a_cut_cable(start, plan):
    script = start(SCRIPT.format(plan=str(plan)))
    assert [script.line() for _ in range(3)] == ["started"] * 3
    lab.cut("node2")
    script.kill()
    lab.until(lambda: not lab.leftovers("node2"), "an end on node2", LEFT + 5)


def test_an_error_leaves_nothing(plan):
    with pytest.raises(ZeroDivisionError), plan:
        parmap.pmap(lambda x: 1 / x, range(-5, 5))


# -- the examples --------------------------------------------------------------------------


def test_nested_loops_run_unchanged_and_tell_where(plan):
    here, this_one = table("processes(workers=2)")
    there, others = table(plan)
    assert there == here
    assert this_one == {socket.gethostname()}
    assert others == set(lab.NODES)
