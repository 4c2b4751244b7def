"""What users do that they should not, and what happens to programs that end badly."""

import importlib
import os
import signal

import psutil
import pytest

import parmap


@pytest.fixture(params=["sequential", "threads(workers=2)", "processes(workers=2)"])
def anywhere(request):
    with parmap.plan(request.param) as session:
        yield session


# -- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn", [None, 3, "abs", [abs], (x for x in [1])], ids=lambda fn: type(fn).__name__
)
def test_what_is_no_function(fn):
    for name, call in {
        "pmap": lambda: parmap.pmap(fn, [1]),
        "starmap": lambda: parmap.starmap(fn, [(1,)]),
        "imap": lambda: parmap.imap(fn, [1]),
        "submit": lambda: parmap.submit(fn, 1),
    }.items():
        with pytest.raises(TypeError, match=rf"{name}\(\) needs a function first"):
            call()


@pytest.mark.parametrize("data", [3, None, abs, 2.5, object()], ids=type)
def test_what_cannot_be_iterated_over(data):
    for name, call in {
        "pmap": lambda: parmap.pmap(pow, [1], data),
        "starmap": lambda: parmap.starmap(pow, data),
        "imap": lambda: parmap.imap(pow, [1], data),
    }.items():
        place = 1 if name == "starmap" else 2
        with pytest.raises(TypeError, match=rf"{name}\(\) cannot iterate over argument {place}"):
            call()


def test_no_data():
    with pytest.raises(TypeError, match="needs data"):
        parmap.pmap(abs)
    with pytest.raises(TypeError, match="needs data"):
        parmap.imap(abs)


def test_arguments_in_the_wrong_order():
    with pytest.raises(TypeError, match=r"needs a function first, not list \[1, 2\].*pmap\(fn"):
        parmap.pmap([1, 2], abs)


@pytest.mark.usefixtures("anywhere")
def test_too_many_or_too_few_arguments_are_the_functions_own_error():
    with pytest.raises(TypeError, match="argument"):
        parmap.pmap(lambda x: x, [1], [2])
    with pytest.raises(TypeError, match="argument"):
        parmap.pmap(lambda x, y: x, [1])


@pytest.mark.usefixtures("anywhere")
def test_rows_that_cannot_be_spread():
    with pytest.raises(TypeError, match=r"int|iterable"):
        parmap.starmap(pow, [(1, 2), 3])
    assert parmap.starmap(pow, [(1, 2)]) == [1]


@pytest.mark.usefixtures("anywhere")
def test_an_input_that_changes_while_it_is_read():
    # As with map: a dict that changes size says so.
    data = dict.fromkeys(range(100))

    def keys():
        for key in data:
            if key == 50:
                data["new"] = 1
            yield key

    with pytest.raises(RuntimeError, match="changed size"):
        parmap.pmap(lambda x: x, keys())


@pytest.mark.usefixtures("anywhere")
def test_a_length_that_lies():
    class Liar:
        def __init__(self, said):
            self.said = said

        def __len__(self):
            return self.said

        def __iter__(self):
            return iter(range(10))

    for said in (0, 3, 10, 99):
        for chunks in ("auto", "static", "guided", 4, parmap.Static(cyclic=True)):
            assert parmap.pmap(lambda x: x, Liar(said), chunks=chunks) == list(range(10))


@pytest.mark.usefixtures("anywhere")
def test_elements_that_refuse_to_be_compared_or_counted():
    class Prickly:
        def __eq__(self, other):
            raise RuntimeError

        __hash__ = None

        def __len__(self):
            raise RuntimeError

        def __bool__(self):
            raise RuntimeError

        def __repr__(self):
            raise RuntimeError

    results = parmap.pmap(lambda _: Prickly(), [Prickly(), Prickly()])
    assert [type(x).__name__ for x in results] == ["Prickly"] * 2


class Importing:
    """Unpickling it imports a module that is not there."""

    def __reduce__(self):
        return importlib.import_module, ("only_here",)


def test_a_module_that_workers_cannot_import():
    with (
        parmap.plan("processes", workers=1),
        pytest.raises(parmap.SerializationError, match="register_pickle_by_value") as caught,
    ):
        parmap.pmap(type, [Importing()])
    assert "cannot import 'only_here'" in str(caught.value)


# -- scripts --------------------------------------------------------------------------------

SCRIPT = """
    import functools
    import math as mathematics
    import parmap

    FACTOR = 3
    table = {"a": 1}

    class Point:
        def __init__(self, x):
            self.x = x
        def __eq__(self, other):
            return type(self) is type(other) and self.x == other.x
        def moved(self, by):
            return Point(self.x + by)

    class Lost(Exception):
        def __init__(self, where, *, code):
            super().__init__(where)
            self.code = code

    def scaled(x):
        return FACTOR * helper(x)

    def helper(x):
        return mathematics.floor(x)

    def main(x):
        if x == 2:
            raise Lost("there", code=x)
        return x

    def closure(by):
        return lambda x: x + by + table["a"]

    with parmap.plan(PLAN):
        print(parmap.pmap(scaled, [1.5, 2.5]))
        print(parmap.pmap(closure(10), range(3)))
        print(parmap.pmap(functools.partial(pow, 2), range(3)))
        print(parmap.pmap(Point(1).moved, [1, 2]) == [Point(2), Point(3)])
        print(parmap.pmap(lambda p: p == Point(1), [Point(1)]))
        print(parmap.pmap(lambda _: main, [1])[0] is not None)
        try:
            parmap.pmap(main, range(4))
        except Lost as error:
            print(error, error.code)
        FACTOR = 5
        print(parmap.pmap(scaled, [1.5, 2.5]))
"""


