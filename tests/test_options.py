import inspect
import threading
from typing import get_type_hints

import pytest

import parmap
from parmap.calls.options import settings
from parmap.calls.signature import DEFAULTS

CALLS = [
    lambda **options: parmap.pmap(abs, [1], **options),
    lambda **options: parmap.starmap(abs, [(1,)], **options),
    lambda **options: list(parmap.imap(abs, [1], **options)),
]


@pytest.fixture(params=CALLS, ids=["pmap", "starmap", "imap"])
def call(request):
    return request.param


# -- the options ----------------------------------------------------------------------------


def test_every_option_is_documented():
    documented = inspect.getdoc(parmap.MapOptions).partition("Attributes\n----------\n")[2]
    names = [line.partition(" : ")[0] for line in documented.splitlines() if line[:1].strip()]
    assert names == list(DEFAULTS)
    assert set(names) == set(get_type_hints(parmap.MapOptions))


def test_every_default_is_documented():
    """It is that of the signature, and of a call that says nothing."""
    documented = inspect.getdoc(parmap.MapOptions)
    for name, default in DEFAULTS.items():
        line = next(line for line in documented.splitlines() if line.startswith(f"{name} : "))
        said = "optional" if default is None else f"default {default!r}".replace("'", '"')
        assert line.endswith(f", {said}"), line


def test_an_unknown_option_names_the_valid_ones(call):
    with pytest.raises(TypeError) as caught:
        call(error="return")
    assert "has no option 'error' (did you mean 'errors'?)" in str(caught.value)
    assert all(name in str(caught.value) for name in get_type_hints(parmap.MapOptions))


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"chunks": 0}, ValueError),
        ({"chunks": -3}, ValueError),
        ({"chunks": True}, TypeError),
        ({"chunks": 2.0}, TypeError),
        ({"chunks": None}, TypeError),
        ({"chunks": "dynamik"}, ValueError),
        ({"chunks": []}, TypeError),
        ({"chunks": parmap.Dynamic}, TypeError),
        ({"errors": "ignore"}, ValueError),
        ({"errors": None}, ValueError),
        ({"errors": []}, ValueError),
        ({"retries": -1}, ValueError),
        ({"retries": 1.0}, TypeError),
        ({"retries": True}, TypeError),
        ({"retries": "1"}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": True}, TypeError),
        ({"progress": 3}, TypeError),
        ({"progress": "bar"}, TypeError),
        ({"label": 3}, TypeError),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_wrong_values(call, options, kind):
    ((name, _),) = options.items()
    with pytest.raises(kind, match=f"{name}="):
        call(**options)


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=2)", "processes(workers=2)"])
@pytest.mark.parametrize("timeout", [5e9, 1e12, 1e308, 10**400], ids="abcd")
def test_a_timeout_of_centuries_is_no_limit(plan, timeout):
    """The system's own clocks refuse it."""
    with parmap.plan(plan):
        assert parmap.pmap(abs, range(4), timeout=timeout) == [0, 1, 2, 3]


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=2)", "processes(workers=2)"])
def test_a_timeout_of_next_to_nothing(plan):
    with parmap.plan(plan), pytest.raises(parmap.TaskTimeout, match="1e-300"):
        parmap.pmap(abs, range(4), timeout=1e-300)


@pytest.mark.parametrize("name", ["threads", "processes", "dask", "ray", "joblib"])
@pytest.mark.parametrize("workers", [10**30, 10**7])
def test_more_workers_than_there_can_be_are_refused_at_once(name, workers):
    with pytest.raises(parmap.PlanError, match=r"workers=1e.*give 1,000,000 at most"):
        parmap.plan(name, workers=workers)


class Steps(list):
    """A progress callable that keeps what it is told, and so is empty at first."""

    def __call__(self, counts):
        self.append(counts.done)


def test_a_progress_callable_is_not_asked_whether_it_is_true():
    steps = Steps()
    parmap.pmap(abs, range(4), progress=steps)
    assert steps[-1] == 4


@pytest.mark.parametrize(
    ("window", "kind"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_wrong_windows(window, kind):
    with pytest.raises(kind, match="window="):
        parmap.imap(abs, [1], window=window)


def test_wrong_options_are_refused_before_anything_is_pulled():
    pulled = []
    with pytest.raises(TypeError):
        parmap.imap(abs, map(pulled.append, range(3)), nothing=1)
    with pytest.raises(ValueError):
        parmap.pmap(abs, map(pulled.append, range(3)), errors="never")
    assert pulled == []


def test_imap_has_no_group():
    with pytest.raises(ValueError, match="errors='return'"):
        parmap.imap(abs, [1], errors="group")


@pytest.mark.parametrize("chunks", ["static", "guided", parmap.Dynamic(shuffle=True)], ids=repr)
def test_what_counts_the_elements_needs_an_input_with_a_length(chunks):
    with pytest.raises(ValueError, match="has no length"):
        parmap.imap(abs, iter([1]), chunks=chunks)
    assert list(parmap.imap(abs, [-1, -2], chunks=chunks)) == [1, 2]
    assert parmap.pmap(abs, iter([-1, -2]), chunks=chunks) == [1, 2]


def test_the_defaults_may_be_given(call):
    assert call(
        chunks="auto", errors="raise", retries=0, timeout=None, progress=None, label=None
    ) == [1]
    assert call(progress=False, timeout=60) == [1]


def test_to_give_the_defaults_is_to_give_nothing():
    """They are written down twice: where options are read, and for the calls that give none."""
    given = {"chunks": "auto", "errors": "raise", "retries": 0, "timeout": None, "label": None}
    assert settings("pmap", {}) == settings("pmap", given)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: parmap.Dynamic(size=0), ValueError),
        (lambda: parmap.Dynamic(size=1.0), TypeError),
        (lambda: parmap.Guided(smallest=0), ValueError),
        (lambda: parmap.Guided(smallest=True), TypeError),
        (lambda: parmap.Auto(target=0), ValueError),
        (lambda: parmap.Auto(target=float("inf")), ValueError),
        (lambda: parmap.Static(cost=[1], shuffle=True), ValueError),
        (lambda: parmap.Static(cost=abs, shuffle=0), ValueError),
    ],
)
def test_wrong_policies(make, kind):
    with pytest.raises(kind):
        make()


