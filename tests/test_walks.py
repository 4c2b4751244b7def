"""No walk over many small things grows with their square: what is moved and copied is counted."""

import sys

import numpy as np
import pytest

import parmap
from parmap.backends.processes import protocol
from parmap.backends.processes.protocol import Inbox, Kind, send
from parmap.engine.chunks import ChunkPlan, ReturnedChunks
from parmap.engine.policies import Dynamic
from parmap.engine.source import Source
from parmap.engine.traits import Traits
from parmap.transport.messages import Chunk
from parmap.transport.payload import pack, pack_result, unpack
from parmap.transport.shared import HandleCollector

MANY = 20_000

# What each of these does to a list may move or look at all of its items.
WHOLE = {"pop", "insert", "remove", "index"}


def moved(call):
    """Count the items that lists may have moved: each costly call moves its whole list at most."""
    count = 0

    def profile(frame, event, function):
        nonlocal count
        if event == "c_call" and function.__name__ in WHOLE and type(function.__self__) is list:
            count += len(function.__self__)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


class Channel:
    """A socket that takes all that it is given, or gives what it was given."""

    def __init__(self):
        self.data, self.given, self.writes = bytearray(), 0, 0

    def sendall(self, data, flags=0):
        self.data += data

    def sendmsg(self, buffers, beside=(), flags=0):
        self.given, self.writes = self.given + len(buffers), self.writes + 1
        size = len(self.data)
        for buffer in buffers[:7]:  # and the rest another time, as a full socket does
            self.data += buffer
        return len(self.data) - size

    def recvmsg_into(self, buffers, beside, flags):
        count = 0
        for buffer in buffers[:7]:
            part = self.data[count : count + len(buffer)]
            buffer[: len(part)] = part
            count += len(part)
        del self.data[:count]
        return count, [], 0, None


def test_a_message_of_many_frames_is_written_and_read_by_one_walk():
    frames = [bytes([i % 251]) * 40 for i in range(MANY)]
    channel = Channel()
    assert moved(lambda: send(channel, (Kind.RESULT, 1, frames))) == 0
    assert channel.given <= channel.writes * protocol._GATHER
    inbox, found = Inbox(channel, blocking=True), []
    assert moved(lambda: found.append(inbox.read())) == 0
    kind, key, came = found[0]
    assert (kind, key, list(map(bytes, came))) == (Kind.RESULT, 1, frames)


@pytest.mark.parametrize(
    "packed", [pack_result, lambda x, views: pack(x, "", views=views, own=True)]
)
def test_small_arrays_are_one_frame_and_large_ones_each_their_own(packed):
    """Also those of the caller; and each may be written to as before."""
    small = [np.array([i, 2 * i]) for i in range(MANY)]
    large = [np.zeros(10_000), np.ones(10_000)]
    frozen = np.arange(3)
    frozen.flags.writeable = False
    payload = packed([*small, *large, frozen], views=True)
    assert [memoryview(buffer).nbytes for buffer in payload.buffers] == [80_000] * 2
    *some, one, two, last = unpack(payload)
    assert all(a.flags.writeable and (a == b).all() for a, b in zip(some, small, strict=True))
    assert (one.sum(), two.sum()) == (0, 10_000)
    assert last.flags.writeable == (packed is pack_result)


def test_small_arrays_that_all_tasks_share_stay_read_only():
    payload = pack([np.arange(3)], "", views=True)
    assert len(payload.buffers) == 1
    assert not unpack(payload, readonly=True)[0].flags.writeable
    with parmap.plan("processes", workers=1):
        given = np.arange(3)
        assert parmap.pmap(lambda _: given.flags.writeable, [0]) == [False]
        assert parmap.pmap(lambda x: x.flags.writeable, [given]) == [True]


class Counted(list):
    """A column that counts the items which its slices copy."""

    copied = 0

    def __getitem__(self, place):
        found = super().__getitem__(place)
        if isinstance(place, slice):
            Counted.copied += len(found)
            return Counted(found)
        return found


def test_a_chunk_that_came_back_is_cut_into_singles_by_one_walk(monkeypatch):
    monkeypatch.setattr(Counted, "copied", 0)
    back, found = ReturnedChunks(), []
    back.put(ChunkPlan(range(10, 10 + MANY), Chunk((Counted(range(MANY)),))))

    def cut():
        while (chunk_plan := back.next(1, None)) is not None:
            found.append((chunk_plan.indices[0], chunk_plan.chunk.columns[0][0]))
            assert back.size == MANY - len(found)

    assert moved(cut) < 10
    assert found == [(10 + i, i) for i in range(MANY)]
    assert Counted.copied == MANY


def test_chunks_that_came_back_are_cut_in_the_inputs_order():
    back = ReturnedChunks()
    chunk_plans = [
        ChunkPlan(range(a, b), Chunk((list(range(a, b)),))) for a, b in ((20, 25), (0, 5), (10, 15))
    ]
    for chunk_plan in chunk_plans[:2]:
        back.put(chunk_plan)
    assert back.next(2, None).indices == range(2)
    back.put(chunk_plans[2])  # while one is cut
    assert back.size == 13
    cut = iter(lambda: back.next(3, 23), None)
    assert [list(chunk_plan.indices) for chunk_plan in cut] == [
        [2, 3, 4],
        [10, 11, 12],
        [13, 14],
        [20, 21, 22],
    ]
    assert back.size == 0


def test_handles_are_found_by_one_walk():
    """References of a backend may be slow to compare: each is looked up."""

    class Reference:
        __hash__ = None

        def __eq__(self, other):
            raise AssertionError("compared")

    handles = [parmap.share(i) for i in range(1000)]
    references = {handle.key: Reference() for handle in handles}
    collector = HandleCollector(lambda handle: references[handle.key], [references[handles[5].key]])
    places = [collector.index_of(handle) for handle in (*handles, *handles)]
    assert places[5] == 0
    assert len(set(places)) == len(collector.references) == 1000
    assert places[:1000] == places[1000:]


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_an_input_is_cut_by_one_walk(kind):
    given = kind(list(range(MANY)))
    cutter = Source([given]).cutter(Dynamic(size=1), 2, Traits())
    assert moved(lambda: [cutter.next(1, None) for _ in range(MANY)]) == 0
    assert cutter.next(1, None) is None


def test_many_small_arrays_go_and_come():
    with parmap.plan("processes", workers=2):
        results = parmap.pmap(lambda i: np.array([i, 2 * i]), range(MANY))
        back = parmap.pmap(lambda x: x + 1, results)
    assert all((a + 1 == b).all() for a, b in zip(results, back, strict=True))
