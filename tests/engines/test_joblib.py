"""Plan ``joblib``, on its own backends and on one that somebody else registers."""

import os
import pickle
import signal
import struct
import sys
import threading
from concurrent.futures import Future, wait
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest

import parmap
from parmap.testing import PlanContract
from tests.calling import EndContract
from tests.mapping import MapContract
from tests.sweep import one_python, swept

joblib = pytest.importorskip("joblib")

GUARD = 60  # against hangs; never waited for when all is well
PROCESSES = ["loky", "multiprocessing"]

# From Python 3.12 on, a fork of a process with threads warns, and rightly: joblib's pool forks.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
# filelock, which Ray loads into this process, lets no two threads fork at a time: then a pool whose
# processes were killed may lose its thread, as another pool takes its place.
refused = pytest.mark.filterwarnings(
    r"ignore:Exception in thread .*\(_handle_workers\):pytest.PytestUnhandledThreadExceptionWarning"
)
pytestmark = [forks, refused]


class Foreign(joblib.parallel.ParallelBackendBase):
    """A backend of the old kind: it has no `submit`, and calls back for good results only.

    Its tasks leave the caller's memory, so that it is one from elsewhere.
    """

    def effective_n_jobs(self, n_jobs):
        return n_jobs

    def configure(self, n_jobs=1, parallel=None, **options):
        self.parallel = parallel
        self.pool = ThreadPool(n_jobs)
        return n_jobs

    def apply_async(self, func, callback=None):
        sent = pickle.dumps(func)
        return self.pool.apply_async(
            lambda: pickle.loads(pickle.dumps(pickle.loads(sent)())), callback=callback
        )

    def retrieve_result(self, out, timeout=None):
        return out.get(timeout)

    def terminate(self):
        self.pool.terminate()
        self.pool.join()


# As packages do it that know nothing of levels.
joblib.register_parallel_backend("foreign", lambda: Foreign())


class TestLoky(PlanContract):
    plan = parmap.plan("joblib", workers=2)


@pytest.mark.brief  # what travels is as on `TestLoky`, and in a process as on plan threads
class TestThreading(PlanContract):
    plan = parmap.plan("joblib", backend="threading", workers=2)


@pytest.mark.brief  # what travels is as on `TestLoky`
class TestMultiprocessing(PlanContract):
    plan = parmap.plan("joblib", backend="multiprocessing", workers=2)


@pytest.mark.long
class TestOneWorker(PlanContract):
    plan = parmap.plan("joblib", workers=1)


@pytest.mark.brief  # the executor is that of `TestLoky`
class TestForeign(PlanContract):
    plan = parmap.plan("joblib", backend="foreign", workers=2)


def test_an_unknown_backend_is_refused_as_it_starts():
    plan = parmap.plan("joblib", backend="lokky")
    known = r"Backends: dask, foreign, loky, multiprocessing, sequential, threading;"
    with pytest.raises(parmap.PlanError, match=rf"did you mean 'loky'\?\). {known}"):
        plan.start()
    with pytest.raises(parmap.PlanError, match="backend=3: give the name"):
        parmap.plan("joblib", backend=3)


def test_a_backend_that_cannot_start_says_why():
    def missing():
        raise ImportError("no module named spark")

    def unready(**options):
        raise ValueError("first create a client")

    joblib.register_parallel_backend("missing", missing)
    joblib.register_parallel_backend("unready", unready)
    try:
        with pytest.raises(parmap.BackendUnavailable, match=r"'missing' cannot start: .*spark"):
            parmap.plan("joblib", backend="missing").start()
        with pytest.raises(parmap.PlanError, match="'unready' cannot start: first create"):
            parmap.plan("joblib", backend="unready").start()
    finally:
        del joblib.parallel.BACKENDS["missing"], joblib.parallel.BACKENDS["unready"]


def test_joblib_itself_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(parmap.BackendUnavailable, match=r"pip install 'parmap-plans\[joblib\]'"):
        parmap.plan("joblib").start()


def test_its_text_reads_as_the_plan():
    plan = parmap.plan("joblib", backend="threading", workers=3)
    assert parmap.plan(str(plan)) == plan


def test_one_worker_is_this_thread():
    with parmap.plan("joblib", workers=1, setup="threading:get_ident") as session:
        assert parmap.pmap(lambda _: threading.get_ident(), range(3)) == [threading.get_ident()] * 3
        assert session.workers == 1


