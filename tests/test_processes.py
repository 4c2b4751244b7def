import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import wait
from functools import partial

import psutil
import pytest

import parmap
from parmap.backends.processes.workers import Workers
from parmap.testing import PlanContract

GUARD = 60  # against hangs; never waited for when all is well


@pytest.mark.brief  # the executor is that of `TestTwoWorkers`
class TestOneWorker(PlanContract):
    plan = parmap.plan("processes", workers=1)


class TestTwoWorkers(PlanContract):
    plan = parmap.plan("processes", workers=2)


@pytest.mark.long
class TestFourWorkers(PlanContract):
    plan = parmap.plan("processes", workers=4)


# From Python 3.12 on, a fork of a process with threads warns, and rightly; it is asked for.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
class TestForked(PlanContract):
    plan = parmap.plan("processes", workers=2, start="fork")


@pytest.fixture
def one():
    with parmap.plan("processes", workers=1) as session:
        yield session


@pytest.fixture
def fifo(tmp_path):
    """A FIFO: opening one end waits for the other to be opened."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_the_options_are_named_as_users_write_them():
    with pytest.raises(parmap.PlanError, match="start='spawn': give one of 'fresh', 'fork'"):
        parmap.plan("processes", start="spawn")
    with pytest.raises(parmap.PlanError, match=r"Options: nested, setup, start, .*workers"):
        parmap.plan("processes", start_method="fork")
    assert str(parmap.plan("processes", start="fork")) == "processes(start='fork')"


def test_tasks_run_in_other_processes():
    with parmap.plan("processes", workers=2) as session:
        pids = set(parmap.pmap(lambda _: os.getpid(), range(20), chunks=1))
        assert os.getpid() not in pids
        assert pids <= set(session.executor.pids)


def test_a_call_leaves_nothing_placed(one):
    queue = one.executor._queue
    assert parmap.pmap(lambda x: x, range(5)) == list(range(5))
    assert parmap.submit(pow, 2, 2).result() == 4
    with pytest.raises(ValueError):
        parmap.pmap(int, ["x"])
    parmap.imap(abs, range(5)).close()
    with pytest.raises(parmap.SerializationError):
        parmap.submit(repr, threading.Lock())
    assert not queue.broadcast.frames


def test_a_cancelled_call_never_runs(one, fifo, tmp_path):
    mark = tmp_path / "mark"
    first = parmap.submit(fifo.read_bytes)  # waits
    second = parmap.submit(mark.touch)
    assert second.cancel()
    fifo.write_bytes(b"go")
    assert first.result(GUARD) == b"go"
    assert wait([second], GUARD).done == {second}
    assert not mark.exists()


def test_a_closed_iterator_interrupts_what_runs(one, tmp_path):
    # The element would never end: that the next call gets the only worker shows it was stopped.
    started, endless = tmp_path / "started", tmp_path / "endless"
    os.mkfifo(started)
    os.mkfifo(endless)

    def fn(x):
        if x == 1:
            started.write_bytes(b"go")
            endless.read_bytes()
        return x

    results = parmap.imap(fn, range(10), chunks=1)
    assert next(results) == 0
    assert started.read_bytes() == b"go"
    results.close()
    assert parmap.pmap(abs, [-1]) == [1]


def test_a_task_deaf_to_interrupts_is_killed(one, tmp_path):
    started = tmp_path / "started"
    os.mkfifo(started)

    def fn(x):
        if x == 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            started.write_bytes(b"go")
            signal.pause()
        return x

    results = parmap.imap(fn, range(10), chunks=1)
    assert next(results) == 0
    assert started.read_bytes() == b"go"
    (pid,) = one.executor.pids
    results.close()
    assert parmap.pmap(lambda _: os.getpid(), [1]) != [pid]


def test_a_worker_killed_while_it_idles_is_replaced(one):
    (before,) = parmap.pmap(lambda _: os.getpid(), [1])
    os.kill(before, signal.SIGKILL)
    (after,) = parmap.pmap(lambda _: os.getpid(), [1])
    assert after != before


def test_workers_tell_their_process_numbers_themselves(monkeypatch):
    # The fork server's answer may come after the worker's own.
    monkeypatch.setattr(Workers, "forked", lambda *_: None)
    with parmap.plan("processes", workers=2) as session:
        found = set(parmap.pmap(lambda _: os.getpid(), range(4), chunks=1))
        assert found <= set(session.executor.pids)


def test_what_cannot_be_called_is_the_futures_error(one):
    for wrong, name in ((None, "NoneType"), (3, "int")):
        future = one.executor.submit(wrong, b"", b"", ([1],), None, 0)
        with pytest.raises(TypeError, match=f"'{name}' object is not callable"):
            future.result(GUARD)


def test_a_killed_fork_server_is_replaced(one):
    assert parmap.pmap(abs, [-1]) == [1]
    (worker,) = one.executor.pids
    os.kill(psutil.Process(worker).ppid(), signal.SIGKILL)
    assert parmap.pmap(abs, [-1]) == [1]
    assert parmap.pmap(lambda x: -x, range(100), chunks=3) == [-x for x in range(100)]


def test_a_stop_comes_at_the_line_that_hangs(one):
    def hangs(_):
        signal.pause()

    with pytest.raises(parmap.TaskTimeout, match="in hangs") as caught:
        parmap.pmap(hangs, [1], timeout=0.5)
    assert "element 0" in caught.value.__notes__[-1]


def test_a_setup_that_fails_breaks_the_pool():
    def setup():
        raise OSError("no licence")

    with parmap.plan("processes", workers=2, setup=setup) as session:
        with pytest.raises(parmap.PoolBroken, match="no licence"):
            parmap.pmap(abs, range(10))
        with pytest.raises(parmap.PoolBroken, match="no licence"):
            session.submit(abs, 1).result(GUARD)


def test_a_setup_that_exits_breaks_the_pool():
    with (
        parmap.plan("processes", workers=1, setup=partial(os._exit, 3)),
        pytest.raises(parmap.PoolBroken, match=r"status 3|before they were ready"),
    ):
        parmap.pmap(abs, range(10))


def test_a_worker_sees_the_callers_path_and_arguments(one, monkeypatch):
    assert parmap.pmap(lambda _: (sys.path, sys.argv), [1]) == [(sys.path, sys.argv)]


def test_what_a_task_prints_comes_out_once(run):
    # Standard output goes to a pipe here, so it is buffered: a fork inherits what it holds.
    out = run(
        """
        import parmap, sys
        for start in ("fresh", "fork"):
            print("before", start)
            with parmap.plan("processes", workers=2, start=start):
                parmap.pmap(lambda x: print("task", x), range(3))
            print("after", start)
        """
    )
    expected = [*(f"{word} {start}" for start in ("fresh", "fork") for word in ("before", "after"))]
    assert sorted(out.splitlines()) == sorted(expected + [f"task {x}" for x in range(3)] * 2)


def test_forks_have_a_crash_report_whoever_took_the_signals_before(run):
    out = run(
        """
        import ctypes, faulthandler, parmap, signal
        faulthandler.enable()
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # libraries in C do likewise
        with parmap.plan("processes", workers=1, start="fork"):
            print("string_at" in str(parmap.submit(ctypes.string_at, 0).exception()))
        """
    )
    assert out == "True\n"


def test_python_flags_reach_the_workers(run):
    out = run(
        """
        import parmap, sys
        with parmap.plan("processes", workers=1):
            print(parmap.pmap(lambda _: (sys.flags.optimize, sys.flags.dev_mode), [1]))
        """,
        flags=("-O", "-X", "dev"),
    )
    assert out == "[(1, True)]\n"


@pytest.mark.parametrize("start_method", ["fresh", "fork"])
def test_nobody_outlives_a_killed_parent(start, start_method):
    # Killed in the middle of tasks, one of which sleeps and one of which computes.
    script = start(
        f"""
        import os, parmap, time
        def fn(x):
            os.write(1, b"started\\n")
            if x:
                time.sleep(3600)
            while True:
                pass
        with parmap.plan("processes", workers=2, start={start_method!r}):
            parmap.pmap(fn, range(2), chunks=1)
        """
    )
    assert [script.line(), script.line()] == ["started", "started"]
    os.kill(script.process.pid, signal.SIGKILL)
    # Ends only when the last of them has closed the pipe.
    assert script.end() == ("", "")


def test_pools_inside_of_pools(run):
    # The inner pools end with the workers that own them, or `run` would not come back.
    assert run(
        """
        import parmap
        with parmap.plan(["processes(workers=2)", "processes(workers=2)"]):
            print(parmap.pmap(lambda x: parmap.pmap(lambda y: x * y, range(3)), range(3)))
            print(parmap.pmap(lambda _: str(parmap.current_plan()), [1]))
        """
    ).splitlines() == ["[[0, 0, 0], [0, 1, 2], [0, 2, 4]]", "['processes(workers=2)']"]


# From Python 3.12 on, a fork of a process with threads warns, and rightly; it is asked for.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start_method", ["fresh", "fork"])
class TestRefusal:
    """The system refuses what workers need; each script has limits of its own."""

    def test_too_few_descriptors_for_all_workers_break_the_pool_and_nothing_is_kept(
        self, run, start_method
    ):
        out = run(
            f"""
            import os, resource, parmap

            def mine():
                with open(f"/proc/self/task/{{os.getpid()}}/children") as file:
                    return len(os.listdir("/proc/self/fd")), file.read()

            resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
            with parmap.plan("processes", start={start_method!r}, workers=2):
                assert parmap.pmap(abs, [-1]) == [1]
            before = mine()
            for _ in range(3):
                try:
                    with parmap.plan("processes", start={start_method!r}, workers=100):
                        parmap.pmap(abs, [-1])
                except parmap.PoolBroken as error:
                    message = str(error)
                assert mine() == before
            print(message)
            with parmap.plan("processes", start={start_method!r}, workers=2):
                print(parmap.pmap(abs, [-1]))
            """
        )
        assert "100 worker processes cannot be started" in out
        assert "200 file descriptors" in out
        assert "may have 128" in out
        assert "ulimit -n" in out
        assert "fewer workers=" in out
        assert out.endswith("[1]\n")

    def test_wherever_descriptors_end_the_pool_starts_or_says_so(self, run, start_method):
        out = run(
            f"""
            import os, resource, parmap

            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            with parmap.plan("processes", start={start_method!r}, workers=2):
                parmap.pmap(abs, [-1])  # loads all that is needed
            taken, ends = [], []
            try:
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            while not ends or ends[-1] != [1]:
                try:
                    with parmap.plan("processes", start={start_method!r}, workers=2):
                        ends.append(parmap.pmap(abs, [-1]))
                except parmap.PoolBroken:
                    ends.append("broken")
                    os.close(taken.pop())
            print(len(ends) > 3, set(map(str, ends[:-1])))
            """
        )
        assert out == "True {'broken'}\n"

    def test_a_worker_is_replaced_when_there_are_descriptors_again(self, run, start_method):
        out = run(
            f"""
            import os, resource, parmap

            def end_at(x):
                if x % 3 == 1:
                    os._exit(5)
                return x

            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            with parmap.plan("processes", start={start_method!r}, workers=3) as session:
                parmap.pmap(abs, range(10))
                taken = []
                try:
                    while True:
                        taken.append(os.open(os.devnull, os.O_RDONLY))
                except OSError:
                    pass
                ends = parmap.pmap(end_at, range(9), errors="return")
                print([type(end).__name__ for end in ends])
                handle = parmap.share(bytes(5 << 20))  # no file for it, either
                print(parmap.pmap(len, [handle] * 3))
                for descriptor in taken:
                    os.close(descriptor)
                while len(session.executor.pids) < 3:
                    parmap.pmap(abs, range(3))
                print("three again")
            """
        )
        one = "'int', 'Failure', 'int'"
        assert out == f"[{one}, {one}, {one}]\n{[5 << 20] * 3}\nthree again\n"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may give away its own privileges")
    @pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv, of util-linux")
    @pytest.mark.parametrize("limit", [1, 5, 9, 14])
    def test_processes_that_the_system_refuses_break_the_pool(self, tmp_path, start_method, limit):
        path = tmp_path / "script.py"
        path.write_text(
            f"""
