"""Lazy calls: what `compute` runs, when, where, and what comes of it."""

import collections
import contextlib
import dataclasses
import enum
import gc
import itertools
import operator
import os
import re
import shutil
import sys
import weakref
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import parmap
from parmap.calls import graph
from parmap.calls.options import settings as options
from parmap.engine import dag_run
from parmap.engine.dag import Dag, Runner
from parmap.engine.dag_run import DagCutter, DagRun
from parmap.engine.loop import Call, Settings
from parmap.engine.structure import Shape
from parmap.observe import events
from tests.hand import HandQueue, HandSession


@dataclasses.dataclass
class Box:
    """A dataclass that holds inputs of calls."""

    left: object
    right: object = None


@dataclasses.dataclass(frozen=True)
class Sealed:
    """One on which nothing can be set."""

    inside: object


class Pair(collections.namedtuple("Pair", ["a", "b"])):  # noqa: PYI024 - an untyped one
    __slots__ = ()


Typed = collections.namedtuple("Typed", ["x", "y"])  # noqa: PYI024 - as above


def computed(
    structure, step=None, *, workers=2, chunks=1, errors="raise", observers=(), session=None
):
    """Compute in a session whose chunks run by hand, as `parmap.compute` would."""
    calls, nodes, (wanted, whole) = graph._linked([structure])
    functions, nodes = graph._numbered(calls, nodes)
    run = DagRun(Dag(nodes, set(wanted)))
    session = session or HandSession(workers)
    chosen = options("compute", {"chunks": chunks, "errors": errors}, ordered=False)
    chosen = chosen._replace(observers=observers)
    assert isinstance(chosen, Settings)
    call = Call(session, Runner(functions, None), run, chosen, buffer=run)
    call._in_flight.landed = HandQueue(
        (lambda: session.flying[0].run()) if step is None else lambda: step(session)
    )
    for _ in call.results():
        pass
    return whole.build(run.resolved(wanted))[0]


def names(sent):
    """The calls that a chunk holds."""
    return [[node.name for _, node in steps] for steps in sent.chunk.columns[0]]


@contextlib.contextmanager
def watched(monkeypatch):
    """Hear the events of all calls made in the block."""
    heard = []
    original = graph.settings

    def settings(*args, **kwargs):
        chosen = original(*args, **kwargs)
        return chosen._replace(observers=(*chosen.observers, heard.append))

    with monkeypatch.context() as patch:
        patch.setattr(graph, "settings", settings)
        yield heard


def sent(heard):
    return [event for event in heard if isinstance(event, events.ChunkSent)]


# -- random graphs are plain evaluation ---------------------------------------------------------

WRAPS = {
    "direct": lambda xs: (list(xs), {}),
    "list": lambda xs: ([list(xs)], {}),
    "tuple": lambda xs: ([tuple(xs)], {}),
    "dict": lambda xs: ([dict(enumerate(xs))], {}),
    "keywords": lambda xs: ([], {f"k{i}": x for i, x in enumerate(xs)}),
    "dataclass": lambda xs: ([Box(list(xs), (1, xs[0] if xs else None))], {}),
    "frozen dataclass": lambda xs: ([Sealed(tuple(xs))], {"more": 0}),
    "named tuple": lambda xs: ([Pair(list(xs), "b")], {}),
    "deep": lambda xs: ([{"a": [(x, [x]) for x in xs]}], {"k": {"z": list(xs)}}),
}


@st.composite
def graphs(draw):
    """A graph as a list of (wrap, needs), and the nodes that are asked for."""
    n = draw(st.integers(1, 14))
    nodes = []
    for i in range(n):
        needs = draw(st.lists(st.integers(0, i - 1), max_size=3)) if i else []
        nodes.append((draw(st.sampled_from(sorted(WRAPS))), needs))
    wanted = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4))
    return nodes, wanted


def traced(number, *args, **kwargs):
    """What a node gives: its number, and all that it got."""
    return (number, repr(args), repr(sorted(kwargs.items())))


def built(description, call):
    nodes, wanted = description
    made = []
    for number, (wrap, needs) in enumerate(nodes):
        args, kwargs = WRAPS[wrap]([made[need] for need in needs])
        made.append(call(number, *args, **kwargs))
    return [made[i] for i in wanted]


def needed(description):
    """The nodes that what is asked for needs."""
    nodes, wanted = description
    found, todo = set(), list(wanted)
    while todo:
        number = todo.pop()
        if number not in found:
            found.add(number)
            todo += nodes[number][1]
    return found


