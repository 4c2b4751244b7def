"""Random streams: each element its own, from the seed and its index alone."""

# ruff: noqa: NPY002 - functions that draw from the global generator are what these tests are about

import functools
import inspect
import itertools
import json
import os
import random
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
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

import parmap
from parmap.engine.policies import Static
from parmap.engine.streams import root_of
from parmap.transport.root import Root
from parmap.worker import rng as streams_of

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

SEEDS = (0, 1, 7, 2**64 + 5, 10**30)
PLANS = ("sequential", "processes(workers=1)", "processes(workers=2)", "processes(workers=4)")
POLICIES = ("auto", "static", Static(cyclic=True), "dynamic", "guided", 1, 7)
SIZES = (0, 1, 2, 37, 1000)
# Where the global generators can be seeded: everywhere but on threads.
SEEDING = ("sequential", "processes(workers=2)", "processes(workers=2, start='fork')")
EVERYWHERE = (*SEEDING, "threads(workers=2)")


@functools.cache
def by_hand(seed, n):
    """The numbers of a plain loop."""
    return [two(Generator(PCG64(child))) for child in SeedSequence(seed).spawn(n)]


def two(stream):
    return stream.random(), int(stream.integers(1 << 40))


def drawing():
    """A function that travels by value, so that workers need not import this file."""

    def draw(i, rng):
        return rng.random(), int(rng.integers(1 << 40))

    return draw


def drawing_globally():
    def draw(i):
        return np.random.random(), random.random(), np.random.standard_normal(), random.gauss(0, 1)

    return draw


def globally_by_hand(seed, n):
    """What a loop gives that seeds NumPy's and Python's own generators for each element."""
    numbers = []
    for child in SeedSequence(seed).spawn(n):
        stream = Generator(PCG64(child))
        legacy = np.random.RandomState(stream.integers(0, 1 << 32, size=4))
        python = random.Random(int.from_bytes(stream.bytes(16)))
        numbers.append(
            (legacy.random(), python.random(), legacy.standard_normal(), python.gauss(0, 1))
        )
    return numbers


# -- the law ---------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
def test_the_numbers_are_those_of_a_plain_loop(plan):
    """Bit for bit: for any seed, chunking, number of elements and of workers."""
    draw = drawing()
    with parmap.plan(plan):
        for seed, n in itertools.product(SEEDS, SIZES):
            expected = by_hand(seed, n)
            for chunks in POLICIES:
                assert parmap.pmap(draw, range(n), rng=seed, chunks=chunks) == expected, (
                    seed,
                    n,
                    chunks,
                )


@pytest.mark.parametrize("plan", PLANS)
def test_every_way_to_call_gives_the_numbers_of_the_loop(plan):
    """imap, starmap, pgrid, compute and submit number their calls as Python would make them."""

    def draw(*_, rng, **__):
        return rng.random(), int(rng.integers(1 << 40))

    seed, n = 12, 24
    expected = by_hand(seed, n)
    with parmap.plan(plan):
        for chunks in ("auto", "dynamic", 1, 5):
            assert list(parmap.imap(draw, iter(range(n)), rng=seed, chunks=chunks)) == expected
            assert list(parmap.imap(draw, iter(range(n)), rng=seed, window=3)) == expected
            rows = [(i, i) for i in range(n)]
            assert parmap.starmap(draw, rows, rng=seed, chunks=chunks) == expected
            axes = {"a": range(4), "b": range(3), "c": range(2)}
            grid = parmap.pgrid(draw, axes, rng=seed, chunks=chunks)
            assert list(grid.values) == expected
            calls = [parmap.delayed(draw)(i) for i in range(n)]
            assert parmap.compute(calls, rng=seed, chunks=chunks) == expected
            unordered = parmap.imap(draw, range(n), rng=seed, chunks=chunks, ordered=False)
            assert sorted(unordered) == sorted(expected)
        assert parmap.submit(draw, 3, rng=seed).result(60) == expected[0]
        assert parmap.submit(draw, 3, x=4, rng=seed).result(60) == expected[0]


