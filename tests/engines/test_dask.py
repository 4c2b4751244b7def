"""Plan ``dask``, on real schedulers and workers."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from concurrent.futures import wait

import numpy as np
import psutil
import pytest

import parmap
from parmap.plans.plan import started
from parmap.testing import PlanContract
from tests.calling import EndContract
from tests.test_inside import FORKED

distributed = pytest.importorskip("distributed")

GUARD = 60  # against hangs; never waited for when all is well

# Dask's own threads draw from `random` at times, also while hypothesis draws an example.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


class TestProcesses(PlanContract):
    plan = parmap.plan("dask", workers=2)


class TestThreads(PlanContract):
    plan = parmap.plan("dask", workers=2, processes=False)


def command(*words):
    """Start a command of Dask; give it, and the first address that it says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]],
        env={
            **os.environ,
            "PYTHONPATH": os.fspath(os.getcwd()),
            # Every two seconds it drops copies of data, which are then sent and unpickled again.
            "DASK_DISTRIBUTED__SCHEDULER__ACTIVE_MEMORY_MANAGER__START": "False",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if found := re.search(r"(?:Scheduler|Registered to).*?(tcp://\S+)", line):
            # Nobody may wait for it to write because the pipe is full.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, found[1]
    raise AssertionError(f"dask {words} has ended")


@pytest.mark.brief  # the executor is that of `TestProcesses`
class TestByAddress(PlanContract):
    """A scheduler and two workers with their nannies, started by Dask's own commands."""

    @classmethod
    def setup_class(cls):
        options = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
        scheduler, address = command("dask_scheduler", *options, "--port", "0")
        threads = ("--nthreads", "1")
        workers = [command("dask_worker", address, *options, *threads)[0] for _ in range(2)]
        cls.processes = [*workers, scheduler]
        cls.plan = parmap.plan("dask", address=address)
        super().setup_class()

    @classmethod
    def teardown_class(cls):
        super().teardown_class()
        assert [process.poll() for process in cls.processes] == [None] * 3
        for process in cls.processes:
            process.send_signal(signal.SIGINT)
        for process in cls.processes:
            process.wait(GUARD)

    def test_what_dasks_threads_draw_is_laid_to_nobody(self):
        """They do draw there: so nothing is seeded, and of tasks only their own code counts."""
        with pytest.raises(TypeError, match="others draw from Python's"):
            parmap.pmap(slowly, range(4), rng=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error", parmap.UnseededRandomWarning)
            parmap.pmap(lambda i: (random.__name__, time.sleep(0.1)), range(20), chunks=1)
        with pytest.warns(parmap.UnseededRandomWarning, match="slowly draws"):
            parmap.pmap(slowly, range(20))


@pytest.fixture(scope="module")
def two():
    with parmap.plan("dask", workers=2) as session:
        yield session


def slowly(i):
    time.sleep(0.02)  # Dask's timers go off meanwhile
    return random.random()


def test_dasks_own_threads_leave_the_global_generators_alone(two):
    """Not a number differs from the loop's, nothing is said of draws that no task made."""
    with parmap.plan("sequential"):
        want = parmap.pmap(slowly, range(24), rng=1)
    random.seed(7)
    state = random.getstate()
    with warnings.catch_warnings():
        warnings.simplefilter("error", parmap.UnseededRandomWarning)
        for _ in range(3):
            assert parmap.pmap(slowly, range(24), rng=1) == want
            parmap.pmap(lambda i: (time.sleep(0.1), random.Random(i).random()), range(8))
    assert random.getstate() == state  # the script's own, beside which the scheduler runs


def test_dasks_modules_have_a_generator_of_their_own(two):
    def look(_):
        import distributed.protocol.compression
        import distributed.worker
        import tornado.ioloop

        modules = (distributed.worker, tornado.ioloop)
        drawn = distributed.protocol.compression.randint(1, 6)  # imported by name
        return [one.random is random for one in modules], drawn in range(1, 7), random.__name__

    for there in (look(0), two.submit(look, 0).result(GUARD)):
        assert there == ([False, False], True, "random")


def test_a_killed_worker_costs_no_result(two):
    pids = two.map(lambda _: os.getpid(), range(8))
    killed = []

    def kill_once(event):
        # In the middle: some chunks are done, some run, most are still to come.
        if isinstance(event, parmap.Counts) and event.done > 20 and not killed:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    results = parmap.pmap(lambda x: x * x, range(200), chunks=4, progress=kill_once)
    assert killed
    assert results == [x * x for x in range(200)]


def test_nobody_waits_for_a_worker_that_is_gone(two):
    """A result may still be with a worker when that ends: it is not asked for half a minute."""
    client, scheduler = two.executor._client, two.executor._client.cluster.scheduler
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))  # and does not listen
    worker = f"tls://127.0.0.1:{bound.getsockname()[1]}"

    async def meet():
        asked = asyncio.create_task(client.rpc.connect(worker))
        while worker not in client.rpc._connecting:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0)
        for plugin in scheduler.plugins.values():
            if getattr(plugin, "_pool", None) is client.rpc:
                plugin.remove_worker(scheduler, worker, stimulus_id="test")
        after = client.rpc.connect(worker)
        return await asyncio.gather(asked, after, return_exceptions=True)

    with bound:
        during, after = client.sync(meet, callback_timeout=15)
    assert isinstance(during, OSError)
    assert isinstance(after, OSError)


