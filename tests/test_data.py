"""Data of the plan ``processes``: how many copies there are, and that all of them go.

What is counted cannot race: bytes by page and by file while every worker stands still in a task,
peaks as the kernel keeps them, messages and blocks as they are made. No time is measured.
"""

from __future__ import annotations

import contextvars
import functools
import gc
import os
import pathlib
import random
import re
import signal
import sys
import threading
import weakref
from concurrent import futures
from itertools import repeat

import cloudpickle
import numpy as np
import pandas as pd
import psutil
import pytest

import parmap
from parmap.backends.processes import handles as records
from parmap.backends.processes import protocol, shared_memory
from parmap.backends.processes.protocol import Inbox
from parmap.backends.processes.worker import inherited_values
from tests.test_pool_endurance import _holdings, _Killer, _until

# A hang guard, and no measure of speed.
_GUARD = 60
# Bytes of the arrays whose copies are counted. `nox -s bench` counts those of 400 MB.
COPY = 100 << 20
# The least that goes the same way.
_LITTLE = 2 << 20
# A block has frames of no less than this; what a worker notes is in smaller ones.
_FRAME = 1 << 16
_LARGE = 1 << 20

# From Python 3.12 on, a fork of a process with threads warns, and rightly; it is asked for.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture(autouse=True)
def _nothing_left():
    """Check that a test leaves nothing that was not there before."""
    gc.collect()
    before = _holdings(), _blocks(), list(inherited_values)
    yield
    gc.collect()
    assert (_holdings(), _blocks(), list(inherited_values)) == before


@pytest.fixture(autouse=True, scope="module")
def _by_value():
    """Send this file's functions whole: workers that import it have pytest and pandas, too."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


# -- what is counted -----------------------------------------------------------------------


def _tree():
    """List this process and all below it."""
    me = psutil.Process()
    return [me.pid, *(child.pid for child in me.children(recursive=True))]


def _opened(pid="self"):
    """Give the memory without a name that a process has open: sizes in use, by inode."""
    found = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            if "memfd:parmap" in os.readlink(entry.path) and os.stat(entry.path).st_size >= _FRAME:
                found[os.stat(entry.path).st_ino] = 512 * os.stat(entry.path).st_blocks
        except FileNotFoundError:
            continue  # the listing's own
    return found


def _mapped(pid="self"):
    """Give the memory without a name that a process has mapped: sizes of mappings, by inode."""
    found = {}
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "memfd:parmap" in line:
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            found[int(line.split()[4])] = found.get(int(line.split()[4]), 0) + last - first
    return {inode: size for inode, size in found.items() if size >= _FRAME}


def _blocks(pid="self"):
    """List the blocks that a process has open or mapped."""
    return _opened(pid).keys() | _mapped(pid).keys()


def _bytes_in_tree():
    """Count the memory of all processes together: each page once, whoever shares it.

    Of private pages each process has its part, where several have the same since a fork. A
    block counts once, however many have it open or mapped.
    """
    private, blocks = 0, {}
    for pid in _tree():
        rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        private += 1024 * int(re.search(r"^Pss_Anon: +(\d+) kB", rollup, re.MULTILINE)[1])
        blocks |= _mapped(pid) | _opened(pid) | blocks
    return private + sum(blocks.values())


def _status(name):
    """Give a number of bytes from what the kernel tells of this process."""
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1])


class _Peak:
    """The most memory that this process has had at once, beyond what it has now."""

    def __init__(self):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = _status("VmRSS")

    def grown(self):
        return _status("VmHWM") - self._before


class _Meeting:
    """Holds up tasks until some workers have one each, so that all can be looked at."""

    def __init__(self, folder):
        self._folder, self._turn = folder, 0

    def _pipe(self, name):
        return self._folder / f"{name}{self._turn}"

    def attend(self):
        """In a task: say so, and wait until the gate is open."""
        with self._pipe("arrivals").open("wb", buffering=0) as pipe:
            pipe.write(os.getpid().to_bytes(8, "little"))
        self._pipe("gate").open("rb").close()

    def during(self, count, look, call):
        """Make a call, and look when so many workers stand still in it; give what both gave."""
        # New ones each time: a fork may hold the others open, with what is left in them.
        self._turn += 1
        for name in ("arrivals", "gate"):
            os.mkfifo(self._pipe(name))
        arrivals, here = os.open(self._pipe("arrivals"), os.O_RDWR), set()
        with futures.ThreadPoolExecutor(1) as thread:
            calling = thread.submit(contextvars.copy_context().run, call)
            calling.add_done_callback(lambda _: os.write(arrivals, bytes(8)))  # it failed
            while len(here) < count and bytes(8) not in here:
                here.add(os.read(arrivals, 8))
            seen = look()
            gate = os.open(self._pipe("gate"), os.O_RDWR)
            result = calling.result(_GUARD)
        os.close(arrivals)
        os.close(gate)
        return seen, result


@pytest.fixture
def meeting(tmp_path):
    """Give a meeting."""
    return _Meeting(tmp_path)


@pytest.fixture
def sizes(monkeypatch):
    """Give a list that gets the size of each block as it is made."""
    made, make = [], shared_memory.anonymous_memory

    def counted(size):
        made.append(size)
        return make(size)

    monkeypatch.setattr(shared_memory, "anonymous_memory", counted)
    return made


@pytest.fixture
def rooms(monkeypatch):
    """Give a list that gets weak references to the memory for what is large and received."""
    made, make = [], protocol.fresh_memory

    def counted(size):
        room = make(size)
        made.append(weakref.ref(room))
        return room

    monkeypatch.setattr(protocol, "fresh_memory", counted)
    return made


class _Counted:
    """A channel that counts what goes through it."""

    def __init__(self, channel, sent):
        self._channel, self._sent = channel, sent

    def sendall(self, data, *flags):
        self._channel.sendall(data, *flags)
        self._sent.append(memoryview(data).nbytes)

    def sendmsg(self, *message):
        count = self._channel.sendmsg(*message)
        self._sent.append(count)
        return count


@pytest.fixture
def sent(monkeypatch):
    """Give a list that gets the size of each piece that goes to a worker's channel."""
    counts, send = [], records.send
    monkeypatch.setattr(records, "send", lambda ch, *rest: send(_Counted(ch, counts), *rest))
    return counts