@pytest.mark.parametrize("plan", ["sequential", "processes(workers=2)", "threads(workers=2)"])
def test_calls_of_a_graph_are_numbered_in_the_order_of_python(plan):
    """Inner calls before the outer, the first argument first, keywords last; chains too."""

    def node(*inputs, rng, **more):
        return [list(inputs), list(more.values()), rng.random()]

    def written(f):
        return f(f(f()), f(f(), x=f()), y=f(f(f())))

    children = iter(SeedSequence(5).spawn(20))

    def at_once(*args, **kwargs):
        return node(*args, rng=Generator(PCG64(next(children))), **kwargs)

    expected = written(at_once)
    with parmap.plan(plan):
        for chunks in ("auto", "static", "guided", 1):
            assert parmap.compute(written(parmap.delayed(node)), rng=5, chunks=chunks) == expected


@pytest.mark.parametrize("plan", ["sequential", "processes(workers=2)"])
def test_inner_calls_with_the_elements_generator(plan):
    """A nested call's streams come from the element's, so they are the same on all plans."""

    def inner(j, rng):
        return rng.random(), j

    def outer(i, rng):
        first = rng.random()
        rows = parmap.pmap(inner, range(3), rng=rng)
        return first, rows, parmap.pmap(inner, range(3), rng=rng), rng.random()

    expected = parmap.pmap(outer, range(7), rng=3)
    numbers = [number for _, a, b, _ in expected for number, _ in (*a, *b)]
    assert len(set(numbers)) == 7 * 6
    with parmap.plan([plan, plan]):
        for chunks in ("auto", 1, 3):
            assert parmap.pmap(outer, range(7), rng=3, chunks=chunks) == expected
    with parmap.plan("threads", workers=2):
        assert parmap.pmap(outer, range(7), rng=3, chunks=1) == expected


@pytest.mark.parametrize("plan", ["sequential", "processes(workers=2)", "threads(workers=2)"])
@pytest.mark.parametrize("chunks", ["auto", "static", 1])
def test_a_retried_element_gets_the_same_stream_again(plan, chunks, tmp_path):
    """Numbers that the failed attempt drew are drawn again."""

    def draw(i, rng):
        numbers = rng.random(), int(rng.integers(1 << 40))
        if i % 3 == 0:
            with open(tmp_path / f"{plan[:3]}{i}", "a+") as tries:
                tries.write("x")
                if tries.tell() < 3:
                    raise ValueError(i)
        return numbers

    with parmap.plan(plan):
        assert parmap.pmap(draw, range(10), rng=4, retries=2, chunks=chunks) == by_hand(4, 10)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["xxx"] * 4


@pytest.mark.parametrize("keyword", [True, False])
def test_a_worker_killed_in_the_middle_of_a_call_changes_no_number(keyword, tmp_path):
    """What the dead worker had in hand is run again with the same streams."""
    killed, base = tmp_path / "killed", (drawing if keyword else drawing_globally)()

    def kill_once(i):
        if i == 5 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def with_keyword(i, rng):
        numbers = base(i, rng)
        kill_once(i)
        return numbers

    def without(i):
        numbers = base(i)
        kill_once(i)
        return numbers

    expected = (by_hand if keyword else globally_by_hand)(9, 12)
    with parmap.plan("processes", workers=2):
        numbers = parmap.pmap(with_keyword if keyword else without, range(12), rng=9, chunks=4)
    assert numbers == expected
    assert killed.exists()


def test_a_shuffled_or_costed_order_changes_no_number():
    for chunks in (parmap.Auto(shuffle=3), parmap.Dynamic(size=4, cost=lambda i: i)):
        assert parmap.pmap(drawing(), range(30), rng=2, chunks=chunks) == by_hand(2, 30)


# -- what a seed may be ------------------------------------------------------------------------


def values(n=6):
    """Seeds that are values, by name; each with the seed sequence that it stands for."""
    child = SeedSequence(8).spawn(3)[2]
    return {
        "int": (3, SeedSequence(3)),
        "numpy's int": (np.int64(3), SeedSequence(3)),
        "numpy's unsigned int": (np.uint8(3), SeedSequence(3)),
        "list": ([1, 2, 2**40], SeedSequence([1, 2, 2**40])),
        "tuple": ((1, 2), SeedSequence([1, 2])),
        "range": (range(4), SeedSequence([0, 1, 2, 3])),
        "array": (np.array([1, 2]), SeedSequence([1, 2])),
        "empty list": ([], SeedSequence([])),
        "sequence": (SeedSequence(7), SeedSequence(7)),
        "fresh sequence": ((fresh := SeedSequence()), SeedSequence(fresh.entropy)),
        "spawned child": (child, SeedSequence(8, spawn_key=(2,))),
        "wide pool": (SeedSequence(7, pool_size=8), SeedSequence(7, pool_size=8)),
        "streams": (parmap.Streams(3), SeedSequence(3)),
        "streams of a child": (parmap.Streams(child), SeedSequence(8, spawn_key=(2,))),
    }