def test_a_constant_travels_once_to_each_worker(two, monkeypatch):
    data = np.ones(50_000_000)  # 400 MB

    def look(place):
        return os.getpid(), data.ctypes.data, data.flags.writeable, float(data[place])

    def arrived(dask_worker):
        return sum(one["total"] for one in dask_worker.transfer_incoming_log)

    client, scattered = two.executor._client, []
    scatter = client.scatter

    def counted(value, **options):
        scattered.append(value.payload.size)
        return scatter(value, **options)

    monkeypatch.setattr(client, "scatter", counted)
    before = sum(client.run(arrived).values())
    seen = parmap.pmap(look, range(40), chunks=1)
    # In each worker all tasks see the same memory, and none may write to it.
    assert len({(pid, at) for pid, at, _, _ in seen}) == len({pid for pid, _, _, _ in seen})
    assert {(writeable, value) for _, _, writeable, value in seen} == {(False, 1.0)}
    # It is sent to one worker, and that one sends it to the other.
    (sent,) = scattered
    assert data.nbytes < sent < 1.01 * data.nbytes
    assert sum(client.run(arrived).values()) - before < 1.01 * data.nbytes
    # It stays with both: Dask's memory manager would have one drop it.
    assert not client.amm.running()


def test_what_calls_hand_on_stays_with_the_workers(two):
    def make(x):
        return np.full(1_000_000, float(x))  # 8 MB

    def double(parts):
        return 2 * sum(parts["all"])

    made = [parmap.delayed(make)(x) for x in range(3)]
    both = [parmap.delayed(double)({"all": made}) for _ in range(2)]
    client = two.executor._client
    received = []
    gather = client._gather

    async def counted(futures, **options):
        values = await gather(futures, **options)
        received.extend(len(value.values.data) for value in values if hasattr(value, "values"))
        return values

    client._gather = counted
    try:
        total = parmap.delayed(lambda a, b: float(a.sum() + b.sum()))(*both)
        assert parmap.compute(total) == 12e6
        assert received
        assert sum(received) < 1000  # the one number comes home, and nothing else
    finally:
        client._gather = gather
    gc.collect()
    assert not two._values._broadcast


def test_each_call_has_its_own_of_what_stays(two):
    def spoil(xs):
        xs.append(len(xs))
        return xs

    start = parmap.delayed(list)(range(2))
    ends = [parmap.delayed(spoil)(start) for _ in range(4)]
    assert parmap.compute(ends) == ([[0, 1, 2]] * 4)


def test_failures_of_what_was_to_stay_come_home(two):
    def fail(x):
        raise ValueError(x)

    broken = parmap.delayed(fail)(3)
    users = [parmap.delayed(abs)(broken) for _ in range(2)]
    with pytest.raises(ValueError, match="3"):
        parmap.compute(users)
    assert [type(one).__name__ for one in parmap.compute(users, errors="return")] == ["Failure"] * 2