def _everybody(session, meeting, look=lambda: None):
    """Have every worker run one more small task; give what `look` saw while all were in it."""
    count = session.workers
    seen, _ = meeting.during(
        count, look, lambda: session.map(lambda _: meeting.attend(), range(count))
    )
    return seen


# -- how many copies -----------------------------------------------------------------------


def _ways(data, read):
    """Give calls of eight tasks that all read an array."""
    handle = parmap.share(data)
    return {
        "captured": lambda: parmap.pmap(lambda _: read(data), range(8), chunks=1),
        "repeated": lambda: parmap.pmap(lambda x, _: read(x), repeat(data), range(8), chunks=1),
        "bound": lambda: parmap.pmap(
            functools.partial(lambda x, _: read(x), data), range(8), chunks=1
        ),
        "all of a list": lambda: parmap.pmap(read, [data] * 8, chunks=1),
        "in delayed calls": lambda: parmap.compute([parmap.delayed(read)(data) for _ in range(8)]),
        "shared": lambda: parmap.pmap(read, [handle] * 8, chunks=1),
        "shared, once more": lambda: parmap.pmap(lambda _: read(handle.value), range(8), chunks=1),
    }


def _held(meeting, ways, make, size, **options):
    """Make calls with an array of `size` bytes; give what all processes held in each of them."""
    data = make(size)

    def read(values):
        least = values.min()  # reads all of it
        meeting.attend()
        return least

    held = []
    with parmap.plan("processes", workers=4, **options):
        calls = _ways(data, read)
        for way in ways:
            seen, result = meeting.during(4, _bytes_in_tree, calls[way])
            assert result == [data[-1]] * 8
            held.append(seen)
        del calls
        gc.collect()
    return held


def _bytes(size):
    return np.ones(size, np.uint8)


def _copies(meeting, ways, make=_bytes, **options):
    """Count the copies of an array beyond the caller's own, while four workers have read it."""
    large, little = (_held(meeting, ways, make, size, **options) for size in (COPY, _LITTLE))
    return [(a - b) / (COPY - _LITTLE) - 1 for a, b in zip(large, little, strict=True)]


def test_what_all_tasks_read_is_there_once_more(meeting):
    """However the function gets it, and however often a shared value is used."""
    ways = list(_ways(np.zeros(1), abs))
    assert _copies(meeting, ways) == pytest.approx([1] * len(ways), abs=0.1)


@pytest.mark.parametrize(
    ("ways", "copies"),
    [
        (["captured", "repeated"], [0, 1]),
        (["shared", "shared, once more"], [0, 0]),
        (["in delayed calls"], [1]),  # each may write to its own
        (["all of a list"], [0]),
    ],
)
def test_forks_have_what_the_first_call_reads(meeting, ways, copies):
    """Nothing is copied in the first call; later ones need what is not shared once more."""
    found = _copies(meeting, ways, start="fork")
    assert found == pytest.approx(copies, abs=0.1)


