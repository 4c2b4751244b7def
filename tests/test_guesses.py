"""What newcomers guess, and what parmap answers: the message says what to write instead."""

import dataclasses
import functools
import inspect
import pydoc
import warnings
from typing import get_args

import pytest

import parmap
from parmap.calls.signature import DEFAULTS
from parmap.plans import guesses, registry, specs


def model(x, alpha=1, *, seed=0):
    return x * alpha + seed


class Fit:
    def fit(self, x, seed):
        return x + seed


def refused(call, *args, **options):
    with pytest.raises((TypeError, parmap.PlanError)) as caught:
        call(*args, **options)
    return str(caught.value)


# -- options of calls -----------------------------------------------------------------------------

CALLS = {
    "pmap": lambda **options: parmap.pmap(abs, [1], **options),
    "starmap": lambda **options: parmap.starmap(abs, [(1,)], **options),
    "imap": lambda **options: parmap.imap(abs, [1], **options),
    "pgrid": lambda **options: parmap.pgrid(abs, {"x": [1]}, **options),
    "compute": lambda **options: parmap.compute([], **options),
}
PEERS = {
    "seed": "use rng=",
    "random_state": "use rng=",
    "future_seed": "use rng=",
    "chunksize": "use chunks=",
    "batch_size": "use chunks=",
    "future.chunk.size": "use chunks=",
    "desc": "use label=",
    "verbose": "use progress=",
    "progress_bar": "use progress=",
    "pm_pbar": "use progress=",
    "return_exceptions": "use errors=",
    "max_retries": "use retries=",
    "task_timeout": "use timeout=",
    "n_jobs": "it belongs to the plan: parmap.set_plan('processes', workers=...)",
    "max_workers": "it belongs to the plan: parmap.set_plan('processes', workers=...)",
    "mc.cores": "it belongs to the plan: parmap.set_plan('processes', workers=...)",
    "initializer": "it belongs to the plan: parmap.set_plan('processes', setup=...)",
    "backend": "calls run on the plan that is set: parmap.set_plan('processes')",
    "plan": "calls run on the plan that is set: parmap.set_plan('processes')",
    "return_as": "use ordered= or window=",
    "kwargs": "functools.partial",
    "error": "did you mean 'errors'?",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", PEERS)
def test_a_peers_name_of_an_option_gets_its_hint(call, name):
    said = refused(CALLS[call], **{name: 1})
    assert said.startswith(f"{call}() has no option {name!r}")
    assert PEERS[name] in said
    more = ", ordered, window" if call == "imap" else ""
    assert said.endswith(f"Options: {', '.join(DEFAULTS)}{more}")
    assert ("only parmap.imap" in said) == (name == "return_as" and call != "imap")


def test_what_hints_say_exists():
    """Each option that they name, and no name has two hints, or is an option itself."""
    fields = dataclasses.fields(parmap.plan("processes"))
    options = {field.metadata.get("option", field.name) for field in fields}
    assert set(guesses._CALL) <= set(DEFAULTS)
    assert set(guesses._PLAN) <= options
    assert set(guesses._NAMES) <= set(registry.names())
    tables = [guesses._CALL, guesses._PLAN, {"": guesses._WHERE}, {"": guesses._LAZY}]
    for named in (tables, [guesses._NAMES]):
        words = " ".join(text for table in named for text in table.values()).split()
        assert len(set(words)) == len(words)
        assert not set(words) & {guesses._plain(name) for table in named for name in table}
    assert all(word == guesses._plain(word) for word in words)


def test_an_argument_of_the_function_is_told_from_an_option():
    said = refused(parmap.pmap, model, [1, 2], alpha=2)
    assert "use functools.partial(model, alpha=...), or lambda x: model(x, alpha=...)" in said
    # Also one whose name is that of an option elsewhere.
    said = refused(parmap.pmap, model, [1, 2], seed=2)
    assert "functools.partial(model, seed=...)" in said
    said = refused(parmap.starmap, model, [(1, 2)], seed=2)
    assert "lambda *args: model(*args, seed=...)" in said
    said = refused(parmap.pmap, Fit().fit, [1, 2], seed=2)
    assert "functools.partial(fit, seed=...)" in said
    said = refused(parmap.pmap, lambda x, alpha: x, [1], alpha=2)
    assert "functools.partial(function, alpha=...)" in said
    said = refused(parmap.pgrid, model, {"x": [1]}, alpha=2)
    assert "functools.partial(model, alpha=...), or an axis: {'alpha': [...]}" in said
    said = refused(parmap.compute, parmap.delayed(model)(1), alpha=2)
    assert "delayed(function)(..., alpha=...)" in said


class Strange:
    """A callable object that refuses to be asked for anything."""

    def __call__(self, x):
        return x

    def __getattribute__(self, name):
        raise AssertionError(f"asked for {name}")


def test_the_function_is_not_asked():
    assert "functools.partial(Strange, alpha=...)" in refused(parmap.pmap, Strange(), [1], alpha=2)


def test_what_the_messages_advise_works():
    assert parmap.pmap(functools.partial(model, alpha=2), [1, 2]) == [2, 4]
    assert parmap.pmap(lambda x: model(x, alpha=2), [1, 2]) == [2, 4]
    assert parmap.starmap(lambda *args: model(*args, seed=1), [(1, 2)]) == [3]
    assert parmap.pgrid(model, {"x": [1], "alpha": [2]})[0, 0] == 2


# -- options and names of plans -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("n_jobs", "use workers="),
        ("max_workers", "use workers="),
        ("num_cpus", "use workers="),
        ("initializer", "use setup="),
        ("mp_context", "use start="),
        ("inner_max_num_threads", "use threads_per_worker="),
        ("worker", "did you mean 'workers'?"),
        ("chunksize", "an option of each call: parmap.pmap(function, data, chunks=...)"),
        ("rng", "an option of each call: parmap.pmap(function, data, rng=...)"),
        ("seed", "an option of each call: parmap.pmap(function, data, rng=...)"),
        ("progress", "an option of each call: parmap.pmap(function, data, progress=...)"),
    ],
)
def test_a_peers_name_of_a_plans_option_gets_its_hint(name, hint):
    expected = f"the plan 'processes' has no option {name!r}"
    for said in (
        refused(parmap.plan, "processes", **{name: 1}),
        refused(parmap.set_plan, "processes", **{name: 1}),
        refused(parmap.plan, f"processes({name}=1)"),
        refused(parmap.plan("processes").replace, **{name: 1}),
    ):
        assert said.startswith(expected)
        assert hint in said


