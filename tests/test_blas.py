import importlib.util
import os
import sys
import textwrap
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import scipy.linalg
import sklearn.linear_model
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

import parmap
from parmap import cores
from parmap.worker import native_threads
from parmap.worker import thread_controls as controls
from parmap.worker import thread_variables as variables

# Each brings a library of its own: two OpenBLAS, and an OpenMP.
LOADING = np, scipy.linalg, sklearn.linear_model
LOKY = "LOKY_MAX_CPU_COUNT"
BEGIN = """
import os, sys, threading
from parmap.worker import native_threads

cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

scans = []
scan = native_threads._scan
native_threads._scan = lambda: scans.append(1) or scan()

def numbers():
    import threadpoolctl
    found = {"openblas": set(), "openmp": set()}
    for one in threadpoolctl.threadpool_info():
        found[one["internal_api"]].add(one["num_threads"])
    return found

def turned(threads):
    import threadpoolctl
    threadpoolctl.threadpool_limits(threads)

def elsewhere(fn, *args):
    out = []
    thread = threading.Thread(target=lambda: out.append(fn(*args)))
    thread.start()
    thread.join()
    return out[0]
"""
LOADED = "import numpy, scipy.linalg, sklearn.linear_model, threadpoolctl\n"


@pytest.fixture
def script(run):
    """Run a script in an environment that sets no number but, if asked, OpenMP's."""

    def script(text, begin="", openmp=None):
        first = f"import os\nfor name in {native_threads._VARIABLES}: os.environ.pop(name, None)\n"
        if openmp:
            first += f"os.environ['OMP_NUM_THREADS'] = '{openmp}'\n"
        return run(first + begin + BEGIN + textwrap.dedent(text))

    return script


def shared():
    """The numbers that the process has, read in a thread that nobody has limited."""
    with ThreadPoolExecutor(1) as pool:
        infos = pool.submit(threadpoolctl.threadpool_info).result()
    return {one["filepath"]: one["num_threads"] for one in infos if one["user_api"] == "blas"}


def openmp():
    return {
        one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "openmp"
    }


@pytest.fixture
def many(monkeypatch):
    """More threads than this machine may have cores: 6 for each library, in this thread."""
    monkeypatch.delenv(LOKY, raising=False)
    with threadpoolctl.threadpool_limits(6):
        yield
        assert set(shared().values()) == {6}
        assert openmp() == {6}
        assert LOKY not in os.environ


class TestEnvironment:
    def test_each_variable_gets_the_number(self):
        environ = {}
        native_threads.set_environment(3, environ=environ)
        assert environ == dict.fromkeys(native_threads._VARIABLES, "3")

    def test_the_users_smaller_number_stays(self):
        environ = {"MKL_NUM_THREADS": "2", "RAYON_NUM_THREADS": "9", LOKY: "x"}
        native_threads.set_environment(4, environ=environ)
        assert environ["MKL_NUM_THREADS"] == "2"
        assert environ["RAYON_NUM_THREADS"] == environ[LOKY] == environ["OMP_NUM_THREADS"] == "4"

    @pytest.mark.parametrize(
        ("users", "left"), [("2", "2"), ("2,8", "2,8"), ("4,2", "4,2"), ("5,2", "4"), ("0", "4")]
    )
    def test_of_a_list_of_levels_the_first_counts(self, users, left):
        environ = {"OMP_NUM_THREADS": users}
        native_threads.set_environment(4, environ=environ)
        assert environ["OMP_NUM_THREADS"] == left

    def test_a_user_who_limits_openmp_limits_those_that_follow_it(self):
        environ = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "3"}
        native_threads.set_environment(4, environ=environ)
        assert environ["OPENBLAS_NUM_THREADS"] == environ["NUMEXPR_NUM_THREADS"] == "1"
        assert environ["MKL_NUM_THREADS"] == "3"
        assert environ["NUMBA_NUM_THREADS"] == "4"  # which does not look at OpenMP's

    def test_an_exact_number_goes_upwards_too(self):
        environ = {"OMP_NUM_THREADS": "1,1", LOKY: "1"}
        native_threads.set_environment(4, exact=True, environ=environ)
        assert environ == dict.fromkeys(native_threads._VARIABLES, "4")

    def test_numexpr_is_not_asked_for_more_than_it_can(self):
        environ = {}
        native_threads.set_environment(100, environ=environ)
        assert environ["NUMEXPR_NUM_THREADS"] == "64"
        environ = {"NUMEXPR_MAX_THREADS": "3"}
        native_threads.set_environment(100, exact=True, environ=environ)
        assert environ["NUMEXPR_NUM_THREADS"] == "3"
        assert environ["NUMEXPR_MAX_THREADS"] == "3"