@given(description=graphs(), chunks=st.sampled_from(["auto", "static", "dynamic", "guided", 1, 3]))
def test_a_graph_gives_what_plain_evaluation_gives_and_runs_each_node_once(description, chunks):
    ran = []

    def counted(number, *args, **kwargs):
        ran.append(number)
        return traced(number, *args, **kwargs)

    lazy = built(description, parmap.delayed(counted))
    assert parmap.compute(lazy, chunks=chunks) == built(description, traced)
    assert sorted(ran) == sorted(needed(description))


@given(
    description=graphs(),
    workers=st.integers(1, 4),
    chunks=st.sampled_from(["auto", 1, 2, 5]),
    data=st.data(),
)
def test_whatever_lands_first_a_graph_gives_the_same(description, workers, chunks, data):
    """And each node runs once, after all that it needs."""
    ran = []

    def counted(number, *args, **kwargs):
        assert set(description[0][number][1]) <= set(ran)
        ran.append(number)
        return traced(number, *args, **kwargs)

    def step(session):
        data.draw(st.sampled_from(session.flying)).run()

    lazy = built(description, parmap.delayed(counted))
    results = computed(lazy, step, workers=workers, chunks=chunks)
    assert results == built(description, traced)
    assert sorted(ran) == sorted(needed(description))


def test_random_graphs_on_processes(tmp_path):
    """The same numbers of calls, counted through a file that all workers write to."""
    log = str(tmp_path / "log")

    def counted(number, *args, **kwargs):
        with open(log, "a") as file:
            file.write(f"{number}\n")
        return traced(number, *args, **kwargs)

    @settings(max_examples=40)
    @given(description=graphs(), chunks=st.sampled_from(["auto", "guided", 1, 3]))
    def check(description, chunks):
        open(log, "w").close()
        lazy = built(description, parmap.delayed(counted))
        assert parmap.compute(lazy, chunks=chunks) == built(description, traced)
        with open(log) as file:
            assert sorted(map(int, file)) == sorted(needed(description))

    with parmap.plan("processes", workers=2):
        check()


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=2)", "processes(workers=2)"])
def test_structures_come_back_in_their_shape(plan):
    """Of every kind, nested in one another, with plain values left as they are."""
    add = parmap.delayed(operator.add)
    one, shared = add(0, 1), add(add(1, 1), 1)
    structure = {
        "list": [one, [shared, shared]],
        "tuple": (one, (), [], {}),
        3: Pair(shared, Typed(one, "text")),
        None: Box(one, Sealed({"deep": [(shared,)]})),
        "plain": "kept",
    }
    with parmap.plan(plan):
        result = parmap.compute(structure)
    assert result == {
        "list": [1, [3, 3]],
        "tuple": (1, (), [], {}),
        3: Pair(3, Typed(1, "text")),
        None: Box(1, Sealed({"deep": [(3,)]})),
        "plain": "kept",
    }
    assert type(result[3]) is Pair
    assert type(result[3].b) is Typed
    assert list(result) == list(structure)
    assert structure["list"][0] is one  # the caller's own is not written to


def test_several_structures_come_back_as_a_tuple():
    one = parmap.delayed(abs)(-1)
    assert parmap.compute(one, [one], 5) == (1, [1], 5)
    assert parmap.compute(one) == 1
    assert parmap.compute() == ()


@pytest.mark.parametrize("chunks", ["auto", "static", "guided", 3])
@pytest.mark.parametrize("plan", ["sequential", "processes(workers=2)"])
def test_structures_without_calls_are_what_they_were(plan, chunks):
    plain = {"a": [1, (2,)], "b": Box(1)}
    with parmap.plan(plan):
        assert parmap.compute(plain, chunks=chunks) is plain
        assert parmap.compute([], chunks=chunks) == []


def test_parts_without_calls_are_passed_as_the_very_objects():
    """No copies are made of what holds no delayed calls."""
    plain, got = [1, {"x": object()}], []
    parmap.compute(parmap.delayed(lambda x, y: got.append(x))(plain, parmap.delayed(abs)(-1)))
    assert got[0] is plain


def test_what_looks_like_a_container_but_is_a_value_is_left_alone():
    """Strings, classes, enumerations, subclasses with a mind of their own."""

    class Colour(enum.Enum):
        RED = 1

    class Odd(list):
        pass

    values = ["abc", b"abc", range(3), Colour.RED, Colour, Box, Odd([1]), {1, 2}, iter(())]
    same = parmap.delayed(lambda *xs: xs)
    assert all(a is b for a, b in zip(parmap.compute(same(*values)), values, strict=True))


def test_delayed_keeps_the_functions_name_and_documentation():
    @parmap.delayed
    def fit(x):
        """Fits."""
        return x

    assert fit.__name__ == "fit"
    assert fit.__doc__ == "Fits."
    assert repr(fit(1)) == "<Delayed fit>"
    assert parmap.compute(fit(fit(3))) == 3