@pytest.mark.parametrize("name", list(values()))
@pytest.mark.parametrize("plan", ["sequential", "processes(workers=2)"])
def test_seeds_are_values(name, plan):
    """Equal seeds give equal streams, again and again, and are not changed by use."""
    rng, sequence = values()[name]
    expected = [two(Generator(PCG64(child))) for child in sequence.spawn(6)]
    with parmap.plan(plan):
        assert parmap.pmap(drawing(), range(6), rng=rng) == expected
        assert parmap.pmap(drawing(), range(6), rng=rng, chunks=1) == expected
    if isinstance(rng, SeedSequence):
        assert rng.n_children_spawned == 0


@pytest.mark.parametrize(
    "make", [np.random.default_rng, PCG64, Philox, lambda seed: parmap.Streams(PCG64(seed))]
)
def test_generators_are_running_things(make):
    """Equal generators give equal calls, and each call moves the generator on."""
    one, other = make(5), make(5)
    first, second = (parmap.pmap(drawing(), range(5), rng=one) for _ in range(2))
    assert first != second
    assert len({*first, *second}) == 10
    with parmap.plan("processes", workers=2):
        assert parmap.pmap(drawing(), range(5), rng=other, chunks=1) == first
        assert parmap.pmap(drawing(), range(5), rng=other, chunks=3) == second


def test_a_generator_that_was_jumped_is_another_one():
    """Its state counts, not the seed that it was once made from."""
    calls = [
        parmap.pmap(drawing(), range(3), rng=Generator(bits))
        for bits in (PCG64(1), PCG64(1).jumped(), PCG64(1).jumped(2))
    ]
    assert len({number for call in calls for number in call}) == 9


@pytest.mark.parametrize("wrong", [True, 1.5, np.float64(2), "1", b"1", object(), {}, [1.5], [{}]])
@pytest.mark.parametrize("wrap", [lambda seed: seed, parmap.Streams], ids=["bare", "Streams"])
def test_what_is_no_seed_is_refused(wrong, wrap):
    """The error names the option and the value, and comes before anything runs."""
    ran = []
    with pytest.raises(TypeError, match="rng=") as caught:
        parmap.pmap(lambda i, rng: ran.append(i), range(3), rng=wrap(wrong))
    assert repr(wrong) in str(caught.value)
    assert ran == []


@pytest.mark.parametrize("wrong", [-1, np.int64(-1), [-1], (3, -4)])
def test_a_negative_seed_is_refused(wrong):
    with pytest.raises(ValueError, match=r"rng=.*negative|non-negative"):
        parmap.pmap(drawing(), range(3), rng=wrong)


def test_no_seed_inside_of_streams_is_refused():
    with pytest.raises(TypeError, match="None"):
        parmap.pmap(drawing(), range(3), rng=parmap.Streams(None))


def test_none_means_not_given():
    """The function is then called without the keyword."""

    def fn(i, rng="mine"):
        return rng

    assert parmap.pmap(fn, range(2), rng=None) == ["mine", "mine"]
    assert parmap.submit(fn, 1, rng=None).result() == "mine"
    with pytest.raises(TypeError, match="rng"):
        parmap.pmap(drawing(), range(2), rng=None)


def test_a_parameter_that_is_bound_already_is_left_alone():
    bound = functools.partial(drawing(), rng=np.random.default_rng(1))
    numbers = parmap.pmap(bound, range(2), rng=3)
    generator = np.random.default_rng(1)
    assert numbers == [two(generator), two(generator)]


# -- other bit generators ----------------------------------------------------------------------

KINDS = {kind.__name__: kind for kind in (PCG64, PCG64DXSM, MT19937, Philox, SFC64)}


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("plan", ["sequential", "processes(workers=2)"])
def test_other_bit_generators_are_spawned(name, plan):
    def draw(i, rng):
        return type(rng.bit_generator).__name__, rng.random()

    children = SeedSequence(6).spawn(9)
    expected = [(name, Generator(KINDS[name](child)).random()) for child in children]
    with parmap.plan(plan):
        for chunks in ("auto", 4):
            assert (
                parmap.pmap(draw, range(9), rng=parmap.Streams(6, name), chunks=chunks) == expected
            )