def test_large_elements_bring_no_warning(two):
    # Dask warns of graphs of 10 MB; warnings are errors here, also in its own threads.
    arrays = [np.full(2_000_000, x) for x in range(4)]
    assert parmap.pmap(np.sum, arrays) == [2_000_000 * x for x in range(4)]


def test_a_session_follows_the_cluster_as_it_grows():
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        parmap.plan("dask", cluster=cluster) as session,
    ):
        assert session.workers == 1
        grown = threading.Event()
        watch = session.executor._watch

        async def looked():
            await watch.look()
            if session.workers == 3:
                grown.set()

        watch._timer.callback = looked
        cluster.scale(3)
        assert grown.wait(GUARD)
        assert parmap.pmap(abs, range(-9, 0)) == list(range(9, 0, -1))


def test_a_client_is_adopted_and_left_open():
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        plan = parmap.plan(client)
        assert (plan.name, plan.client) == ("dask", client)
        with plan as session:
            assert session.workers == 2
            assert parmap.pmap(lambda x: x + 1, range(9)) == list(range(1, 10))
            # A future of the client's stands for its value, as in the client's own calls.
            assert session.executor.submit(abs, client.submit(abs, -3)).result(GUARD) == 3
        assert client.submit(abs, -1).result() == 1


def test_the_dashboard_is_served_if_asked_for_and_answers_to_a_secret_only(two):
    assert two.dashboard is None
    with parmap.plan("dask", workers=1, dashboard=True) as session:
        root, secret, page = session.dashboard.rsplit("/", 2)
        assert page == "status"
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", root)
        with urllib.request.urlopen(session.dashboard) as answer:
            assert answer.status == 200
        wrong = ["", "status", "health", "sitemap.json", "info/main/workers.html", "x/status"]
        for path in [*wrong, f"/{secret}x/status", f"{secret[:-1]}/status", f"x/../{secret}"]:
            with pytest.raises(urllib.error.HTTPError, match="403") as caught:
                urllib.request.urlopen(f"{root}/{path}")
            caught.value.close()
            assert secret not in str(caught.value.headers)


def test_the_dashboard_works_under_its_secret():
    pytest.importorskip("bokeh")
    with parmap.plan("dask", workers=1, dashboard=True) as session:
        root = session.dashboard.rsplit("/", 2)[0]
        with urllib.request.urlopen(session.dashboard) as answer:
            text = answer.read().decode()
        scripts = [link for link in re.findall(r'(?:src|href)="([^"]+)"', text) if "stati" in link]
        assert scripts
        for link in scripts:
            with urllib.request.urlopen(urllib.parse.urljoin(session.dashboard, link)) as answer:
                assert answer.url.startswith(root)
                assert answer.read()


# -- who may connect -----------------------------------------------------------------------

# Run in an interpreter of its own, with what it is given: ports, and numbers of processes.
STRANGER = """
    import distributed, os, socket, ssl, sys
    from concurrent.futures import ThreadPoolExecutor
    ports, pids = map(str.split, sys.argv[1:])
    if os.getuid() == 0:  # become somebody whom this machine has never seen
        os.setgroups([])
        os.setgid(54321)
        os.setuid(54321)
        for pid in pids:
            for name in ["environ", "mem", "fd"]:
                assert not os.access(f"/proc/{pid}/{name}", os.R_OK), (pid, name)
    own = distributed.Security.temporary()
    open_to_all = ssl.create_default_context()
    open_to_all.check_hostname, open_to_all.verify_mode = False, ssl.CERT_NONE

    def page(port, wrap):
        with socket.create_connection(("127.0.0.1", port), 20) as line, wrap(line) as line:
            line.sendall(b"GET /status HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
            return line.recv(99).startswith(b"HTTP")

    def client(port, protocol, security):
        address = f"{protocol}://127.0.0.1:{port}"
        with distributed.Client(address, security=security, timeout=3) as one:
            return one.submit(os.getuid).result(20)

    def worker(port, protocol, security):
        async def ask():
            arguments = security.get_connection_args("client")
            async with distributed.rpc(f"{protocol}://127.0.0.1:{port}", timeout=3,
                                       connection_args=arguments) as one:
                return await one.identity()
        import asyncio
        return asyncio.run(ask())

    def tries(port):
        yield "page", lambda: page(port, lambda line: line)
        yield "page by TLS", lambda: page(port, open_to_all.wrap_socket)
        for ask in (client, worker):
            yield ask.__name__, lambda: ask(port, "tcp", distributed.Security())
            yield ask.__name__ + " by TLS", lambda: ask(port, "tls", own)

    def scan(port):
        for what, get in tries(port):
            try:
                got = get()
            except (OSError, TypeError, ValueError, RuntimeError):
                continue
            if got is not False:
                print("got", what)

    with ThreadPoolExecutor(len(ports)) as threads:
        list(threads.map(scan, map(int, ports)))
"""


