"""A worker is a process of `multiprocessing`: named, numbered, and trusted by the script."""

import multiprocessing
import os
import signal
import threading

import pytest

import parmap

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
GUARD = 60  # against hangs; never waited for when all is well


@pytest.fixture(params=["fresh", "fork"])
def three(request):
    with parmap.plan("processes", workers=3, start=request.param) as session:
        yield session


def who(_=None):
    me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    return me.name, me._identity, me.pid, parent.name, parent.pid, parent.is_alive()


def everybody(session):
    """What each worker says, by its process number."""
    said = {}
    while len(said) < session.workers:
        said |= {one[2]: one for one in parmap.pmap(who, range(12), chunks=1)}
    return said


def test_workers_are_named_and_numbered(three):
    said = everybody(three)
    assert sorted(one[:2] for one in said.values()) == [
        ("parmap-1", (1,)),
        ("parmap-2", (2,)),
        ("parmap-3", (3,)),
    ]
    assert {one[3:] for one in said.values()} == {("MainProcess", os.getpid(), True)}
    assert set(said) == set(three.executor.pids)


def test_a_worker_that_is_replaced_leaves_its_number(three):
    before = everybody(three)
    (killed,) = (pid for pid, one in before.items() if one[1] == (2,))
    os.kill(killed, signal.SIGKILL)
    after = {}
    while len(after) < 3:
        after |= {one[2]: one for one in parmap.pmap(who, range(12), chunks=1) if one[2] != killed}
    assert sorted(one[1] for one in after.values()) == [(1,), (2,), (3,)]


def fill(shared, lock, x):
    with lock:
        shared[x] = x * x
        return shared[x]


def test_proxies_work_in_workers(three):
    with multiprocessing.Manager() as manager:
        shared, lock = manager.dict(), manager.Lock()
        assert parmap.pmap(lambda x: fill(shared, lock, x), range(10)) == [x * x for x in range(10)]
        assert dict(shared) == {x: x * x for x in range(10)}
        future = three.submit(fill, shared, lock, -1)
        assert future.result(GUARD) == 1


def test_a_key_that_changes_reaches_the_workers(three):
    me = multiprocessing.current_process()
    before = me.authkey
    assert parmap.submit(key).result(GUARD) == bytes(before)
    me.authkey = b"another"
    try:
        assert parmap.pmap(lambda _: key(), range(6), chunks=1) == [b"another"] * 6
    finally:
        me.authkey = before


def key():
    return bytes(multiprocessing.current_process().authkey)


def test_setup_finds_the_worker_as_it_is():
    with multiprocessing.Manager() as manager:
        seen = manager.list()

        def setup():
            seen.append(multiprocessing.current_process()._identity)

        with parmap.plan("processes", workers=2, setup=setup):
            parmap.pmap(abs, range(4))
            while len(seen) < 2:
                parmap.pmap(abs, range(4))
        assert sorted(seen) == [(1,), (2,)]


def test_the_package_is_not_loaded_for_it_and_may_come_after_the_workers(run):
    out = run(
        """
        import sys, parmap

        def look(_):
            before = "multiprocessing" in sys.modules
            import multiprocessing
            import multiprocessing.process as module
            untouched = module.__spec__.loader is module.__loader__
            return before, multiprocessing.current_process().name, untouched

        # From Python 3.14 on, a manager's process may load the script again.
        if __name__ == "__main__":
            with parmap.plan("processes", workers=1):
                print("multiprocessing" in sys.modules, parmap.pmap(look, [0, 1]))
                import multiprocessing
                with multiprocessing.Manager() as manager:
                    shared = manager.dict()
                    parmap.pmap(lambda x: shared.update({x: -x}), [1, 2])
                    print(dict(shared))
        """
    )
    assert out == ("False [(False, 'parmap-1', True), (True, 'parmap-1', True)]\n{1: -1, 2: -2}\n")


def test_a_worker_may_have_workers_and_children(three):
    def child():
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return pool.apply(names)

    name, identity = parmap.submit(child).result(GUARD)
    assert identity[1:] == (1,)
    assert name.startswith("ForkPoolWorker-")

    with parmap.plan(["processes(workers=1)", "processes(workers=2)"]):
        inner = parmap.submit(lambda: set(parmap.pmap(lambda _: names(), range(8), chunks=1)))
        assert inner.result(GUARD) <= {("parmap-1", (1, 1)), ("parmap-2", (1, 2))}


def names():
    me = multiprocessing.current_process()
    return me.name, me._identity


def test_the_parent_s_end_is_seen(run, tmp_path):
    """By a process that a task leaves behind."""
    left = tmp_path / "left"
    os.mkfifo(left)
    script = f"""
        import multiprocessing, os, parmap

        def leave(path):
            import multiprocessing
            parent = multiprocessing.parent_process()
            if os.fork():
                return parent.is_alive()
            os.setsid()
            for fd in (1, 2):
                os.close(fd)
            parent.join()
            with open(path, "w") as file:
                file.write(f"{{parent.is_alive()}}")
            os._exit(0)

        with parmap.plan("processes", workers=1):
            print(parmap.pmap(leave, [{os.fspath(left)!r}]))
        """
    said = []
    reader = threading.Thread(target=lambda: said.append(left.read_text()))
    reader.start()
    assert run(script) == "[True]\n"
    reader.join(GUARD)
    assert said == ["False"]


def test_what_a_task_leaves_running_ends_with_its_worker(run):
    """As it does with a script: else nobody would end it."""
    out = run(
        """
        import parmap

        def leave(_):
            import multiprocessing, time
            child = multiprocessing.get_context("fork").Process(
                target=time.sleep, args=(600,), daemon=True
            )
            child.start()
            return child.is_alive()

        with parmap.plan("processes", workers=1):
            print(parmap.pmap(leave, [0]))
        """
    )
    assert out == "[True]\n"


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="its tracker is found there")
@pytest.mark.parametrize("start_method", ["fresh", "fork"])
def test_shared_memory_that_tasks_open_outlives_the_workers(run, start_method):
    """A tracker of the worker's own would remove it, and warn, when the worker ends."""
    out = run(
        f"""
        import parmap

        def first(name):
            from multiprocessing import shared_memory
            memory = shared_memory.SharedMemory(name=name)
            value = memory.buf[0]
            memory.close()
            return value

        def calls(name):
            with parmap.plan("processes", workers=2, start={start_method!r}):
                return parmap.pmap(first, [name] * 4)

        with parmap.plan("processes", workers=1, start={start_method!r}):
            parmap.pmap(abs, [-1])
            from multiprocessing import shared_memory
            memory = shared_memory.SharedMemory(create=True, size=10)
            memory.buf[0] = 7
            print(parmap.pmap(first, [memory.name]))  # by a worker that was there before
        print(calls(memory.name), calls(memory.name))
        memory.close()
        memory.unlink()
        """
    )
    assert out == "[7]\n[7, 7, 7, 7] [7, 7, 7, 7]\n"
