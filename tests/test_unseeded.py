"""What is said of random numbers that repeat, or that nobody can draw again."""

# ruff: noqa: NPY002 - functions that draw from the global generator are what these tests are about

import collections
import copyreg
import functools
import itertools
import pickle
import random
import secrets
import subprocess
import sys
import textwrap
import threading
import types
import warnings

import numpy as np
import pytest

import parmap
from parmap.engine.draws import draws_of
from parmap.engine.hints import hints_of
from parmap.transport.generators import Noticing
from parmap.transport.payload import dumps
from parmap.worker.random_state import RngUseDetector

PACKING = ("processes(workers=2)", "joblib(workers=2)")
EVERYWHERE = ("sequential", "threads(workers=2)", *PACKING)


def heard(call):
    """What a call says of random numbers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught if one.category is parmap.UnseededRandomWarning]


def sent(value):
    """A value as a worker gets it, and the classes of the generators that were copied for it."""
    with Noticing() as found:
        data = dumps(value, "")
    return pickle.loads(data), [type(one).__name__ for one in found], len(data)


# -- how generators travel -------------------------------------------------------------------


@pytest.mark.parametrize(
    "function", [np.random.normal, np.random.random, np.random.shuffle, random.gauss, random.random]
)
def test_functions_of_global_generators_travel_by_name(function):
    """Today's state would be 2 to 5 kB, and the same for all workers."""
    for wrap in (lambda f: f, lambda f: functools.partial(f, 1), lambda f: [{"f": f}]):
        there, copied, size = sent(wrap(function))
        assert copied == []
        assert size < 300
        inner = there[0]["f"] if isinstance(there, list) else getattr(there, "func", there)
        assert inner.__self__ is function.__self__


@pytest.mark.parametrize("generator", [np.random.mtrand._rand, random._inst])
def test_the_global_generators_themselves_travel_by_name(generator):
    assert sent(generator)[:2] == (generator, [])


def test_generators_without_a_state_travel():
    there, copied, _ = sent(secrets.choice)
    assert there([3]) == 3
    assert copied == []


class Dice(random.Random):
    """A generator of the user's."""


class Registered(random.Random):
    """One that has a reducer of its own."""


copyreg.pickle(Registered, lambda _: (Registered, (4,)))


class Simulation:
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def run(self, i, j=0):
        return self.rng.random()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: np.random.default_rng(0), "Generator"),
        (lambda: np.random.RandomState(0), "RandomState"),
        (lambda: random.Random(0), "Random"),
        (lambda: Dice(0), "Dice"),
        (lambda: Registered(0), "Registered"),
    ],
)
def test_other_generators_are_noticed_by_their_type(make, kind):
    """As they are, bound, in a partial, in an attribute, captured."""
    one = make()
    holder = Simulation()
    holder.rng = one
    for value in (one, one.random, functools.partial(pow, one), holder.run, lambda: one.random()):
        assert sent(value)[1] == [kind]
    assert sent(Registered(0))[0].random() == Registered(4).random()


def test_nothing_else_is_taken_for_a_generator():
    values = [np.random.PCG64(1), np.random.SeedSequence(1), np.random.Generator, random.Random]
    values += [Simulation, np.arange(3), collections.Counter("a"), Dice]
    assert sent(values)[1] == []


# -- copies ----------------------------------------------------------------------------------


def gen_and_mean(func, n, *args):
    return float(func(*args, size=n).mean())


@pytest.mark.parametrize("plan", PACKING)
def test_a_function_that_draws_may_be_an_argument(plan):
    """Each call draws its own numbers; with a seed, those of the loop."""

    def six(**options):
        calls = [parmap.delayed(gen_and_mean)(np.random.normal, 9, 0, 1) for _ in range(6)]
        return parmap.compute(calls, **options)

    want = six(rng=1)
    with parmap.plan(plan):
        assert six(rng=1, chunks=1) == want
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", parmap.UnseededRandomWarning)
            assert len(set(six(chunks=1))) == 6
            drawn = parmap.pmap(np.random.normal, [0.0] * 100, chunks=10)
            drawn += parmap.pmap(random.gauss, [0.0] * 100, [1.0] * 100, chunks=10)
    assert len(set(drawn)) == 200