def listening(process):
    """Give the ports at which a process and its children listen."""
    return {
        (one.pid, line.laddr.port)
        for one in [process, *process.children(recursive=True)]
        for line in one.net_connections("inet")
        if line.status == psutil.CONN_LISTEN
    }


def scanned(start, before):
    """Say what a stranger gets of what listens now, and did not before."""
    ports = listening(psutil.Process()) - before
    assert ports
    pids = {str(pid) for pid, _ in ports}
    numbers = " ".join(str(port) for _, port in ports)
    script = start(STRANGER, numbers, " ".join(pids), flags=(), PYTHONWARNINGS="ignore")
    out, err = script.end()
    assert script.process.returncode == 0, err
    return set(out.splitlines())


def test_a_stranger_on_this_machine_gets_nothing(start):
    before = listening(psutil.Process())
    with parmap.plan("dask", workers=2) as session:
        assert parmap.pmap(abs, [-1, -2]) == [1, 2]
        assert len(listening(psutil.Process()) - before) == 3  # a scheduler and two workers
        assert scanned(start, before) == set()
        key = session.executor._client.security.tls_client_key.splitlines()[1]
        assert "BEGIN" not in key
        for one in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            told = [*one.cmdline(), *one.environ().values()]
            assert not [word for word in told if key in word]
            assert not [file.path for file in one.open_files() if "pem" in file.path]


def test_without_security_a_stranger_gets_all(start):
    before = listening(psutil.Process())
    with pytest.warns(UserWarning, match="security=None lets whoever can connect"):
        session = started(parmap.plan("dask", workers=1, security=None))
    try:
        assert session.map(abs, [-1, -2]) == [1, 2]
        assert scanned(start, before) == {"got client", "got worker"}
    finally:
        session.close()


def test_threads_of_this_process_listen_nowhere(recwarn):
    before = listening(psutil.Process())
    with parmap.plan("dask", workers=2, processes=False, security=None):
        assert listening(psutil.Process()) == before
    assert not recwarn.list


def test_credentials_need_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(parmap.BackendUnavailable, match=r"pip install 'parmap-plans\[dask\]'"):
        parmap.plan("dask").start()
    with parmap.plan("dask", workers=2, processes=False):
        assert parmap.pmap(abs, [-1]) == [1]


def test_a_cancelled_call_never_runs(tmp_path):
    fifo, mark = tmp_path / "fifo", tmp_path / "mark"
    os.mkfifo(fifo)
    with parmap.plan("dask", workers=1):
        first = parmap.submit(fifo.read_bytes)  # waits
        second = parmap.submit(mark.touch)
        assert second.cancel()
        assert wait([second], GUARD).done == {second}
        fifo.write_bytes(b"go")
        assert first.result(GUARD) == b"go"
    assert not mark.exists()


def test_setup_runs_in_each_worker_and_in_those_that_come_later():
    def setup():
        os.environ["SET_UP"] = "yes"

    with parmap.plan("dask", workers=2, setup=setup):
        assert parmap.pmap(lambda _: os.environ.get("SET_UP"), range(4), chunks=1) == ["yes"] * 4
        parmap.pmap(lambda _: os._exit(1), [1], errors="return")
        assert parmap.pmap(lambda _: os.environ.get("SET_UP"), range(4), chunks=1) == ["yes"] * 4


def test_a_setup_that_fails_breaks_the_pool():
    def setup():
        raise OSError("no licence")

    with (
        pytest.raises(parmap.PoolBroken, match="no licence"),
        parmap.plan("dask", workers=1, setup=setup),
    ):
        raise AssertionError("it must not open")