@pytest.mark.parametrize("name", ["PCG64", "PCG64DXSM", "MT19937", "Philox"])
@pytest.mark.parametrize("plan", ["sequential", "processes(workers=2)", "threads(workers=2)"])
def test_jumped_streams_are_numpys(name, plan):
    """Element i draws from the seed's one stream, i jumps ahead; in any chunks and order."""

    def draw(i, rng):
        # Of all widths: half of a 64-bit word may be left over for the next 32-bit draw.
        return rng.random(), int(rng.integers(9, dtype=np.uint32)), float(rng.normal())

    expected = [draw(i, Generator(KINDS[name](6).jumped(i))) for i in range(11)]
    given = parmap.Streams(6, name, advance="jumped")
    orders = (parmap.Auto(shuffle=2), parmap.Dynamic(cost=lambda i: i), Static(cyclic=True))
    with parmap.plan(plan):
        for chunks in ("auto", 1, 4, "static", *orders):
            assert parmap.pmap(draw, range(11), rng=given, chunks=chunks) == expected, chunks
        assert parmap.submit(draw, 0, rng=given).result(60) == expected[0]


def test_two_jumped_calls_in_turns_do_not_mix():
    """Their elements alternate in one process, where the last jump is remembered."""
    streams = [parmap.Streams(seed, "PCG64", advance="jumped") for seed in (1, 2)]
    calls = [parmap.imap(drawing(), range(6), rng=given, chunks=1) for given in streams]
    taken = list(zip(*calls, strict=True))
    assert taken == [
        tuple(two(Generator(PCG64(seed).jumped(i))) for seed in (1, 2)) for i in range(6)
    ]


def test_a_thread_that_jumps_meanwhile_changes_no_stream():
    """The last jump may be replaced at any moment by another thread, which is played here."""

    class Watched(Root):
        def __eq__(self, other):
            if meddle:
                meddle.pop()()  # between two looks at the last jump
            return super().__eq__(other)

        __hash__ = None

    roots = [kind(6, (), 4, "PCG64", "jumped") for kind in (Root, Watched)]
    meddle = []
    for root in roots:
        root.stream(2)
        meddle.append(lambda root=root: streams_of.__dict__.update(_last=(root, 9, PCG64(99))))
        assert root.stream(3).random() == Generator(PCG64(6).jumped(3)).random()
        meddle.clear()


def test_a_thread_that_jumps_just_before_the_last_jump_is_taken_changes_no_stream(monkeypatch):
    class Index(int):
        def __ge__(self, other):  # the last look, before the jump is taken
            monkeypatch.setattr(streams_of, "_last", (root, 8, PCG64(6).jumped(8)))
            return int(self) >= other

    root = Root(6, (), 4, "PCG64", "jumped")
    monkeypatch.setattr(streams_of, "_last", (root, 2, PCG64(6).jumped(2)))
    assert root.stream(Index(3)).random() == Generator(PCG64(6).jumped(3)).random()


def test_sfc64_cannot_jump():
    with pytest.raises(ValueError, match="SFC64 cannot jump"):
        parmap.Streams(1, "SFC64", advance="jumped")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"bit_generator": "PCG46"}, "PCG64DXSM, MT19937"),
        ({"advance": "jump"}, "spawn, jumped"),
    ],
)
def test_unknown_words_in_streams_name_the_valid_ones(given, says):
    with pytest.raises(ValueError, match=says):
        parmap.Streams(1, **given)


# -- functions without the parameter -----------------------------------------------------------


@pytest.mark.parametrize("plan", SEEDING)
def test_global_generators_are_seeded_per_element(plan):
    """NumPy's and Python's, from the element's stream: the same on any plan and chunking."""
    draw, expected = drawing_globally(), globally_by_hand(11, 37)
    with parmap.plan(plan):
        for chunks in POLICIES:
            assert parmap.pmap(draw, range(37), rng=11, chunks=chunks) == expected
        assert list(parmap.imap(draw, range(37), rng=11, chunks=5)) == expected
        assert parmap.starmap(draw, [(i,) for i in range(37)], rng=11) == expected
        assert list(parmap.pgrid(draw, {"i": range(37)}, rng=11).values) == expected
        calls = [parmap.delayed(draw)(i) for i in range(37)]
        assert parmap.compute(calls, rng=11) == expected
        assert parmap.submit(draw, 0, rng=11).result(60) == expected[0]


