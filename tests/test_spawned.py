"""Streams that are made for many elements at once: NumPy's own, each a thing of its own."""

import collections
import copy
import os
import pickle
import random
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import (
    MT19937,
    PCG64,
    PCG64DXSM,
    SFC64,
    BitGenerator,
    Generator,
    Philox,
    SeedSequence,
)
from numpy.random.bit_generator import ISeedSequence

import parmap
from parmap.engine.streams import root_of
from parmap.transport.root import Root
from parmap.worker import random_state
from parmap.worker import spawned as together
from parmap.worker.rng import streamed
from parmap.worker.spawned import spawned

KINDS = {kind.__name__: kind for kind in (PCG64, PCG64DXSM, MT19937, Philox, SFC64)}

# Before NumPy 2.0 a bit generator takes no seed sequence once it is made, and streams are made
# singly. Asked as the pickle protocol has it.
takes_sequences = isinstance(PCG64(0).__reduce__()[2], tuple)
fast = pytest.mark.skipif(not takes_sequences, reason="this NumPy makes streams one by one")


def streams(root, indices):
    """Give the generators that a function gets as ``rng``."""
    rows = [()] * len(indices)
    return list(streamed(lambda *, rng: rng, root, rows, indices, keyword=True))


def truly(root, indices):
    """Make the streams as NumPy's documentation does."""
    kind = KINDS[root.bit_generator]
    return [
        Generator(
            kind(
                SeedSequence(
                    root.entropy, spawn_key=(*root.spawn_key, index), pool_size=root.pool_size
                )
            )
        )
        for index in indices
    ]


def sequence_of(bits):
    """Give all that a seed sequence tells of itself."""
    sequence = bits.seed_seq
    assert type(sequence) is SeedSequence
    return (
        sequence.state,
        repr(sequence),
        sequence.pool.dtype,
        sequence.pool.tolist(),
        sequence.n_children_spawned,
        [type(part) for part in (sequence.entropy, sequence.spawn_key, *sequence.spawn_key)],
        sequence.generate_state(11).tolist(),
        sequence.generate_state(9, np.uint64).tolist(),
    )


def bits_of(bits):
    """Give all that a bit generator tells of itself, but its seed sequence."""
    return type(bits), str({**bits.state, "next": bits.random_raw(700).tolist()})


def told(stream):
    """Give all that a stream tells of itself and of what it spawns."""
    assert type(stream) is Generator
    bits = stream.bit_generator
    tells = [pickle.dumps(stream), sequence_of(bits)]
    # Twice: what was spawned is counted.
    children = [child.bit_generator for _ in range(2) for child in stream.spawn(2)]
    tells += [sequence_of(child) for child in children] + [bits_of(child) for child in children]
    tells += [sequence_of(bits), bits_of(bits)]
    return tells


words = st.integers(0, 2**300) | st.integers(0, 2**33) | st.sampled_from([0, 1, 2**32 - 1, 2**32])
entropies = words | st.lists(words, max_size=9).map(tuple)
seeds = st.builds(
    lambda entropy, key, size: SeedSequence(entropy, spawn_key=key, pool_size=size),
    entropies,
    st.lists(words, max_size=4).map(tuple),
    st.integers(4, 16),
)
places = st.integers(0, 2**32 - 1) | st.integers(0, 2000)
index_lists = (
    st.lists(places, min_size=1, max_size=9)
    | st.lists(st.integers(0, 2**70), min_size=1, max_size=5)
    | st.builds(lambda start, size: range(start, start + size), places, st.integers(1, 9))
)


@given(st.sampled_from(list(KINDS)), entropies | seeds, index_lists)
def test_streams_are_numpys_in_all_that_they_tell(name, seed, indices):
    root = root_of(parmap.Streams(seed, name))
    made, true = streams(root, indices), truly(root, indices)
    assert list(map(told, made)) == list(map(told, true))


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 700])
def test_streams_of_long_chunks_are_numpys(name, size):
    """Those that are hashed together, and at the seams."""
    root = root_of(parmap.Streams(SeedSequence(3, spawn_key=(2,)), name))
    for indices in (range(5, 5 + size), random.Random(1).sample(range(10**6), size)):
        made, true = streams(root, indices), truly(root, indices)
        assert [one.bit_generator.random_raw(2).tolist() for one in made] == [
            one.bit_generator.random_raw(2).tolist() for one in true
        ]
        assert [repr(one.bit_generator.seed_seq) for one in made] == [
            repr(one.bit_generator.seed_seq) for one in true
        ]