def shared(rng):
    """Calls that give one generator to many elements, by name."""

    def own(i, r):
        return r.random()

    ways = {
        "captured": lambda: parmap.pmap(lambda i: rng.random(), range(8), chunks=2),
        "bound": lambda: parmap.pmap(rng.uniform, range(8), range(8), chunks=2),
        "partial": lambda: parmap.pmap(functools.partial(own, r=rng), range(8), chunks=2),
        "repeated": lambda: parmap.pmap(own, range(8), itertools.repeat(rng), chunks=2),
        "list": lambda: parmap.pmap(own, range(8), [rng] * 8, chunks=2),
        "starmap": lambda: parmap.starmap(own, [(i, rng) for i in range(8)], chunks=2),
        "imap": lambda: list(parmap.imap(own, range(8), [rng] * 8, chunks=2)),
        "pgrid": lambda: parmap.pgrid(own, {"i": range(4), "r": [rng]}, chunks=1),
        "delayed": lambda: parmap.compute([parmap.delayed(own)(i, rng) for i in range(8)]),
        "submit": lambda: [parmap.submit(own, i, rng).result() for i in range(2)],
        "shared": lambda: parmap.pmap(own, range(8), itertools.repeat(parmap.share(rng))),
    }
    holder = Simulation()
    holder.rng = rng
    ways["attribute"] = lambda: parmap.pmap(holder.run, range(8), chunks=2)
    return ways


@pytest.mark.parametrize("name", list(shared(None)))
def test_a_generator_that_many_elements_have_is_copied_with_one_warning(name):
    with parmap.plan("processes", workers=2):
        said = heard(shared(np.random.default_rng(0))[name])
        assert len(said) == 1, said
        assert "random generator" in said[0]
        assert "draw the same numbers" in said[0]
        assert "rng=1" in said[0]
        # Another generator, another call: that is said anew.
        assert len(heard(shared(random.Random(0))[name])) == 1
    for plan in ("sequential", "threads(workers=2)"):  # where it is not copied
        with parmap.plan(plan):
            assert heard(shared(np.random.default_rng(0))[name]) == []


@pytest.mark.parametrize("plan", PACKING)
def test_generators_of_the_elements_own_are_as_they_should_be(plan):
    """No warning, and the numbers of the loop."""

    def own(i, r):
        return r.random()

    def streams():
        return np.random.default_rng(0).spawn(8)

    want = list(map(own, range(8), streams()))
    with parmap.plan(plan):
        calls = [parmap.delayed(own)(i, r) for i, r in enumerate(streams())]
        for call in (
            lambda: parmap.pmap(own, range(8), streams(), chunks=1),
            lambda: parmap.pmap(own, range(8), streams()),
            lambda: parmap.starmap(own, enumerate(streams()), chunks=2),
            # Each is gone when the next is made: another may get its number.
            lambda: list(parmap.imap(own, range(8), iter(streams()), chunks=1)),
            lambda: parmap.compute(calls, chunks=1),
            lambda: [parmap.submit(own, 0, r).result() for r in streams()],
        ):
            got = []
            assert heard(lambda call=call, got=got: got.extend(call())) == []
            assert got == want


def test_a_chunk_that_is_sent_again_is_no_second_copy(tmp_path):
    def once(i, r):
        if not (tmp_path / str(i)).exists():
            (tmp_path / str(i)).touch()
            raise OSError(i)
        return r.random()

    rngs = np.random.default_rng(0).spawn(4)
    with parmap.plan("processes", workers=2):
        assert heard(lambda: parmap.pmap(once, range(4), rngs, retries=2, chunks=2)) == []


def test_a_captured_generator_is_told_of_with_rng_too():
    own = np.random.default_rng(0)
    with parmap.plan("processes", workers=2):
        (said,) = heard(lambda: parmap.pmap(lambda i, rng: own.random(), range(4), rng=1))
    assert "Draw from the parameter rng" in said


def test_the_warning_of_a_copy_can_be_an_error():
    """Nothing stays behind, and the session still works."""
    own = np.random.default_rng(0)
    with parmap.plan("processes", workers=2), warnings.catch_warnings():
        warnings.simplefilter("error", parmap.UnseededRandomWarning)
        for call in (
            lambda: parmap.pmap(lambda i: own.random(), range(4)),
            lambda: parmap.pmap(lambda i, r: r.random(), range(8), [own] * 8, chunks=1),
            lambda: parmap.submit(lambda: own.random()),
        ):
            with pytest.raises(parmap.UnseededRandomWarning):
                call()
        assert parmap.pmap(abs, [-1, 2]) == [1, 2]