def test_a_graph_can_be_computed_again_and_in_parts():
    """Each time its calls are made anew."""
    ran = []
    note = parmap.delayed(lambda x: ran.append(x) or len(ran))
    first = note(1)
    second = note(first)
    assert parmap.compute(second) == 2
    assert parmap.compute(first) == 3
    assert parmap.compute(second, first) == (5, 4)


# -- readiness ----------------------------------------------------------------------------------


def test_a_call_starts_as_soon_as_its_inputs_are_there():
    """No levels: a slow branch does not hold up another."""
    seen = []

    def step(session):
        flying = [(s, steps) for s in session.flying for steps in s.chunk.columns[0]]
        # All but the slow one, for as long as there is anything else.
        others = [s for s, steps in flying if len(steps) > 1 or steps[0][0] != 0]
        if not others:
            seen.append("slow")
            assert [name for name in ran if name != "slow"] == [
                "fast",
                "follow 0",
                "follow 1",
                "last",
            ]
        (others or [flying[0][0]])[0].run()

    ran = []
    note = parmap.delayed(lambda name, *inputs: ran.append(name) or name)
    slow, fast = note("slow"), note("fast")
    follow = [note(f"follow {i}", fast) for i in range(2)]
    last = note("last", *follow)
    assert computed([slow, last], step) == ["slow", "last"]
    assert seen == ["slow"]
    assert ran[-1] == "slow"


def test_the_first_calls_of_what_is_ready_go_first():
    node = parmap.delayed(lambda *inputs: len(inputs))
    session = HandSession(workers=1)
    computed([node() for _ in range(10)], session=session)
    assert [name for s in session.sent for (name,) in names(s)] == [
        f"<lambda>#{i}" for i in range(10)
    ]


@pytest.mark.parametrize("chunks", ["auto", "static", "guided", "dynamic", 1, 1000])
@pytest.mark.parametrize("workers", [2, 3, 8])
def test_while_there_is_ready_work_no_worker_is_without(chunks, workers):
    """A square of delayed cells, in nested lists, and a sum of each row."""
    # The whole square once; element by element, a smaller one says as much.
    size = 300 if (chunks, workers) == ("auto", 3) else 25
    cell, total = parmap.delayed(lambda i, j: i * j), parmap.delayed(sum)
    square = [[cell(i, j) for j in range(size)] for i in range(size)]
    rows = [total(row) for row in square[:10]]
    session = HandSession(workers)
    started = []

    def step(session):
        ready = len(flows[0].ready)
        if ready:
            assert len(session.flying) >= workers
        started.append(ready)
        # The youngest first: the worst order for those that wait.
        session.flying[-1 if len(started) % 2 else 0].run()

    flows = []
    original = DagCutter.__init__

    def init(self, dag, flow, *args, **kwargs):
        flows.append(flow)
        original(self, dag, flow, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DagCutter, "__init__", init)
        cells, sums = computed((square, rows), step, chunks=chunks, session=session)
    assert cells == [[i * j for j in range(size)] for i in range(size)]
    assert sums == [sum(i * j for j in range(size)) for i in range(10)]


def test_a_diamond_computes_its_root_once():
    ran = []
    note = parmap.delayed(lambda name, *inputs: ran.append(name) or (name, *inputs))
    root = note("root")
    result = parmap.compute(note("end", note("left", root), note("right", root)))
    assert result == ("end", ("left", ("root",)), ("right", ("root",)))
    assert ran == ["root", "left", "right", "end"]


def test_calls_in_single_file_stay_in_one_worker(monkeypatch):
    """Each the only user of the one before: one element, which does not come home between."""

    def here(before=()):
        return (*before, os.getpid())

    lazy = parmap.delayed(here)
    ends = []
    for _ in range(4):
        end = lazy()
        for _ in range(5):
            end = lazy(end)
        ends.append(end)
    with parmap.plan("processes", workers=2), watched(monkeypatch) as heard:
        results = parmap.compute(ends, chunks=1)
    assert [len(set(pids)) for pids in results] == [1] * 4
    assert [len(pids) for pids in results] == [6] * 4
    assert [event.size for event in sent(heard)] == [1] * 4


def test_what_is_asked_for_ends_a_file():
    """Its result must come home, so what follows it is another element."""
    note = parmap.delayed(lambda *inputs: len(inputs))
    first = note()
    middle = note(first)
    session = HandSession(1)
    assert computed([note(middle), middle], session=session) == [1, 1]
    assert [names(s) for s in session.sent] == [
        [["<lambda>#0", "<lambda>#1"]],
        [["<lambda>#2"]],
    ]


# -- failures -----------------------------------------------------------------------------------