@pytest.mark.parametrize("backend", PROCESSES)
def test_a_death_says_how_it_came(backend):
    with parmap.plan("joblib", backend=backend, workers=2):
        error = parmap.submit(os._exit, 3).exception(GUARD)
        assert isinstance(error, parmap.WorkerDied)
        assert error.exitcode in (3, None)  # None: the pool's own thread asked at that moment
        assert error.pid > 0
        assert parmap.pmap(abs, [-1, 2]) == [1, 2]


@pytest.mark.parametrize("backend", PROCESSES)
def test_an_exit_without_an_error_is_a_death(backend):
    with parmap.plan("joblib", backend=backend, workers=2):
        assert isinstance(parmap.submit(os._exit, 0).exception(GUARD), parmap.WorkerDied)


@pytest.fixture
def in_both(tmp_path):
    """Call a function in two workers: in two tasks that wait for each other."""
    fifo = os.fspath(tmp_path / "fifo")
    os.mkfifo(fifo)

    def in_both(fn):
        def task(mode):
            with open(fifo, mode):
                return fn()

        return parmap.pmap(task, ["r", "w"], chunks=1)

    return in_both


@pytest.mark.parametrize("backend", PROCESSES)
def test_workers_that_are_killed_while_they_idle_are_replaced(backend, in_both):
    # Both at once: one has the lock of the queue, for which the other waits.
    with parmap.plan("joblib", backend=backend, workers=2):
        for _ in range(3):
            for pid in in_both(os.getpid):
                os.kill(pid, signal.SIGKILL)
            assert parmap.pmap(lambda x: -x, range(20), chunks=1) == [-x for x in range(20)]


def test_a_death_is_known_while_a_child_of_the_process_lives(tmp_path):
    # loky itself waits for the child, too, and so for ever.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def fork_and_die():
        if os.fork() == 0:
            fifo.write_text(str(os.getpid()))
            signal.pause()
        os._exit(1)

    with parmap.plan("joblib", backend="multiprocessing", workers=2) as session:
        future = session.submit(fork_and_die)
        child = int(fifo.read_text())
        assert isinstance(future.exception(GUARD), parmap.WorkerDied)
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("backend", PROCESSES)
def test_a_callback_of_a_dead_task_may_submit(backend):
    with parmap.plan("joblib", backend=backend, workers=2) as session:
        later, called = [], threading.Event()

        def follow(future):
            later.append(session.executor.submit(abs, -5))
            called.set()

        session.executor.submit(os._exit, 1).add_done_callback(follow)
        assert called.wait(GUARD)
        assert later[0].result(GUARD) == 5