# -- draws -----------------------------------------------------------------------------------


def fit_idle(name):
    """A fit that draws a seed, or two, which it does not use."""

    def fit(i):
        import importlib

        module, kind = name.rsplit(".", 1)
        rng = np.random.default_rng(i)
        X = rng.normal(size=(40, 3))
        few = {"max_iter": 2} if kind.startswith("Hist") else {}
        model = getattr(importlib.import_module(module), kind)(**few)
        model.fit(X, X[:, 0] > 0 if kind.endswith(("SVC", "Classifier")) else X[:, 0])
        return i

    return fit


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=2)", "processes(workers=2)"])
def test_seeds_that_a_library_draws_for_nothing_are_no_news(plan):
    pytest.importorskip("sklearn")
    names = ["linear_model.Lasso", "linear_model.ElasticNet", "svm.SVC"]
    names += ["ensemble.HistGradientBoostingRegressor"]
    with parmap.plan(plan):
        for name in names:
            assert heard(lambda name=name: parmap.pmap(fit_idle(f"sklearn.{name}"), range(4))) == []


def forest(i, rng=None):
    from sklearn.ensemble import RandomForestRegressor

    X = np.random.default_rng(i).normal(size=(30, 3))
    return RandomForestRegressor(5).fit(X, X[:, 0]).predict(X[:1])


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=2)", "processes(workers=2)"])
def test_a_forest_without_a_seed_is_told_of(plan):
    """Also, and above all, where the call has a seed, which does not reach it."""
    pytest.importorskip("sklearn.ensemble")
    with parmap.plan(plan):
        (without,) = heard(lambda: parmap.pmap(forest, range(8), chunks=1))
        (beside,) = heard(lambda: parmap.pmap(forest, range(8), rng=1, chunks=1))
    assert "or a function that it calls, draws from the global generator" in without
    assert "takes rng" in beside
    assert all("random_state=int(rng.integers(2**31))" in said for said in (without, beside))


@pytest.mark.parametrize("plan", EVERYWHERE)
def test_a_function_that_takes_a_stream_and_draws_elsewhere_is_told_of(plan):
    """From NumPy's or Python's global generator; one that draws from its stream is not."""

    # No normals: every second one comes from the one before, and leaves the state alone.
    def numpys(i, rng):
        return np.random.random()

    def pythons(i, rng):
        return random.random()

    def good(i, rng):
        return rng.normal(), np.random.default_rng(i).random(), random.Random(i).random()

    with parmap.plan(plan):
        for fn, name in ((numpys, "numpy.random"), (pythons, "random")):
            (said,) = heard(lambda fn=fn: parmap.pmap(fn, range(9), rng=1, chunks=2))
            assert said.startswith(f"{fn.__name__} takes rng, and it still draws")
            assert f"the global generator of {name}," in said
            assert "rng=1" not in said
            (said,) = heard(lambda fn=fn: parmap.submit(fn, 1, rng=1).result(60))
        assert heard(lambda: parmap.pmap(good, range(9), rng=1, chunks=2)) == []


def test_the_advice_works_on_threads():
    """A function without the parameter is refused there with rng=, so first it takes one."""

    def draw(i):
        return np.random.random()

    with parmap.plan("threads", workers=2):
        (said,) = heard(lambda: parmap.pmap(draw, range(4)))
        assert "def draw(..., rng)" in said
        assert heard(lambda: parmap.pmap(lambda i, rng: rng.random(), range(4), rng=1)) == []


@pytest.mark.parametrize("plan", EVERYWHERE)
def test_a_function_that_seeds_is_its_own_master(plan):
    def seeded(i):
        np.random.seed(i)
        random.seed(i)
        return np.random.random(), random.random()

    with parmap.plan(plan):
        assert heard(lambda: parmap.pmap(seeded, range(6), chunks=2)) == []