def test_a_scheduler_that_does_not_answer_is_named():
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(parmap.PoolBroken, match=r"answers at tcp://127\.0\.0\.1:9"),
        parmap.plan("dask", address="tcp://127.0.0.1:9"),
    ):
        raise AssertionError("it must not open")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "tcp://a:1", "client": object()}, "both name a cluster"),
        ({"address": "tcp://a:1", "workers": 2}, "run already"),
        ({"address": "tcp://a:1", "security": None}, "run already"),
        ({"address": 8786}, "give a text"),
        ({"adress": "tcp://a:1"}, "did you mean 'address'"),
    ],
)
def test_wrong_options_are_told_at_once(options, message):
    with pytest.raises(parmap.PlanError, match=message):
        parmap.plan("dask", **options)


def test_the_words_of_dask_users_name_plans():
    assert str(parmap.plan("synchronous")) == "sequential"
    assert str(parmap.plan("distributed", workers=2)) == "dask(workers=2)"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(parmap.BackendUnavailable, match=r"pip install 'parmap-plans\[dask\]'"),
        parmap.plan("dask"),
    ):
        raise AssertionError("it must not open")


def test_a_script_needs_no_guard_and_hears_nothing_of_dask(start, tmp_path):
    (tmp_path / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
    script = start(
        """
        import beside, parmap, sys
        with parmap.plan("dask", workers=2):
            print(parmap.pmap(beside.triple, range(4)))
            print(parmap.pmap(lambda x: x + 1, range(4)))
        """
    )
    assert script.end() == ("[0, 3, 6, 9]\n[1, 2, 3, 4]\n", "")
    assert script.process.returncode == 0


def test_workers_are_told_what_the_interpreter_was_told(start):
    script = start(
        """
        import parmap, sys
        def told(_):
            return sys.flags.optimize, sys.flags.utf8_mode, sys.warnoptions
        with parmap.plan("dask", workers=2):
            got = parmap.pmap(told, range(2), chunks=1)
        print(got == [told(0)] * 2, told(0))
        """,
        flags=("-O", "-X", "utf8", "-W", "error::UnicodeWarning", "-W", "ignore::FutureWarning"),
    )
    out, _ = script.end()
    assert out == "True (1, 1, ['error::UnicodeWarning', 'ignore::FutureWarning'])\n"


def test_shared_memory_outlives_the_workers_that_have_opened_it(start):
    script = start(
        """
        import parmap
        from multiprocessing.shared_memory import SharedMemory
        def write(place):
            memory = SharedMemory(name=name)
            memory.buf[place] = 7
            memory.close()
        with parmap.plan("dask", workers=2):
            memory = SharedMemory(create=True, size=8)
            name = memory.name
            parmap.pmap(write, range(4), chunks=1)
        again = SharedMemory(name=name)
        print(list(again.buf[:5]))
        again.close()
        memory.close()
        memory.unlink()
        """
    )
    assert script.end() == ("[7, 7, 7, 7, 0]\n", "")


@pytest.mark.parametrize("sleeps", ["time.sleep", "ctypes.PyDLL(None).sleep"])
def test_nobody_outlives_a_killed_parent(start, sleeps):
    # A task that holds the GIL, as the second does, lets no thread of its worker run.
    script = start(
        f"""
        import ctypes, os, parmap, time
        def fn(x):
            os.write(1, b"started\\n")
            {sleeps}(3600)
        with parmap.plan("dask", workers=2):
            parmap.pmap(fn, range(2), chunks=1)
        """
    )
    assert [script.line(), script.line()] == ["started", "started"]
    os.kill(script.process.pid, signal.SIGKILL)
    # Ends only when the last of them has closed the pipe.
    assert script.end()[0] == ""


def test_an_interrupt_ends_the_call_and_leaves_the_session(start):
    script = start(
        """
        import os, parmap, time
        def fn(x):
            os.write(1, b"started\\n")
            time.sleep(2)
        with parmap.plan("dask", workers=2):
            try:
                parmap.pmap(fn, range(100), chunks=1)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            print(parmap.pmap(abs, [-1, -2]))
        """
    )
    assert [script.line(), script.line()] == ["started", "started"]
    os.killpg(script.process.pid, signal.SIGINT)
    out, _ = script.end()
    assert out.endswith("interrupted\n[1, 2]\n")


PRESSED = """
    import os, parmap, psutil, time
    def fn(x):
        os.write(1, b"started\\n")
        time.sleep(3600)
    {before}
    try:
        with parmap.plan("dask", workers=2) as session:
            futures = [session.submit(fn, x) for x in range({tasks})]
    except KeyboardInterrupt:
        me = psutil.Process()
        listens = [one for one in me.net_connections("inet") if one.status == "LISTEN"]
        print("left:", me.children(), listens)
"""
# Says when Dask's cluster begins to do something.
TOLD = """
    from distributed.deploy.spec import SpecCluster
    whole = SpecCluster.{name}
    async def told(self):
        if os.write(1, b"started\\n"):
            await whole(self)
    SpecCluster.{name} = told
"""


@pytest.mark.parametrize(
    ("before", "tasks"),
    [("", 2), (TOLD.format(name="_correct_state_internal"), 0), (TOLD.format(name="_close"), 0)],
    ids=["while it waits for tasks", "while it starts", "while it closes"],
)
def test_an_interrupt_leaves_no_worker_and_no_scheduler(start, before, tasks):
    script = start(textwrap.dedent(PRESSED).format(before=textwrap.dedent(before), tasks=tasks))
    assert [script.line() for _ in range(tasks or 1)] == ["started"] * (tasks or 1)
    os.killpg(script.process.pid, signal.SIGINT)
    out, _ = script.end()
    assert out.splitlines()[-1] == "left: [] []"


def test_a_fork_holds_no_worker_and_ends_at_once(start):
    script = start(
        """
        import os, parmap, psutil, sys
        with parmap.plan("dask", workers=2) as session:
            parmap.pmap(abs, range(3))
            workers = psutil.Process().children()
            reading, writing = os.pipe()
            if os.fork() == 0:
                os.close(writing)
                os.read(reading, 1)  # the end of its parent
                print(len(psutil.wait_procs(workers)[1]), flush=True)
                from distributed.deploy.spec import SpecCluster
                print([cluster.status.name for cluster in SpecCluster._instances])
                sys.exit()
            print("forked", flush=True)
            os.read(0, 1)
            os.kill(os.getpid(), 9)
        """,
        flags=(),  # from Python 3.12 on, a fork of a process with threads warns
    )
    assert script.line() == "forked"
    assert script.end()[0] == "0\n['closed']\n"


def test_a_fork_of_the_script_keeps_its_generators_and_its_plan(run):
    plan = "plan = parmap.plan('dask', workers=2, processes=False, setup=int)"
    assert run(FORKED.format(plan=plan)) == "threads(workers=1)\n"


def test_a_setup_that_holds_an_open_file_is_refused():
    with open(__file__) as file, pytest.raises(parmap.SerializationError, match=r"setup.*'file'"):
        parmap.plan("dask", workers=1, setup=lambda: file.read()).start()


JOB = """
import os, sys, parmap
number = int(sys.argv[2])
with parmap.plan("dask", address=sys.argv[1]):
    print(os.getpid(), parmap.pmap(lambda x: x * number, [1, 2, 3], chunks=1))
    handle = parmap.share([number])
    print(parmap.pmap(lambda shared, x: shared[0] + x, [handle] * 2, [10, 20]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may open a namespace of process numbers")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, of util-linux")
def test_two_containers_with_one_name_and_number_share_a_cluster():
    options = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
    scheduler, address = command("dask_scheduler", *options, "--port", "0")
    worker, _ = command("dask_worker", address, *options, "--nthreads", "1", "--no-nanny")
    try:
        outs = [
            subprocess.run(
                ["unshare", "--pid", "--fork", sys.executable, "-c", JOB, address, str(number)],
                env={**os.environ, "PYTHONPATH": os.getcwd()},
                capture_output=True,
                text=True,
                timeout=GUARD,
            ).stdout
            for number in (10, 1000)
        ]
    finally:
        for process in (worker, scheduler):
            process.send_signal(signal.SIGINT)
            process.wait(GUARD)
            process.stderr.close()
    assert outs == ["1 [10, 20, 30]\n[20, 30]\n", "1 [1000, 2000, 3000]\n[1010, 1020]\n"]


# -- workers that do not come back ---------------------------------------------------------


def _kill_the_worker(session):
    pid = session.submit(os.getpid).result(GUARD)
    os.kill(pid, signal.SIGKILL)


def test_a_worker_that_cannot_be_started_for_a_while_comes_back(monkeypatch):
    tried = threading.Event()

    def hear(record):
        return tried.set() if "cannot be started" in record.msg else None

    log = logging.getLogger("parmap.dask")
    log.addFilter(hear)  # which lets no record pass: they are expected
    with parmap.plan("dask", workers=1) as session:
        with monkeypatch.context() as gone:
            gone.setattr(sys, "executable", "/no/such/python")
            _kill_the_worker(session)
            assert tried.wait(GUARD)
        log.removeFilter(hear)
        assert session.submit(abs, -1).result(GUARD) == 1


def test_workers_that_are_lost_for_good_break_the_call(monkeypatch):
    from parmap.backends.dask import cluster

    with parmap.plan("dask", workers=1) as session:
        monkeypatch.setattr(cluster, "_PATIENCE", 3.0)
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        _kill_the_worker(session)
        calls = [session.submit(abs, -1) for _ in range(3)]
        for call in calls:
            assert isinstance(call.exception(GUARD), parmap.PoolBroken)
        for later in (parmap.submit, lambda fn, x: parmap.pmap(fn, [x])):
            with pytest.raises(parmap.PoolBroken, match="none has started within 3 s"):
                later(abs, -1)


# -- hosts ---------------------------------------------------------------------------------


def test_an_agent_that_ends_by_itself_is_not_killed(monkeypatch):
    from asyncio.base_subprocess import BaseSubprocessTransport

    from parmap.backends.remote import hosts
    from parmap.backends.remote.agent import facts
    from parmap.backends.remote.host_command import HostCheck, HostCommand
    from parmap.backends.remote.orders import AgentOrder

    ended, heard, killed = [], [], []
    exited, hear = BaseSubprocessTransport._process_exited, hosts.Host._hear

    def hear_late(transport, code):
        """The loop hears of the process's end, but first of the end of its output."""
        end = functools.partial(exited, transport, code)
        end() if heard else ended.append(end)

    async def hear_all(host, lines):
        await hear(host, lines)
        asyncio.get_running_loop().call_soon(release, 20)

    def release(steps):
        """Let the end be heard after so many steps of the loop: the host does what it does."""
        if steps:
            asyncio.get_running_loop().call_soon(release, steps - 1)
            return
        heard.append(True)
        while ended:
            ended.pop()()

    monkeypatch.setattr(BaseSubprocessTransport, "_process_exited", hear_late)
    monkeypatch.setattr(hosts.Host, "_hear", hear_all)
    monkeypatch.setattr(asyncio.subprocess.Process, "kill", lambda one: killed.append(one))
    here = HostCommand("here", (), sys.executable, shell=False)
    found = HostCheck(here, {**facts(), "reached": ["127.0.0.1"]})
    order = AgentOrder(workers=1, threads=None, environ={}, security=None)
    hosts.started([found], order, patience=GUARD, dashboard=False).cluster.close()
    assert heard
    assert not killed


# -- what Slurm says -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:07", 7), ("12:03", 723), ("1:00:00", 3600), ("2-01:00:05", 176405), ("INVALID", 0)],
)
def test_the_queue_tells_how_long_a_job_has_run(text, seconds):
    from parmap.backends.remote.slurm_queue import JobState, _read

    line = f"12|FAILED|{text}|node3|Reason|odd"
    assert _read(line) == ("12", JobState("FAILED", "Reason|odd", seconds, "node3"))
    assert _read("13|PENDING")[1] == JobState("PENDING")