def test_a_hint_names_no_option_that_this_plan_lacks():
    assert "use start=" not in refused(parmap.plan, "threads", mp_context=1)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("multisession", "parmap calls it 'processes'"),
        ("multiprocessing", "parmap calls it 'processes'"),
        ("loky", "parmap calls it 'processes'"),
        ("threading", "parmap calls it 'threads'"),
        ("single-threaded", "parmap calls it 'sequential'"),
        ("proceses", "did you mean 'processes'?"),
    ],
)
def test_a_peers_name_of_a_plan_gets_its_hint(name, hint):
    named = name if name.isidentifier() else None
    said = refused(registry.named, name) if named is None else refused(parmap.plan, name)
    assert said.startswith(f"there is no plan named {name!r}")
    assert hint in said


@pytest.mark.parametrize("name", ["threads", "processes", "dask", "ray", "joblib"])
@pytest.mark.parametrize("workers", [0, -1, 1.5, "4", True])
def test_workers_are_spoken_of_by_their_name(name, workers):
    said = refused(parmap.plan, name, workers=workers)
    assert said == f"workers={workers!r}: give a whole number, at least 1"


def test_editors_offer_the_plans_that_there_are():
    assert list(get_args(specs.PlanName)) == list(registry._BUILTIN)


def test_a_name_that_parmap_does_not_have_is_known_to_python():
    """Which then asks: did you mean 'pmap'?"""
    with pytest.raises(AttributeError) as caught:
        parmap.map
    assert (caught.value.name, caught.value.obj) == ("map", parmap)


# -- options that can be seen ---------------------------------------------------------------------

VISIBLE = [parmap.pmap, parmap.starmap, parmap.imap, parmap.pgrid, parmap.compute]


@pytest.mark.parametrize("function", VISIBLE, ids=CALLS)
def test_options_are_in_the_signature_with_their_defaults(function):
    parameters = inspect.signature(function).parameters
    shown = {name: parameters[name].default for name in DEFAULTS}
    assert shown == DEFAULTS
    assert {parameters[name].kind for name in DEFAULTS} == {inspect.Parameter.KEYWORD_ONLY}
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    assert "progress=None" in pydoc.plain(pydoc.render_doc(function))


# -- set_plan, and a plan that nobody enters ------------------------------------------------------


