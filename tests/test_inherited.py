"""What a script, or who starts it, has set for the whole process: workers inherit it, and live."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from multiprocessing import Pool

import pytest

import parmap
from parmap.backends.processes.protocol import Kind, send
from parmap.transport.sockets import moved, pair

BODY = """
import os, sys, parmap

def square(x):
    return x * x

def die(x):
    if x == 3:
        os._exit(5)
    return x

def calls(start, out):
    import time
    with parmap.plan("processes", workers=2, start=start):
        assert parmap.pmap(square, range(20)) == [x * x for x in range(20)]
        handle = parmap.share(bytes(3 << 20))  # by a file without a name
        assert parmap.pmap(lambda b, i: len(b) + i, [handle] * 2, [1, 2]) == [3145729, 3145730]
        assert parmap.pmap(len, [bytes(5 << 20)] * 3) == [5 << 20] * 3
        assert [len(b) for b in parmap.pmap(bytes, [5 << 20] * 3)] == [5 << 20] * 3
        ends = parmap.pmap(die, range(5), errors="return")
        assert [type(end).__name__ for end in ends] == ["int", "int", "int", "Failure", "int"]
        ends = parmap.pmap(time.sleep, [0, 90], timeout=0.5, errors="return")
        assert [type(end).__name__ for end in ends] == ["NoneType", "Failure"]
        results = parmap.imap(time.sleep, [0, 90])
        next(results)
        results.close()
        assert parmap.pmap(square, range(20)) == [x * x for x in range(20)]
    with open(out, "w") as file:
        file.write("all is well")