def test_what_draws_while_it_is_loaded_is_no_draw_of_the_function(tmp_path):
    """As the libraries do that make tables of random numbers; a draw in a later call counts."""
    (tmp_path / "drawing_once.py").write_text(
        "import numpy, random\nnumpy.random.random(99)\nrandom.random()\n"
        "def more():\n    return numpy.random.random(99)\n"
    )

    def load(i, more):
        sys.path.insert(0, str(tmp_path))
        try:
            module = importlib.import_module("drawing_once")
        finally:
            sys.path.pop(0)
        return len(module.more()) if more else random.__name__

    import importlib

    with parmap.plan("processes", workers=2):
        assert heard(lambda: parmap.pmap(load, range(8), [False] * 8, chunks=2)) == []
        assert len(heard(lambda: parmap.pmap(load, range(8), [True] * 8, chunks=2))) == 1


def test_the_callers_own_draws_are_not_laid_to_tasks_on_threads():
    """Between two results of a lazy call the caller may draw; what is written in a task counts."""
    with parmap.plan("threads", workers=2):

        def own(i, rng):
            return rng.random()

        def loop():
            for _ in parmap.imap(own, range(50), rng=1, chunks=1):
                np.random.random(5)

        def draw(i, rng):
            return np.random.random()

        assert heard(loop) == []
        assert len(heard(lambda: list(parmap.imap(draw, range(9), rng=1, chunks=1)))) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 3, 624, 700, 5000])
@pytest.mark.parametrize("before", [0, 1, 620])
def test_how_far_a_generator_has_moved_is_counted_exactly(count, before):
    """Also across the twister's whole states, of which each draw looks the same."""
    mine = np.random.get_state()
    try:
        np.random.seed(3)
        np.random.bytes(4 * before)
        for elements in (1, 312, 2500):
            detector = RngUseDetector(())
            if count:
                np.random.bytes(4 * count)
            moves = detector.moves(elements)
            assert bool(moves) == bool(count)
            assert [move.few for move in moves] == [count <= 2 * elements] * len(moves)
    finally:
        np.random.set_state(mine)


# -- reading code ----------------------------------------------------------------------------


def test_draws_are_found_where_they_are_written():
    import random as python
    from random import gauss

    from numpy.random import normal

    numpy = np

    def inner_import(i):
        import numpy.random

        return numpy.random.rand()

    def renamed(i):
        from random import choice

        from numpy import random as r

        return r.rand(), choice([i])

    def held(i):
        r = np.random
        return r.rand()

    def in_another(i):
        return [inner_import(j) for j in range(i)]

    class Walk:
        def run(self, i):
            return self.step()

        def step(self):
            return numpy.random.rand()

    cases = {
        inner_import: {"numpy.random"},
        renamed: {"numpy.random", "random"},
        held: {"numpy.random"},
        in_another: {"numpy.random"},
        Walk().run: {"numpy.random"},
        Walk: {"numpy.random"},
        np.random.normal: {"numpy.random"},
        random.gauss: {"random"},
        functools.partial(held): {"numpy.random"},
        functools.lru_cache(held): {"numpy.random"},
        (lambda i: Walk().run(i)): {"numpy.random"},
        (lambda i: normal() + gauss(0, 1)): {"numpy.random", "random"},
        (lambda i: python.random()): {"random"},
        (lambda i: np.random.default_rng(i).normal()): set(),
        (lambda i: random.Random(i).random()): set(),
        (lambda i: np.random.RandomState(i).rand()): set(),
        abs: set(),
    }
    for fn, drawn in cases.items():
        assert draws_of([fn]).drawn == drawn, fn
    assert draws_of([lambda i: np.random.seed(i)]).seeded == {"numpy.random"}


class AttrDict(dict):
    __getattr__ = dict.__getitem__


class Growing(collections.defaultdict):
    __getattr__ = collections.defaultdict.__getitem__


class Proxy:
    """One that must not be asked for anything."""

    def __getattribute__(self, name):
        raise RuntimeError(name)

    def __eq__(self, other):
        raise RuntimeError("==")

    def __bool__(self):
        raise RuntimeError("bool")

    __hash__ = None


class Meta(type):
    def __getattribute__(cls, name):
        raise RuntimeError(name)


class Strange(metaclass=Meta):
    pass


def names_only(i):
    return (settings, growing, proxy, strange, Strange, random.random())  # noqa: F821