class TestWorker:
    def test_in_a_fresh_one_all_loads_with_its_number_and_nothing_is_looked_for(self, script):
        script("""
            native_threads.set_environment(1)
            native_threads.keep(1)
            import numpy
            native_threads.keep(1)
            elsewhere(native_threads.keep, 1)
            assert "threadpoolctl" not in sys.modules
            import scipy.linalg, sklearn.linear_model, joblib
            native_threads.keep(1)
            assert scans == []
            assert numbers() == elsewhere(numbers) == {"openblas": {1}, "openmp": {1}}
            assert joblib.cpu_count() == 1
        """)

    def test_another_number_than_that_of_the_environment_is_set(self, script):
        script("""
            native_threads.set_environment(2)
            import numpy, scipy.linalg, sklearn.linear_model
            native_threads.keep(1)
            assert numbers() == {"openblas": {1}, "openmp": {1}}
        """)

    def test_what_had_loaded_before_is_limited_and_never_raised(self, script):
        script(
            """
            turned(6)
            native_threads.set_environment(2)
            native_threads.keep(2)
            assert numbers() == {"openblas": {2}, "openmp": {2}}
            native_threads.keep(4)  # as another session may
            assert numbers() == {"openblas": {4}, "openmp": {4}}
            native_threads.keep(8)
            assert numbers() == {"openblas": {6}, "openmp": {6}}
            native_threads.keep(8, exact=True)
            assert numbers() == {"openblas": {8}, "openmp": {8}}
            assert os.environ["LOKY_MAX_CPU_COUNT"] == "8"
            assert len(scans) == 1
            """,
            LOADED,
        )

    def test_each_thread_limits_its_own_openmp(self, script):
        script(
            """
            native_threads.keep(1)
            def task():
                before = numbers()["openmp"]
                native_threads.keep(1)
                return before, numbers()["openmp"]
            before, after = elsewhere(task)
            assert before == {3}
            assert after == {1}
            """,
            LOADED,
            openmp=3,
        )

    def test_it_looks_again_only_when_a_library_may_have_come(self, script):
        script(
            """
            import numpy
            native_threads.keep(1)
            native_threads.keep(1)  # the first has loaded threadpoolctl
            assert len(scans) == 1
            meet, native_threads._limits.meet = native_threads._limits.meet, None
            for _ in range(5):
                native_threads.keep(1)
            native_threads._limits.meet = meet
            import wave, json.tool  # pure Python, and the standard library's own
            native_threads.keep(1)
            elsewhere(native_threads.keep, 1)
            assert len(scans) == 1
            import scipy.linalg, sklearn.linear_model
            for _ in range(5):
                native_threads.keep(1)
            assert len(scans) == 2
            assert numbers() == {"openblas": {1}, "openmp": {1}}
            """
        )

    def test_what_a_task_sets_itself_stays(self, script):
        script(
            """
            native_threads.keep(2)
            turned(1)
            import wave
            native_threads.keep(2)
            assert numbers() == {"openblas": {1}, "openmp": {1}}
            """,
            LOADED,
        )


class TestNothingLoaded:
    def test_nothing_is_loaded_to_look_for_it(self, script):
        out = script("""
            token = native_threads.hold(1)
            elsewhere(native_threads.keep, 1)
            with native_threads.borrowed(1):
                pass
            assert native_threads.loaded() == []
            native_threads.release(token)
            native_threads.keep(1)
            native_threads.set_environment(1)
            print(*{name.partition(".")[0] for name in sys.modules})
        """)
        bare = script('print(*{name.partition(".")[0] for name in sys.modules})')
        assert set(out.split()) - set(bare.split()) <= set(sys.stdlib_module_names)

    def test_a_lazy_module_stays_lazy(self, tmp_path):
        path = tmp_path / "lazy.py"
        path.write_text("raise AssertionError")
        spec = importlib.util.spec_from_file_location("lazy", path)
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert not native_threads._brings_libraries(("lazy", module))

        class Odd:
            def __getattr__(self, name):
                raise AssertionError

        assert not native_threads._brings_libraries(("odd", Odd()))
        assert not native_threads._brings_libraries(("none", None))