def test_threads_refuse_to_seed_what_they_share():
    """For every call; the error says to take the stream as a parameter."""

    def shaken(i=0):
        return np.random.random()

    with parmap.plan("threads", workers=2):
        for call in (
            lambda: parmap.pmap(shaken, range(3), rng=1),
            lambda: parmap.starmap(shaken, [(1,)], rng=1),
            lambda: list(parmap.imap(shaken, range(3), rng=1)),
            lambda: parmap.pgrid(shaken, {"i": range(3)}, rng=1),
            lambda: parmap.compute(parmap.delayed(shaken)(), rng=1),
            lambda: parmap.submit(shaken, rng=1),
        ):
            with pytest.raises(TypeError, match=r"def shaken\(\.\.\., rng\)"):
                call()


def test_calls_inside_of_threads_do_not_seed_what_the_threads_share():
    """Both inner calls have seeded by the time that either draws: so they would mix."""
    both = threading.Barrier(2, timeout=60)

    def inner(j):
        both.wait()
        return np.random.random()

    def outer(i):
        return parmap.pmap(inner, range(1), rng=i)

    with parmap.plan("threads", workers=2), quiet():
        results = parmap.pmap(outer, range(2), chunks=1, errors="return")
    for i, result in enumerate(results):
        # A refusal is as good as the right number; a wrong number is not.
        if isinstance(result, parmap.Failure):
            assert isinstance(result.error, TypeError)
            assert "take the stream" in str(result.error).lower()
        else:
            stream = Generator(PCG64(SeedSequence(i).spawn(1)[0]))
            legacy = np.random.RandomState(stream.integers(0, 1 << 32, size=4))
            assert result == [legacy.random()]


@pytest.mark.parametrize("plan", ["sequential", "processes(workers=2)"])
def test_an_inner_call_leaves_the_tasks_own_generators_alone(plan):
    """To a task, the caller of the inner call, R's rule holds as well."""

    def inner(j):
        return np.random.random(), random.random()

    def outer(i, calls):
        before = np.random.random(), random.random()
        if calls:
            parmap.pmap(inner, range(3), rng=1)
        return before, np.random.random(), random.random()

    with parmap.plan(plan):
        with_calls = parmap.pmap(outer, range(4), [True] * 4, rng=2)
        assert with_calls == parmap.pmap(outer, range(4), [False] * 4, rng=2)


def test_unseeded_inner_calls_do_not_repeat_what_the_task_drew():
    """Each frame has a state of its own: a copy of the outer one would give the same numbers."""

    def inner(j):
        return random.getrandbits(64)

    def outer(i):
        return [random.getrandbits(64), *parmap.pmap(inner, range(2)), random.getrandbits(64)]

    with quiet():
        numbers = [number for row in parmap.pmap(outer, range(3)) for number in row]
    assert len(set(numbers)) == len(numbers)


# -- R's rule ------------------------------------------------------------------------------------


def own_state():
    kind, key, *rest = np.random.get_state()
    return random.getstate(), (kind, key.tolist(), *rest)


def quiet():
    """Let unseeded draws be: pytest would make errors of the warnings."""
    caught = warnings.catch_warnings()
    caught.__enter__()
    warnings.simplefilter("ignore", parmap.UnseededRandomWarning)
    return _Quiet(caught)


class _Quiet:
    def __init__(self, caught):
        self.caught = caught

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.caught.__exit__(*error)