def failing():
    def load(i):
        if i % 2:
            raise ValueError(f"file {i}")
        return i

    return parmap.delayed(load)


def test_the_error_names_the_call_that_failed():
    """Also where it stands alone; its number is its place in Python's order."""
    load, total = failing(), parmap.delayed(sum)
    for plan in ("sequential", "processes(workers=2)"):
        with parmap.plan(plan), pytest.raises(ValueError) as caught:
            parmap.compute(total([load(0), load(2), load(3), load(4)]))
        assert caught.value.args == ("file 3",)
        assert "load#2" in "\n".join(caught.value.__notes__)


def test_the_error_in_a_file_names_the_call_and_its_place():
    step, load = parmap.delayed(lambda x: x + 1), failing()
    with pytest.raises(ValueError) as caught:
        parmap.compute(load(step(load(step(0)))))
    assert "load#1" in "\n".join(caught.value.__notes__)
    assert "2 of 4" in "\n".join(caught.value.__notes__)


def test_an_error_that_takes_no_notes_comes_through_as_it_is():
    class Stiff(Exception):
        def __setattr__(self, name, value):
            raise AttributeError(f"cannot set {name}")

    def fail(x):
        raise Stiff(x)

    bad, step = parmap.delayed(fail), parmap.delayed(abs)
    results = parmap.compute([bad(1), bad(step(2))], errors="return")
    assert [type(result.error) for result in results] == [Stiff, Stiff]


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=2)", "processes(workers=2)"])
@pytest.mark.parametrize("chunks", ["auto", 1, 4])
def test_what_needs_no_failed_call_is_kept(plan, chunks):
    """The others are failures, which tell the way to the call that failed."""
    load, total, scale = failing(), parmap.delayed(sum), parmap.delayed(abs)
    rows = [[load(i), load(i + 2)] for i in range(4)]
    structure = {"sums": [scale(total(row)) for row in rows], "cells": rows}
    with parmap.plan(plan):
        result = parmap.compute(structure, errors="return", chunks=chunks)
    assert result["sums"][0] == 2
    assert result["sums"][2] == 6
    assert result["cells"][0] == [0, 2]
    spoilt = result["sums"][1]
    assert isinstance(spoilt, parmap.Failure)
    assert isinstance(spoilt.error, parmap.DependencyFailed)
    assert isinstance(spoilt.error.__cause__, ValueError)
    assert "load#4" in str(spoilt.error)
    assert "file 1" in str(spoilt.error)
    assert [type(cell.error) for cell in result["cells"][1]] == [ValueError, ValueError]


def test_the_way_to_the_failed_call_names_the_calls_between():
    load, total = failing(), parmap.delayed(sum)
    bad = load(1)
    near = total([bad, load(0)])
    far = total([near, load(2)])
    result = parmap.compute([total([far]), far, near], errors="return")[0]
    assert str(result.error).startswith("sum#5 was not run, for it needs load#0 → sum#2 → sum#4,")
    assert isinstance(result.error.__cause__, ValueError)


def test_a_long_way_still_names_the_call_that_failed():
    """Calls between may be left out, but never its beginning."""
    load, pair = failing(), parmap.delayed(lambda *inputs: inputs)
    left, right = load(1), load(0)
    for _ in range(12):  # no call in single file with another
        left, right = pair(left, right), pair(right, left)
    end = parmap.compute(left, errors="return")
    assert "and load#0 failed: ValueError: file 1" in str(end.error)
    assert "needs load#0 → " in str(end.error)
    assert len(str(end.error)) < 300


@given(data=st.data())
def test_of_two_failed_inputs_the_first_is_told_whichever_landed_first(data):
    """The failure of what needs both is the same on every plan, at any speed."""
    load, total = failing(), parmap.delayed(lambda *inputs: inputs)
    one, two, three = load(1), load(3), load(5)
    pair = total(two, three)

    def step(session):
        data.draw(st.sampled_from(session.flying)).run()

    results = computed(
        [total(one, two, three), pair, total(pair, one)], step, errors="return", workers=3
    )
    told = [str(result.error).partition("#")[2] for result in results]
    assert told == [
        "3 was not run, for it needs load#0, and load#0 failed: ValueError: file 1",
        "4 was not run, for it needs load#1, and load#1 failed: ValueError: file 3",
        "5 was not run, for it needs load#0, and load#0 failed: ValueError: file 1",
    ]


