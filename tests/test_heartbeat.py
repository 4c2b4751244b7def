"""A command under `tests/heartbeat.py` is never silent for long, and otherwise as without it."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HEARTBEAT = Path(__file__).with_name("heartbeat.py")
# A guard against hangs, never waited for when all is well.
GUARD = 90
RUNS = re.compile(rb"\.\.\. still running after \d+ s\n")


@pytest.fixture
def start():
    """Start a command, some Python code, under a heartbeat every so many seconds."""
    started = []

    def start(code, every):
        process = subprocess.Popen(
            [sys.executable, HEARTBEAT, sys.executable, "-c", code],
            env=os.environ | {"HEARTBEAT": str(every)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def output(process, code=0):
    said, errors = process.communicate(timeout=GUARD)
    assert (process.returncode, errors) == (code, b"")
    return said


def test_a_silent_command_is_said_to_run(start):
    process = start("input(); print('done')", every=0.05)
    for _ in range(3):
        assert RUNS.fullmatch(process.stdout.readline())
    process.stdin.write(b"\n")
    assert RUNS.sub(b"", output(process)) == b"done\n"


def test_that_is_a_line_of_its_own(start):
    process = start("import sys; input(sys.stdout.write(' 10%') and ''); print(' 20%')", every=0.05)
    lines = iter(process.stdout.readline, b"")
    assert next(line for line in lines if not RUNS.fullmatch(line)) == b" 10%\n"
    assert RUNS.fullmatch(next(lines))
    process.stdin.write(b"\n")
    assert RUNS.sub(b"", output(process)) == b" 20%\n"


def test_a_command_that_writes_is_left_alone(start):
    process = start(
        "import sys; print('out'); sys.stderr.write('error\\n'); sys.exit(3)", every=GUARD
    )
    assert sorted(output(process, 3).splitlines()) == [b"error", b"out"]


def test_states_of_a_bar_are_lines_outside_of_a_terminal(start):
    process = start(r"print('\r 0%\r50%', end='\r100%\n')", every=GUARD)
    assert output(process) == b"\n 0%\n50%\n100%\n"


def test_in_a_terminal_a_bar_is_a_bar():
    ours, its = os.openpty()
    command = [sys.executable, HEARTBEAT, sys.executable, "-c", r"print('0%\r99%', end='')"]
    subprocess.run(command, stdout=its, check=True, timeout=GUARD)
    os.close(its)
    assert os.read(ours, 99) == b"0%\r99%"
    os.close(ours)


def test_a_command_that_was_killed_has_the_shells_exit_code(start):
    process = start("import os; os.kill(os.getpid(), 9)", every=GUARD)
    assert output(process, 128 + 9) == b""


def test_what_a_command_says_after_ctrl_c_comes_out(start):
    code = """
    import signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    print("waits", flush=True)
    signal.sigwait([signal.SIGINT])
    print("stopped")
    """
    process = start(textwrap.dedent(code), every=GUARD)
    assert process.stdout.readline() == b"waits\n"
    os.killpg(process.pid, signal.SIGINT)
    assert output(process) == b"stopped\n"


def test_the_end_of_a_heartbeat_is_the_end_of_its_command(start):
    process = start("import signal; print('waits', flush=True); signal.pause()", every=GUARD)
    assert process.stdout.readline() == b"waits\n"
    process.terminate()
    assert output(process, 128 + signal.SIGTERM) == b""


def test_a_process_that_the_command_leaves_behind_is_not_waited_for(start):
    left = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stderr=-3)"
    process = start(left, every=0.05)
    assert process.wait(GUARD) == 0
    process.stdin.write(b"\n")  # its end
    assert RUNS.sub(b"", output(process)) == b""
