import asyncio
import dataclasses
import functools
import os
import pickle
import sys
import textwrap
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parmap

# -- texts ----------------------------------------------------------------------------------

counts = st.none() | st.integers(1, 1000)
setups = st.none() | st.sampled_from(["os:getpid", "os.path:abspath", "collections:abc.Sized"])


@st.composite
def single_plans(draw):
    options = {"workers": draw(counts), "setup": draw(setups)}
    name = draw(st.sampled_from(["sequential", "threads", "processes"]))
    if name == "processes":
        options["start"] = draw(st.sampled_from(["fresh", "fork"]))
    # An option left out and one given as its default are the same plan.
    return parmap.plan(name, **{k: v for k, v in options.items() if v or draw(st.booleans())})


plans = st.lists(single_plans(), min_size=1, max_size=3).map(parmap.plan)


@given(plans)
def test_a_plan_can_be_made_from_its_text(plan):
    same = parmap.plan(str(plan))
    assert same == plan
    assert str(same) == str(plan)
    assert hash(same) == hash(plan)


@given(plans)
def test_plans_are_values(plan):
    same = pickle.loads(pickle.dumps(plan))
    assert same == plan
    assert hash(same) == hash(plan)
    assert plan.replace() == plan
    assert plan.replace(workers=77) != plan.replace(workers=78)


@given(plans, plans)
def test_nesting_appends(outer, inner):
    both = parmap.plan([outer, inner])
    assert both == parmap.plan([str(outer), str(inner)])
    assert both.nested == (*outer.nested, inner.replace(nested=()), *inner.nested)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("threads()", "threads"),
        ("  threads ( workers = 2 )\n", "threads(workers=2)"),
        ("[threads]", "threads"),
        ("[threads, processes(workers=2)]", "[threads, processes(workers=2)]"),
        ("threads(nested='sequential')", "[threads, sequential]"),
        (
            "threads(nested='[threads(workers=2), sequential]')",
            "[threads, threads(workers=2), sequential]",
        ),
        ("threads(nested=['threads', 'sequential'])", "[threads, threads, sequential]"),
        ("processes(start='fresh')", "processes"),
    ],
)
def test_texts_that_mean_the_same(text, same):
    assert str(parmap.plan(text)) == same
    assert parmap.plan(text) == parmap.plan(same)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "[]",
        "threads(2)",
        "threads(workers=two)",
        "threads(workers=1+1)",
        "threads(**{})",
        "threads(workers={[]: 1})",
        "threads; processes",
        "threads, processes",
        "[[threads], processes]",
        "parmap.plan",
        "threads(workers=__import__('os').getpid())",
        "lambda: 1",
        "threads(",
        "\0",
        "'threads'",
    ],
)
def test_texts_that_cannot_be_read(text):
    with pytest.raises(parmap.PlanError, match=r"sequential|empty"):
        parmap.plan(text)


@given(st.text("threads(=1,[]{}'\":*.)2 \n\0", max_size=30))
def test_any_text_is_a_plan_or_a_plan_error(text):
    try:
        assert isinstance(parmap.plan(text), parmap.Plan)
    except parmap.PlanError:
        pass


set_up = []


def a_setup():
    set_up.append(1)


def test_a_setup_is_written_as_a_text_that_can_be_read():
    plan = parmap.plan("sequential", setup=a_setup)
    assert str(plan) == f"sequential(setup='{__name__}:a_setup')"
    before = len(set_up)
    with parmap.plan(str(plan)):
        assert len(set_up) == before + 1


def test_a_number_to_be_asked_for_is_written_as_a_text_that_can_be_read():
    plan = parmap.plan("threads", workers=os.cpu_count)
    assert parmap.plan(str(plan)).count() == os.cpu_count()


def test_numbers_of_numpy_are_numbers():
    plan = parmap.plan("threads", workers=np.int64(2))
    assert plan == parmap.plan("threads", workers=2)
    assert str(plan) == "threads(workers=2)"
    assert parmap.plan(str(plan)) == plan


# -- wrong names, options and values --------------------------------------------------------


def test_an_unknown_name_names_the_valid_ones():
    with pytest.raises(parmap.PlanError) as caught:
        parmap.plan("proceses")
    message = str(caught.value)
    assert "'proceses'" in message
    assert "did you mean 'processes'?" in message
    assert "sequential, threads, processes" in message
    assert isinstance(caught.value, ValueError)


