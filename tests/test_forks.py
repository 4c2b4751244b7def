"""Tasks that fork: what comes back from the function twice ends there."""

import os
import subprocess
import sys

import pytest

import parmap

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")

# The children's own output and errors go to a file; it ends when all of them have.
SCRIPT = """
import os, sys, parmap

def fork(x):
    pid = os.fork()
    if pid == 0:
        if x == 1:
            sys.exit(7)
        if x == 2:
            raise ValueError("in the child")
        if x == 3:
            sys.exit("a message")
        if x == 4:
            raise StopIteration
        return "the child forgets to leave"
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def twice(x):
    # What it left running would have the watchdog's own thread, or wait for it.
    import faulthandler
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(100)
        faulthandler.cancel_dump_traceback_later()
        os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def fork_and_hang(x):
    import time
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    time.sleep(100 * x)

with parmap.plan(sys.argv[1]):
    for options in ({"chunks": 1}, {"chunks": 1, "timeout": 60}, {"timeout": 60}):
        print(parmap.pmap(fork, range(5), **options))
    print([parmap.submit(fork, x).result() for x in (0, 1)])
    print(parmap.pmap(twice, range(3), timeout=60))
    if "processes" in sys.argv[1]:
        ends = parmap.pmap(fork_and_hang, [0, 1], timeout=0.5, errors="return")
        print([type(end).__name__ for end in ends])
"""


@pytest.mark.parametrize(
    "plan", ["processes(workers=2)", "processes(workers=2, start='fork')", "threads(workers=2)"]
)
def test_a_fork_ends_where_it_comes_back(plan, tmp_path):
    with open(tmp_path / "errors", "w+") as errors:
        run = subprocess.run(
            # At its end a fork also writes what it inherited in buffers. If another thread was
            # writing when it was made, such as Python's warning of this fork, it waits forever.
            [sys.executable, "-u", "-W", "ignore::DeprecationWarning", "-c", SCRIPT, plan],
            env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(parmap.__file__))},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=True,
        )
        errors.seek(0)
        said = errors.read()
    ends = "[0, 7, 1, 1, 1]\n" * 3 + "[0, 7]\n" + "[3, 3, 3]\n"
    assert run.stdout == ends + ("['NoneType', 'Failure']\n" if "processes" in plan else "")
    assert "ValueError: in the child" in said
    assert "a message\n" in said


ADOPTED = """
import os, sys, threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import parmap

def inner(x):
    return x + 1

def outer(x):
    found = []
    def call():
        found.append((parmap.pmap(inner, [x, x]), str(parmap.current_plan())))
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return found

pool = ProcessPoolExecutor(2, get_context("fork"))
parmap.set_plan(pool)
print(parmap.pmap(outer, range(2)))
if (pid := os.fork()) == 0:
    try:
        parmap.pmap(inner, [1])
    except parmap.PlanError as error:
        print(error)
    os._exit(0)
os.waitpid(pid, 0)
parmap.set_plan("sequential")
pool.shutdown()
"""


def test_forks_do_not_wait_for_a_pool_that_their_parent_has(run):
    """Neither the pool's own workers, nor a fork of the script."""
    said = run(ADOPTED, flags=("-u", "-W", "ignore::DeprecationWarning"))
    results, refusal = said.splitlines()
    assert results == "[[([1, 1], 'sequential')], [([2, 2], 'sequential')]]"
    assert refusal.startswith("the ProcessPoolExecutor of this plan belongs to process")