@given(
    description=graphs(),
    bad=st.sets(st.integers(0, 13), min_size=1, max_size=4),
    chunks=st.sampled_from(["auto", 1, 3]),
    workers=st.integers(1, 4),
    data=st.data(),
)
def test_the_error_raised_is_the_one_that_python_would_meet_first(
    description, bad, chunks, workers, data
):
    """Whatever fails first by the clock."""

    def fails(number, *args, **kwargs):
        if number in bad:
            raise ValueError(number)
        return number

    def step(session):
        data.draw(st.sampled_from(session.flying)).run()

    lazy = built(description, parmap.delayed(fails))
    calls, _, _ = graph._linked([lazy])
    order = [call.args[0] for call in calls]
    first = next((number for number in order if number in bad), None)
    if first is None:
        computed(lazy, step, workers=workers, chunks=chunks)
        return
    with pytest.raises(ValueError) as caught:
        computed(lazy, step, workers=workers, chunks=chunks)
    assert caught.value.args == (first,)


def test_inner_calls_come_before_the_outer_and_arguments_in_their_order():
    """The order in which failures and random streams are numbered is that of evaluation."""
    node = parmap.delayed(lambda name, *_, **__: name)
    lazy = node("f", node("a", node("b")), [node("c")], x={"k": node("d", y=node("e"))})
    calls, _, _ = graph._linked([lazy])
    assert [call.args[0] for call in calls] == ["b", "a", "c", "e", "d", "f"]


@pytest.mark.parametrize("plan", ["sequential", "processes(workers=2)"])
def test_a_group_holds_all_failures(plan):
    """And the message does not count more failures than there are elements."""
    load, total = failing(), parmap.delayed(sum)
    with parmap.plan(plan), pytest.raises(parmap.FailureGroup) as caught:
        parmap.compute(load(0), total([load(1), load(3), load(5)]), errors="group", chunks=1)
    assert [error.args for error in caught.value.exceptions] == [
        ("file 1",),
        ("file 3",),
        ("file 5",),
    ]
    good, bad = caught.value.results
    assert good == 0
    assert isinstance(bad.error, parmap.DependencyFailed)
    failed, of = map(int, re.findall(r"\d+", caught.value.message))
    assert failed == 3
    assert of >= failed


def test_a_call_that_fails_is_retried_in_a_file(tmp_path):
    """The file begins again: what its earlier calls gave was not kept."""
    counter = tmp_path / "tries"

    def flaky(x):
        with counter.open("a+") as tries:
            tries.write("x")
            if tries.tell() < 3:
                raise OSError(x)
        return x

    lazy = parmap.delayed(operator.neg)(parmap.delayed(flaky)(parmap.delayed(abs)(-4)))
    with parmap.plan("processes", workers=2):
        assert parmap.compute(lazy, retries=2) == -4
    assert counter.read_text() == "xxx"


def test_a_worker_that_dies_costs_no_other_call(tmp_path):
    flag = tmp_path / "died"

    def die_once(x):
        if x == 3 and not flag.exists():
            flag.touch()
            os._exit(3)
        return x

    node, total = parmap.delayed(die_once), parmap.delayed(sum)
    with parmap.plan("processes", workers=2):
        lazy = total([total([node(i), node(i + 1)]) for i in range(6)])
        assert parmap.compute(lazy, chunks=2) == sum(2 * i + 1 for i in range(6))
    assert flag.exists()


@pytest.mark.parametrize("plan", ["sequential", "processes(workers=2)"])
def test_what_cannot_travel_fails_by_its_own_name(plan):
    class Trap:
        def __reduce__(self):
            raise TypeError("stays here")

    make = parmap.delayed(lambda: Trap() if plan != "sequential" else 1)
    with parmap.plan(plan):
        good, bad = parmap.compute([parmap.delayed(abs)(-1), make()], errors="return")
    assert good == 1
    if plan != "sequential":
        assert isinstance(bad.error, parmap.SerializationError)


# -- states and pictures ------------------------------------------------------------------------


def test_states_tell_what_came_of_each_call():
    load, total = failing(), parmap.delayed(sum)
    good, bad = load(0), load(1)
    end = total([good, bad])
    after = parmap.delayed(abs)(end)
    assert [call.state for call in (good, bad, end, after)] == ["waiting"] * 4
    parmap.compute(after, errors="return")
    assert [call.state for call in (good, bad, end, after)] == [
        "done",
        "failed",
        "not run",
        "not run",
    ]


@pytest.mark.parametrize("errors", ["raise", "group"])
def test_states_are_told_of_a_call_that_raised(errors):
    """So that the picture shows where it failed."""
    load, total = failing(), parmap.delayed(sum)
    good, bad = load(0), load(1)
    end = total([good, bad])
    with pytest.raises(ValueError if errors == "raise" else parmap.FailureGroup):
        parmap.compute(end, errors=errors)
    assert [call.state for call in (good, bad, end)] == ["done", "failed", "not run"]


SVG = "{http://www.w3.org/2000/svg}"
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