def calls_of_every_kind():
    def draw(i=0, **_):
        return np.random.standard_normal(), random.gauss(0, 1)

    def fail(i=0, **_):
        np.random.random(), random.random()
        if i == 3:
            raise ValueError(i)

    def draw_keyword(i=0, rng=None, **_):
        return np.random.random(), random.random()

    def partly(fn, **options):
        results = parmap.imap(fn, itertools.count(), chunks=2, window=8, **options)
        next(results)
        next(results)
        return results

    def consumed_partly(fn, **options):
        partly(fn, **options).close()

    def caller_draws_between(fn, **options):
        # A suspended call must not stand between the caller and its own generators.
        state = own_state()
        results = partly(fn, **options)
        assert own_state() == state
        next(results)
        assert own_state() == state
        results.close()

    return {
        "pmap": lambda **o: parmap.pmap(draw, range(9), **o),
        "pmap with a keyword": lambda **o: parmap.pmap(draw_keyword, range(9), **o),
        "starmap": lambda **o: parmap.starmap(draw, [(i,) for i in range(9)], **o),
        "imap": lambda **o: list(parmap.imap(draw, range(9), **o)),
        "imap consumed partly": lambda **o: consumed_partly(draw, **o),
        "imap in turns": lambda **o: caller_draws_between(draw, **o),
        "pgrid": lambda **o: parmap.pgrid(draw, {"i": range(3), "j": range(3)}, **o),
        "compute": lambda **o: parmap.compute([parmap.delayed(draw)(i) for i in range(3)], **o),
        "submit": lambda **o: parmap.submit(draw, 1, **o).result(60),
        "pmap that fails": lambda **o: parmap.pmap(fail, range(9), **o),
        "imap that fails": lambda **o: list(parmap.imap(fail, range(9), **o)),
        "pgrid that fails": lambda **o: parmap.pgrid(fail, {"i": range(9)}, **o),
        "compute that fails": lambda **o: parmap.compute(
            [parmap.delayed(fail)(i) for i in range(9)], **o
        ),
        "submit that fails": lambda **o: parmap.submit(fail, 3, **o).result(60),
    }


@pytest.mark.parametrize("plan", SEEDING[:2])
@pytest.mark.parametrize("seeded", [{"rng": 1}, {}], ids=["seeded", "unseeded"])
def test_no_call_touches_the_callers_own_generators(plan, seeded):
    """Not their state, and not the half of a pair of normals that is kept for the next draw."""
    kinds = calls_of_every_kind().items()
    with parmap.plan(plan), quiet():
        for normals, (name, call) in itertools.product((0, 1), kinds):
            np.random.seed(5)
            random.seed(5)
            for _ in range(normals):
                np.random.standard_normal(), random.gauss(0, 1)
            before = own_state()
            if name.endswith("fails"):
                with pytest.raises(ValueError):
                    call(**seeded)
            else:
                call(**seeded)
            assert own_state() == before, (name, normals)


def test_the_callers_own_bit_generator_is_back_in_its_place():
    """One may stand there that is no Mersenne twister, and cannot even be seeded anew."""
    before = np.random.get_bit_generator()
    own = PCG64(3)
    np.random.set_bit_generator(own)
    try:
        numbers = parmap.pmap(drawing_globally(), range(5), rng=1)
        assert np.random.get_bit_generator() is own
        assert own.state == PCG64(3).state
        with quiet():
            parmap.pmap(drawing_globally(), range(5))
        assert np.random.get_bit_generator() is own
        assert own.state == PCG64(3).state
    finally:
        np.random.set_bit_generator(before)
    assert numbers == globally_by_hand(1, 5)


@pytest.mark.parametrize("start", ["fresh", "fork"])
def test_a_seeded_call_leaves_no_seed_behind_in_the_workers(start):
    """Or unseeded draws that follow would be the same each time, on each new pool."""

    def seeded(i):
        return i

    def draw(i):
        import numpy.random

        return numpy.random.random(), random.random()

    drawn = []
    for _ in range(2):
        with parmap.plan("processes", workers=1, start=start), quiet():
            parmap.pmap(seeded, [0], rng=1)
            drawn += parmap.pmap(draw, [0])
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


@pytest.mark.parametrize("start", ["fresh", "fork"])
def test_workers_begin_with_states_of_their_own(start, tmp_path):
    """Unseeded draws differ between workers, between calls, and from the caller's."""
    np.random.seed(1)
    random.seed(1)
    mine = [(np.random.RandomState(1).random(), random.Random(1).random())]

    def draw(call, i):
        # Each waits until the other is there: so both workers draw.
        if i:
            (tmp_path / f"{start}{call}").read_text()
        else:
            (tmp_path / f"{start}{call}").write_text("")
        return os.getpid(), np.random.random(), random.random()

    with parmap.plan("processes", workers=2, start=start), quiet():
        rows = []
        for call in range(2):
            os.mkfifo(tmp_path / f"{start}{call}")
            rows += parmap.pmap(draw, [call] * 2, range(2), chunks=1)
    assert len({pid for pid, _, _ in rows}) == 2
    numbers = [number for _, *pair in rows for number in pair] + [*mine[0]]
    assert len(set(numbers)) == len(numbers)