def test_an_unknown_option_names_the_valid_ones():
    for make in (
        lambda: parmap.plan("threads", worker=2),
        lambda: parmap.plan("threads(worker=2)"),
        lambda: parmap.plan("threads").replace(worker=2),
        lambda: parmap.set_plan("threads", worker=2),
    ):
        with pytest.raises(parmap.PlanError) as caught:
            make()
        assert "'threads' has no option 'worker' (did you mean 'workers'?)" in str(caught.value)
        assert "Options: nested, setup" in str(caught.value)


def test_nothing_is_suggested_when_nothing_is_close():
    with pytest.raises(parmap.PlanError) as caught:
        parmap.plan("xyzzy")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["sequential", "threads", "processes"])
@pytest.mark.parametrize(
    "workers",
    [
        0,
        -1,
        -(10**9),
        float("nan"),
        2.0,
        2.5,
        "2",
        True,
        False,
        [2],
        {},
        b"2",
        1j,
        np.float64(2),
        np.array([1, 2]),
    ],
    ids=repr,
)
def test_workers_must_be_a_positive_whole_number(name, workers):
    with pytest.raises(parmap.PlanError, match="workers="):
        parmap.plan(name, workers=workers)


@pytest.mark.parametrize("workers", [0, 2.5, "2", None, True])
@pytest.mark.parametrize("name", ["threads", "processes"])
def test_a_callable_must_give_a_positive_whole_number(name, workers):
    plan = parmap.plan(name, workers=lambda: workers)
    with pytest.raises(parmap.PlanError, match="workers="):
        plan.start()


@pytest.mark.parametrize("name", ["threads", "processes"])
def test_a_callable_is_asked_at_each_start_and_not_before(name):
    asked = []
    plan = parmap.plan(name, workers=lambda: asked.append(1) or 2)
    assert asked == []
    for times in (1, 2):
        with plan as session:
            assert session.workers == 2
            assert len(asked) == times


@pytest.mark.parametrize("name", ["threads", "processes"])
def test_without_a_number_all_cores_work(name):
    with parmap.plan(name) as session:
        assert session.workers == parmap.available_cores()


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (3, "give a function"),
        ([], "give a function"),
        ("getpid", "give a function"),
        ("os:", "cannot be imported|not a function"),
        (":getpid", "give a function|cannot be imported"),
        ("os:nothing", "nothing"),
        ("nowhere_at_all:f", "nowhere_at_all"),
        ("os:sep", "not a function"),
    ],
)
def test_a_wrong_setup(setup, words):
    with pytest.raises(parmap.PlanError, match=words):
        parmap.plan("threads", setup=setup)


@pytest.mark.parametrize("spec", [None, 3, 2.5, b"threads", (), {}, abs, parmap.Plan], ids=repr)
def test_what_is_no_plan(spec):
    with pytest.raises(parmap.PlanError, match=r"is no plan: give a name \(sequential, threads"):
        parmap.plan(spec)


def test_an_empty_list_is_no_plan():
    with pytest.raises(parmap.PlanError, match="empty"):
        parmap.plan([])


def test_plans_are_frozen():
    plan = parmap.plan("threads", workers=2)
    with pytest.raises(AttributeError):
        plan.workers = 3
    assert plan.replace(workers=3) == parmap.plan("threads", workers=3)
    assert plan.workers == 2


# -- which plan is in force -----------------------------------------------------------------


def test_the_innermost_plan_is_in_force():
    outer, inner = parmap.plan("threads", workers=1), parmap.plan("threads", workers=2)
    before = parmap.current_plan()
    with outer:
        assert parmap.current_plan() == outer
        with inner as session:
            assert session.plan == parmap.current_plan() == inner
        assert parmap.current_plan() == outer
    assert parmap.current_plan() == before


def test_a_plan_can_be_entered_twice():
    plan = parmap.plan("threads", workers=1)
    with plan as first:
        with plan as second:
            assert first.executor is not second.executor
            assert parmap.pmap(abs, [-1]) == [1]
        assert parmap.pmap(abs, [-2]) == [2]
        with pytest.raises(parmap.SessionClosed):
            second.submit(abs, 1)
    with plan:
        assert parmap.pmap(abs, [-3]) == [3]