def half_done():
    @parmap.delayed
    def names_with_odd_signs(*inputs):
        return 1 / inputs[0]

    names_with_odd_signs.function.__name__ = 'a <b> & "c" \\ é'
    good = names_with_odd_signs(1)
    bad = names_with_odd_signs(0)
    end = names_with_odd_signs(good, bad)
    parmap.compute(end, errors="return")
    return end


def test_the_picture_without_graphviz(monkeypatch, tmp_path):
    """Well-formed SVG: a box for each call, with its name and state, a line for each need."""
    monkeypatch.setenv("PATH", str(tmp_path))
    end = half_done()
    file = tmp_path / "graph.svg"
    text = end.visualize(str(file))
    assert file.read_text(encoding="utf-8") == text
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert len(root.findall(f".//{SVG}rect")) == 3
    assert len(root.findall(f".//{SVG}line")) == 2
    assert [t.text for t in root.iter(f"{SVG}title")] == ["done", "failed", "not run"]
    assert [t.text for t in root.iter(f"{SVG}text")] == [f'a <b> & "c" \\ é#{i}' for i in range(3)]
    fills = {rect.get("fill") for rect in root.iter(f"{SVG}rect")}
    assert len(fills) == 3
    width, height = int(root.get("width")), int(root.get("height"))
    for rect in root.iter(f"{SVG}rect"):
        assert int(rect.get("x")) + int(rect.get("width")) <= width
        assert int(rect.get("y")) + int(rect.get("height")) <= height


def test_boxes_do_not_cover_one_another(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    node = parmap.delayed(lambda *inputs: 0)
    level = [node() for _ in range(5)]
    for _ in range(4):
        level = [node(*level) for _ in range(3)]
    root = ET.fromstring(node(*level).visualize())
    corners = [(r.get("x"), r.get("y")) for r in root.iter(f"{SVG}rect")]
    assert len(set(corners)) == len(corners) == 5 + 4 * 3 + 1
    assert {call.state for call in level} == {"waiting"}


def fake_dot(folder):
    """A stand-in for Graphviz, which writes down what it was told."""
    tool = folder / "dot"
    tool.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        "here = pathlib.Path(__file__).parent\n"
        "(here / 'args').write_text(' '.join(sys.argv[1:]))\n"
        "(here / 'told').write_bytes(sys.stdin.buffer.read())\n"
        "print('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')\n"
    )
    tool.chmod(0o755)