@pytest.mark.parametrize("name", ["sequential", "threads", "processes", "processes(start='fork')"])
def test_a_script_without_a_guard(run, name):
    plan = name if name == "sequential" else name.replace(")", ", ") + "workers=2)"
    if "(" not in name and name != "sequential":
        plan = f"{name}(workers=2)"
    assert run(SCRIPT.replace("PLAN", repr(plan))).splitlines() == [
        "[3, 6]", "[11, 12, 13]", "[1, 2, 4]", "True", "[True]", "True", "there 2", "[5, 10]",
    ]  # fmt: skip


def test_a_script_from_standard_input_or_the_command_line(start, run):
    source = (
        "import parmap\n"
        "def fn(x): return x * k\n"
        "k = 2\n"
        "with parmap.plan('processes', workers=1): print(parmap.pmap(fn, range(3)))\n"
    )
    assert (
        run(f"""
        import subprocess, sys
        for how in (["-c", {source!r}], ["-"]):
            print(subprocess.run([sys.executable, *how], input={source!r}, text=True,
                                 capture_output=True, check=True).stdout, end="")
    """)
        == "[0, 2, 4]\n[0, 2, 4]\n"
    )


@pytest.mark.parametrize("name", ["threads", "processes"])
@pytest.mark.parametrize(
    "source",
    [
        "executor = parmap.plan(NAME, workers=2).start(); print(executor.submit(abs, -1).result())",
        "executor = parmap.plan(NAME, workers=2).start()",
        "executor = parmap.plan(NAME, workers=2).start(); f = executor.submit(print, 'late')",
        "executor = parmap.plan(NAME, workers=2).start(); executor.shutdown(wait=False)",
        "parmap.set_plan(NAME, workers=2); print(parmap.pmap(abs, [-1]))",
        "parmap.set_plan(NAME, workers=2)",
        "s = parmap.plan(NAME, workers=2).__enter__(); print(parmap.pmap(abs, [-1]))",
        "parmap.set_plan(NAME, workers=2); r = parmap.imap(abs, [1, 2], window=1); print(next(r))",
        "parmap.plan(NAME, workers=2).start().submit(abs, 1)",
    ],
)
def test_an_interpreter_that_ends_without_closing(run, name, source):
    # Development mode tells of what is left open. `run` sees that nobody is left behind, and
    # that nothing was written to standard error.
    run("import parmap\n" + source.replace("NAME", repr(name)), flags=("-X", "dev"))


def test_what_was_submitted_is_done_before_the_end(run):
    assert (
        run("""
        import parmap
        executor = parmap.plan("processes", workers=1).start()
        for x in range(3):
            executor.submit(print, x)
    """)
        == "0\n1\n2\n"
    )


def test_an_error_that_ends_the_script(start):
    script = start("""
        import parmap
        def fn(x):
            return 1 // x
        parmap.set_plan("processes", workers=2)
        parmap.pmap(fn, [1, 0])
    """)
    out, err = script.end()
    assert (out, script.process.returncode) == ("", 1)
    assert "ZeroDivisionError" in err
    assert "parmap: element 1" in err
    assert "return 1 // x" in err


# -- forks ----------------------------------------------------------------------------------

# From Python 3.12 on, a fork of a process with threads warns.
FORKING = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")


def test_a_fork_must_not_use_its_parents_session(run):
    assert run(
        """
        import os, parmap
        with parmap.plan("processes", workers=2) as session:
            print(parmap.pmap(abs, [-1]), flush=True)
            pid = os.fork()
            if pid == 0:
                for use in (lambda: parmap.pmap(abs, [-2]), lambda: session.submit(abs, 1),
                            lambda: session.executor.submit(abs, 1)):
                    try:
                        use()
                    except parmap.SessionClosed as error:
                        print("fork" in str(error), flush=True)
                with parmap.plan("processes", workers=1):
                    print(parmap.pmap(abs, [-3]), flush=True)
                os._exit(0)
            print(os.waitpid(pid, 0)[1], parmap.pmap(abs, [-4]), flush=True)
        """,
        flags=FORKING,
    ).splitlines() == ["[1]", "True", "True", "True", "[3]", "0 [4]"]


def test_a_fork_leaves_its_parents_blocks_alone(run):
    # The child runs on to the end of the block, and of the script.
    out = run(
        """
        import os, parmap
        with parmap.plan("processes", workers=1):
            parmap.pmap(abs, [-1])
            pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        with parmap.plan("processes", workers=1):
            print(parmap.pmap(abs, [-2]), flush=True)
        """,
        flags=FORKING,
    )
    assert out.splitlines() == ["[2]", "[2]"]