@pytest.mark.parametrize(
    ("make", "between"),
    [
        pytest.param(lambda size: np.ones(size // 8, "M8[s]"), 0, id="times"),
        # Here the caller's array has as much again, between what counts.
        pytest.param(lambda size: np.ones(size // 4)[::2], 1, id="strided"),
    ],
)
def test_arrays_inside_of_a_pickle_are_there_once_more(meeting, make, between):
    """Pickle leaves some arrays in; each worker must not have a copy of its own for that."""
    (copies,) = _copies(meeting, ["captured"], make)
    assert copies - between == pytest.approx(1, abs=0.1)


def test_copies_of_the_workers_own_are_seen(meeting):
    """The count is no good if it does not count."""

    def held(size):
        data = _bytes(size)

        def read(_):
            mine = data.copy()
            meeting.attend()
            return mine[-1]

        with parmap.plan("processes", workers=4):
            call = lambda: parmap.pmap(read, range(8), chunks=1)
            seen, _ = meeting.during(4, _bytes_in_tree, call)
            return seen

    copies = (held(COPY) - held(_LITTLE)) / (COPY - _LITTLE) - 1
    assert copies == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("start", ["fresh", "fork"])
def test_no_copy_is_made_for_a_moment(meeting, start, sizes):
    """Nobody's peak grows by what all tasks read; nor does it at the workers' births."""
    data = _bytes(COPY)

    def setup():
        # They are not the data's. Under pytest's filters of warnings, a worker loads the others.
        import cloudpickle  # noqa: F401
        import numpy as np  # noqa: F401

        import parmap.transport.error_payload
        import parmap.worker.ambient
        import parmap.worker.warning_filters  # noqa: F401

        os.environ["BEFORE"] = str(_Peak()._before)

    def grown(copy):
        # The array itself stays untouched: its pages would count where they are mapped.
        mine = data.copy() if copy else data
        meeting.attend()
        return os.getpid(), _status("VmHWM") - int(os.environ["BEFORE"]) if len(mine) else None

    with parmap.plan("processes", workers=4, start=start, setup=setup):
        peak = _Peak()
        _, found = meeting.during(
            4, list, lambda: parmap.pmap(lambda _: grown(copy=False), range(8), chunks=1)
        )
        of_parent, made = peak.grown(), sum(sizes)
        _, control = meeting.during(
            4, list, lambda: parmap.pmap(lambda _: grown(copy=True), range(8), chunks=1)
        )
    of_workers = dict(found)
    assert len(of_workers) == 4
    assert sum(of_workers.values()) + of_parent < 0.1 * COPY
    assert made <= (1.01 * COPY if start == "fresh" else 0)
    assert min(dict(control).values()) >= 0.95 * COPY


@pytest.mark.parametrize("chunks", [1, 4])
def test_results_come_straight_into_the_callers_memory(chunks):
    """There is no second copy of them, and each goes by itself."""
    size, count = 16_000_000, 16
    with parmap.plan("processes", workers=2):
        parmap.pmap(lambda i: np.full(size, i, np.uint8), range(2), chunks=1)
        peak = _Peak()
        results = parmap.pmap(lambda i: np.full(size, i, np.uint8), range(count), chunks=chunks)
        assert 0.95 * count * size < peak.grown() < 1.15 * count * size
    for i, result in enumerate(results):
        assert len(result) == size
        assert (result == i).all()
        result += 1  # it is the caller's own
    full = _status("VmRSS")
    del results[1:], result
    assert full - _status("VmRSS") > 0.95 * (count - 1) * size


def test_parts_of_what_all_tasks_read_are_the_callers_own_as_results():
    """Also beside what only cloudpickle can send: the caller may write to them."""
    data = np.ones(_LARGE)

    class Local:
        def __init__(self, held):
            self.held = held

    with parmap.plan("processes", workers=1):
        results = [
            *parmap.pmap(lambda i: data[i:], [1]),
            *(held for held, _ in parmap.pmap(lambda i: (data[i:], lambda: None), [1])),
            *(local.held for local in parmap.pmap(lambda i: Local(data[i:]), [1])),
            parmap.submit(lambda: Local(data[1:])).result(_GUARD).held,
        ]
    assert [(len(x), x.flags.writeable) for x in results] == [(_LARGE - 1, True)] * 4


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["captured", "result"])
def test_more_than_two_gibibytes(way):
    """Lengths and offsets have room for them, each way, and all of it is freed."""
    size = (2 << 30) + 5000
    if psutil.virtual_memory().available < 10e9:
        pytest.skip("it needs 10 GB of free memory")
    data = np.zeros(size if way == "captured" else 1, np.uint8)
    data[-1] = 7
    before = _status("VmRSS")

    def fn(_):
        if way == "captured":
            return len(data), int(data[-1]), int(data[::4096].sum())
        made = np.zeros(size, np.uint8)
        made[-1] = 7
        return made

    with parmap.plan("processes", workers=1):
        (result,) = parmap.pmap(fn, [1])
        if way == "result":
            result = len(result), int(result[-1]), int(result[::4096].sum())
        assert result == (size, 7, 0)
    assert _status("VmRSS") - before < 0.1 * size


# -- what is made and sent -----------------------------------------------------------------


def test_a_block_for_each_value_above_a_mebibyte(sizes):
    """One for all that a function holds, and none for what is smaller or an element.

    The second call with an array makes one that the others use, too.
    """
    large, other = np.ones(_LARGE // 8), np.ones(_LARGE // 4)
    small, little = np.ones(_LARGE // 16), np.ones(10)

    def blocks(call):
        sizes.clear()
        call()
        return len(sizes)

    with parmap.plan("processes", workers=2) as session:
        session.map(abs, [-1] * 4)
        for x, count in ((large, 1), (small, 0), (little, 0)):
            calls = {
                "captured": lambda: parmap.pmap(lambda i: x[i], range(8), chunks=1),
                "repeated": lambda: parmap.pmap(lambda x, i: x[i], repeat(x), range(8), chunks=1),
                "all of a list": lambda: parmap.pmap(lambda x: x[0], [x] * 8, chunks=1),
                "delayed": lambda: parmap.compute([parmap.delayed(len)(x) for _ in range(8)]),
                "single": lambda: parmap.submit(lambda: x[0]).result(_GUARD),
            }
            if x is not large:  # then it is an element like any other
                del calls["all of a list"], calls["delayed"]
            made = {"captured": count, "repeated": count}
            assert {way: blocks(call) for way, call in calls.items()} == {
                way: made.get(way, 0) for way in calls
            }
        assert blocks(lambda: parmap.pmap(lambda i: large[i] + other[i], range(8), chunks=1)) == 1
        assert blocks(lambda: parmap.pmap(len, [other + i for i in range(8)], chunks=1)) == 0
        handles = [parmap.share(x) for x in (large, other, small, little)]
        assert len(sizes) == 0
        for count in (1, 0, 0):  # `other`, in the first call with it
            assert blocks(lambda: parmap.pmap(len, handles * 2, chunks=1)) == count
        handles.clear()
        assert session.executor._queue.broadcast.frames == {}


def test_little_goes_through_the_channels(sent):
    """Eight tasks that read a large array send less than a megabyte, and elements all of theirs."""
    data = _bytes(COPY // 4)
    with parmap.plan("processes", workers=4):
        assert parmap.pmap(lambda x, i: x[i], repeat(data), range(8), chunks=1) == [1] * 8
        assert sum(sent) < 10**6
        sent.clear()
        assert parmap.pmap(lambda i: data[i], range(8), chunks=1) == [1] * 8
        assert sum(sent) < 10**6
        sent.clear()
        data[0] = 2
        assert parmap.pmap(len, [data, data[1:]], chunks=1) == [len(data), len(data) - 1]
        # As elements they go through the channels, or in blocks if nobody could read them yet.
        assert sum(sent) + sum(_opened().values()) > 1.9 * len(data)


class _Pickled:
    """Counts how often it is pickled."""

    times = 0

    def __reduce__(self):
        _Pickled.times += 1
        return dict, ()


@pytest.mark.parametrize("others", [0, 1])
def test_what_all_tasks_read_is_pickled_once(others):
    """For each call; for all calls of a session where it is shared, whoever else shares what."""
    kept = [parmap.share(i) for i in range(others)]
    with parmap.plan("processes", workers=2) as session:
        for call in (
            lambda x: parmap.pmap(lambda _: len(x), range(20), chunks=1),
            lambda x: parmap.pmap(lambda x, _: len(x), repeat(x), range(20), chunks=1),
            lambda x: parmap.pmap(functools.partial(lambda x, _: len(x), x), range(20), chunks=1),
        ):
            _Pickled.times = 0
            assert call(_Pickled()) == [0] * 20
            assert _Pickled.times == 1
        _Pickled.times = 0
        handle = parmap.share(_Pickled())
        for _ in range(3):
            assert parmap.pmap(len, [handle] * 20, chunks=1) == [0] * 20
        assert _Pickled.times == 1
        del handle
        assert session.executor._queue.broadcast.frames == {}
    assert len(kept) == others


# -- that all of it goes -------------------------------------------------------------------


def test_two_hundred_calls_while_workers_are_killed_leave_nothing(meeting, rooms):
    """No block, mapping or descriptor, here or in a worker, and nothing placed."""
    chance = random.Random(5)
    # Below and above what is received in one piece, placed in blocks, received into huge
    # pages; several of the last together are more than what is copied for a busy worker.
    numbers = [1, 100, 9_000, 40_000, 150_000, 600_000, 1_200_000]
    made = {count: np.arange(float(count)) for count in numbers}
    half = full = 0

    def read(constant, element, shared):
        element[0] = constant[-1] + shared[-1]
        return element

    with parmap.plan("processes", workers=4) as session, _Killer(session.executor) as killer:
        handles = {}
        for turn in range(200):
            constant, shared, size = (chance.choice(numbers) for _ in range(3))
            if turn % 3 == 0 or shared not in handles:
                handles[shared] = parmap.share(made[shared].copy())
            if turn % 10 == 5:
                killer.order()
            elements = [made[size].copy() for _ in range(chance.randint(1, 9))]
            columns = [repeat(made[constant]), iter(elements), repeat(handles[shared])]
            chunks = chance.choice([1, 3])
            if turn % 2:
                results = parmap.pmap(read, *columns, chunks=chunks)
            else:
                results = list(parmap.imap(read, *columns, chunks=chunks, window=5))
            assert [(x[0], len(x)) for x in results] == [
                (constant + shared - 2, size) for _ in elements
            ]
            assert all(x[-1] == size - 1 for x in results if size > 1)
            if turn == 100:
                del results, elements, columns
                half = _status("VmSize")
        del results, elements, columns
        full = _status("VmSize")
        _until(lambda: len(killer.killed) == 20)
        handles.clear()
        queue = session.executor._queue
        assert queue.broadcast.frames == {}
        queue.broadcast.recurring.kept.clear()  # arrays of `made`
        assert len(rooms) > 100
        assert {room() for room in rooms} == {None}
        held = _everybody(
            session,
            meeting,
            lambda: {pid: _blocks(pid) for pid in (*session.executor.pids, "self")},
        )
        assert held == {pid: set() for pid in held}
        assert len(held) == 5
        del queue
    # A thread's heap comes and goes; a result or block a call that is kept would be 700 MB.
    assert full - half < 150 << 20


class _Fatal:
    """A channel whose worker is killed in the middle of the first large message."""

    def __init__(self, channel, kill):
        self._channel, self._kill = channel, kill

    def sendall(self, data, *flags):
        self._channel.sendall(data, *flags)

    def sendmsg(self, views, *rights):
        if sum(view.nbytes for view in map(memoryview, views)) < _LARGE:
            return self._channel.sendmsg(views, *rights)
        self._channel.sendall(b"".join(views)[:_LARGE])
        self._kill(self._channel)
        return self._channel.sendmsg([bytes(_LARGE)])  # nobody is there


def _has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("way", ["argument", "result"])
def test_a_worker_that_dies_in_the_middle_of_a_message(way, rooms, monkeypatch):
    """What it has sent or been sent of it is let go, and all results come."""
    killed = []
    with parmap.plan("processes", workers=2) as session:
        assert parmap.pmap(abs, range(8), chunks=1) == list(range(8))
        living = session.executor._queue.living

        def kill(channel):
            (pid,) = (worker.pid for worker in living() if worker.channel.socket is channel)
            os.kill(pid, signal.SIGKILL)
            _until(lambda: _has_ended(pid))
            killed.append(pid)

        if way == "argument":
            send = records.send

            def deadly(channel, *message):
                send(channel if killed else _Fatal(channel, kill), *message)

            monkeypatch.setattr(records, "send", deadly)
        else:
            receive = Inbox._receive

            def fatal(inbox):
                receive(inbox)
                if inbox._large and inbox._rest and not killed:
                    kill(inbox._channel)

            monkeypatch.setattr(Inbox, "_receive", fatal)
        elements = [np.full(3_000_000, float(i)) for i in range(4)]
        results = parmap.pmap(lambda x: x, elements, chunks=1)
        assert [(x[0], x[-1], len(x)) for x in results] == [(i, i, 3_000_000) for i in range(4)]
        assert len(killed) == 1
        assert len(rooms) == 4 + (way == "result")
        del results
        assert {room() for room in rooms} == {None}
        _emptied(session.executor)


def _emptied(executor):
    """Check that a session holds no value any more, but for arrays of the caller's that live."""
    gc.collect()
    executor._queue.broadcast.recurring.kept.clear()  # those
    assert executor._queue.broadcast.frames == {}
    assert _blocks() == set()


def test_handles_that_go_in_the_middle_of_calls(meeting):
    """A hundred of them: by the caller, by another thread, or by the collector of garbage."""
    data = np.ones(_LARGE // 8)
    with parmap.plan("processes", workers=2) as session:
        gone = []

        def read(values, place):
            return values[place]

        def source(turn):
            handle = session.share(data + turn)
            for place in range(6):
                if place == 3:
                    if turn % 3 == 0:
                        del handle
                    elif turn % 3 == 1:
                        gone.append(handle)
                        handle = None
                        # The other thread has the last reference, and lets go of it.
                        other = threading.Thread(target=gone.clear)
                        other.start()
                        other.join()
                    else:
                        circle = [handle]
                        circle.append(circle)
                        del circle, handle
                        gc.collect()
                yield data[:100] * turn if place >= 3 else handle

        for turn in range(100):
            results = parmap.imap(read, source(turn), range(6), chunks=1, window=4)
            assert list(results) == [turn + 1] * 3 + [turn] * 3
            del results
            _emptied(session.executor)
        held = _everybody(session, meeting, lambda: [_blocks(p) for p in session.executor.pids])
        assert held == [set(), set()]


class _Collects:
    """Has garbage collected while it is pickled."""

    def __reduce__(self):
        gc.collect()
        return dict, ()


def test_garbage_with_handles_is_collected_anywhere(tmp_path):
    """Also where locks are held, in any thread, and while a value is placed or a call is packed."""
    threshold = gc.get_threshold()
    with parmap.plan("processes", workers=2) as session:
        over = threading.Event()

        def litter():
            while not over.is_set():
                circle = [session.share(np.ones(10))]
                circle.append(circle)

        with futures.ThreadPoolExecutor(2) as threads:
            littering = [threads.submit(contextvars.copy_context().run, litter) for _ in range(2)]
            gc.set_threshold(1, 10**6, 10**6)
            try:
                for turn in range(40):
                    handle = parmap.share([_Collects(), turn])
                    given = [(handle, _Collects())] * 3
                    assert parmap.starmap(lambda x, _: x[1], given, chunks=1) == [turn] * 3
                    assert parmap.submit(lambda x: x[1], handle).result(_GUARD) == turn
            finally:
                gc.set_threshold(*threshold)
                over.set()
            del handle, given
        for one in littering:
            one.result(_GUARD)
        del littering, one
        _emptied(session.executor)


def test_one_handle_in_two_sessions():
    """Each places the value for itself, and both forget it."""
    first, second = (parmap.plan("processes", workers=n) for n in (1, 2))
    with first as one, second as two:
        handle = parmap.share(np.arange(float(_LARGE)))
        for _ in range(2):
            for session in (one, two):
                assert session.map(lambda x, i: x[i], repeat(handle), [3, 4]) == [3, 4]
        values = [session.executor._queue.broadcast.frames for session in (one, two)]
        assert [len(frames) for frames in values] == [1, 1]
        del handle
        _emptied(one.executor)
        _emptied(two.executor)


def test_handles_inside_of_shared_values():
    """The inner one's value goes along with the outer one's, and is placed for itself if used."""
    with parmap.plan("processes", workers=2) as session:
        inner = parmap.share(np.arange(float(_LARGE)))
        outer = parmap.share({"inner": inner})
        read = lambda held, i: held["inner"].value[i]
        assert parmap.pmap(read, repeat(outer), [5, 6]) == [5, 6]
        assert len(session.executor._queue.broadcast.frames) == 1
        assert parmap.pmap(lambda x, i: x[i], repeat(inner), [5, 6]) == [5, 6]
        assert len(session.executor._queue.broadcast.frames) == 2
        del inner
        assert parmap.pmap(read, repeat(outer), [5, 6]) == [5, 6]
        assert len(session.executor._queue.broadcast.frames) == 2
        del outer
        _emptied(session.executor)


def test_a_shared_value_outlives_workers(sizes, meeting):
    """Whoever takes a dead worker's place maps the same block."""
    handle = parmap.share(np.arange(float(_LARGE)))
    with parmap.plan("processes", workers=2) as session:
        for _ in range(3):
            assert parmap.pmap(lambda x, i: x[i], repeat(handle), range(4)) == [0, 1, 2, 3]
            for pid in session.executor.pids:
                os.kill(pid, signal.SIGKILL)
        _everybody(session, meeting)
        del handle
        assert len(sizes) == 1
        _emptied(session.executor)


@pytest.mark.parametrize("start", ["fresh", "fork"])
@pytest.mark.parametrize("kept", ["handle", "iterator"])
def test_a_session_that_has_ended_holds_nothing(start, kept):
    """Though handles of what it had placed are still there, or calls that were left half-way."""

    def begin(session):
        data = np.arange(float(_LARGE))
        if kept == "handle":
            left = parmap.share(data)
            assert session.map(lambda x, i: x[i], repeat(left), [1, 2]) == [1, 2]
        else:
            left = parmap.imap(lambda i: data[i], range(1000))
            assert next(left) == 0
        return left, weakref.ref(data)

    with parmap.plan("processes", workers=2, start=start) as session:
        left, alive = begin(session)
    at_once = _blocks()
    del left, session
    gc.collect()
    at_last = _blocks()
    of_caller = alive() is not None
    # Whatever the pool still has goes when another one begins: no other test should see it.
    with parmap.plan("processes", workers=1):
        inherited_values.clear()
    gc.collect()
    assert (at_once, at_last, of_caller) == (set(), set(), False)


def test_forks_let_go_of_what_they_have_inherited():
    """What a first call placed before its workers were forked goes with its handle, or its call."""
    for shared in (False, True):
        data = np.arange(float(_LARGE))
        alive = weakref.ref(data)
        with parmap.plan("processes", workers=2, start="fork") as session:
            given = parmap.share(data) if shared else data
            assert parmap.pmap(lambda x, i: x[i], repeat(given), [1, 2]) == [1, 2]
            del given, data
            gc.collect()
            assert alive() is None
            assert session.executor._queue.broadcast.frames == {}
            assert parmap.pmap(abs, [-1]) == [1]


def test_forks_hold_no_block_of_another_session():
    """What is shared elsewhere goes with its handle, not only when all forks have gone."""
    data = np.arange(float(_LARGE))
    fresh, fork = (parmap.plan("processes", workers=1, start=s) for s in ("fresh", "fork"))
    with fresh as one:
        handle = one.share(data)
        with fork as two:
            assert two.map(abs, [-1]) == [1]
            del handle
            _emptied(one.executor)
            assert one.map(abs, [-1]) == two.map(abs, [-1]) == [1]
            assert {pid for pid in _tree() if _blocks(pid)} == set()


def test_a_thousand_results_with_few_descriptors(run):
    """Results that are received into memory of their own need none."""
    out = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        import numpy as np
        import parmap
        from parmap.backends.processes import protocol

        protocol._OWN = 1 << 16  # or a thousand of them would be 4 GB
        with parmap.plan("processes", workers=2) as session:
            results = parmap.pmap(lambda i: np.full(10_000, i), range(1000), chunks=1)
            more = [session.submit(np.full, 10_000, i) for i in range(1000)]
            results += [future.result() for future in more]
        print(all((x == i % 1000).all() for i, x in enumerate(results)), len(results))
        """
    )
    assert out == "True 2000\n"


# -- a buffer that is filled again ---------------------------------------------------------


def _filled_again(count, size, at=None, do=None):
    """Give the same array each time, with other numbers in it."""
    buffer = np.zeros(size, np.uint8)
    for x in range(count):
        buffer[:] = x
        if x == at:
            do()
        yield buffer


def _both_ends(values):
    return int(values[0]), int(values[-1]), len(values)


@pytest.fixture
def unready(tmp_path, monkeypatch):
    """Give a ``setup=`` that lasts until the first task was handed out: nobody is ready before."""
    gate, opened, copy = tmp_path / "unready", [], records.Task.copy
    os.mkfifo(gate)

    def copied(task):  # as it must be for a worker that may not read it yet
        copy(task)
        opened.append(os.open(gate, os.O_RDWR))

    monkeypatch.setattr(records.Task, "copy", copied)
    yield lambda: gate.open("rb").close()
    assert opened
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize(
    ("size", "count"),
    [
        *((100, 40), (_FRAME - 1, 40), (_FRAME + 1, 40), (_LARGE - 1, 20), (_LARGE + 1, 20)),
        *(((32 << 20) - 5000, 5), ((32 << 20) + 1, 5)),
    ],
)
def test_a_buffer_that_is_filled_again_is_sent_as_it_was(workers, size, count, unready):
    """Whether workers are ready or not, busy or not, and whatever way large elements take."""
    expected = [(x, x, size) for x in range(count)]
    with parmap.plan("processes", workers=workers, setup=unready):
        for window in (None, 2):
            found = parmap.imap(_both_ends, _filled_again(count, size), chunks=1, window=window)
            assert list(found) == expected
        assert parmap.pmap(_both_ends, _filled_again(count, size), chunks=1) == expected


@pytest.mark.parametrize(
    "chunks", [2, "auto", "static", "guided", parmap.Dynamic(size=3, shuffle=True)]
)
def test_a_buffer_that_is_filled_again_within_a_chunk(chunks):
    """As well where several elements travel together, or in another order."""
    size, count = _FRAME + 1, 30
    with parmap.plan("processes", workers=2):
        found = parmap.pmap(_both_ends, _filled_again(count, size), chunks=chunks)
    assert found == [(x, x, size) for x in range(count)]


@pytest.mark.parametrize("size", [100, _FRAME + 1, _LARGE + 1, (32 << 20) + 1])
def test_what_is_submitted_may_be_changed_at_once(size, unready):
    """Whether a worker is idle or none is ready, the call has what it was given."""
    with parmap.plan("processes", workers=2, setup=unready) as session:
        tasks = [session.submit(_both_ends, x) for x in _filled_again(5, size)]
        tasks += [session.submit(_both_ends, values=x) for x in _filled_again(5, size)]
        found = [task.result(_GUARD) for task in tasks]
        assert found == [(x, x, size) for x in range(5)] * 2
        # Now all are idle, so the first is read from the very array.
        tasks = [session.executor.submit(_both_ends, x) for x in _filled_again(5, size)]
        assert [task.result(_GUARD) for task in tasks] == [(x, x, size) for x in range(5)]


@pytest.mark.parametrize(
    "hold",
    [
        pytest.param(lambda x, _: (x, 1), id="tuple"),
        pytest.param(lambda x, _: [x], id="list"),
        pytest.param(lambda x, _: {"values": x}, id="dict"),
        pytest.param(lambda x, _: x[1:], id="view"),
        pytest.param(lambda x, i: x if i else None, id="not the first"),
        pytest.param(lambda x, i: [i, x], id="list with a number first"),
    ],
)
@pytest.mark.parametrize("chunks", [1, 3, "static"])
def test_a_buffer_in_something_that_is_filled_again(hold, chunks):
    """However it is given, each element is what it was when it was given."""

    def source():
        for i, x in enumerate(_filled_again(12, 10)):
            yield hold(x, i)

    with parmap.plan("processes", workers=2):
        found = parmap.pmap(repr, source(), chunks=chunks)
    assert found == list(map(repr, source()))


def _ring():
    ring = [None]
    ring[0] = ring
    return ring


def _family():
    parent = {"children": []}
    parent["children"].append({"parent": parent})
    return parent


@pytest.mark.parametrize(
    ("columns", "fn"),
    [
        pytest.param([[([1],) * 2]], lambda p: (p[0].append(1), p[1]), id="two of one list"),
        pytest.param([[(np.ones(3),) * 2]], lambda p: p[0] is p[1], id="two of one array"),
        pytest.param([[np.arange(3)] * 2] * 2, lambda p, q: p is q, id="two columns"),
        pytest.param([[_ring()]], lambda ring: ring[0] is ring, id="a list in itself"),
        pytest.param(
            [[_family()]], lambda it: it["children"][0]["parent"] is it, id="a circle of dicts"
        ),
    ],
)
def test_parts_of_an_element_that_are_one_object_stay_one(columns, fn):
    """Elements of an iterator arrive as those of a list do: as they are here."""
    expected = list(map(fn, *cloudpickle.loads(cloudpickle.dumps(columns))))
    with parmap.plan("processes", workers=1):
        assert parmap.pmap(fn, *columns) == expected
        assert parmap.pmap(fn, *map(iter, columns)) == expected


@pytest.mark.parametrize("size", [100, _FRAME + 1, _LARGE + 1, (32 << 20) + 1])
def test_a_buffer_that_is_filled_again_while_a_worker_dies_at_its_birth(size, unready, tmp_path):
    """What it was sent goes to another one, as it was."""
    mark = tmp_path / "mark"

    def setup():
        unready()
        try:
            mark.mkdir()
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    with parmap.plan("processes", workers=2, setup=setup):
        found = list(parmap.imap(_both_ends, _filled_again(8, size), chunks=1))
    assert mark.exists()
    assert found == [(x, x, size) for x in range(8)]


@pytest.mark.parametrize("size", [100, _FRAME + 1])
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_buffer_that_is_filled_again_when_an_element_runs_again(how, size, tmp_path):
    """It is the element that it was, though the input has gone on."""
    gate, mark = tmp_path / "gate", tmp_path / "mark"
    os.mkfifo(gate)

    def fn(values):
        if values[0] == 0 and not mark.exists():
            mark.touch()
            gate.open("rb").close()  # until the input has gone on
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError
        return _both_ends(values)

    opened = []
    with parmap.plan("processes", workers=2):
        source = _filled_again(8, size, 3, lambda: opened.append(os.open(gate, os.O_RDWR)))
        found = list(parmap.imap(fn, source, chunks=1, retries=1))
    os.close(opened[0])
    assert found == [(x, x, size) for x in range(8)]


# -- read-only -----------------------------------------------------------------------------


def _in_place():
    """Give ways to write to an array, each of which NumPy refuses where it is read-only."""
    return {
        "an item": lambda x: x.__setitem__(0, 9.0),
        "a slice": lambda x: x[1:].__setitem__(slice(None), 9.0),
        "+=": lambda x: x.__iadd__(1),
        "out=": lambda x: np.add(x, 1, out=x),
        "sort": lambda x: x.sort(),
        "fill": lambda x: x.fill(9.0),
        "put": lambda x: np.put(x, [0], [9.0]),
        "copyto": lambda x: np.copyto(x, 9.0),
        "shuffle": lambda x: np.random.default_rng(1).shuffle(x),
        "partition": lambda x: x.partition(2),
        "byteswap": lambda x: x.byteswap(inplace=True),
        "a masked array": lambda x: np.ma.array(x, copy=False).__setitem__(0, 9.0),
        "a memoryview": lambda x: memoryview(x).__setitem__(0, 9.0),
        "a table": lambda x: pd.Series(x, copy=False).__setitem__(0, 9.0),
    }


@pytest.mark.parametrize("size", [5, _LARGE])
def test_writing_to_what_all_tasks_read_is_refused(size):
    """With a note that says what to do; the caller's array stays as it is, and a copy works."""
    data = np.arange(float(size))[::-1].copy()
    before = data.copy()

    def calls(write, handle):
        def spoil(values, _):
            write(values)
            return True

        return {
            "repeated": lambda: parmap.pmap(spoil, repeat(data), [1]),
            "captured": lambda: parmap.pmap(lambda i: spoil(data, i), [1]),
            "shared": lambda: parmap.pmap(spoil, repeat(handle), [1]),
            "a handle's": lambda: parmap.pmap(lambda i: spoil(handle.value, i), [1]),
            "a copy": lambda: parmap.pmap(lambda i: spoil(data.copy(), i), [1]),
            "an element": lambda: parmap.pmap(spoil, [data], [1]),
        }

    def end(call):
        try:
            return call()
        except (ValueError, TypeError) as error:
            words = "read-only" in str(error), "x = x.copy()" in error.__notes__[0]
            return type(error), *words, "element 0" in error.__notes__[1]

    with parmap.plan("processes", workers=1) as session:
        for way, write in _in_place().items():
            kind = TypeError if way == "a memoryview" else ValueError
            refused = (kind, True, True, True)
            ends = {name: end(call) for name, call in calls(write, parmap.share(data)).items()}
            assert ends == {
                **dict.fromkeys(["repeated", "captured", "shared", "a handle's"], refused),
                "a copy": [True],
                "an element": [True],
            }, way
        assert (data == before).all()
        _emptied(session.executor)


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=1)"])
@pytest.mark.parametrize("way", list(_in_place()))
def test_in_one_memory_the_callers_own_array_is_written_to(plan, way):
    """The one difference, which is documented: such a function works there, on what is yours."""
    write = _in_place()[way]
    data = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    expected = data.copy()
    write(expected)
    with parmap.plan(plan):
        parmap.pmap(lambda values, _: write(values), repeat(parmap.share(data)), [1])
    assert data.tobytes() == expected.tobytes()


# -- other libraries' tables ---------------------------------------------------------------


@pytest.mark.parametrize("start", ["fresh", "fork"])
def test_tables_of_arrow(start):
    """They come whole as constants, elements and results, and are shared as arrays are."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    count = 200_000
    table = pa.table({"numbers": np.arange(count), "texts": [f"text {i}" for i in range(count)]})
    with parmap.plan("processes", workers=2, start=start) as session:
        handle = parmap.share(table)

        def read(x, i):
            return x.num_rows, x["texts"][i].as_py()

        for given in (table, handle):
            for _ in range(2):
                results = parmap.pmap(read, repeat(given), [3, count - 1])
                assert results == [(count, "text 3"), (count, f"text {count - 1}")]
        for back in (
            *parmap.pmap(lambda _: table, [1]),
            *parmap.pmap(lambda x: x, [table, table.slice(7)]),
            *parmap.pmap(lambda x, _: x.slice(7), repeat(handle), [1]),
        ):
            assert back.equals(table.slice(count - back.num_rows))
        del handle, given
        _emptied(session.executor)


def test_tables_with_texts_of_arrow():
    """Those of pandas come whole, and can be changed by whom they belong to."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    count = 200_000
    texts = pd.array([f"text {i}" for i in range(count)], dtype="string[pyarrow]")
    table = pd.DataFrame({"numbers": np.arange(count), "texts": texts})

    def change(x):
        x.loc[0, "numbers"] = 7
        x.loc[0, "texts"] = "other"
        return x

    with parmap.plan("processes", workers=2):
        lengths = parmap.pmap(lambda x, _: int(x["texts"].str.len().sum()), repeat(table), [1, 2])
        assert lengths == [int(table["texts"].str.len().sum())] * 2
        (back,) = parmap.pmap(change, [table])
        assert back.iloc[0].tolist() == [7, "other"]
        assert back.iloc[1:].equals(table.iloc[1:])
        assert table.iloc[0].tolist() == [0, "text 0"]


# -- systems without memfd_create ----------------------------------------------------------


def test_memory_that_must_have_a_name_has_it_for_a_moment(run):
    """Nothing is left in /dev/shm, and nobody warns, though workers are killed."""
    prefix = f"p{os.getpid()}_"  # other tests may run at the same time
    out = run(
        f"""
        import os, signal
        from multiprocessing import shared_memory
        shared_memory._SHM_NAME_PREFIX = "/{prefix}"
        del os.memfd_create  # as on other systems than Linux
        from itertools import repeat
        import numpy as np
        import parmap

        def named():
            return [name for name in os.listdir("/dev/shm") if name.startswith("{prefix}")]

        def look():
            with open("/proc/self/maps") as maps:
                mapped = "/dev/shm/{prefix}" in maps.read()
            files = [f"/proc/self/fd/{{fd}}" for fd in os.listdir("/proc/self/fd")]
            links = [os.readlink(file) for file in files if os.path.islink(file)]
            return sum("/dev/shm/{prefix}" in link for link in links), mapped

        data = np.arange(500_000.0)
        with parmap.plan("processes", workers=2) as session:
            handle = session.share(data)
            print(look(), named())
            print(parmap.pmap(lambda x, i: int(x[i]), repeat(handle), range(4), chunks=1))
            for pid in session.executor.pids:
                os.kill(pid, signal.SIGKILL)
            print(parmap.pmap(lambda i: int(data[i] + handle.value[i]), range(4), chunks=1))
            large = [np.full(5_000_000, float(i)) for i in range(6)]
            print(parmap.pmap(lambda x: int(x[-1]), large, chunks=1))
            # In whichever worker it runs, it has the handle's value then.
            print(parmap.pmap(lambda x, i: (x[i], look()[1])[1], repeat(handle), [1]))
            del handle, data  # which two calls had, so its block is kept as long as it lives
            print(look(), named())
        """
    )
    assert out.splitlines() == [
        "(1, False) []",
        "[0, 1, 2, 3]",
        "[0, 2, 4, 6]",
        "[0, 1, 2, 3, 4, 5]",
        "[True]",
        "(0, False) []",
    ]
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


class _Maker:
    """Pickles as a list with a handle in it, which nobody else has."""

    def __reduce__(self):
        return list, ([parmap.share([1, 2])],)


def test_a_handle_that_is_made_as_it_is_packed():
    with parmap.plan("processes", workers=2):
        kept = parmap.share(0)  # or nobody looks for handles
        found = parmap.pmap(lambda held: held[0].value[1], [_Maker()] * 5, chunks=1)
        assert (found, kept.value) == ([2] * 5, 0)


def test_more_large_values_than_there_may_be_files(run):
    """Then they go by the channels."""
    out = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        import numpy as np
        import parmap

        x = np.ones(200_000)
        with parmap.plan("processes", workers=2) as session:
            handles = [session.share(x + i) for i in range(100)]
            futures = [session.submit(lambda i: x[i], i) for i in range(100)]
            sums = [future.result() for future in futures]
            firsts = [session.submit(lambda a: a[0], h).result() for h in handles[-3:]]
        print(sum(sums), firsts == [98.0, 99.0, 100.0])
        """
    )
    assert out == "100.0 True\n"


def test_handles_cost_only_the_calls_that_have_them():
    """While one lives, other calls run their function itself."""
    from parmap.transport.messages import CallSpec, Chunk
    from parmap.worker.elements import calls_of

    handle = parmap.share(5)
    spec = CallSpec(abs)
    assert calls_of(spec, Chunk(([1, -2],))).__reduce__()[1][0] is abs
    assert list(calls_of(spec, Chunk(([handle, -2],)))) == [5, 2]
    del handle