import os, resource, parmap

def end_at(x):
    if x % 3 == 1:
        os._exit(5)
    return x

resource.setrlimit(resource.RLIMIT_NPROC, ({limit}, {limit}))
try:
    with parmap.plan("processes", workers=8, start={start_method!r}) as session:
        # One that is forked after another was refused finds the pool broken.
        parmap.pmap(end_at, range(9), errors="return", chunks=1)
        print("all is well")
except parmap.PoolBroken as error:
    print(error)
with open(f"/proc/self/task/{{os.getpid()}}/children") as file:
    print(file.read())
"""
        )
        # Not root, and without what lets root have any number of processes; each its own user.
        user = 40_000 + 100 * limit + len(start_method)
        run = subprocess.run(
            [
                *("setpriv", f"--ruid={user}", "--bounding-set=-sys_resource,-sys_admin"),
                *("--inh-caps=-all", sys.executable, "-W", "error", path),
            ],
            env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(parmap.__file__))},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stderr == ""
        said, children, _ = run.stdout.split("\n")
        assert children == ""
        if limit == 14:
            assert said == "all is well"
        else:
            assert "8 worker processes cannot be started" in said
            assert "ulimit -u" in said

    def test_an_answer_larger_than_memory_fails_its_task_alone(self, run, start_method):
        out = run(
            f"""
            import resource, parmap

            with parmap.plan("processes", workers=2, start={start_method!r}) as session:
                parmap.pmap(abs, range(4))
                resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
                ends = [session.submit(bytes, size) for size in (5, 1 << 29, 7)]
                print([type(end.exception()).__name__ for end in ends], ends[2].result())
                print(parmap.pmap(abs, [-1]))
            """
        )
        assert out == f"['NoneType', 'MemoryError', 'NoneType'] {bytes(7)}\n[1]\n"


def test_an_interpreter_that_does_not_work_breaks_the_pool(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        pytest.raises(parmap.PoolBroken, match="16 workers in a row ended before they were ready"),
        parmap.plan("processes", workers=2),
    ):
        parmap.pmap(abs, [-1])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(parmap.PoolBroken, match=r"cannot be started .*/nowhere/python"):
        parmap.plan("processes", workers=2).start()
