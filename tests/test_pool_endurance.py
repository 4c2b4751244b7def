"""Brute force against the process pool: whatever is killed, all else stays right and is left clean.

Every order that a test needs is forced, by counting results, by files or by named pipes; the
only clocks are guards against a hang, and the second within which orphans must be gone.
"""

from __future__ import annotations

import collections
import contextvars
import ctypes
import gc
import itertools
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent import futures

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parmap
from parmap.backends.processes.protocol import Inbox, Kind, decode, encode, encode_result, send
from parmap.transport.sockets import QUIET

# A hang guard, and no measure of speed.
_GUARD = 60
_CHECKOUT = str(pathlib.Path(parmap.__file__).parents[1])


def _holdings():
    """List what this process holds: open files, children, threads."""
    files = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # the listing's own
    return {
        "files": sorted(files),
        "children": sorted(child.pid for child in psutil.Process().children(recursive=True)),
        "threads": sorted(t.name for t in threading.enumerate() if "timeout" not in t.name),
    }


@pytest.fixture(autouse=True)
def _nothing_left():
    """Check that a test leaves nothing that was not there before."""
    gc.collect()
    before = _holdings()
    yield
    gc.collect()
    assert _holdings() == before


def _until(condition):
    """Look again until something holds."""
    deadline = time.monotonic() + _GUARD
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came to pass"
        os.sched_yield()
    return found


class _Killer:
    """Kills a random worker, each a different one, each time that it is told to."""

    def __init__(self, executor):
        self._executor = executor
        self._orders = threading.Semaphore(0)
        self._over = False
        self._thread = threading.Thread(target=self._run)
        self.killed = []

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over = True
        self._orders.release()
        self._thread.join()

    def order(self):
        self._orders.release()

    def _run(self):
        chance = random.Random(20)
        while self._orders.acquire() and not self._over:
            pids = _until(lambda: [p for p in self._executor.pids if p not in self.killed])
            self.killed.append(chance.choice(pids))
            os.kill(self.killed[-1], signal.SIGKILL)


def _named_memory(_=None):
    """List the files of /dev/shm that this process has open or mapped."""
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    mapped = pathlib.Path("/proc/self/maps").read_text().split()
    return [name for name in (*opened, *mapped) if name.startswith("/dev/shm/")]


def _slow_square(x):
    time.sleep(0.001)  # work
    return x * x


def _times(few, many):
    """Run a test so many times over for each commit, and many more in the session `long`."""
    marks = (pytest.mark.long, pytest.mark.timeout(1800))
    return pytest.mark.parametrize("times", [few, pytest.param(many, marks=marks)])