calls(*arguments)
"""

ARGUMENTS = "import sys; arguments = sys.argv[1:]\n"

SET = {
    "a default timeout of sockets": "import socket; socket.setdefaulttimeout(0.3)",
    "other sockets": """
        import socket
        class Refused(socket.socket):
            def __new__(cls, *args, **kwargs):
                raise RuntimeError("no sockets in tests")
        socket.socket = Refused
    """,
    "children that the system reaps": """
        import signal
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    """,
    "children that the script reaps": """
        import os, signal
        def reap(*_):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
        signal.signal(signal.SIGCHLD, reap)
    """,
    "signals that are blocked": """
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD})
    """,
    "SIGINT that is ignored": "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "SIGPIPE that kills": "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    "a descriptor that signals wake": """
        import signal, socket
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        signal.set_wakeup_fd(ours.fileno())
        import atexit
        atexit.register(theirs.close)
        atexit.register(ours.close)
        atexit.register(signal.set_wakeup_fd, -1)
    """,
    "a mask for all files": "import os; os.umask(0o777)",
    "few descriptors": """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    """,
    "small files": """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    """,
    "little memory": """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    """,
    "small stacks": "import threading; threading.stack_size(1 << 16)",
    "closed standard files": """
        import os, sys
        os.closerange(0, 3)
        sys.stdin = sys.stdout = sys.stderr = None
    """,
    "a directory that is gone": """
        import os, tempfile
        gone = tempfile.mkdtemp()
        os.chdir(gone)
        os.rmdir(gone)
    """,
    "no name of the interpreter": "import sys; sys.executable = None",
    "no arguments": "import sys; del sys.argv",
    "a path longer than a command": """
        import sys
        sys.path += [f"/nowhere/{number}/" + "x" * 200 for number in range(1500)]
    """,
    "entries of the path that are odd": """
        import pathlib, sys
        sys.path += ["/nowhere/\\udce9", 3, None, pathlib.Path("/nowhere")]
    """,
    "no collector": "import gc; gc.disable()",
    "a tracing function": "import sys; sys.settrace(lambda *_: None)",
    "warnings that are errors": "import warnings; warnings.simplefilter('error')",
    "signals from a timer": """
        import signal
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        import atexit
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
    """,
}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start_method", ["fresh", "fork"])
@pytest.mark.parametrize("what", SET)
def test_a_script_may_set(start, start_method, what, tmp_path):
    out = tmp_path / "out"
    script = start(ARGUMENTS + textwrap.dedent(SET[what]) + BODY, start_method, out)
    assert script.good() == ""
    assert out.read_text() == "all is well"


@pytest.mark.parametrize("start_method", ["fresh", "fork"])
@pytest.mark.parametrize(
    "flags", ["-I", "-OO", "-P", "-X dev -W error", "-bb", "-X utf8=0 -X int_max_str_digits=0"]
)
def test_an_interpreter_may_be_started_with(start_method, flags, tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "out"
    root = os.path.dirname(os.path.dirname(parmap.__file__))
    script.write_text(f"import sys; sys.path.insert(0, {root!r})\n" + ARGUMENTS + BODY)
    command = [sys.executable, *flags.split(), script, start_method, out]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr, run.returncode) == ("", "", 0)
    assert out.read_text() == "all is well"


@pytest.mark.parametrize("start_method", ["fresh", "fork"])
@pytest.mark.parametrize(
    "command",
    [
        'exec "$@" <&- >&- 2>&-',
        "trap '' CHLD HUP INT; exec \"$@\"",
        'LC_ALL=C PYTHONIOENCODING=ascii PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 exec "$@"',
        'PYTHONSAFEPATH=1 PYTHONINSPECT=1 exec "$@" < /dev/null',
        'ulimit -n 40; exec "$@"',
    ],
)
def test_a_shell_may_start_the_script_by(start_method, command, tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(ARGUMENTS + BODY)
    root = os.path.dirname(os.path.dirname(parmap.__file__))
    subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, script, start_method, out],
        env={**os.environ, "PYTHONPATH": root},
        check=True,
    )
    assert out.read_text() == "all is well"


def test_workers_count_as_many_digits_as_the_script(run):
    out = run(
        """
        import sys, parmap
        sys.set_int_max_str_digits(0)
        with parmap.plan("processes", workers=1):
            print(parmap.pmap(lambda x: len(str(10 ** x)), [10_000]))
        """
    )
    assert out == "[10001]\n"


def test_parmap_is_found_from_another_directory(run, tmp_path):
    root = os.path.dirname(os.path.dirname(parmap.__file__))
    out = run(
        f"""
        import os, sys
        sys.path.insert(0, {os.path.relpath(root, tmp_path)!r})
        os.environ.pop("PYTHONPATH")
        sys.path[:] = [one for one in sys.path if one != {root!r}]
        import parmap
        os.chdir("/")
        with parmap.plan("processes", workers=1):
            print(parmap.pmap(abs, [-1]))
        """
    )
    assert out == "[1]\n"


def test_a_fork_keeps_the_collector_off(run):
    out = run(
        """
        import gc, parmap
        gc.disable()
        for start in ("fork", "fresh"):
            with parmap.plan("processes", workers=1, start=start):
                print(parmap.submit(gc.isenabled).result())
        """
    )
    assert out == "False\nTrue\n"


@pytest.mark.parametrize("start_method", ["fresh", "fork"])
def test_tasks_ignore_an_interrupt_that_the_script_ignores(run, start_method):
    out = run(
        f"""
        import os, signal, threading, parmap
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        def interrupted(i):
            os.kill(os.getpid(), signal.SIGINT)
            return i, signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        def fails_or_never_ends(i):
            if i:
                threading.Event().wait()
            raise ValueError
        with parmap.plan("processes", workers=2, start={start_method!r}):
            print(parmap.pmap(interrupted, range(3)))
            try:
                parmap.pmap(fails_or_never_ends, range(2), chunks=1)
            except ValueError:
                print("the worker that never ends is replaced")
            print(parmap.pmap(interrupted, range(3), chunks=1))
        """
    )
    fine = f"{[(i, True) for i in range(3)]}\n"
    assert out == f"{fine}the worker that never ends is replaced\n{fine}"


def test_tasks_find_the_scripts_own_handler_of_ended_children(run):
    out = run(
        """
        import signal, parmap
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for start in ("fresh", "fork"):
            with parmap.plan("processes", workers=1, start=start):
                print(parmap.submit(signal.getsignal, signal.SIGCHLD).result().name)
        """
    )
    assert out == "SIG_IGN\nSIG_IGN\n"


def test_a_write_to_a_worker_that_is_gone_raises_no_signal():
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        for frames in ([b"small"], [b"large" * (1 << 18)]):
            ours, theirs = pair()
            theirs.close()
            with ours, pytest.raises(BrokenPipeError):
                send(ours, (Kind.TASK, 0, frames))
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_descriptors_are_none_of_the_standard_ones(run, tmp_path):
    """With those closed, the next to be opened would be them."""
    out = tmp_path / "out"
    run(
        f"""
        import os
        os.closerange(0, 3)
        import selectors
        from parmap.backends.processes.system_unix import anonymous_file, anonymous_memory
        from parmap.transport.sockets import above_standard, pair, unix
        sockets = (*pair(), unix())
        numbers = [anonymous_file(), anonymous_memory(1), *(one.fileno() for one in sockets)]
        with above_standard(selectors.DefaultSelector) as selector:
            numbers.append(selector.fileno())
        with open({os.fspath(out)!r}, "w") as file:
            file.write(f"{{file.fileno()}} {{min(numbers)}}")
        os._exit(0)
        """
    )
    file, lowest = map(int, out.read_text().split())
    assert file == 0
    assert lowest >= 3


def test_a_descriptor_above_them_stays():
    descriptor = os.open(os.devnull, os.O_RDONLY)
    assert moved(descriptor) == descriptor
    os.close(descriptor)


def test_an_adopted_pool_s_deaths_are_heard_with_a_timeout_of_sockets():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.2)
    try:
        with Pool(2) as pool, parmap.plan(pool):
            ends = parmap.pmap(_die, range(4), errors="return", chunks=1)
            again = parmap.pmap(abs, range(50))
    finally:
        socket.setdefaulttimeout(before)
    assert [type(end).__name__ for end in ends] == ["int", "int", "Failure", "int"]
    assert again == list(range(50))


def _die(x):
    if x == 2:
        os._exit(3)
    return x
