"""Plan ``ray``, on a real Ray of this machine."""

import contextlib
import itertools
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import psutil
import pytest

import parmap
from parmap.testing import PlanContract
from tests.calling import EndContract
from tests.sweep import swept

ray = pytest.importorskip("ray")


def _meet(who):
    """Wait until another task, which runs at the same time, does the same."""
    directory, number = who
    pipes = [directory / "first", directory / "second"]
    for pipe in pipes:
        with contextlib.suppress(FileExistsError):
            os.mkfifo(pipe)
    if number:
        pipes[0].write_text("1")
        return pipes[1].read_text()
    heard = pipes[0].read_text()
    pipes[1].write_text("0")
    return heard


class TestRay(PlanContract):
    plan = parmap.plan("ray", workers=2)

    def test_a_worker_killed_in_the_middle_costs_nothing(self, tmp_path):
        pipe, mark = tmp_path / "pipe", tmp_path / "mark"
        os.mkfifo(pipe)

        def kill():
            os.kill(int(pipe.read_text()), signal.SIGKILL)  # reads once somebody writes

        def fn(x):
            if x == 7 and not mark.exists():
                mark.touch()
                pipe.write_text(str(os.getpid()))
                time.sleep(3600)
            return x * x

        killer = threading.Thread(target=kill)
        killer.start()
        assert parmap.pmap(fn, range(20), chunks=5) == [x * x for x in range(20)]
        killer.join()

    def test_a_large_array_is_put_once_and_read_in_place(self, monkeypatch):
        puts = []
        put = ray.put
        monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
        x = np.ones(5_000_000)

        def where(_):
            start = x.__array_interface__["data"][0]
            for line in Path("/proc/self/maps").read_text().splitlines():
                low, high = (int(number, 16) for number in line.split()[0].split("-"))
                if low <= start < high:
                    return "plasma" in line, x.flags.owndata, x.flags.writeable
            return None

        assert set(parmap.pmap(where, range(20), chunks=1)) == {(True, False, False)}
        assert len(puts) == 1

    def test_a_value_is_unpickled_once_in_a_worker(self):
        x = np.ones(1_000_000)
        seen = parmap.pmap(lambda _: (os.getpid(), id(x)), range(20), chunks=1)
        assert len(set(seen)) == len({pid for pid, _ in seen})

    def test_a_dropped_value_is_freed(self):
        reference = self.session.executor.put(np.ones(1_000_000))
        ref = reference.cargo
        assert isinstance(ref, ray.ObjectRef)
        del ref
        self.session.executor.drop(reference)
        assert reference.cargo is None

    def test_tasks_that_are_cancelled(self, tmp_path):
        pipe, end, ran = tmp_path / "pipe", tmp_path / "end", tmp_path / "ran"
        os.mkfifo(pipe)

        def fn():
            pipe.write_text("begun")
            while not end.exists():  # Ray interrupts it, mostly
                time.sleep(0.01)

        with parmap.plan("ray", workers=1) as session:
            running = session.executor.submit(fn)
            waiting = session.executor.submit(ran.touch)
            assert pipe.read_text() == "begun"
            assert waiting.cancel()
            assert running.cancel()
            end.touch()
            assert session.map(abs, [-1]) == [1]
        assert running.cancelled()
        assert waiting.cancelled()
        assert not ran.exists()
        # Nobody is left waiting for them.
        assert len(wait([running, waiting], timeout=60).done) == 2

    def test_one_that_waits_here_is_cancelled_at_once(self, tmp_path):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        with parmap.plan("ray", workers=1) as session:
            running = session.executor.submit(pipe.read_text)
            waiting = session.executor.submit(abs, 1)
            assert waiting.cancel()
            assert wait([waiting], timeout=60).done == {waiting}
            assert not running.done()
            pipe.write_text("go")
            assert running.result(60) == "go"

    def test_a_cancelled_task_that_sleeps_does_not_keep_its_worker(self, tmp_path):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)

        def fn():
            pipe.write_text("begun")
            time.sleep(3600)  # which Ray's interrupt does not reach

        for _ in range(2):
            future = self.session.executor.submit(fn)
            assert pipe.read_text() == "begun"
            assert future.cancel()
        # It takes both workers to run these.
        heard = parmap.pmap(_meet, [(tmp_path, 0), (tmp_path, 1)], chunks=1)
        assert heard == ["1", "0"]

    def test_the_executor_is_one_of_pep_3148(self):
        executor = self.session.executor
        assert executor.submit(int, "12", base=3).result() == 5
        assert isinstance(executor.submit(ValueError, "a result").result(), ValueError)
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result()
        with pytest.raises(parmap.SerializationError, match="lock"):
            executor.submit(repr, threading.Lock()).result()
        assert executor.submit(abs, ray.put(-3)).result() == 3
        # What a future calls may use Ray again.
        again = []
        done = threading.Event()

        def call(_):
            again.append(ray.get(ray.put(4)))
            done.set()

        executor.submit(abs, 1).add_done_callback(call)
        assert done.wait(60)
        assert again == [4]

    def test_a_second_session_joins_the_first(self):
        with parmap.plan("ray", workers=1) as session:
            assert session.workers == 1
            assert parmap.pmap(abs, [-1, -2]) == [1, 2]
            executor = session.executor
        assert ray.is_initialized()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(abs, 1)

    def test_no_more_run_at_once_than_the_plan_says(self):
        def times(_):
            began = time.monotonic()
            time.sleep(0.02)
            return began, time.monotonic()

        with parmap.plan("ray", workers=1):
            spans = sorted(parmap.pmap(times, range(10), chunks=1))
        assert all(end <= began for (_, end), (began, _) in itertools.pairwise(spans))

    def test_what_no_node_has_is_refused(self):
        for options in ({"num_gpus": 999}, {"resources": {"unobtainium": 1}}, {"num_cpus": 99}):
            with pytest.raises(parmap.PlanError, match=r"takes .* and no node .* CPU: 2"):
                parmap.plan("ray", **options).start()
        with pytest.raises(parmap.PlanError, match="num_cpus"):
            parmap.plan("ray", resources={"CPU": 1}).start()

    def test_another_address_is_refused(self):
        with pytest.raises(parmap.PlanError, match="another session uses Ray at this machine"):
            parmap.plan("ray", address="127.0.0.1:1").start()

    def test_setup_runs_once_in_each_worker(self, tmp_path):
        def setup():
            with open(tmp_path / str(os.getpid()), "a") as file:
                file.write("x")

        with parmap.plan("ray", setup=setup):
            pids = set(parmap.pmap(lambda _: os.getpid(), range(20), chunks=1))
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
            str(pid): "x" for pid in pids
        }

    def test_a_setup_that_fails(self):
        def setup():
            raise ValueError("no licence")

        with (
            pytest.raises(parmap.PoolBroken, match="setup= failed in a worker: ValueError: no lic"),
            parmap.plan("ray", setup=setup),
        ):
            parmap.pmap(abs, range(3))

    def test_the_tasks_environment(self):
        variables = {"PARMAP_TEST": "here"}
        with parmap.plan("ray", workers=1, runtime_env={"env_vars": variables}):
            assert parmap.pmap(lambda _: os.environ["PARMAP_TEST"], [1]) == ["here"]

    def test_ray_inside_of_ray_does_not_wait_for_itself(self):
        def outer(x):
            return sum(parmap.pmap(lambda y: y + 1, range(x)))

        with parmap.plan(["ray", "ray"]):
            assert parmap.pmap(outer, range(4), chunks=1) == [0, 1, 3, 6]

    def test_tasks_that_claim_nothing(self):
        with parmap.plan("ray", num_cpus=0, workers=2) as session:
            assert session.workers == 2
            assert parmap.pmap(abs, [-1, -2, -3]) == [1, 2, 3]