_POOLS = """
import json, multiprocessing, os, random, sys, warnings
from concurrent.futures import ProcessPoolExecutor
import numpy as np
import parmap

def draw(fifo, i):
    # Each waits until the other is there: so both workers draw.
    open(fifo, "r" if i else "w").close()
    return np.random.random(), random.random()

def seed():
    np.random.seed(7)

def drawn(fifo, **options):
    os.mkfifo(fifo)
    forks = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, forks, **options) as pool, parmap.plan(pool):
        return parmap.pmap(draw, [fifo] * 2, range(2), chunks=1)

warnings.simplefilter("ignore")
own = drawn("own")
np.random.set_bit_generator(np.random.PCG64(1))
other = drawn("other")
np.random.set_bit_generator(np.random.MT19937(1))
print(json.dumps([own, other, drawn("seeded", initializer=seed)]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_pool_s_forked_workers_begin_with_states_of_their_own(run):
    """Whoever forks them; what an initializer has seeded since stays."""
    own, other, seeded = json.loads(run(_POOLS, flags=()))
    for drawn in (own, other):
        assert len({number for pair in drawn for number in pair}) == 4
    assert {first for first, _ in seeded} == {np.random.RandomState(7).random()}


# -- the warning -----------------------------------------------------------------------------------


# From Python 3.12 on, a fork of a process with threads warns, and rightly: at the first call,
# if an earlier test has left any, as OpenMP's runtime does.
_FORKS = "This process .* is multi-threaded"


def heard(call):
    """The warnings of a call, and the line that it stands on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", _FORKS)
        call()
    assert all(w.category is parmap.UnseededRandomWarning for w in caught), caught
    return caught


def ways(fn):
    return {
        # First, where the workers are new and have loaded nothing yet.
        "one element": lambda: parmap.pmap(fn, [1]),
        "pmap": lambda: parmap.pmap(fn, range(40), chunks=1),
        "starmap": lambda: parmap.starmap(fn, [(i,) for i in range(40)], chunks=3),
        "imap": lambda: list(parmap.imap(fn, range(40), chunks=1)),
        "pgrid": lambda: parmap.pgrid(fn, {"i": range(4), "j": range(10)}),
        "compute": lambda: parmap.compute([parmap.delayed(fn)(i) for i in range(40)]),
    }


def drawing_from(which):
    if which == "numpy":
        # No normals: every second one comes from the one before, and leaves the state alone.
        def shaken(i=0, j=0):
            return np.random.random()

    elif which == "random":

        def shaken(i=0, j=0):
            return random.random()

    else:

        def shaken(i=0, j=0):
            import random as python

            import numpy.random

            return numpy.random.random(), python.random()

    return shaken


@pytest.mark.parametrize("plan", EVERYWHERE)
@pytest.mark.parametrize("which", ["numpy", "random", "loaded by the function"])
def test_unseeded_draws_draw_one_warning_per_call(plan, which):
    """It names the function, says what to write, and points at the line of the call."""
    with parmap.plan(plan):
        calls = {name: (call, heard(call)) for name, call in ways(drawing_from(which)).items()}
    for name, (call, caught) in calls.items():
        assert len(caught) == 1, (name, list(map(str, caught)))
        message = str(caught[0].message)
        assert message.startswith("shaken draws from the global generator"), name
        assert "rng=1" in message
        assert "def shaken(..., rng)" in message
        assert caught[0].filename == __file__
        assert caught[0].lineno == inspect.getsourcelines(call)[1], name


@pytest.mark.parametrize("plan", EVERYWHERE)
def test_a_submitted_call_warns_once_too(plan):
    """Also where the answer comes in another thread; it points at the line of the submit."""
    fn = drawing_from("numpy")
    line = inspect.currentframe().f_lineno + 4
    with warnings.catch_warnings(record=True) as caught, parmap.plan(plan):
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", _FORKS)
        parmap.submit(fn, 1).result(60)
        # Leaving the plan waits for the thread that brought the answer.
    assert [str(w.message).split()[0] for w in caught] == ["shaken"]
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]