def test_a_task_that_a_finalizer_submits_while_a_backend_begins_is_kept(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with parmap.plan("joblib", backend="multiprocessing", workers=2) as session:
        executor, inner = session.executor, []
        begin = executor._begin

        def begin_and_collect():
            instance = begin()
            if not inner:  # what runs under the lock, in this thread, as a finalizer would
                inner.append(None)
                inner[0] = executor.submit(fifo.read_text)
            return instance

        executor._begin = begin_and_collect
        executor._instance._break([])
        assert executor.submit(abs, -1).result(GUARD) == 1
        fifo.write_text("read")
        assert inner[0].result(GUARD) == "read"
        assert executor.submit(abs, -2).result(GUARD) == 2


@pytest.mark.parametrize("backend", PROCESSES)
def test_a_backend_that_ends_in_the_middle_of_a_submit_is_begun_anew(backend):
    with parmap.plan("joblib", backend=backend, workers=2) as session:
        instance = session.executor._instance
        joblibs = instance._backend
        send = joblibs._submit

        def end_and_send(*args):
            instance.end()
            return send(*args)

        joblibs._submit = end_and_send
        assert session.executor.submit(abs, -1).result(GUARD) == 1
        assert not instance._tasks


@pytest.mark.parametrize("backend", PROCESSES)
def test_a_task_that_is_moved_while_it_is_submitted_runs_once(backend, tmp_path):
    notes = tmp_path / "notes"
    with parmap.plan("joblib", backend=backend, workers=2) as session:
        instance = session.executor._instance
        joblibs = instance._backend
        send = joblibs._submit

        def move_and_send(*args):
            # The thread of `_cancelled` does, when cancelled tasks have all workers.
            moving = threading.Thread(target=instance._late, args=(2,), daemon=True)
            moving.start()
            while (
                joblibs._theirs._pool if backend == "multiprocessing" else joblibs._theirs._workers
            ):
                continue
            return send(*args)

        joblibs._submit = move_and_send
        assert session.executor.submit(note, notes).result(GUARD) == 4
        assert session.executor.submit(abs, -2).result(GUARD) == 2
    assert notes.read_text() == "ran\n"


def note(path):
    with path.open("a") as file:
        return file.write("ran\n")


def double(x):
    return 2 * x


def test_joblib_is_the_users_at_the_same_time():
    # Its executor is one for the whole process: other options, and it is another one.
    with parmap.plan("joblib", workers=2):
        results = []
        for x in parmap.imap(double, range(40), chunks=1):
            results.append(x)
            if x % 20 == 0:
                theirs = joblib.Parallel(n_jobs=3)(joblib.delayed(double)(i) for i in range(4))
                assert theirs == [0, 2, 4, 6]
    assert results == [2 * x for x in range(40)]


def test_sessions_of_different_sizes_at_the_same_time():
    with (
        parmap.plan("joblib", workers=2) as one,
        parmap.plan("joblib", workers=3) as other,
    ):
        futures = [session.submit(double, x) for x in range(20) for session in (one, other)]
        assert [future.result(GUARD) for future in futures] == [2 * (i // 2) for i in range(40)]


def test_processes_inside_of_threads():
    # There joblib would start none, and say so.
    with parmap.plan(["joblib(backend='threading', workers=2)", "joblib(workers=2)"]):
        inner = parmap.pmap(lambda x: parmap.pmap(lambda y: (x * y, os.getpid()), range(3)), [1, 2])
    assert [[value for value, _ in row] for row in inner] == [[0, 1, 2], [0, 2, 4]]
    assert os.getpid() not in {pid for row in inner for _, pid in row}


def here(_=None):
    return os.getpid(), os.getcwd(), os.environ.get("PARMAP_MARK")


@pytest.mark.parametrize("backend", PROCESSES)
def test_workers_end_with_the_session_and_the_next_ones_see_what_is_then(
    backend, tmp_path, monkeypatch, in_both
):
    for mark in ("first", "second"):
        folder = tmp_path / mark
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PARMAP_MARK", mark)
        with parmap.plan("joblib", backend=backend, workers=2):
            seen = in_both(here)
        assert [found[1:] for found in seen] == [(os.fspath(folder), mark)] * 2
        for pid, *_ in seen:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_the_pool_that_the_user_had_before_is_left_alone():
    def theirs():
        return set(joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(20)))

    before = theirs()
    for workers in (2, 3):  # another number would resize it
        with parmap.plan("joblib", workers=workers):
            assert not before & set(parmap.pmap(lambda _: os.getpid(), range(20), chunks=1))
            # A death is one of the session's own.
            assert isinstance(parmap.submit(os._exit, 1).exception(GUARD), parmap.WorkerDied)
    for pid in before:
        os.kill(pid, 0)


def test_a_task_that_nobody_waits_for_does_not_hold_up_the_end(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with parmap.plan("joblib", workers=2) as session:
        pids = tmp_path / "pid"

        def wait_for_ever():
            pids.write_text(str(os.getpid()))
            fifo.read_bytes()
            fifo.read_bytes()

        future = session.executor.submit(wait_for_ever)
        fifo.write_bytes(b"it runs")
        future.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)


def test_half_a_result_of_a_killed_process_does_not_hold_up_the_end(tmp_path):
    """The thread of loky's that reads results waited for the rest of it for ever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def wait_for_ever():
        fifo.read_bytes()
        fifo.read_bytes()

    with parmap.plan("joblib", workers=2) as session:
        future = session.executor.submit(wait_for_ever)
        fifo.write_bytes(b"it runs")
        results = session.executor._instance._backend._parallel._backend._workers._result_queue
        os.write(results._writer.fileno(), struct.pack("!i", 100) + b"half")
        future.cancel()


def test_a_lock_that_a_killed_process_has_taken_along_does_not_hold_up_the_end(run):
    """It dies as it sends a result, as all do that have not ended in time."""
    out = run("""
        import parmap

        if __name__ == "__main__":
            with parmap.plan("joblib", backend="multiprocessing", workers=2) as session:
                assert session.submit(abs, -1).result() == 1
                pool = session.executor._instance._backend._theirs._pool
                processes = list(pool._pool)
                pool._outqueue._wlock.acquire()
            print([process.is_alive() for process in processes])
        """)
    assert out == "[False, False]\n"


def test_a_finalizer_may_submit_in_a_thread_of_a_backend_that_is_replaced():
    """The collector comes in any thread; to wait there for the end of that thread is to hang."""
    with parmap.plan("joblib", backend="threading", workers=2) as session:
        executor, instance = session.executor, session.executor._instance
        came, go, submitted = threading.Event(), threading.Event(), Future()
        resolve = instance._resolve

        def resolving(*args):
            came.set()
            go.wait(GUARD)
            submitted.set_result(executor.submit(abs, -2))
            resolve(*args)

        instance._resolve = resolving
        executor.submit(abs, -1)
        assert came.wait(GUARD)
        instance._break([])
        with executor._lock:
            go.set()
            again = executor.submit(abs, -3)
        assert again.result(GUARD) == 3
        assert submitted.result(GUARD).result(GUARD) == 2


def kind(x):
    return type(x).__name__, x.flags.writeable


@pytest.mark.parametrize("backend", PROCESSES)
def test_nothing_is_memory_mapped(backend):
    x = np.zeros(1_000_000)  # 8 MB; from 1 MB on joblib would
    with parmap.plan("joblib", backend=backend, workers=2) as session:
        assert session.executor.submit(kind, x).result(GUARD) == ("ndarray", True)
        assert isinstance(parmap.submit(os._exit, 1).exception(GUARD), parmap.WorkerDied)
        assert session.executor.submit(kind, x).result(GUARD) == ("ndarray", True)
        assert session.map(kind, [x, x.copy()]) == [("ndarray", True)] * 2


def mark():
    here = threading.current_thread()
    here.mark = getattr(here, "mark", 0) + 1


@pytest.mark.parametrize("backend", [*PROCESSES, "threading"])
def test_setup_runs_once_in_each_worker(backend, in_both):
    with parmap.plan("joblib", backend=backend, workers=2, setup=mark):
        for _ in range(3):
            assert in_both(lambda: threading.current_thread().mark) == [1, 1]


@pytest.mark.parametrize("backend", [*PROCESSES, "threading"])
def test_a_setup_that_fails_is_told(backend):
    def setup():
        raise OSError("no licence")

    with parmap.plan("joblib", backend=backend, workers=2, setup=setup):
        for _ in range(2):
            with pytest.raises(parmap.PoolBroken, match="no licence"):
                parmap.pmap(abs, range(10))


def test_libraries_that_load_later_are_told_the_same():
    with parmap.plan("joblib", workers=2, threads_per_worker=3):
        assert parmap.pmap(os.getenv, ["OMP_NUM_THREADS"]) == ["3"]


def test_after_its_end_an_executor_takes_no_more():
    executor = parmap.plan("joblib", workers=2).start()
    future = executor.submit(abs, -1)
    executor.shutdown()
    assert future.result() == 1
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1)


def test_an_end_that_nobody_waits_for(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    executor = parmap.plan("joblib", workers=2).start()
    first = executor.submit(fifo.read_bytes)  # waits
    executor.shutdown(wait=False)
    fifo.write_bytes(b"go")
    assert first.result(GUARD) == b"go"


@pytest.mark.parametrize("backend", [*PROCESSES, "threading"])
def test_what_is_cancelled_wakes_who_waits_for_it(backend, tmp_path):
    fifos = [tmp_path / name for name in "ab"]
    with parmap.plan("joblib", backend=backend, workers=2) as session:
        for fifo in fifos:
            os.mkfifo(fifo)
        running = [session.executor.submit(fifo.read_bytes) for fifo in fifos]  # they wait
        queued = session.executor.submit(abs, -1)
        assert queued.cancel()
        assert wait([queued], GUARD).done == {queued}
        for fifo in fifos:
            fifo.write_bytes(b"go")
        assert [future.result(GUARD) for future in running] == [b"go", b"go"]


@pytest.mark.parametrize("backend", [*PROCESSES, "threading"])
def test_a_script_without_a_guard(run, backend):
    out = run(
        f"""
        import os, parmap
        import numpy as np
        def fn(x):
            return x.sum()
        with parmap.plan("joblib", backend={backend!r}, workers=2):
            print(sum(parmap.pmap(fn, [np.ones(500_000)] * 4)))
            if {backend!r} != "threading":
                print(type(parmap.submit(os._exit, 1).exception()).__name__)
            print(parmap.pmap(lambda x: -x, range(3)))
        """,
        # From Python 3.12 on a fork of a process with threads warns, as above.
        flags=("-W", "error", "-W", "ignore:This process:DeprecationWarning"),
    )
    died = [] if backend == "threading" else ["WorkerDied"]
    assert out.splitlines() == ["2000000.0", *died, "[0, -1, -2]"]


@pytest.fixture
def waiting(tmp_path):
    """Give a task that says that it runs, and waits for what is written to a pipe of its name."""

    def wait(name):
        with open(tmp_path / "runs", "a") as runs:
            runs.write(name)
        (tmp_path / f"{name} runs").write_text("")
        return (tmp_path / name).read_text()

    def submit(session, name):
        for path in (tmp_path / name, tmp_path / f"{name} runs"):
            os.mkfifo(path)
        future = session.submit(wait, name)
        (tmp_path / f"{name} runs").read_text()
        return future

    return submit


def parted(session):
    """Give an event: the session's tasks go to other workers, for some run in vain."""
    cancelled, event = session.executor._instance._cancelled, threading.Event()
    late = cancelled._late

    def told(count):
        over = late(count)
        event.set()
        return over

    cancelled._late = told
    return event


@pytest.mark.parametrize("backend", PROCESSES)
def test_a_task_that_runs_beside_a_cancelled_one_runs_once(backend, waiting, tmp_path):
    with parmap.plan("joblib", backend=backend, workers=2) as session:
        kept, vain, over = waiting(session, "a"), waiting(session, "b"), parted(session)
        assert vain.cancel()
        assert over.wait(GUARD)
        # Others run elsewhere, and those of the user's joblib, too.
        assert parmap.pmap(abs, range(-9, 0), chunks=1) == list(range(9, 0, -1))
        assert joblib.Parallel(2)(joblib.delayed(abs)(x) for x in range(-3, 0)) == [3, 2, 1]
        (tmp_path / "a").write_text("kept")
        assert kept.result(GUARD) == "kept"
        assert parmap.pmap(abs, [-1]) == [1]
    assert (tmp_path / "runs").read_text() == "ab"


@pytest.mark.parametrize("backend", PROCESSES)
def test_a_script_does_not_wait_for_what_was_cancelled(backend, start):
    script = start(
        f"""
        import os, parmap, time
        os.mkfifo("pipe")
        def fn(x):
            if x == 0:
                open("pipe").read()
                raise LookupError
            open("pipe", "w").close()
            time.sleep(3600)
        with parmap.plan("joblib", backend={backend!r}, workers=2):
            try:
                parmap.pmap(fn, range(2), chunks=1)
            except LookupError:
                print("failed")
        """,
        flags=(),
    )
    assert script.end()[0] == "failed\n"


def test_threads_of_tasks_on_a_backend_from_elsewhere_do_not_starve():
    def outer(x):
        box = []
        thread = threading.Thread(target=lambda: box.append(parmap.pmap(abs, [-x, -1])))
        thread.start()
        thread.join()
        return box[0]

    before = parmap.current_plan()
    parmap.set_plan("joblib", backend="foreign", workers=2)
    try:
        # All workers run tasks that wait for threads, whose chunks wait for a worker.
        assert parmap.pmap(outer, range(6), chunks=1) == [[x, 1] for x in range(6)]
    finally:
        parmap.set_plan(before)


def test_a_script_that_handles_its_end_does_not_wait_for_what_was_cancelled(start):
    script = start(
        """
        import os, parmap, signal, time
        signal.signal(signal.SIGTERM, lambda *_: None)  # which forked workers inherit
        os.mkfifo("pipe")
        def fn(x):
            if x == 0:
                open("pipe").read()
                raise LookupError
            open("pipe", "w").close()
            while True:
                time.sleep(3600)
        with parmap.plan("joblib", backend="multiprocessing", workers=2):
            try:
                parmap.pmap(fn, range(2), chunks=1)
            except LookupError:
                print("failed")
            print(parmap.pmap(abs, range(-4, 0), chunks=1))
        """,
        flags=(),
    )
    assert script.end()[0] == "failed\n[4, 3, 2, 1]\n"


class TestMapOfLoky(EndContract):
    plan = parmap.plan("joblib", workers=2)


class TestMapOfThreading(MapContract):
    plan = parmap.plan("joblib", backend="threading", workers=2)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "kind", ["collect", *(pytest.param(kind, marks=one_python) for kind in ("handle", "interrupt"))]
)
def test_a_collection_or_a_signal_at_each_step(kind):
    hits = swept("joblib", kind)
    assert {name: hit for name, hit in hits.items() if hit[0] < 0.95 * hit[1]} == {}