@pytest.mark.parametrize(
    ("header", "avoid", "option"),
    [
        ("#SBATCH -J x", [], []),
        ("#SBATCH --exclude=a", [], []),
        ("#SBATCH -J x", ["b", "c"], ["--exclude=b,c"]),
        ("#SBATCH -J x\n#SBATCH --exclude=a[1-2]", ["b"], ["--exclude=a[1-2],b"]),
        ("#SBATCH -x a\n#SBATCH -J x", ["b"], ["--exclude=a,b"]),
        ("#SBATCH --exclude a", ["b"], ["--exclude=a,b"]),
        ("#SBATCH --exclude=/file", ["b"], []),
    ],
)
def test_nodes_that_the_user_excludes_stay_excluded(header, avoid, option):
    from parmap.backends.remote import jobs

    assert jobs._exclude(header, avoid) == option


# -- what a worker is to multiprocessing ---------------------------------------------------


def who(_):
    me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    return me.name, me._identity, me.pid == os.getpid(), parent.pid, parent.is_alive()


def test_workers_are_named_and_numbered_also_those_that_are_replaced(two):
    mine = (True, os.getpid(), True)
    all_of_them = {("parmap-1", (1,), *mine), ("parmap-2", (2,), *mine)}

    def everybody():
        said = set()
        while len(said) < 2:
            said |= set(parmap.pmap(who, range(8), chunks=1))
        return said

    assert everybody() == all_of_them
    os.kill(two.submit(os.getpid).result(GUARD), signal.SIGKILL)
    assert everybody() == all_of_them