@pytest.mark.parametrize("plan", EVERYWHERE)
def test_no_warning_without_need(plan):
    """Not for seeded calls, nor for a generator of the function's own, nor for none at all."""

    def taking(i=0, j=0, rng=None):
        return rng.normal()

    def own(i=0, j=0):
        generator, python = np.random.default_rng(i), random.Random(i)
        return generator.normal(), python.random()

    def none(i=0, j=0):
        return i

    with parmap.plan(plan):
        assert heard(lambda: parmap.pmap(taking, range(20), rng=1)) == []
        assert heard(lambda: parmap.compute(parmap.delayed(taking)(1), rng=1)) == []
        for fn in (own, none):
            for call in ways(fn).values():
                assert heard(call) == []
        if not plan.startswith("threads"):
            fn = drawing_from("numpy")
            assert heard(lambda: parmap.pmap(fn, range(20), rng=1)) == []
            assert heard(lambda: parmap.submit(fn, 1, rng=1).result(60)) == []


def test_each_call_warns_for_itself():
    fn = drawing_from("random")
    assert len(heard(lambda: [parmap.pmap(fn, range(3)) for _ in range(3)])) == 3


def test_a_callers_own_draws_are_not_laid_to_the_function():
    """The input may come from a generator that draws as it goes."""

    def numbers():
        for _ in range(10):
            yield random.random() + np.random.random()

    def mention(x):
        return random.__name__, np.random.__name__, x

    assert heard(lambda: parmap.pmap(mention, numbers(), chunks=1)) == []


def test_the_warning_can_be_made_an_error(run):
    """As an error it ends the call, with the parent's generators untouched."""
    run("""
        import random, parmap
        def draw(i):
            return random.random()
        state = random.getstate()
        try:
            parmap.pmap(draw, range(10))
        except parmap.UnseededRandomWarning as warning:
            assert "draw" in str(warning)
        else:
            raise AssertionError("no error")
        assert random.getstate() == state
    """)


# -- roots -------------------------------------------------------------------------------------


def test_roots_travel_and_compare_as_values():
    import pickle

    for rng in (3, [1, 2], SeedSequence(8).spawn(3)[2], parmap.Streams(1, "Philox")):
        root = root_of(rng)
        assert pickle.loads(pickle.dumps(root)) == root == root_of(rng)
        assert len({root, root_of(rng)}) == 1


def test_streams_of_elements_far_out_need_none_before_them():
    """Element 10**9 is no further away than element 0."""
    stream = root_of(4).stream(10**9)
    assert stream.random() == Generator(PCG64(SeedSequence(4, spawn_key=(10**9,)))).random()
    assert isinstance(stream.bit_generator, BitGenerator)


def test_this_file_is_not_imported_by_workers():
    """So that the numbers above are those of functions that travel by value."""
    name = Path(__file__).stem

    def loaded(i):
        import sys

        return [module for module in sys.modules if module.endswith(name)]

    with parmap.plan("processes", workers=1):
        assert parmap.pmap(loaded, range(1)) == [[]]


def test_sequential_calls_in_two_threads_give_the_callers_generators_back():
    """Each would swap them under the other, and the last to end would leave the first's."""
    both, first_in = threading.Barrier(2, timeout=60), threading.Event()

    def draw(name):
        first_in.set()
        both.wait()  # now both are inside of a task
        return np.random.random(), random.random()

    def call(name):
        with parmap.plan("sequential"):
            return parmap.pmap(draw, [name])

    np.random.seed(5)
    random.seed(5)
    kind = np.random.get_bit_generator()
    # Once for both: the filters are the process's, and each would restore them under the other.
    with quiet(), ThreadPoolExecutor(2) as threads:
        first = threads.submit(call, "first")
        assert first_in.wait(60)
        second = threads.submit(call, "second")
        assert first.result(60)
        assert second.result(60)
    assert np.random.get_bit_generator() is kind


def test_a_second_thread_may_not_seed_what_a_first_one_uses():
    inside, go_on = threading.Event(), threading.Event()

    def wait(i):
        inside.set()
        assert go_on.wait(60)
        return np.random.random()

    def seeded():
        with parmap.plan("sequential"):
            return parmap.pmap(wait, [0], rng=1)

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(seeded)
        assert inside.wait(60)
        try:
            with pytest.raises(RuntimeError, match="another thread"):
                parmap.pmap(drawing_globally(), range(3), rng=1)
        finally:
            go_on.set()
        beside_another = first.result(60)
        assert beside_another == seeded()