@fast
@pytest.mark.parametrize("name", list(KINDS))
def test_every_bit_generator_is_made_the_fast_way(name):
    root = root_of(parmap.Streams(SeedSequence((1, 2**90), spawn_key=(4,), pool_size=7), name))
    assert spawned(root, range(2**32 - 3, 2**32)) is not None


@pytest.mark.parametrize(
    ("root", "indices"),
    [
        (Root(1, (), 4, "PCG64", "spawn"), [0, 2**32, 5]),
        (Root(1, (np.int64(2**40),), 4, "PCG64", "spawn"), range(3)),
        (Root(1, ("12",), 4, "PCG64", "spawn"), range(3)),
        (Root(1, ("0x123456789",), 4, "PCG64", "spawn"), range(3)),
    ],
)
def test_what_only_numpy_can_read_is_left_to_numpy(root, indices):
    assert spawned(root, indices) is None
    assert list(map(told, streams(root, indices))) == list(map(told, truly(root, indices)))


@pytest.mark.parametrize("name", list(KINDS))
def test_a_stream_that_is_kept_does_not_change_when_others_are_made_and_used(name):
    count = 40 if name == "MT19937" else 300  # its state takes long to tell
    root = root_of(parmap.Streams(9, name))
    kept, before = [], []

    def use(*, rng):
        before.append((rng.integers(1 << 40), rng.random(), told(copy.deepcopy(rng))))
        kept.append(rng)
        rng.bit_generator.seed_seq.spawn(2)

    collections.deque(streamed(use, root, [()] * count, range(count), keyword=True), maxlen=0)
    true = truly(root, range(count))
    for stream, own, (first, second, after) in zip(kept, true, before, strict=True):
        assert (own.integers(1 << 40), own.random()) == (first, second)
        assert own.spawn(2)
        assert told(stream) == told(own) != after  # which had spawned none
    bits = [stream.bit_generator for stream in kept]
    parts = [part for one in bits for part in (one, one.lock, one.seed_seq)] + kept
    assert len(set(map(id, parts))) == len(parts)
    pools = [one.seed_seq.pool for one in bits]
    assert all(pool.flags.owndata for pool in pools)  # no other's is kept with it
    pools[0][:] = 0  # NumPy's users may
    assert not any(np.shares_memory(pools[0], pool) for pool in pools[1:])


@pytest.mark.parametrize("name", list(KINDS))
def test_streams_travel_and_are_copied_with_their_sequence(name):
    root = root_of(parmap.Streams(SeedSequence(9, spawn_key=(1,)), name))
    ways = [copy.deepcopy, *(lambda one, p=p: pickle.loads(pickle.dumps(one, p)) for p in (2, 5))]
    for way in ways:
        made, true = (one[2] for one in (streams(root, range(5)), truly(root, range(5))))
        made.random(), true.random()
        if takes_sequences:  # else pickles have none
            assert told(way(made)) == told(way(true))
            assert told(Generator(way(made.bit_generator))) == told(way(true))
        assert way(made).random() == true.random() == made.random()
        sequences = [way(one.bit_generator.seed_seq) for one in (made, true)]
        assert pickle.dumps(sequences[0]) == pickle.dumps(sequences[1])