def test_costs_must_be_as_many_as_elements():
    with pytest.raises(ValueError, match="2 numbers for 3 elements"):
        parmap.pmap(abs, range(3), chunks=parmap.Dynamic(cost=[1, 2]))


def test_a_cost_function_that_fails_fails_the_call():
    with pytest.raises(ZeroDivisionError):
        parmap.pmap(abs, range(3), chunks=parmap.Dynamic(cost=lambda x: 1 / x))


def test_costly_elements_start_first():
    ran = []
    with parmap.plan("sequential"):
        parmap.pmap(ran.append, range(5), chunks=parmap.Dynamic(cost=[3, 1, 4, 1, 5]))
    assert ran == [4, 2, 0, 1, 3]


# -- progress -------------------------------------------------------------------------------


@pytest.fixture(params=["sequential", "threads(workers=2)", "processes(workers=2)"])
def anywhere(request):
    with parmap.plan(request.param):
        yield


@pytest.mark.usefixtures("anywhere")
def test_a_callable_gets_the_counts():
    counts = []
    parmap.pmap(abs, range(50), progress=counts.append, label="absolute", chunks=7)
    first, last = counts[0], counts[-1]
    assert (first.done, first.total, first.finished, first.label) == (0, 50, False, "absolute")
    assert (last.done, last.failed, last.total, last.finished) == (50, 0, 50, True)
    assert [c.finished for c in counts].count(True) == 1
    done = [c.done for c in counts]
    assert done == sorted(done)
    seconds = [c.seconds for c in counts]
    assert seconds == sorted(seconds)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("chunks", [1, 4, 20])
def test_failures_are_counted_apart(chunks):
    counts = []

    def fn(x):
        return 1 // (x % 5)

    parmap.pmap(fn, range(20), progress=counts.append, errors="return", chunks=chunks)
    assert (counts[-1].done, counts[-1].failed) == (16, 4)


@pytest.mark.usefixtures("anywhere")
def test_retries_are_not_counted_twice():
    counts = []
    results = parmap.pmap(
        lambda x: 1 // x, range(4), progress=counts.append, errors="return", retries=3, chunks=4
    )
    assert isinstance(results[0], parmap.Failure)
    assert (counts[-1].done, counts[-1].failed) == (3, 1)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("fails", [0, 3, 9])
def test_what_ran_before_a_failure_is_counted(fails):
    counts = []

    def fn(x):
        if x == fails:
            raise ValueError
        return x

    with pytest.raises(ValueError):
        parmap.pmap(fn, range(10), progress=counts.append, chunks=10)
    assert (counts[-1].done, counts[-1].failed) == (fails, 1)
    assert counts[-1].finished


def test_an_input_without_a_length_has_no_total():
    counts = []
    list(parmap.imap(abs, iter(range(5)), progress=counts.append))
    assert {c.total for c in counts} == {None}
    assert counts[-1].done == 5


def test_an_iterator_closed_early_finishes():
    counts = []
    results = parmap.imap(abs, range(100), progress=counts.append, chunks=1, window=2)
    next(results)
    results.close()
    assert counts[-1].finished
    assert counts[-1].done < 100


def test_the_callable_runs_in_the_callers_thread():
    threads = []
    with parmap.plan("threads", workers=2):
        parmap.pmap(abs, range(9), progress=lambda _: threads.append(threading.get_ident()))
    assert set(threads) == {threading.get_ident()}


def test_an_error_in_the_callable_ends_the_call():
    def show(counts):
        if counts.done:
            raise LookupError("no screen")

    with parmap.plan("threads", workers=2):
        with pytest.raises(LookupError, match="no screen"):
            parmap.pmap(abs, range(50), progress=show, chunks=1)
        assert parmap.pmap(abs, [-1]) == [1]


@pytest.mark.usefixtures("anywhere")
def test_a_bar_shows_label_counts_and_failures(capsys):
    parmap.pmap(lambda x: 1 // x, range(8), progress=True, label="halves", errors="return")
    bar = capsys.readouterr().err
    assert "halves: 100%" in bar
    assert "8/8" in bar
    assert "failed=1" in bar


def test_a_bar_without_a_total(capsys):
    list(parmap.imap(abs, iter(range(8)), progress=True))
    assert "8it" in capsys.readouterr().err


def test_no_bar_unless_asked_for(capsys):
    parmap.pmap(abs, range(8), progress=False)
    assert capsys.readouterr() == ("", "")