@pytest.mark.parametrize("name", ["threads", "processes"])
def test_the_process_wide_plan_works_anew_in_a_fork(run, name):
    assert run(
        f"""
        import os, parmap
        parmap.set_plan({name!r}, workers=2)
        print(parmap.pmap(abs, [-1]), flush=True)
        pid = os.fork()
        if pid == 0:
            print(parmap.current_plan(), parmap.pmap(abs, [-2]), flush=True)
            raise SystemExit
        assert os.waitpid(pid, 0)[1] == 0
        print(parmap.pmap(abs, [-3]))
        """,
        flags=FORKING,
    ).splitlines() == ["[1]", f"{name}(workers=2) [2]", "[3]"]


def test_workers_leave_though_a_fork_of_their_parent_lives_on(start):
    script = start(
        """
        import os, parmap, signal, time
        def fn(x):
            os.write(1, b"started\\n")
            time.sleep(3600)
        parmap.set_plan("processes", workers=2)
        parmap.pmap(abs, range(2))
        pid = os.fork()
        if pid == 0:
            os.write(1, b"fork %d\\n" % os.getpid())
            os.close(1)
            os.close(2)
            signal.pause()
        parmap.pmap(fn, range(2), chunks=1)
        """,
        flags=FORKING,
    )
    lines = sorted(script.line() for _ in range(3))
    assert lines[1:] == ["started", "started"]
    os.kill(script.process.pid, signal.SIGKILL)
    # Only the workers and the fork server still have the output open, and they go.
    assert script.end() == ("", "")
    fork = psutil.Process(int(lines[0].split()[1]))
    assert fork.is_running()
    fork.kill()


# -- Ctrl-C ---------------------------------------------------------------------------------
#
# One element for each worker: with more, the worker that is interrupted first may begin the
# next one before the caller's own interrupt has ended the call.


@pytest.mark.parametrize("how", ["with", "set_plan"])
@pytest.mark.parametrize("start_method", ["fresh", "fork"])
def test_an_interrupt_ends_the_call_and_no_more(start, how, start_method):
    opening = {
        "with": f"with parmap.plan('processes', workers=2, start={start_method!r}):",
        "set_plan": f"parmap.set_plan('processes', workers=2, start={start_method!r})\nif True:",
    }[how]
    script = start(
        f"""
import os, parmap, time
def fn(x):
    os.write(1, b"started\\n")
    time.sleep(3600)
{opening}
    for _ in range(2):
        try:
            parmap.pmap(fn, range(2), chunks=1)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    print(parmap.pmap(abs, [-1, -2]), flush=True)
"""
    )
    for _ in range(2):
        assert [script.line(), script.line()] == ["started", "started"]
        script.interrupt()
        # Had the call waited for its tasks, this would be an hour away.
        assert script.line() == "interrupted"
    assert script.good() == "[1, 2]\n"


def test_an_interrupt_that_does_not_end_the_wait_of_the_main_thread(start):
    # So it is if it comes just as the wait begins. Here another thread takes the signal, always.
    script = start(
        """
        import os, parmap, signal, threading, time
        def fn(x):
            os.write(1, b"started\\n")
            time.sleep(3600)
        other = threading.Thread(target=threading.Event().wait, daemon=True)
        other.start()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            with parmap.plan("processes", workers=2):
                parmap.pmap(fn, range(2), chunks=1)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    assert [script.line(), script.line()] == ["started", "started"]
    os.kill(script.process.pid, signal.SIGINT)
    assert script.good() == "interrupted\n"


def test_an_interrupt_while_workers_start(start):
    script = start(
        """
        import os, parmap, time
        def setup():
            os.write(1, b"setup\\n")
            time.sleep(3600)
        def fn(x):
            return x
        try:
            with parmap.plan("processes", workers=1, setup=setup):
                parmap.pmap(fn, range(10))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        with parmap.plan("processes", workers=1):
            print(parmap.pmap(abs, [-1]))
        """
    )
    assert script.line() == "setup"
    script.interrupt()
    assert script.good() == "interrupted\n[1]\n"


def test_an_interrupt_that_nobody_catches(start):
    script = start(
        """
        import os, parmap, time
        def fn(x):
            os.write(1, b"started\\n")
            time.sleep(3600)
        with parmap.plan("processes", workers=2):
            parmap.pmap(fn, range(2), chunks=1)
        """
    )
    assert [script.line(), script.line()] == ["started", "started"]
    script.interrupt()
    out, err = script.end()
    assert out == ""
    # One traceback, the script's own: workers keep quiet.
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert script.process.returncode == -signal.SIGINT


def test_an_interrupt_between_calls_harms_nobody(start):
    script = start(
        """
        import parmap, signal
        with parmap.plan("processes", workers=2):
            parmap.pmap(abs, [-1])
            try:
                print("waits", flush=True)
                signal.pause()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            print(parmap.pmap(abs, [-2]), flush=True)
        """
    )
    assert script.line() == "waits"
    script.interrupt()
    assert script.good() == "interrupted\n[2]\n"