def test_proxies_work_in_workers(two):
    def fill(shared, lock, x):
        with lock:
            shared[x] = x * x
            return shared[x]

    with multiprocessing.Manager() as manager:
        shared, lock = manager.dict(), manager.Lock()
        squares = [x * x for x in range(10)]
        assert parmap.pmap(lambda x: fill(shared, lock, x), range(10)) == squares
        assert dict(shared) == dict(enumerate(squares))


def test_the_key_goes_to_no_cluster_of_somebody_else():
    """Who reads it may run code in the script's own processes."""
    options = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
    scheduler, address = command("dask_scheduler", *options, "--port", "0")
    worker, _ = command("dask_worker", address, *options, "--nthreads", "1", "--no-nanny")
    try:
        with parmap.plan("dask", address=address):
            theirs = parmap.submit(lambda: bytes(multiprocessing.current_process().authkey))
            assert theirs.result(GUARD) != multiprocessing.current_process().authkey
    finally:
        for process in (worker, scheduler):
            process.send_signal(signal.SIGINT)
            process.wait(GUARD)
            process.stderr.close()


class TestMap(EndContract):
    plan = parmap.plan("dask", workers=2)


# -- what workers inherit ------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.setdefaulttimeout(0.5)",
        "import os; os.umask(0o077)",
        "import sys; sys.path += [f'/nowhere/{n}/' + 'x' * 200 for n in range(1500)]",
        "import pathlib, sys; sys.path.append(pathlib.Path('/nowhere'))",
    ],
)
def test_a_script_may_set(run, code):
    out = run(
        f"""
        {code}
        import sys, parmap
        with parmap.plan("dask", workers=2):
            print(parmap.pmap(abs, range(-3, 0)))
            print(set(parmap.pmap(lambda path: set(path) <= {{*sys.path}}, [sys.path[1:]] * 4)))
            print(len(parmap.pmap(len, [bytes(5 << 20)] * 3)))
        """
    )
    assert out.startswith("[3, 2, 1]\n")
    assert out.endswith("3\n")
    assert "{True}" in out or "pathlib" in code


def test_workers_are_as_optimized_as_the_script_and_count_as_many_digits(run):
    out = run(
        """
        import sys, parmap
        sys.set_int_max_str_digits(0)
        with parmap.plan("dask", workers=1):
            print(parmap.pmap(lambda x: (sys.flags.optimize, len(str(10 ** x))), [9000]))
        """,
        flags=("-O",),
    )
    assert out == "[(1, 9001)]\n"


def test_a_fork_that_a_task_makes_ends_where_it_comes_back(two):
    def fork(code):
        pid = os.fork()
        if pid == 0 and code:
            sys.exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else "forgets to leave"

    for timeout in (None, GUARD):
        assert parmap.pmap(fork, [0, 7, 0], timeout=timeout, chunks=1) == [0, 7, 0]