class TestThreadLimit:
    def test_it_limits_the_process_and_not_the_callers_own_openmp(self, many):
        cores = joblib.cpu_count()
        token = native_threads.hold(2)
        assert set(shared().values()) == {2}
        assert openmp() == {6}
        assert os.environ[LOKY] == "2"
        assert joblib.cpu_count() == min(2, cores)
        native_threads.release(token)

    def test_it_raises_only_if_it_is_exact(self, many):
        token = native_threads.hold(7)
        assert set(shared().values()) == {6}
        exact = native_threads.hold(7, exact=True)
        assert set(shared().values()) == {6}  # the smallest
        native_threads.release(token)
        assert set(shared().values()) == {7}
        native_threads.release(exact)
        native_threads.release(exact)  # again does nothing

    def test_the_users_own_variable_comes_back(self, monkeypatch):
        monkeypatch.setenv(LOKY, "3")
        token = native_threads.hold(5)
        assert os.environ[LOKY] == "3"
        other = native_threads.hold(1)
        assert os.environ[LOKY] == "1"
        native_threads.release(token)
        native_threads.release(other)
        assert os.environ[LOKY] == "3"

    @settings(max_examples=60)
    @given(
        st.lists(
            # Release one of those held, or hold a number; here, or in another thread.
            st.tuples(
                st.one_of(st.integers(0, 7), st.tuples(st.integers(1, 8), st.booleans())),
                st.booleans(),
            ),
            max_size=10,
        )
    )
    def test_the_smallest_counts_in_any_order_and_thread_and_all_comes_back(self, steps):
        before, tokens = shared(), []
        with ThreadPoolExecutor(1) as pool, threadpoolctl.threadpool_limits(5):
            try:
                for what, here in steps:
                    run = here_and_now if here else pool.submit
                    if not isinstance(what, int):
                        threads, exact = what
                        tokens.append(run(native_threads.hold, threads, exact=exact).result())
                    elif tokens:
                        run(native_threads.release, tokens.pop(what % len(tokens))).result()
                    asked = [t.threads if t.exact else min(t.threads, 5) for t in tokens]
                    assert set(shared().values()) == {min(asked, default=5)}
                    smallest = min((t.threads for t in tokens), default=None)
                    assert os.environ.get(LOKY) == (smallest and str(smallest))
            finally:
                for token in tokens:
                    native_threads.release(token)
            assert set(shared().values()) == {5}
        assert shared() == before

    def test_it_wins_over_a_thread_that_has_openblas_to_itself(self, many):
        # threadpoolctl, from 3.8 on, gives it to the first thread that sets it.
        taken, done = threading.Event(), threading.Event()

        def user():
            with threadpoolctl.threadpool_limits(4, user_api="blas"):
                taken.set()
                assert done.wait(60)

        with ThreadPoolExecutor(1) as pool:
            theirs = pool.submit(user)
            try:
                assert taken.wait(60)
                token = native_threads.hold(2)
                held = set(shared().values())
                native_threads.release(token)
            finally:
                done.set()
            theirs.result(60)
        assert held == {2}

    def test_what_a_task_turns_for_a_moment_does_not_stick(self, many):
        outer = native_threads.hold(4)
        with threadpoolctl.threadpool_limits(1, user_api="blas"):  # as scikit-learn does
            native_threads.release(native_threads.hold(2))
        native_threads.release(outer)

    def test_workers_limit_what_is_theirs(self, many):
        def task():
            native_threads.keep(1)
            return openmp()

        token = native_threads.hold(1)
        with ThreadPoolExecutor(3) as pool:
            assert [f.result() for f in [pool.submit(task) for _ in range(9)]] == [{1}] * 9
        assert openmp() == {6}
        other = native_threads.hold(3)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(native_threads.keep, 3).result()
        assert set(shared().values()) == {1}  # the first session is still open
        native_threads.release(token)
        assert set(shared().values()) == {3}
        native_threads.release(other)

    def test_a_worker_that_is_late_limits_nothing_for_good(self, many):
        native_threads.release(native_threads.hold(2))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(native_threads.keep, 1).result()
        assert set(shared().values()) == {6}

    def test_what_loads_meanwhile_is_limited_and_gets_what_it_would_have_had(self, script):
        script(
            """
            import numpy
            token = native_threads.hold(1)
            def task():
                native_threads.keep(1)
                import scipy.linalg, sklearn.linear_model
                natural = numbers()
                native_threads.keep(1)
                return natural, numbers()
            natural, limited = elsewhere(task)
            assert natural["openmp"] == {3}
            assert natural["openblas"] == {1, min(3, cores)}  # NumPy's, and SciPy's
            assert limited == {"openblas": {1}, "openmp": {1}}
            assert numbers() == {"openblas": {1}, "openmp": {3}}
            native_threads.release(token)
            assert numbers() == {"openblas": {min(3, cores)}, "openmp": {3}}
            assert "LOKY_MAX_CPU_COUNT" not in os.environ
        """,
            openmp=3,
        )

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
    def test_in_a_fork_limits_stay_until_it_asks_for_its_own(self, script):
        script(
            """
            import warnings
            import numpy, threadpoolctl
            warnings.simplefilter("ignore", DeprecationWarning)  # OpenBLAS has threads
            turned(6)
            def number():
                return numbers()["openblas"]
            token = native_threads.hold(2)
            native_threads.keep(2)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    native_threads.release(token)
                    assert number() == {2}
                    native_threads.keep(2)  # it is a worker
                    mine = native_threads.hold(1)
                    assert number() == {1}
                    native_threads.release(mine)
                    assert number() == {2}
                    native_threads.keep(4)
                    assert number() == {4}
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert number() == {2}
            native_threads.release(token)
            assert number() == {6}
            """
        )