def test_threads_do_not_see_each_others_plans():
    plan = parmap.plan("threads", workers=2)
    inside = threading.Barrier(2, timeout=60)
    seen = {}

    def work(key):
        with plan as session:
            inside.wait()  # both are in their blocks now, of one and the same plan
            seen[key] = parmap.pmap(lambda x: (key, x), range(3))
            inside.wait()
            mine = session
        with pytest.raises(parmap.SessionClosed):
            mine.submit(abs, 1)

    with parmap.plan("threads", workers=1):
        threads = [threading.Thread(target=work, args=(key,)) for key in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {key: [(key, x) for x in range(3)] for key in "ab"}


def test_asyncio_tasks_do_not_see_each_others_plans():
    async def work(workers, reached, other):
        with parmap.plan("threads", workers=workers) as session:
            reached.set()
            await other.wait()
            results = await asyncio.wrap_future(parmap.submit(abs, -workers))
            mapped = await asyncio.to_thread(parmap.pmap, abs, [-workers])
            assert parmap.current_plan() == session.plan
        return session.workers, results, mapped

    async def main():
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(work(1, *events), work(2, *events[::-1]))

    assert asyncio.run(main()) == [(1, 1, [1]), (2, 2, [2])]


def test_a_plan_decorates():
    plan = parmap.plan("threads", workers=2)

    @plan
    def function(x, *, y=1):
        """What it does."""
        assert parmap.current_plan() == plan
        return parmap.pmap(lambda z: x * z + y, range(3))

    before = parmap.current_plan()
    assert function(2, y=5) == [5, 7, 9]
    assert function(3) == [1, 4, 7]
    assert (function.__name__, function.__doc__) == ("function", "What it does.")
    assert parmap.current_plan() == before


def test_leaving_in_the_wrong_order_is_refused():
    outer, inner = parmap.plan("threads", workers=1), parmap.plan("threads", workers=2)
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(parmap.PlanError, match="another order"):
        outer.__exit__(None, None, None)
    # Nothing was lost: the right order still works.
    assert parmap.pmap(abs, [-1]) == [1]
    inner.__exit__(None, None, None)
    assert parmap.current_plan() == outer
    outer.__exit__(None, None, None)
    with pytest.raises(parmap.PlanError, match="another order"):
        outer.__exit__(None, None, None)


def test_an_error_in_the_block_closes_the_session():
    plan = parmap.plan("threads", workers=1)
    with pytest.raises(KeyError), plan as session:
        raise KeyError
    with pytest.raises(parmap.SessionClosed):
        session.submit(abs, 1)


@pytest.mark.parametrize("name", ["sequential", "threads", "processes"])
def test_a_session_cannot_be_used_after_its_end(name):
    with parmap.plan(name, workers=1) as session:
        early = parmap.imap(abs, [-1])
        late = parmap.imap(abs, iter([-1, -2, -3]), window=1)
        assert next(late) == 1
        assert repr(session) == f"<Session of {session.plan}: open>"
    assert repr(session) == f"<Session of {session.plan}: closed>"
    for use in (
        lambda: session.submit(abs, 1),
        lambda: session.map(abs, [1]),
        lambda: session.map(abs, []),
        lambda: next(early),
        lambda: next(late),
    ):
        with pytest.raises(parmap.SessionClosed, match="over"):
            use()
    with pytest.raises(RuntimeError, match="after shutdown"):
        session.executor.submit(abs, 1)
    session.close()  # once more does no harm


@pytest.mark.parametrize("name", ["sequential", "threads", "processes"])
def test_start_gives_an_executor_of_the_standard_library(name):
    plan = parmap.plan(name, workers=2)
    with plan.start() as executor:
        assert list(executor.map(pow, [2, 3], [5, 2])) == [32, 9]
        assert executor.submit(abs, -1).result() == 1
        with pytest.raises(TypeError):
            executor.submit(abs, "x").result()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)