def test_the_users_objects_are_left_alone():
    """Their types are looked at, never an attribute: asking may raise, or change them."""

    growing = Growing(int)
    things = {"settings": AttrDict(random=2), "growing": growing, "proxy": Proxy()}
    things |= {"strange": Strange(), "Strange": Strange}
    # Not globals of this file, into which pytest looks.
    fn = types.FunctionType(names_only.__code__, {**things, "random": random})
    assert hints_of([fn]) == ("random",)
    assert draws_of([fn]).drawn == {"random"}
    for thing in things.values():
        assert hints_of([thing]) == ()
        assert draws_of([thing]).drawn == set()
    assert dict(growing) == {}


# -- torch -----------------------------------------------------------------------------------

TORCH = """
    import random, warnings
    import parmap
    {loading}
    def draw(i):
        import torch
        return float(torch.randn(1)), torch.randint(99, (1,)).item(), random.random()
    def taking(i, rng):
        import torch
        return float(torch.randn(3).sum())
    want = [parmap.pmap(draw, range(4), rng=1, chunks=chunks) for chunks in (1, 3)]
    import torch
    torch.manual_seed(5)
    number = float(torch.randn(1))
    torch.manual_seed(5)
    parmap.pmap(draw, range(4), rng=1)
    with warnings.catch_warnings(record=True) as said, parmap.plan("{plan}"):
        warnings.simplefilter("always")
        assert [parmap.pmap(draw, range(4), rng=1, chunks=chunks) for chunks in (1, 3)] == want
        assert not [one for one in said if one.category is parmap.UnseededRandomWarning], said
        rows = parmap.pmap(draw, range(8), chunks=1)
        parmap.pmap(taking, range(8), rng=1, chunks=1)
    assert want[0] == want[1]
    assert float(torch.randn(1)) == number  # the caller's own is as it was
    assert len({{row[0] for row in rows}}) == 8
    last = str(said[-1].message)
    assert last.startswith("taking takes rng") and "torch" in last, said
    assert "generator=torch.Generator()" in last
"""


@pytest.mark.parametrize(
    ("loading", "plan"),
    [("", "processes(workers=1)"), ("import torch", "processes(workers=2, start='fork')")],
    ids=["loaded by the function", "loaded before, and forked"],
)
def test_torch_is_seeded_like_the_others_and_given_back(loading, plan):
    pytest.importorskip("torch")
    code = textwrap.dedent(TORCH).format(loading=loading, plan=plan)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_thread_that_waits_sees_no_generator_list():
    """Who packs in another thread meanwhile is not listened to."""
    with Noticing() as found:
        thread = threading.Thread(target=dumps, args=(np.random.default_rng(0), ""))
        thread.start()
        thread.join()
    assert found == []


# -- generators of modules -------------------------------------------------------------------

SIMULATION = """
import random, secrets
import numpy as np

rng, python, own = np.random.default_rng(0), random.Random(0), secrets.SystemRandom()

def draw(i):
    return rng.random()

def through_another(i):
    return draw(i)

def by_default(i, rng=np.random.default_rng(0)):
    return rng.random()

def pythons(i):
    return python.random()

def fresh(i):
    rng = np.random.default_rng(i)
    return rng.random()

def the_systems(i):
    return own.random()
"""


@pytest.mark.parametrize(
    ("function", "warns"),
    [
        ("simulation.draw", True),
        ("simulation.through_another", True),
        ("simulation.by_default", True),
        ("simulation.pythons", True),
        ("lambda i: simulation.rng.random()", True),
        ("lambda i: simulation.draw(i)", True),
        ("(lambda module: lambda i: module.draw(i))(simulation)", True),
        ("simulation.fresh", False),
        ("lambda i: simulation.fresh(i)", False),
        ("simulation.the_systems", False),
    ],
)
def test_generators_of_modules_are_warned_of(run, tmp_path, function, warns):
    """Each worker that imports the module makes its own, and they draw the same numbers."""
    (tmp_path / "simulation.py").write_text(SIMULATION)
    out = run(
        f"""
        import sys, warnings
        sys.path.insert(0, {str(tmp_path)!r})
        import parmap, simulation
        function = {function}
        for plan in ("sequential", "threads(workers=2)", "processes(workers=2)"):
            with warnings.catch_warnings(record=True) as said, parmap.plan(plan):
                warnings.simplefilter("always")
                parmap.pmap(function, range(8), chunks=2)
            print(any("draw the same numbers" in str(one.message) for one in said))
        """
    )
    assert out == f"False\nFalse\n{warns}\n"