class TestLater:
    """What loads while a call runs in the caller's own process."""

    @pytest.mark.parametrize("openmp", [None, 1, 4])
    def test_a_task_that_is_first_to_load_a_library_has_its_share(self, script, openmp):
        script(
            """
            import parmap
            before = {name: os.environ.get(name) for name in native_threads._VARIABLES}
            def task(x):
                alone = x > 0 or "numpy" not in sys.modules
                import numpy, scipy.linalg, sklearn.linear_model
                return alone, numbers(), {os.environ[name] for name in native_threads._VARIABLES}
            with parmap.plan("threads", workers=cores):
                for results in parmap.pmap(task, range(3), chunks=3), parmap.pmap(task, [3] * 3):
                    one = {"openblas": {1}, "openmp": {1}}
                    assert results == [(True, one, {"1"})] * 3
                assert {name: os.environ.get(name) for name in before} == before
                # And outside of calls they are as if they had been loaded by the script.
                users = int(before["OMP_NUM_THREADS"] or cores)
                assert numbers() == {"openblas": {min(users, cores)}, "openmp": {users}}
                # What the user then sets is the user's.
                turned(1)
                parmap.pmap(task, [4] * 3)
                assert numbers() == {"openblas": {1}, "openmp": {1}}
            """,
            openmp=openmp,
        )

    def test_an_adopted_pool_has_its_share_and_then_its_own(self, script):
        script(
            """
            import multiprocessing, parmap
            from concurrent.futures import ProcessPoolExecutor
            def task(x):
                import numpy
                return numbers()["openblas"]
            with ProcessPoolExecutor(cores, multiprocessing.get_context("fork")) as pool:
                with parmap.plan(pool):
                    assert parmap.pmap(task, range(4), chunks=2) == [{1}] * 4
                assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() is None
            """
        )

    @settings(max_examples=60)
    @given(
        st.sampled_from([None, "1", "3", "6,2", "what"]),
        st.lists(
            st.one_of(
                st.integers(0, 7),  # release one of those held
                st.tuples(st.integers(1, 8), st.booleans()),  # or hold a number
                st.sampled_from(["9", "12"]),  # or a task sets it, not to a number of ours
            ),
            max_size=10,
        ),
    )
    def test_calls_overlap_in_any_order_and_all_comes_back(self, users, steps):
        name, tokens = "OMP_NUM_THREADS", []
        with pytest.MonkeyPatch.context() as patch:
            for one in native_threads._VARIABLES:
                patch.delenv(one, raising=False)
            if users is not None:
                patch.setenv(name, users)
            before = {one: os.environ.get(one) for one in native_threads._VARIABLES}
            for what in steps:
                if isinstance(what, str):
                    os.environ[name] = before[name] = users = what
                    continue
                if isinstance(what, tuple):
                    tokens.append(native_threads.hold(what[0], exact=what[1], later=True))
                elif tokens:
                    native_threads.release(tokens.pop(what % len(tokens)))
                own = native_threads.number(users)
                limits = [t.threads if t.exact else min(t.threads, own or 99) for t in tokens]
                if limits and min(limits) != own:
                    assert os.environ[name] == os.environ["MKL_NUM_THREADS"] == str(min(limits))
                else:
                    assert os.environ.get(name) == users
                # Who asks for the user's gets the user's.
                assert cores.users_environ().get(name) == users
            for token in tokens:
                native_threads.release(token)
            assert {one: os.environ.get(one) for one in native_threads._VARIABLES} == before
        assert cores.aside == {}

    def test_it_comes_back_after_an_error_and_an_early_end(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "64")

        def fails(x):
            raise ValueError(os.environ["OMP_NUM_THREADS"])

        with parmap.plan("threads", workers=2, threads_per_worker=3):
            with pytest.raises(ValueError, match=r"^3"):
                parmap.pmap(fails, range(4))
            assert os.environ["OMP_NUM_THREADS"] == "64"
            results = parmap.imap(os.getenv, ["OMP_NUM_THREADS"] * 100)
            assert next(results) == "3"
            assert parmap.available_cores(explain=True)["OMP_NUM_THREADS"] == 64
            results.close()
            assert os.environ["OMP_NUM_THREADS"] == "64"
            assert parmap.submit(os.getenv, "OMP_NUM_THREADS").result() == "3"
        assert os.environ["OMP_NUM_THREADS"] == "64"

    def test_what_a_task_sets_itself_stays(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "64")
        monkeypatch.setenv("NUMBA_NUM_THREADS", "64")

        def task(x):
            os.environ["OMP_NUM_THREADS"] = "5"
            del os.environ["NUMBA_NUM_THREADS"]

        with parmap.plan("threads", workers=2, threads_per_worker=3):
            parmap.pmap(task, [1])
        assert os.environ["OMP_NUM_THREADS"] == "5"
        assert "NUMBA_NUM_THREADS" not in os.environ

    def test_a_call_may_end_while_another_begins(self, monkeypatch):
        # A finalizer, say, which comes at any time.
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        first = native_threads.ThreadLimit(2, exact=False)

        class Late:
            exact = False

            @property
            def threads(self):
                variables.release(first)
                return 4

        variables.hold(first)
        late = Late()
        variables.hold(late)
        assert os.environ["OMP_NUM_THREADS"] == "4"
        variables.release(late)
        assert "OMP_NUM_THREADS" not in os.environ

    @pytest.mark.parametrize("ends", [native_threads.release, lambda held: held.__del__()])
    def test_ctrl_c_in_the_middle_of_an_end_leaves_nothing(self, monkeypatch, ends):
        """The variables go back at once, not with the next call, which may never come."""
        before, turn = dict(os.environ), variables._held._turn

        def interrupted(*args, **kwargs):
            monkeypatch.setattr(variables._held, "_turn", turn)
            raise KeyboardInterrupt

        token = native_threads.hold(1, later=True)
        assert dict(os.environ) != before
        monkeypatch.setattr(variables._held, "_turn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ends(token)
        assert dict(os.environ) == before
        assert not native_threads._limits._holds

    def test_workers_that_start_meanwhile_have_their_own_share(self, monkeypatch):
        for name in native_threads._VARIABLES:
            monkeypatch.delenv(name, raising=False)
        expected = [str(parmap.available_cores())]
        token = native_threads.hold(1, later=True)
        try:
            for spec in ("processes(workers=1)", "processes(workers=1, start='fork')"):
                with parmap.plan(spec):
                    assert parmap.pmap(os.getenv, ["OMP_NUM_THREADS"]) == expected
        finally:
            native_threads.release(token)


def here_and_now(fn, *args, **kwargs):
    future = Future()
    future.set_result(fn(*args, **kwargs))
    return future


class TestBorrowed:
    def test_the_threads_own_number_comes_back(self, many):
        token = native_threads.hold(3)
        with native_threads.borrowed(3):
            assert openmp() == {3}
            with native_threads.borrowed(1):
                assert openmp() == {1}
            assert openmp() == {3}
        assert openmp() == {6}
        with pytest.raises(ValueError, match="mine"), native_threads.borrowed(8, exact=True):
            assert openmp() == {8}
            raise ValueError("mine")
        native_threads.release(token)

    def test_it_leaves_no_trace_in_what_the_thread_remembers(self, many):
        def task():
            native_threads.keep(2)
            with native_threads.borrowed(1):
                native_threads.keep(1)
            assert openmp() == {2}
            native_threads.keep(1)
            return openmp()

        token = native_threads.hold(2)
        with ThreadPoolExecutor(1) as pool, native_threads.borrowed(2):
            assert pool.submit(task).result() == {1}
        native_threads.release(token)

    def test_without_a_session_the_process_is_left_alone(self, many):
        with native_threads.borrowed(1):
            assert set(shared().values()) == {6}
            assert LOKY not in os.environ


class TestControls:
    def test_mkl_goes_back_to_following_the_process(self):
        own = [0]

        def local(number):
            own[0], before = number, own[0]
            return before

        library = SimpleNamespace(MKL_Set_Num_Threads_Local=local)
        control = controls.control_of(
            SimpleNamespace(
                internal_api="mkl",
                filepath="mkl",
                dynlib=library,
                set_num_threads=None,
                get_num_threads=lambda: own[0] or 8,
            )
        )
        assert not control.shared
        mark = control.mark()
        assert own == [0]
        control.set(2)
        assert (control.get(), control.mark(), own) == (2, 2, [2])
        control.set(mark)
        assert control.get() == 8

    @pytest.mark.parametrize(
        ("library", "is_shared"),
        [
            ({"internal_api": "openblas", "threading_layer": "pthreads"}, True),
            ({"internal_api": "openblas", "threading_layer": "openmp"}, None),
            ({"internal_api": "openmp", "prefix": "libgomp"}, False),
            ({"internal_api": "openmp", "prefix": "vcomp"}, True),
            ({"internal_api": "blis", "version": "0.9.0"}, True),
            ({"internal_api": "blis", "version": "2.0"}, False),
            ({"internal_api": "blis", "version": None}, False),
            ({"internal_api": "flexiblas"}, None),
        ],
    )
    def test_it_knows_whose_number_it_is(self, library, is_shared):
        one = SimpleNamespace(
            filepath="", get_num_threads=lambda: 1, set_num_threads=lambda _: None, **library
        )
        control = controls.control_of(one)
        assert (control and control.shared) is is_shared

    def test_numba_is_asked_only_once_its_threads_run(self, monkeypatch):
        number = [4]
        numba = SimpleNamespace(
            config=SimpleNamespace(NUMBA_NUM_THREADS=4),
            get_num_threads=lambda: number[0],
            set_num_threads=lambda n: number.__setitem__(0, n),
        )
        monkeypatch.setitem(sys.modules, "numba", numba)
        assert controls.numba() == []
        monkeypatch.setitem(sys.modules, "numba.np.ufunc.workqueue", object())
        (control,) = controls.numba()
        control.set(9)
        assert number == [4]
        control.set(1)
        assert number == [1]


def test_what_is_loaded_is_listed():
    found = native_threads.loaded()
    infos = threadpoolctl.threadpool_info()
    assert {one.filepath for one in found} == {info["filepath"] for info in infos}
    assert {"openblas", "openmp"} <= {one.internal_api for one in found}
    for one in found:
        assert isinstance(one.num_threads, int)
    assert "pthreads" in {one.threading_layer for one in found}