@_times(20, 1000)
def test_killed_workers_cost_no_result(times):
    """Many workers are killed over one call, and all results come in order."""
    count, kills = 50 * times, times
    results = []
    with parmap.plan("processes", workers=4) as session, _Killer(session.executor) as killer:
        # The window keeps the pulling near the taking, so the kills spread over the call.
        for result in parmap.imap(_slow_square, range(count), window=64):
            results.append(result)
            if len(results) % (count // kills) == 0:
                killer.order()
        _until(lambda: len(killer.killed) == kills)
    assert results == [x * x for x in range(count)]


def test_nothing_is_under_dev_shm():
    """No process of the pool holds memory with a name, so no death can leave any behind."""
    # Not by a listing before and after: other programs come and go there. Other pools that
    # this process has had, of multiprocessing, leave it their semaphores.
    others = set(_named_memory())
    with parmap.plan("processes", workers=2) as session, _Killer(session.executor) as killer:
        large = session.executor.submit(np.ones, 10**7).result(_GUARD)
        named = _named_memory()
        inside = []
        for i, result in enumerate(parmap.imap(_named_memory, range(1000), window=64)):
            inside += result
            if i in (100, 400, 700):
                killer.order()
        _until(lambda: len(killer.killed) == 3)
        assert parmap.pmap(lambda i, array: len(array), [0], [large]) == [10**7]
    assert inside == []
    assert set(named) <= others


def test_one_fatal_element_among_ten_thousand():
    """An element that crashes its worker fails alone."""
    fatal = 6173

    def square(x):
        if x == fatal:
            ctypes.string_at(0)
        return x * x

    with parmap.plan("processes", workers=2):
        results = parmap.pmap(square, range(10_000), errors="return")
    failure = results.pop(fatal)
    assert results == [x * x for x in range(10_000) if x != fatal]
    assert isinstance(failure.error, parmap.WorkerDied)
    assert (failure.index, failure.error.signal) == (fatal, "SIGSEGV")


def _together(directory, count):
    """Wait until as many processes as asked for are here; give this one's number."""
    pathlib.Path(directory, str(os.getpid())).touch()
    _until(lambda: len(os.listdir(directory)) == count)
    return os.getpid()


def _all_idle(session, directory):
    """Check that every worker is free: tasks that wait for one another all meet."""
    directory.mkdir()
    count = session.workers
    tasks = [session.submit(_together, directory, count) for _ in range(count)]
    assert len({task.result(_GUARD) for task in tasks}) == count


def test_closing_an_endless_imap_frees_the_workers(tmp_path):
    """What an endless generator gave beyond the results that were taken is little, and stops."""
    window, taken = 64, 100
    pulled = itertools.count()

    def element(x):
        if x >= taken:
            threading.Event().wait()  # until it is stopped
        return x

    with parmap.plan("processes", workers=3) as session:
        source = (next(pulled) for _ in itertools.count())
        # A whole number of chunks, for results come with their chunk.
        results = parmap.imap(element, source, window=window, chunks=4)
        assert list(itertools.islice(results, taken)) == list(range(taken))
        results.close()
        assert taken <= next(pulled) <= taken + window
        _all_idle(session, tmp_path / "meeting")


def test_an_endless_imap_needs_bounded_memory():
    """Two hundred megabytes of results pass through a few."""
    size, window = 100_000, 32
    with parmap.plan("processes", workers=2):
        results = parmap.imap(bytes, itertools.repeat(size), window=window)
        next(results)
        tracemalloc.start()
        try:
            for result in itertools.islice(results, 2000):
                assert len(result) == size
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        results.close()
    assert peak < 6 * window * size


_PARENT = """
import os, sys, time
import psutil, parmap

def sleep(): time.sleep(3600)
def loop():
    while True: pass
def hold(): sum(range(10 ** 12))

def run(how):
    os.write(1, b"runs\\n")
    {"sleep": sleep, "loop": loop, "hold": hold}[how]()

with parmap.plan("processes", workers=3, start=sys.argv[1]) as session:
    futures = [session.submit(run, how) for how in ("sleep", "loop", "hold")]
    me = psutil.Process()
    while len(session.executor.pids) < 3:
        time.sleep(0)
    os.write(1, "{}\\n".format([child.pid for child in me.children(recursive=True)]).encode())
    futures[0].result()
"""


def _alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("start", ["fresh", "fork"])
def test_a_killed_parent_leaves_nobody(start):
    """Workers and fork server go within a second, whatever the workers are in the middle of."""
    command = [sys.executable, "-c", _PARENT, start]
    environment = os.environ | {"PYTHONPATH": _CHECKOUT}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        try:
            lines = [parent.stdout.readline() for _ in range(4)]
            numbers = json.loads(next(line for line in lines if line != "runs\n"))
            family = [psutil.Process(number) for number in numbers]
        finally:
            parent.kill()
    assert len(family) == 4
    deadline = time.monotonic() + 1
    while (left := list(filter(_alive, family))) and time.monotonic() < deadline:
        os.sched_yield()
    for process in left:
        process.kill()
    assert left == []


@pytest.mark.parametrize("start", ["fresh", "fork"])
def test_a_killed_fork_server_costs_no_result(start):
    """It is killed in the middle of a call, and its workers with it; all results come."""
    results = []
    with parmap.plan("processes", workers=4, start=start) as session:
        for result in parmap.imap(_slow_square, range(1000), window=64):
            results.append(result)
            if len(results) in (200, 500):
                pid = _until(lambda: session.executor.pids)[0]
                os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    assert results == [x * x for x in range(1000)]


@pytest.mark.timeout(600)
def test_fifty_pools_leave_nothing():
    """Opening and closing plans again and again holds nothing back."""
    before = _holdings()
    for _ in range(50):
        with parmap.plan("processes", workers=2):
            assert parmap.pmap(abs, range(-3, 0)) == [3, 2, 1]
        assert _holdings() == before


@_times(20, 1000)
def test_many_threads_share_a_session_while_workers_are_killed(times):
    """Eight threads call at once; nothing is wrong but a submitted task whose worker was killed."""
    with parmap.plan("processes", workers=4) as session, _Killer(session.executor) as killer:

        def caller(start):
            lost = 0
            for turn in range(times):
                data = range(start + turn, start + turn + 50)
                assert parmap.pmap(_slow_square, data) == [x * x for x in data]
                try:
                    assert parmap.submit(_slow_square, start).result(_GUARD) == start**2
                except parmap.WorkerDied:
                    lost += 1
                if turn % 8 == 7:
                    killer.order()
            return lost

        with futures.ThreadPoolExecutor(8) as threads:
            callers = [
                threads.submit(contextvars.copy_context().run, caller, 1000 * i) for i in range(8)
            ]
            lost = sum(task.result() for task in callers)
        _until(lambda: len(killer.killed) == 8 * (times // 8))
    assert lost <= len(killer.killed)


def test_a_worker_that_is_stopped_for_a_while():
    """A worker that stands still in the middle of a call delays only what it has."""
    results = []
    with parmap.plan("processes", workers=4) as session:
        for result in parmap.imap(_slow_square, range(1000), ordered=False, chunks=5):
            results.append(result)
            if len(results) == 100:
                stopped = _until(lambda: session.executor.pids)[0]
                os.kill(stopped, signal.SIGSTOP)
            if len(results) == 600:  # the others go on meanwhile
                os.kill(stopped, signal.SIGCONT)
    assert sorted(results) == [x * x for x in range(1000)]


@pytest.mark.timeout(60)
def test_more_workers_than_the_fork_servers_channel_holds_requests(monkeypatch):
    """The parent hears the fork server while it asks for workers, or both would wait to be read."""
    make = socket.socketpair

    def tight():  # as small as the kernel allows: a dozen messages stand for hundreds
        ends = make()
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        return ends

    monkeypatch.setattr(socket, "socketpair", tight)
    with parmap.plan("processes", workers=48):
        assert parmap.pmap(abs, range(-100, 0)) == list(range(100, 0, -1))


def _opened(pipe):
    """Wait until somebody opens a named pipe for writing."""
    os.close(os.open(pipe, os.O_RDONLY))


@pytest.fixture
def pipe(tmp_path):
    """Give the path of a named pipe."""
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    return path


def _released(pipe, task):
    """Let the task that opens the pipe go on, and wait for its end."""
    writer = os.open(pipe, os.O_RDWR)
    try:
        assert task.result(_GUARD) is None
    finally:
        os.close(writer)


@pytest.mark.parametrize("start", ["fresh", "fork"])
def test_cancelling_behind_a_blocked_worker_wakes_who_waits(pipe, start):
    """Cancelled futures that are queued wake ``wait`` and ``as_completed`` at once."""
    with parmap.plan("processes", workers=1, start=start) as session:
        blocked = session.submit(_opened, pipe)
        queued = [session.submit(abs, -i) for i in range(5)]
        with futures.ThreadPoolExecutor(2) as threads:
            waiting = threads.submit(futures.wait, queued[:3], _GUARD)
            completing = threads.submit(list, futures.as_completed(queued[:3], _GUARD))
            assert all(future.cancel() for future in queued[:3])
            assert waiting.result().done == set(queued[:3])
            assert set(completing.result()) == set(queued[:3])
        assert not blocked.done()
        _released(pipe, blocked)
        assert [future.result(_GUARD) for future in queued[3:]] == [3, 4]


def test_cancelling_in_the_executor_wakes_once_the_worker_is_free(pipe):
    """The executor's own futures wake who waits when their turn would have come."""
    with parmap.plan("processes", workers=1).start() as executor:
        blocked = executor.submit(_opened, pipe)
        queued = [executor.submit(abs, -i) for i in range(5)]
        assert all(future.cancel() for future in queued)
        _released(pipe, blocked)
        assert futures.wait(queued, _GUARD).done == set(queued)


def test_shutdown_that_cancels_wakes_who_waits_at_once(pipe):
    """``shutdown(cancel_futures=True)`` does so while the worker is still blocked."""
    with parmap.plan("processes", workers=1).start() as executor:
        blocked = executor.submit(_opened, pipe)
        _until(blocked.running)
        queued = [executor.submit(abs, -i) for i in range(5)]
        executor.shutdown(wait=False, cancel_futures=True)
        assert futures.wait(queued, _GUARD).done == set(queued)
        assert not blocked.done()
        _released(pipe, blocked)


def test_an_answer_that_comes_together_with_readiness(tmp_path):
    """A worker that had a task before it was ready may answer before it is heard."""
    first, go = tmp_path / "first", tmp_path / "go"

    def setup():
        try:
            first.mkdir()
        except FileExistsError:
            _until(go.exists)

    with parmap.plan("processes", workers=2, setup=setup).start() as executor:
        heard, on = threading.Event(), threading.Event()

        def hold(future):  # the thread that hears the workers
            heard.set()
            assert on.wait(_GUARD)

        tasks = [executor.submit(abs, -7) for _ in range(2)]
        for task in tasks:
            task.add_done_callback(hold)
        assert heard.wait(_GUARD)
        go.touch()
        (late,) = (worker for worker in executor._queue.living() if worker.task is not None)
        ready = 13  # bytes of a message without frames

        def both_have_come():
            return len(late.channel.socket.recv(1 << 10, socket.MSG_PEEK)) > ready

        _until(both_have_come)
        on.set()
        assert [task.result(_GUARD) for task in tasks] == [7, 7]


def _printed(script, *arguments):
    """Run a script to its good end; return what it prints."""
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": _CHECKOUT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stderr, run.returncode) == ("", 0)
    return run.stdout


@_times(100, 10_000)
def test_forks_of_the_parent_in_the_middle_of_a_call(times):
    """A fork, whatever lock is held when it is made, can leave, and the call is not disturbed."""
    script = """
import os, sys, threading, warnings
import parmap
warnings.simplefilter("ignore", DeprecationWarning)

with parmap.plan("processes", workers=2) as session:
    busy = threading.Thread(target=session.map, args=(abs, range(10**7)))
    futures = [session.submit(abs, -i) for i in range(2000)]
    statuses = set()
    for _ in range(int(sys.argv[1])):
        pid = os.fork()
        if pid == 0:
            try:
                session.submit(abs, 1)
            except parmap.SessionClosed:
                os._exit(7)
            os._exit(1)
        statuses.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(statuses, [f.result() for f in futures] == list(range(2000)))
"""
    assert _printed(script, times) == "{7} True\n"


@_times(30, 2000)
def test_interrupts_in_the_middle_of_calls(times):
    """Each Ctrl-C ends its call; the next call is right, and nothing has piled up at the end."""
    script = """
import os, signal, sys, threading
import psutil, parmap

signal.signal(signal.SIGINT, signal.default_int_handler)
script = os.getpid()

def strike(x, at):
    if x == at:
        os.kill(script, signal.SIGINT)
        threading.Event().wait()  # until it is stopped
    return x

def held():
    return sorted(os.listdir("/proc/self/fd")), len(psutil.Process().children(recursive=True))

def all_there():
    while len(session.executor.pids) < 3:
        assert parmap.pmap(abs, range(-50, 0)) == list(range(50, 0, -1))

with parmap.plan("processes", workers=3) as session:
    all_there()
    before, ended = held(), 0
    for turn in range(int(sys.argv[1])):
        at = [turn * 7 % 100] * 100
        calls = (
            lambda: parmap.pmap(strike, range(100), at),
            lambda: parmap.pmap(strike, range(100), at, chunks=1),
            lambda: list(parmap.imap(strike, range(100), at, window=10)),
        )
        try:
            calls[turn % 3]()
        except KeyboardInterrupt:
            ended += 1
        assert parmap.pmap(abs, range(-50, 0)) == list(range(50, 0, -1))
        all_there()  # those that were stopped are replaced
    print(ended, held()[1] - before[1], len(held()[0]) - len(before[0]))
"""
    assert _printed(script, times) == f"{times} 0 0\n"


@_times(3, 100)
def test_descriptors_that_run_out_again_and_again(times):
    """Calls go on without any to spare, also where a worker is killed; then all are back."""
    script = """
import os, resource, signal, sys
import numpy as np
import parmap

def end_at(x):
    if x == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
array = np.ones(1 << 20)
with parmap.plan("processes", workers=3) as session:
    parmap.pmap(abs, range(10))
    for _ in range(int(sys.argv[1])):
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        assert [x.sum() for x in parmap.pmap(np.full, [1 << 18] * 6, range(6))] == [
            i * (1 << 18) for i in range(6)
        ]
        assert parmap.pmap(lambda i: array[i], range(6)) == [1.0] * 6
        ends = parmap.pmap(end_at, range(9), errors="return")
        assert [end for i, end in enumerate(ends) if i != 4] == [0, 1, 2, 3, 5, 6, 7, 8]
        assert isinstance(ends[4].error, parmap.WorkerDied)
        for descriptor in taken:
            os.close(descriptor)
        while len(session.executor.pids) < 3:
            parmap.pmap(abs, range(3))
    print("three again")
"""
    assert _printed(script, times) == "three again\n"


@_times(20_000, 1_000_000)
def test_many_submits_hold_nothing_back(times):
    """Single tasks, a thousand under way at a time: all results, and no more memory than before."""
    with parmap.plan("processes", workers=2) as session:
        pids = _until(lambda: len(session.executor.pids) == 2 and session.executor.pids)
        family = [psutil.Process(), *map(psutil.Process, pids)]
        under_way, done, before = collections.deque(), 0, None
        for x in range(times):
            under_way.append(session.submit(abs, -x))
            if len(under_way) == 1000:
                assert under_way.popleft().result(_GUARD) == done
                done += 1
            if x == times // 10:  # by now all that is kept is there
                before = [one.memory_info().rss for one in family]
        assert [task.result(_GUARD) for task in under_way] == list(range(done, times))
        after = [one.memory_info().rss for one in family]
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert max(grown) < 20 << 20


# -- messages -------------------------------------------------------------------------------


def _same(value):
    return value


_SIZES = [0, 1, 32_767, 32_768, 32_769, 65_535, 65_536, 65_537, 10_000_000, 100_000_000]
_ARRAYS = {
    "many small ones": [np.arange(i, i + 5) for i in range(3000)],
    "empty": [np.empty((0,)), np.empty((3, 0, 2)), np.array(7.0)],
    "many empty ones": [np.empty(0)] * 3000,
    "Fortran order": [np.asfortranarray(np.arange(120_000.0).reshape(300, 400))],
    "strided": [np.arange(200_000)[::3], np.arange(90_000).reshape(300, 300).T[::2, ::-1]],
    "records": [np.zeros(1000, dtype=[("a", "i4"), ("b", "f8", 3)])],
    "read-only": [np.broadcast_to(np.arange(1000), (100, 1000))],
}


@pytest.fixture(scope="module")
def executor():
    """Give one pool for all round trips."""
    with parmap.plan("processes", workers=1).start() as executor:
        executor.submit(_same, np.empty(1)).result(_GUARD)
        yield executor


@pytest.mark.parametrize("size", _SIZES)
def test_bytes_of_all_sizes_come_back(executor, size):
    """Bytes round-trip, as they are and as a buffer out of band."""
    data = np.random.default_rng(size).bytes(size)
    assert executor.submit(_same, data).result(_GUARD) == data
    array = np.frombuffer(data, dtype=np.uint8)
    assert executor.submit(_same, array).result(_GUARD).tobytes() == data


def test_messages_that_just_fill_the_buffer_come_back(executor):
    """The message's own head and frames stand at every place around the buffer's end."""
    data = bytes(range(256)) * 257
    for size in range(65_536 - 160, 65_536 + 8):
        assert executor.submit(_same, data[:size]).result(_GUARD) == data[:size], size


@pytest.mark.parametrize("name", _ARRAYS)
def test_arrays_come_back(executor, name):
    """Arrays of every layout round-trip, alone and as elements of a map."""
    arrays = _ARRAYS[name]
    with parmap.plan(executor):
        ways = executor.submit(_same, arrays).result(_GUARD), parmap.pmap(_same, arrays)
    for found in ways:
        assert len(found) == len(arrays)
        for array, back in zip(arrays, found, strict=True):
            np.testing.assert_array_equal(back, array, strict=True)


class _Tape:
    """Takes what is sent, as a channel that often takes only a part of it."""

    def __init__(self, chance):
        self.data = bytearray()
        self._chance = chance

    def sendall(self, data, flags):
        assert flags == QUIET
        self.data += data

    def sendmsg(self, views, rights, flags):
        assert flags == QUIET
        assert not rights
        data = b"".join(views)
        taken = self._chance.randint(1, len(data))
        self.data += data[:taken]
        return taken


_FRAMES = st.one_of(
    st.binary(max_size=40),
    st.builds(
        bytes.__mul__,
        st.binary(min_size=1, max_size=1),
        st.sampled_from([1, 32_767, 32_768, 32_769, 65_500, 65_535, 65_536, 65_537, 200_000]),
    ),
)
_MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(Kind),
        st.integers(0, 2**64 - 1),
        st.one_of(st.lists(_FRAMES, max_size=6), st.lists(st.just(b"x"), max_size=1500)),
    ),
    max_size=6,
)


def _whole(inbox):
    """Read all messages that have come whole."""
    return [(kind, key, list(map(bytes, frames))) for kind, key, frames in iter(inbox.read, None)]


@given(messages=_MESSAGES, together=st.booleans(), chance=st.randoms(use_true_random=False))
def test_messages_survive_any_cutting(messages, together, chance):
    """However the stream is cut on its way, the same messages come, and then the end."""
    tape = _Tape(chance)
    for batch in [messages] if together else [[message] for message in messages]:
        send(tape, *batch)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox, found, rest = Inbox(theirs, blocking=False), [], memoryview(tape.data)
        while rest:
            part = chance.choice([1, 7, 13, 100, 30_000, 65_536])
            ours.sendall(rest[:part])
            rest = rest[part:]
            found += _whole(inbox)
        assert found == messages
        ours.close()
        with pytest.raises(EOFError):
            inbox.read()


def test_an_inbox_fed_byte_by_byte():
    """A message is given with its last byte, and not before."""
    message = (Kind.TASK, 3, [b"head", b"", b"buffer"])
    tape = _Tape(random.Random(0))
    send(tape, message)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox = Inbox(theirs, blocking=False)
        for byte in tape.data[:-1]:
            ours.send(bytes([byte]))
            assert inbox.read() is None
        ours.send(tape.data[-1:])
        assert _whole(inbox) == [message]


def test_messages_that_come_in_one_piece():
    """Messages that a single read brings are given one by one, without reading again."""
    messages = [(Kind.RESULT, i, [b"x" * i] * i) for i in range(50)]
    tape = _Tape(random.Random(0))
    for message in messages:
        send(tape, message)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(tape.data)
        inbox = Inbox(theirs, blocking=False)
        assert _whole(inbox) == messages


@pytest.mark.parametrize("cut", [1, 12, 13, 20, 40, 70_000])
def test_a_channel_that_ends_in_the_middle_of_a_message(cut):
    """The end of the channel is told, and half a message never given."""
    tape = _Tape(random.Random(0))
    send(tape, (Kind.RESULT, 0, [b"x" * 10, b"y" * 100_000]))
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(tape.data[:cut])
        ours.close()
        with pytest.raises(EOFError):
            Inbox(theirs, blocking=True).read()


def test_sending_and_reading_at_once():
    """A message far beyond the socket's buffers crosses between two threads."""
    value = [np.arange(i, i + 300) for i in range(3000)], b"z" * 3_000_000
    ours, theirs = socket.socketpair()
    with ours, theirs, futures.ThreadPoolExecutor(1) as threads:
        for frames in (encode(value, "value"), encode_result(value)):
            assert len(frames) > 1024
            sending = threads.submit(send, ours, (Kind.TASK, 5, frames))
            kind, key, came = Inbox(theirs, blocking=True).read()
            sending.result(_GUARD)
            assert (kind, key) == (Kind.TASK, 5)
            arrays, data = decode(came)
            assert data == value[1]
            for array, back in zip(value[0], arrays, strict=True):
                np.testing.assert_array_equal(back, array, strict=True)