def test_what_was_found_is_left_and_what_is_ours_ends():
    ray.init(
        "local", num_cpus=3, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    try:
        with parmap.plan("ray") as session:
            assert session.workers == 3
        with parmap.plan("ray", workers=2) as session:
            assert session.workers == 2
            assert session.dashboard is None
            assert session.map(abs, [-1]) == [1]
        assert ray.get(ray.put(1)) == 1
    finally:
        ray.shutdown()
    environ = dict(os.environ)
    # joblib's tests in the same process leave idle workers, for joblib to use again.
    others = psutil.Process().children(recursive=True)
    with parmap.plan("ray", workers=1) as session:
        assert dict(os.environ) == environ
        assert session.map(abs, [-1]) == [1]
        processes = set(psutil.Process().children(recursive=True)) - set(others)
        assert processes
    assert not ray.is_initialized()
    assert psutil.wait_procs(processes, timeout=60)[1] == []


def test_ray_that_is_shut_down_under_a_session():
    with parmap.plan("ray", workers=1) as session:
        future = session.submit(time.sleep, 3600)
        ray.shutdown()
        with pytest.raises(parmap.PoolBroken, match="was shut down"):
            future.result(60)


def test_a_script_needs_no_guard_and_hears_nothing(tmp_path):
    (tmp_path / "beside.py").write_text("def half(x): return x / 2")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import beside, parmap

            with parmap.plan("ray", workers=1):
                assert parmap.pmap(beside.half, range(4)) == [0, 0.5, 1, 1.5]
                assert parmap.pmap(lambda x: beside.half(x), [4]) == [2]
                failed = parmap.pmap(lambda x: 1 / x, [0], errors="return")
                assert isinstance(failed[0].error, ZeroDivisionError)
        """)
    )
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environ, cwd=tmp_path.parent
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_script_keeps_its_generator_and_its_handler_of_sigterm(run):
    """Ray draws from the one as it starts and ends, and sets the other."""
    out = run(
        """
        import random, signal, parmap
        def own(*_):
            pass
        for handler in (own, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, handler)
            random.seed(1)
            with parmap.plan("ray", workers=1):
                assert parmap.pmap(abs, [-1, -2]) == [1, 2]
                if handler is own:
                    assert signal.getsignal(signal.SIGTERM) is own
            assert signal.getsignal(signal.SIGTERM) is handler
            assert random.random() == random.Random(1).random()
        print("all is as it was")
        """
    )
    assert out == "all is as it was\n"


def test_tasks_that_are_cancelled_while_they_end(run):
    # A script, for what must not happen is that Ray ends the whole process.
    run(
        """
        import parmap
        with parmap.plan("ray", workers=2) as session:
            for x in range(300):
                futures = [session.submit(abs, -y) for y in range(6)]
                futures[x % 3].result()
                for future in futures:
                    future.cancel()
            assert session.map(abs, [-1]) == [1]
        """
    )


def test_what_is_printed_is_what_tasks_print(run):
    out = run(
        """
        import os, parmap, time

        def fn(x):
            os.write(1, f"line {x}\\n".encode())  # at once: Ray reads what is there
            if x == 3:
                os._exit(1)

        with parmap.plan("ray", workers=2):
            failed = parmap.pmap(fn, range(8), chunks=1, errors="return")[3]
            assert isinstance(failed.error, parmap.WorkerDied)
        """
    )
    lines = out.splitlines()
    # Some may come too late; but nothing else comes, and none for several.
    assert [line for line in lines if not re.search(r"\) *(\x1b\[0m)? line \d$", line)] == []


def test_a_cluster_by_its_address(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block"]
    options = [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    log = tmp_path / "log"
    with log.open("w") as out:
        head = subprocess.Popen(
            [*command, *options, "--include-dashboard=false", "--disable-usage-stats"],
            stdout=out,
            stderr=out,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        )
    try:
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            time.sleep(0.1)
        for _ in range(2):
            with parmap.plan("ray", address=f"127.0.0.1:{port}") as session:
                assert session.workers == 2
                assert parmap.pmap(lambda x: x + 1, [1, 2]) == [2, 3]
            assert not ray.is_initialized()
            assert head.poll() is None
    finally:
        head.terminate()
        head.wait()


def test_an_address_where_nobody_listens():
    with pytest.raises(parmap.PoolBroken, match=r"no Ray answers at 127\.0\.0\.1:1"):
        parmap.plan("ray", address="127.0.0.1:1").start()


def test_plans_of_ray_are_values():
    plan = parmap.plan(
        "ray",
        num_cpus=0.5,
        resources={"b": 1, "a": 2},
        runtime_env={"pip": ["x", "y"], "env_vars": {"A": "1"}, "excludes": []},
    )
    assert plan.resources == (("a", 2), ("b", 1))
    assert plan == parmap.plan("ray", num_cpus=0.5, resources=plan.resources).replace(
        runtime_env=plan.runtime_env
    )
    assert parmap.plan(str(plan)) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert hash(parmap.plan(str(plan))) == hash(plan)
    assert plan.claims == {
        "num_cpus": 0.5,
        "resources": {"a": 2, "b": 1},
        "runtime_env": {"pip": ["x", "y"], "env_vars": {"A": "1"}},
    }
    assert str(parmap.plan("ray")) == "ray"


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": -1},
        {"num_cpus": "2"},
        {"num_gpus": True},
        {"num_gpus": float("nan")},
        {"resources": {"a": "b"}},
        {"resources": 3},
        {"resources": {1: 2}},
        {"runtime_env": "pip"},
        {"runtime_env": {"pip": {"x"}}},
        {"address": 6379},
    ],
    ids=str,
)
def test_wrong_options(options):
    with pytest.raises(parmap.PlanError, match=next(iter(options))):
        parmap.plan("ray", **options)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(parmap.BackendUnavailable, match=r"parmap-plans\[ray\]"):
        parmap.plan("ray").start()


class TestMap(EndContract):
    plan = parmap.plan("ray", workers=2)


@pytest.mark.parametrize(
    ("owner", "where"), [("_tasks", "_is_full"), ("_thread", "send"), ("_api", "hear")]
)
def test_ctrl_c_in_the_middle_of_a_submit_leaves_nothing(owner, where, monkeypatch):
    # Ray has room for two such tasks: one that stays out makes the next one wait for ever.
    with parmap.plan("ray", workers=1, num_cpus=0.5) as session:
        executor = session.executor

        def interrupt(*_):
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(getattr(executor, owner), where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            executor.submit(abs, -1)
        assert executor.submit(abs, -2).result(60) == 2
        assert executor.submit(abs, -3).result(60) == 3
        assert not executor._tasks.out
        assert not executor._thread._stopped


@pytest.mark.timeout(300)
def test_a_collection_at_each_step():
    hits = swept("ray", "collect")
    assert {name: hit for name, hit in hits.items() if hit[0] < 0.95 * hit[1]} == {}