def test_set_plan_shows_nothing_and_refuses_none():
    before = parmap.current_plan()
    try:
        assert parmap.set_plan("threads", workers=2) is None
        said = refused(parmap.set_plan, None)
        assert "keep current_plan() before you call set_plan" in said
        assert parmap.current_plan() == parmap.plan("threads", workers=2)
    finally:
        parmap.set_plan(before)


CALL = "print(parmap.pmap(abs, [-1]), parmap.pmap(abs, [-2]))"
DROPPED = {
    "a line": "parmap.plan('processes')",
    "with options": "parmap.plan('processes', workers=2, threads_per_worker=1)",
    "more lines": "parmap.plan(\n    'processes',\n    workers=2,\n)",
    "by keywords": "parmap.plan('processes', **{'workers': 2})",
    "by arguments": "parmap.plan(*['processes'])",
    "its own name": "from parmap import plan\nplan('processes')",
    "in a function": "def main():\n    parmap.plan('processes')\n\nmain()",
    "in a loop": "for _ in range(3):\n    parmap.plan('processes')",
    "before others": "parmap.plan('processes'); x = 1",
    "later": "x = 1\nif x:\n    parmap.plan('processes')\nelse:\n    x = 2",
}


@pytest.mark.parametrize("source", DROPPED.values(), ids=DROPPED)
def test_a_plan_that_a_statement_drops_is_warned_of_once(start, source):
    script = start(f"import parmap\n{source}\n{CALL}\n", flags=())
    out, err = script.end()
    assert out == "[1] [2]\n"
    assert err.count("UserWarning") == 1
    assert "parmap.plan('processes', ...) in line " in err
    assert "this call runs sequentially" in err
    assert "parmap.set_plan(...)" in err
    assert CALL in err  # the warning shows the call's line


KEPT = {
    "with": "with parmap.plan('threads'):\n    pass",
    "a name": "later = parmap.plan('threads')",
    "set_plan": "parmap.set_plan(parmap.plan('sequential'))",
    "set after it": "parmap.plan('threads')\nparmap.set_plan('sequential')",
    "printed": "text = str(parmap.plan('threads'))",
    "compared": "assert parmap.plan('threads') == parmap.plan('threads')",
    "decorator": "@parmap.plan('threads')\ndef f(): pass",
    "started": "parmap.plan('threads').start().shutdown()",
    "in a list": "plans = [parmap.plan(name) for name in ('threads', 'sequential')]",
    "returned": "def make(): return parmap.plan('threads')\nmake()",
    "refused": "try:\n    parmap.plan('nowhere')\nexcept parmap.PlanError:\n    pass",
    "no call runs without": "parmap.plan('threads')\nparmap.plan('threads').__enter__()",
}


@pytest.mark.parametrize("source", KEPT.values(), ids=KEPT)
def test_plans_that_are_used_or_kept_are_not_warned_of(start, source):
    out, err = start(f"import parmap\n{source}\n{CALL}\n").end()
    assert (out, err) == ("[1] [2]\n", "")


@pytest.mark.parametrize("call", ["pmap(abs, [-1])", "submit(abs, -1)", "imap(abs, [-1])"])
def test_where_warnings_are_errors_the_next_call_works(run, call):
    assert (
        run(f"""
        import warnings, parmap
        warnings.simplefilter("error")
        parmap.plan("threads", workers=2)
        try:
            parmap.{call}
        except UserWarning as warning:
            print(str(warning).startswith("parmap.plan('threads', ...) in line 4"))
        print(parmap.pmap(abs, [-1]))
        """)
        == "True\n[1]\n"
    )


def test_a_shell_that_shows_the_plan_drops_it_too(run):
    """As Python's own, and notebooks, do with the last line of a cell."""
    assert (
        run("""
        import code, warnings, parmap
        shell = code.InteractiveConsole({"parmap": parmap})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shell.push("parmap.plan('threads', workers=2)")
            shell.push("parmap.pmap(abs, [-1])")
        print(len(caught), "set_plan" in str(caught[0].message))
        """)
        == "<Plan threads(workers=2)>\n[1]\n1 True\n"
    )


def test_tasks_and_blocks_do_not_warn():
    with warnings.catch_warnings(), parmap.plan("threads", workers=2):
        warnings.simplefilter("error")
        parmap.plan("processes")
        assert parmap.pmap(abs, [-1]) == [1]
        assert parmap.pmap(lambda x: parmap.pmap(abs, [x]), [-1]) == [[1]]
    parmap.set_plan(parmap.current_plan())  # forgets what was dropped here