@pytest.mark.parametrize("name", ["threads", "processes"])
def test_setup_runs_once_in_each_worker(name, tmp_path):
    def setup():
        with open(tmp_path / f"{os.getpid()} {threading.get_ident()}", "a") as marks:
            marks.write("x")

    def who(_):
        return f"{os.getpid()} {threading.get_ident()}"

    with parmap.plan(name, workers=2, setup=setup):
        workers = set(parmap.pmap(who, range(50), chunks=1))
        assert parmap.pmap(abs, range(10)) == list(range(10))
    marks = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(marks.values()) == {"x"}
    assert len(marks) <= 2
    assert workers <= set(marks)


def test_sequential_runs_setup_in_this_process():
    ran = []
    with parmap.plan("sequential", setup=lambda: ran.append(os.getpid())):
        assert ran == [os.getpid()]
        parmap.pmap(abs, range(3))
    assert ran == [os.getpid()]


# -- the process-wide plan, in processes of their own ---------------------------------------


def test_set_plan_sets_the_plan_of_the_process(run):
    assert run("""
        import parmap, threading
        print(parmap.current_plan())
        print(parmap.set_plan("threads", workers=2))
        print(parmap.current_plan())
        print(parmap.set_plan("threads(workers=3)"))
        print(parmap.current_plan(), parmap.pmap(abs, [-1]))
        thread = threading.Thread(target=lambda: print(parmap.current_plan()))
        thread.start()
        thread.join()
        with parmap.plan("threads", workers=1):
            print(parmap.current_plan())
            parmap.set_plan("sequential")
            print(parmap.current_plan())
        print(parmap.current_plan())
    """).splitlines() == [
        "sequential", "None", "threads(workers=2)", "None", "threads(workers=3) [1]",
        "threads(workers=3)", "threads(workers=1)", "threads(workers=1)", "sequential",
    ]  # fmt: skip


def test_the_environment_names_the_first_plan(run):
    source = """
        import parmap
        print(parmap.current_plan())
        print(parmap.pmap(lambda _: str(parmap.current_plan()), [1]))
        parmap.set_plan("sequential")
        print(parmap.current_plan())
    """
    plan = "processes(workers=1)"
    expected = [plan, "['sequential']", "sequential"]
    assert run(source, PARMAP_PLAN=plan).splitlines() == expected
    assert run(source, PARMAP_PLAN="").splitlines()[0] == "sequential"


def test_the_environment_is_read_at_the_first_use(run):
    assert (
        run("""
        import os, parmap
        os.environ["PARMAP_PLAN"] = "threads(workers=2)"
        print(parmap.current_plan())
        os.environ["PARMAP_PLAN"] = "threads(workers=3)"
        print(parmap.current_plan())
    """).splitlines()
        == ["threads(workers=2)"] * 2
    )


def test_the_environment_is_not_for_workers(run):
    # In setup and in a task's own threads no session is in force: there it would be read.
    assert (
        run(
            """
        import parmap, sys, threading
        def setup():
            sys.inside = str(parmap.current_plan())
        def fn(_):
            seen = []
            thread = threading.Thread(target=lambda: seen.append(str(parmap.current_plan())))
            thread.start()
            thread.join()
            return sys.inside, *seen
        with parmap.plan("processes", workers=1, setup=setup):
            print(parmap.pmap(fn, [1]))
    """,
            PARMAP_PLAN="processes(workers=1)",
        )
        == "[('sequential', 'sequential')]\n"
    )


def test_a_wrong_plan_in_the_environment_says_where_it_came_from(start):
    script = start("import parmap; parmap.pmap(abs, [1])", PARMAP_PLAN="thread")
    _, err = script.end()
    assert script.process.returncode == 1
    assert "in the environment variable PARMAP_PLAN" in err
    assert "did you mean 'threads'?" in err


@pytest.fixture
def site(tmp_path):
    """A folder with an installed distribution that offers plans."""
    site = tmp_path / "site"
    info = site / "fake_plans-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-plans\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[parmap.plans]\nfake = fake_plans:Fake\nlame = fake_plans_missing:Lame\n"
        "threads = fake_plans:Fake\n"
    )
    (site / "fake_plans.py").write_text(
        textwrap.dedent("""
            from concurrent.futures import Executor, ThreadPoolExecutor
            from dataclasses import dataclass
            from typing import ClassVar
            import parmap

            class Pool(ThreadPoolExecutor):
                workers = 2

            @dataclass(frozen=True, kw_only=True)
            class Fake(parmap.Plan):
                colour: str = "red"
                name: ClassVar[str] = "fake"

                def start(self) -> Executor:
                    return Pool(2)
        """)
    )
    return os.fspath(site)


