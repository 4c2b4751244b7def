"""Scripts, run as users run them: in interpreters of their own."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import hypothesis
import pytest

import parmap

# How long an example takes is the machine's affair, not a property of the code.
hypothesis.settings.register_profile("parmap", deadline=None)
hypothesis.settings.register_profile("long", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("parmap")


# The parts of the contract that an executor can break. The others are of the engine and of pickles.
_OF_EXECUTORS = {
    f"parmap.testing.{part}"
    for part in (
        *("core_share", "deaths", "errors", "failures", "futures", "results", "sharing"),
        *("streams", "surroundings", "waiting"),
    )
}


@pytest.hookimpl(tryfirst=True)  # before those that are marked `long` are left out
def pytest_collection_modifyitems(items):
    """Of contracts that are marked `brief`, leave all but these parts to the session `long`."""
    for item in items:
        if item.get_closest_marker("brief") and item.function.__module__ not in _OF_EXECUTORS:
            item.add_marker(pytest.mark.long)


def pytest_collection_finish():
    """Spare the collections that tests ask for the walk over thousands of collected tests."""
    # Hypothesis looks for what refers to its generator when it first runs, and warns if that is
    # nothing: what is frozen is not found. So it first runs here.
    hypothesis.given(hypothesis.strategies.none())(lambda _: None)()
    gc.collect()
    gc.freeze()


ROOT = os.fspath(Path(parmap.__file__).parents[1])
# A guard against hangs, never waited for when all is well.
GUARD = 90


class Script:
    """A running script, the leader of a process group of its own.

    Its workers hold its standard output and error open, too: so these end only when all of
    them are gone, which is how a test sees that nobody was left behind.
    """

    def __init__(self, path, args, flags, environment):
        # Buffered, as users' output is: one left in a fork's buffer would come out twice.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PARMAP"))}
        search = [ROOT, *environment.pop("PYTHONPATH", "").split(os.pathsep)]
        self.process = subprocess.Popen(
            [sys.executable, *flags, path, *args],
            cwd=os.path.dirname(path),
            env=inherited
            | {"PYTHONPATH": os.pathsep.join(filter(None, search)), "PYTHONDONTWRITEBYTECODE": "1"}
            | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Unbuffered: what `line` read ahead, `communicate` would not see.
            bufsize=0,
            start_new_session=True,
        )

    def line(self):
        """Wait for the next line of output."""
        return self.process.stdout.readline().decode().rstrip("\n")

    def interrupt(self):
        """Press Ctrl-C: the terminal sends the signal to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self):
        """Wait until the script and all its workers are gone; give what is left of its output."""
        out, err = self.process.communicate(timeout=GUARD)
        return out.decode(), err.decode()

    def good(self):
        """As `end`; it must have ended well, and have said nothing on standard error."""
        out, err = self.end()
        assert err == ""
        assert self.process.returncode == 0
        return out

    def kill(self):
        """Kill the whole group."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


@pytest.fixture
def start(tmp_path):
    """Start a script from its text."""
    running = []

    def start(text, *args, flags=("-W", "error"), **environment):
        path = tmp_path / f"script{len(running)}.py"
        path.write_text(textwrap.dedent(text))
        running.append(Script(os.fspath(path), args, flags, environment))
        return running[-1]

    yield start
    for script in running:
        script.kill()
        script.process.communicate()


@pytest.fixture
def run(start):
    """Run a script to its good end; give its output."""

    def run(text, *args, **options):
        return start(text, *args, **options).good()

    return run