def test_elements_get_their_streams_whatever_those_before_them_raise():
    errors = (OSError, StopIteration, KeyboardInterrupt)

    def fail(i, rng):
        if i % 3 == 0:
            raise errors[i % 9 // 3]
        return rng.random()

    root = root_of(7)
    calls = streamed(fail, root, [(i,) for i in range(600)], range(600), keyword=True)
    got = []
    while len(got) < 600:
        try:
            got.append(next(calls))
        except errors:
            got.append(None)
    true = [None if i % 3 == 0 else one.random() for i, one in enumerate(truly(root, range(600)))]
    assert got == true


@fast
def test_an_error_while_streams_are_hashed_costs_one_element_and_shifts_none(monkeypatch):
    root, hashed, strikes = root_of(7), together.Spawned._hashed, [0, 256 + 1]

    def struck(self, first):
        if strikes and first == strikes[0]:
            del strikes[0]
            raise MemoryError
        return hashed(self, first)

    monkeypatch.setattr(together.Spawned, "_hashed", struck)
    with parmap.plan("sequential"):
        got = parmap.pmap(
            lambda i, rng: rng.random(), range(600), rng=7, errors="return", chunks=600
        )
    assert strikes == []
    failed = [i for i, one in enumerate(got) if isinstance(one, parmap.Failure)]
    assert failed == [0, 257]
    true = [one.random() for one in truly(root, range(600))]
    assert all(one == true[i] for i, one in enumerate(got) if i not in failed)


def test_the_hash_overflows_without_a_word():
    """As hashes do; also where the script has made that an error."""
    together._children.cache_clear(), together._reading.cache_clear(), together._asked.cache_clear()
    root = root_of(7)
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(map(told, streams(root, range(5)))) == list(map(told, truly(root, range(5))))
    assert (spawned(root, range(5)) is not None) == takes_sequences


# -- NumPys that are older, or newer -------------------------------------------------------------


class DictOnly(PCG64):
    """As before NumPy 2.0: its state is all that it takes."""

    def __setstate__(self, state):
        self.state = state

    def __reduce__(self):
        return super().__reduce__()[:2]


class StateFirst(PCG64):
    """It takes a seed sequence together with a state only."""

    def __setstate__(self, both):
        state, sequence = both
        self.state = state
        super().__setstate__((state, sequence))


class Forgiving(PCG64):
    """It takes no state for its zero."""

    def __setstate__(self, both):
        state, sequence = both
        super().__setstate__((state or PCG64(0).state, sequence))


class Twice(PCG64):
    """It asks its sequence twice."""

    def __init__(self, seed):
        asked = seed.generate_state(1)[0] if isinstance(seed, ISeedSequence) else 0
        super().__init__(seed)
        self.advance(int(asked))


class Picky(PCG64):
    """It takes NumPy's own seed sequences only."""

    def __init__(self, seed):
        if type(seed) is not SeedSequence:
            raise RuntimeError("no")
        super().__init__(seed)


@pytest.mark.parametrize("kind", [DictOnly, StateFirst, Forgiving, Twice, Picky])
def test_the_numbers_do_not_depend_on_what_this_numpy_can_do(kind, monkeypatch):
    name = kind.__name__
    kind = type("PCG64", (kind,), {})  # a state names its class
    monkeypatch.setattr(np.random, "PCG64", kind)
    root = root_of(7)
    if takes_sequences:
        assert (spawned(root, range(9)) is not None) == (name == "StateFirst")
    made = streams(root, range(9))
    assert {type(one.bit_generator) for one in made} == {kind}
    true = [kind(SeedSequence(7, spawn_key=(i,))) for i in range(9)]
    assert [sequence_of(one.bit_generator) for one in made] == list(map(sequence_of, true))
    assert [bits_of(one.bit_generator) for one in made] == list(map(bits_of, true))


# -- what it costs -------------------------------------------------------------------------------


OURS = (os.path.dirname(parmap.__file__), __file__)  # NumPy's own calls differ by its version


def passed(size, kind="PCG64"):
    """Count the calls, of parmap's functions and the mapped one, that a chunk takes."""
    root, rows = Root(1, (), 4, kind, "spawn"), [()] * size
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(OURS)

    def run():
        collections.deque(streamed(nothing, root, rows, range(size), keyword=True), maxlen=0)

    run()  # what is tried or computed once has been
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count - 1  # run


def nothing(*, rng):
    return None


@fast
@pytest.mark.parametrize("kind", list(KINDS))
def test_an_element_costs_four_calls(kind):
    """Its own, that with its stream, that which makes it, and that which gives the words to it."""
    blocks = 4 * together._BLOCK
    for_blocks = passed(2 * blocks, kind) - passed(blocks, kind) - 4 * blocks
    assert 0 < for_blocks <= 4 * 5


def test_a_chunk_of_one_is_made_as_numpy_makes_it():
    """To hash it as one of many would cost twice the time."""
    assert passed(1) <= 5
    assert passed(2) - passed(1) == 4


# -- global generators ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS.values()))
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_global_generators_are_seeded_by_numbers_then_bytes(kind, before, monkeypatch):
    """Also where half of a word is left over from the draw before."""
    monkeypatch.setattr(random_state, "torch_of", lambda: None)
    own, true = Generator(kind(3)), Generator(kind(3))
    for stream in (own, true):
        stream.integers(9, size=before, dtype=np.uint32)
    legacy = np.random.RandomState(true.integers(0, 1 << 32, size=4))
    python = random.Random(int.from_bytes(true.bytes(16)))
    with random_state.isolated_rng(load=True):
        random_state.seed_globals(own)
        drawn = np.random.random(5)  # noqa: NPY002 - what the user's code uses
        got = drawn.tolist(), [random.random() for _ in range(5)]
    assert got == (legacy.random_sample(5).tolist(), [python.random() for _ in range(5)])
    assert own.bytes(8) == true.bytes(8)  # torch's
    assert isinstance(own.bit_generator, BitGenerator)