def test_installed_packages_offer_plans(run, site):
    assert run(
        """
        import parmap
        plan = parmap.plan("fake", colour="blue", workers=2)
        print(plan, parmap.plan(str(plan)) == plan)
        with plan:
            print(parmap.pmap(lambda x: x + 1, range(5)))
        print(type(parmap.plan("threads")).__module__)
        for wrong in ("fakes", "fake(color=1)", "lame"):
            try:
                parmap.plan(wrong)
            except (parmap.PlanError, parmap.BackendUnavailable) as error:
                print(type(error).__name__, error)
        """,
        PYTHONPATH=site,
    ).splitlines() == [
        "fake(workers=2, colour='blue') True",
        "[1, 2, 3, 4, 5]",
        "parmap.backends.threads",
        (
            "PlanError there is no plan named 'fakes' (did you mean 'fake'?). "
            "Plans: sequential, threads, processes, dask, ray, joblib, ssh, slurm, pbs, sge, lsf, "
            "htcondor, oar, fake, lame"
        ),
        (
            "PlanError the plan 'fake' has no option 'color' (did you mean 'colour'?). "
            "Options: colour, nested, setup, threads_per_worker, workers"
        ),
        (
            "BackendUnavailable the plan 'lame' is offered by 'fake_plans_missing:Lame', "
            "which fails to import: No module named 'fake_plans_missing'"
        ),
    ]


@pytest.mark.parametrize("thread", [False, True], ids=["main", "other"])
def test_what_a_plan_imports_leaves_signals_alone(run, tmp_path, thread):
    # As dask_jobqueue does it, when it is imported.
    (tmp_path / "engine.py").write_text(
        "import signal, sys\n"
        "before = signal.signal(signal.SIGINT, lambda *_: sys.exit())\n"
        "assert before is signal.default_int_handler, before\n"
    )
    said = run(
        f"""
        import signal, threading
        from parmap.plans import registry
        given = signal.signal
        def require():
            print(registry.require("engine", "mine").__name__)
        if {thread}:
            thread = threading.Thread(target=require)
            thread.start()
            thread.join()
        else:
            require()
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        print(signal.signal is given)
        """
    )
    assert said.split() == ["engine", "True", "True"]


def test_siblings_name_the_extra_that_there_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(parmap.BackendUnavailable, match=r"'pbs'.*parmap-plans\[slurm\]"):
        parmap.plan("pbs").start()


@dataclasses.dataclass
class Unhashable:
    """A setup as people write it: callable, and, by its equality, not hashable."""

    seen: list

    def __call__(self):
        self.seen.append(1)


class Deaf:
    """One that must not be compared."""

    def __call__(self):
        pass

    def __eq__(self, other):
        raise AssertionError("it was compared")

    def __hash__(self):
        raise AssertionError("it was hashed")


@pytest.mark.parametrize("name", ["sequential", "threads", "processes"])
@pytest.mark.parametrize("setup", [Unhashable([]), Deaf(), functools.partial(list, ())])
def test_a_setup_may_be_any_callable(name, setup):
    plan = parmap.plan(name, setup=setup)
    assert plan == plan.replace()
    assert hash(plan) == hash(plan.replace())
    assert plan != parmap.plan(name)
    assert name in str(plan)
    assert name in repr(plan)
    before = parmap.current_plan()
    try:
        for _ in range(2):
            parmap.set_plan(plan)
            assert parmap.pmap(abs, [-1]) == [1]
    finally:
        parmap.set_plan(before)
    with plan:
        assert parmap.pmap(abs, [-1]) == [1]


def test_equal_setups_of_two_objects_are_two_plans():
    one, other = Unhashable([]), Unhashable([])
    assert one == other
    assert parmap.plan("threads", setup=one) != parmap.plan("threads", setup=other)
    assert parmap.plan("threads", setup=one.__call__) == parmap.plan("threads", setup=one.__call__)
    assert parmap.plan("threads", setup=print) == parmap.plan("threads", setup=print)
    assert parmap.plan("threads") != parmap.plan("processes")
    assert parmap.plan("threads") != "threads"