def test_the_picture_is_drawn_by_graphviz_where_it_is_installed(monkeypatch, tmp_path):
    """It is told each call, its state and its needs, in its own language."""
    fake_dot(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    text = half_done().visualize()
    assert ET.fromstring(text).tag == f"{SVG}svg"
    assert (tmp_path / "args").read_text() == "-Tsvg"
    told = (tmp_path / "told").read_text(encoding="utf-8").splitlines()
    assert told[0] == "digraph {"
    assert told[-1] == "}"
    assert {"0 -> 2", "1 -> 2"} <= set(told)
    assert sum('label="a <b> & \\"c\\" \\\\ é#' in line for line in told) == 3
    assert sum('tooltip="not run"' in line for line in told) == 1


@needs_dot
def test_the_picture_by_the_real_graphviz():
    root = ET.fromstring(half_done().visualize())
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert [f'a <b> & "c" \\ é#{i}' for i in range(3)] == sorted(texts)


# -- what is refused ----------------------------------------------------------------------------


def test_a_list_that_contains_itself_is_refused():
    ring = [1]
    ring.append([ring])
    with pytest.raises(ValueError, match="contains itself"):
        parmap.compute(ring)
    with pytest.raises(ValueError, match="contains itself"):
        parmap.compute(parmap.delayed(len)(ring))


def test_a_list_that_stands_in_several_places_is_no_circle():
    twice = [parmap.delayed(abs)(-1)]
    assert parmap.compute([twice, (twice, {"a": twice})]) == [[1], ([1], {"a": [1]})]


def test_calls_that_need_one_another_are_refused():
    """A circle can only be made through a list that is changed afterwards."""
    call = parmap.delayed(len)
    own = []
    own.append(call(own))
    with pytest.raises(ValueError, match="circle"):
        parmap.compute(own[0])
    first, second = [], []
    first.append(call(second))
    second.append(call(call(first)))
    with pytest.raises(ValueError, match="circle"):
        parmap.compute([call(first)])
    with pytest.raises(ValueError, match="circle"):
        first[0].visualize()


@pytest.mark.parametrize("inside", [False, True])
def test_a_lazy_value_of_another_library_is_refused_by_name(inside):
    class Delayed:
        def __dask_graph__(self):
            return {}

    structure = [Delayed()]
    with pytest.raises(TypeError, match=r"Delayed is another library's lazy value"):
        parmap.compute(parmap.delayed(len)(structure) if inside else structure)


def test_a_delayed_call_is_no_key():
    call = parmap.delayed(abs)(-1)
    for structure in ({call: 1}, [{"a": {call: 1}}], parmap.delayed(len)({call: 1})):
        with pytest.raises(TypeError, match="dict's key"):
            parmap.compute(structure)


def test_a_delayed_call_has_no_truth_and_no_items():
    call = parmap.delayed(sorted)([1])
    for use in (bool, iter, list, lambda c: 1 if c else 2, lambda c: [*c]):
        with pytest.raises(TypeError, match="<Delayed sorted> has no value yet"):
            use(call)


@pytest.mark.parametrize("use", [len, lambda c: c[0], lambda c: c + 1, float, lambda c: 1 in c])
def test_a_delayed_call_is_no_value(use):
    with pytest.raises(TypeError):
        use(parmap.delayed(abs)(-1))


@pytest.mark.parametrize("wrong", [3, None, "f"])
def test_only_functions_can_be_delayed(wrong):
    with pytest.raises(TypeError, match="needs a function"):
        parmap.delayed(wrong)


@pytest.mark.parametrize(
    "chunks",
    [
        parmap.Static(cyclic=True),
        parmap.Dynamic(cost=lambda x: x),
        parmap.Auto(shuffle=True),
        parmap.Guided(cost=[1]),
    ],
)
def test_chunks_that_reorder_are_refused(chunks):
    with pytest.raises(ValueError, match="sets its own order"):
        parmap.compute(parmap.delayed(abs)(-1), chunks=chunks)


# -- size ---------------------------------------------------------------------------------------


def test_a_chain_of_100_000_calls():
    """One element, run without recursion, and freed without it."""
    step = parmap.delayed(operator.add)
    end = 0
    for _ in range(100_000):
        end = step(end, 1)
    assert parmap.compute(end) == 100_000
    del end
    gc.collect()


def test_a_long_chain_travels():
    step = parmap.delayed(operator.add)
    end = 0
    for _ in range(5_000):
        end = step(end, 1)
    with parmap.plan("processes", workers=2):
        assert parmap.compute([end, parmap.delayed(abs)(-1)]) == [5_000, 1]


def test_a_ladder_of_5_000_rungs():
    """No call is in single file with another, so each is an element."""
    add = parmap.delayed(operator.add)
    left, right = 0, 1
    for _ in range(5_000):
        left, right = add(left, 1), add(right, left)
        left = add(left, left)
    total = parmap.compute([left, right], chunks=200)[0]
    expected = 0
    for _ in range(5_000):
        expected = (2 * (expected + 1)) % 2**64
    assert total % 2**64 == expected


def test_a_fan_of_100_000_calls():
    """Into one call that needs them all."""
    node, total = parmap.delayed(abs), parmap.delayed(sum)
    assert parmap.compute(total([node(-i) for i in range(100_000)])) == sum(range(100_000))


def test_a_structure_nested_50_000_deep():
    """In all kinds of containers by turns, around one call, and as an argument of one."""
    wraps = [lambda x: [x], lambda x: (x,), lambda x: {"k": x}, Sealed]
    opens = [lambda x: x[0], lambda x: x[0], operator.itemgetter("k"), lambda x: x.inside]
    depth = 50_000

    def inmost(structure):
        for i in reversed(range(depth)):
            structure = opens[i % 4](structure)
        return structure

    deep = parmap.delayed(abs)(-7)
    for i in range(depth):
        deep = wraps[i % 4](deep)
    assert inmost(parmap.compute(deep)) == 7
    assert parmap.compute(parmap.delayed(inmost)(deep)) == 7


def pushes_and_builds(monkeypatch, lazy):
    """Count what a computation does: pushes on the heap, and shapes built."""
    counts = collections.Counter()
    with monkeypatch.context() as patch:
        push, build = dag_run.heapq.heappush, Shape.build
        patch.setattr(dag_run.heapq, "heappush", lambda *a: (counts.update(["push"]), push(*a))[1])
        patch.setattr(Shape, "build", lambda *a: (counts.update(["build"]), build(*a))[1])
        parmap.compute(lazy)
    return counts


def test_work_grows_as_the_graph_does(monkeypatch):
    """Each call's arguments are built once, and each is made ready at most once."""

    def ladder(rungs):
        add = parmap.delayed(operator.add)
        left, right = add(0, 0), add(0, 0)
        for _ in range(rungs):
            left, right = add(left, right), add(right, left)
        return [left, right]

    for rungs in (50, 500, 5000):
        nodes = 2 * (rungs + 1)
        counts = pushes_and_builds(monkeypatch, ladder(rungs))
        assert counts["push"] <= nodes
        assert counts["build"] == nodes + 1  # and the whole
    fan = parmap.delayed(sum)([parmap.delayed(abs)(i) for i in range(5000)])
    assert pushes_and_builds(monkeypatch, fan) == {"push": 1, "build": 5002}


def test_linking_looks_at_each_call_once(monkeypatch):
    """However often it is shared: without that, this graph would have 2**200 paths."""
    looked = []
    original = graph.shape_of
    monkeypatch.setattr(graph, "shape_of", lambda s: (looked.append(1), original(s))[1])
    node = parmap.delayed(lambda a, b: a + b)
    end = node(1, 0)
    for _ in range(200):
        end = node(end, end)
    assert parmap.compute(end) == 2**200
    assert len(looked) == 202


class Result:
    """A result that can be watched."""


def test_results_are_dropped_when_nobody_needs_them():
    """By the time that a call runs, what only calls long over needed is gone."""
    alive = weakref.WeakSet()
    most = []

    def make(*inputs):
        most.append(len(alive))
        result = Result()
        alive.add(result)
        return result

    node = parmap.delayed(make)
    left, right = node(), node()
    for _ in range(50):  # no call in single file with another
        left, right = node(left, right), node(right, left)
    last = parmap.delayed(lambda *_: len(alive))
    assert parmap.compute(last(left, right), chunks=1) <= 6
    assert max(most) <= 6
    gc.collect()
    assert len(alive) == 0


def test_results_in_single_file_are_dropped_too():
    alive = weakref.WeakSet()
    most = []

    def make(before=None):
        del before
        most.append(len(alive))
        result = Result()
        alive.add(result)
        return result

    end = parmap.delayed(make)()
    for _ in range(50):
        end = parmap.delayed(make)(end)
    parmap.compute(parmap.delayed(lambda x: None)(end))
    assert max(most) <= 2
    assert len(alive) == 0


def test_a_graph_that_failed_keeps_nothing_alive():
    """Neither its results nor its inputs, once the error is forgotten."""
    alive = weakref.WeakSet()

    def make(x):
        result = Result()
        alive.add(result)
        if x == 3:
            raise ValueError
        return result

    node, use = parmap.delayed(make), parmap.delayed(len)
    with contextlib.suppress(ValueError):
        parmap.compute(use([node(i) for i in range(5)]))
    gc.collect()
    assert len(alive) == 0


def test_states_go_with_their_calls():
    call = parmap.delayed(abs)(-1)
    parmap.compute(call)
    before = len(graph._states)
    del call
    gc.collect()
    assert len(graph._states) < before


@pytest.mark.parametrize("plan", ["processes(workers=2)", "threads(workers=2)"])
def test_calls_of_a_graph_may_compute_graphs(plan):
    def inner(n):
        node = parmap.delayed(operator.mul)
        return sum(parmap.compute([node(i, i) for i in range(n)]))

    lazy = [parmap.delayed(inner)(n) for n in range(6)]
    with parmap.plan(plan):
        assert parmap.compute(lazy) == [sum(i * i for i in range(n)) for n in range(6)]


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=2)", "processes(workers=2)"])
def test_progress_counts_every_element(plan):
    seen = []
    node = parmap.delayed(operator.neg)
    lazy = [node(node(i)) for i in range(20)]
    with parmap.plan(plan):
        parmap.compute(lazy, progress=seen.append, chunks=3)
    assert seen[-1].done == seen[-1].total == 20


def test_many_functions_travel_once_each():
    """Their number does not multiply with the calls: a function stands in one list."""
    functions = [parmap.delayed(lambda x, k=k: x + k) for k in range(3)]
    calls = [f(i) for i, f in itertools.product(range(10), functions)]
    linked, nodes, _ = graph._linked([calls])
    listed, nodes = graph._numbered(linked, nodes)
    assert len(listed) == 3
    with parmap.plan("processes", workers=2):
        assert parmap.compute(calls) == [i + k for i in range(10) for k in range(3)]


@pytest.mark.parametrize("chunks", ["static", "guided"])
def test_policies_that_share_out_a_number_share_out_what_is_ready(chunks):
    session = HandSession(workers=3)
    cells = [parmap.delayed(abs)(-i) for i in range(900)]
    assert computed(cells, chunks=chunks, session=session) == list(range(900))
    assert len(session.sent) < 30


@pytest.mark.parametrize(
    "container", [lambda call: {call}, lambda call: collections.OrderedDict(a=call)]
)
def test_a_call_in_a_container_that_is_not_looked_into_is_refused(container):
    with pytest.raises(TypeError, match="cannot be looked into"):
        parmap.compute(container(parmap.delayed(abs)(-1)))
