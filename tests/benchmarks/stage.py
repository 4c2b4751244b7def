"""A contender in an interpreter of its own, which says when it is ready and goes when told.

There its fork meets no threads of others, what it imports changes nobody else, and it can hang
or die without harm. All stages of a case are open at the same time, so that their rounds can
take turns; they wait for a line, which costs nothing.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil

from tests.benchmarks.memory import held, tree
from tests.benchmarks.workload import Case, Sample, Workload, load

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds that a round may take


class Stage:
    """The parent's side: starts the interpreter at once, and does not wait for it."""

    def __init__(self, workload: Workload, case: Case, contender: str, *, quick: bool) -> None:
        self.failed = ""
        self._ready = False
        self._errors = tempfile.TemporaryFile()
        command = (sys.executable, "-m", "tests.benchmarks.stage")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PARMAP")}
        self._process = subprocess.Popen(
            [*command, workload.name, case.key, contender, str(int(quick))],
            cwd=ROOT,
            env=inherited | {"PYTHONPATH": os.fspath(ROOT)},  # its workers import the workload, too
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def ready(self) -> bool:
        """Wait until it is; else say why not in `failed`."""
        if not self._ready and not self.failed:
            self.failed = self._answer().failed
            self._ready = not self.failed
        return self._ready

    def go(self) -> Sample:
        """Have it do one round."""
        if not self.ready():
            return Sample(failed=self.failed)
        self._tell()
        sample = self._answer()
        self.failed = sample.failed
        return sample

    def watched(self) -> int:
        """Have it do one round, and look often how much more memory it and its workers hold."""
        if not self.ready():
            return 0
        before = most = held(self._process.pid)
        self._tell()
        until = time.monotonic() + PATIENCE
        while not select.select([self._process.stdout], [], [], 0)[0]:
            most = max(most, held(self._process.pid))
            if time.monotonic() > until:
                break
        self.failed = self._answer().failed
        return most - before

    def _tell(self) -> None:
        with suppress(BrokenPipeError):  # the answer will say that it is gone
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def _answer(self) -> Sample:
        until = time.monotonic() + PATIENCE
        while not select.select([self._process.stdout], [], [], 0.2)[0]:
            if self._ended():
                break
            if time.monotonic() > until:
                return Sample(failed=f"no result in {PATIENCE} s")
        else:
            if line := self._process.stdout.readline():
                return Sample(**json.loads(line))
        return Sample(failed=f"its process ended: {self._last_words()}")

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def _ended(self) -> bool:
        """Look whether it has ended, and leave it a zombie: so its group's number stays its own."""
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, how) is not None

    def end(self, *, patience: float = 10) -> None:
        """Let it close its pool, if it can; then end all that it started."""
        left = tree(self._process.pid)
        if self.failed:
            patience = 0
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        until = time.monotonic() + patience
        while time.monotonic() < until and not self._ended():
            time.sleep(0.01)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in left:
            with suppress(psutil.NoSuchProcess):  # a process is known by its start, too
                process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def main() -> None:
    """Be the interpreter."""
    name, key, contender, quick = sys.argv[1:]
    # Workers inherit standard output: what they print must not look like an answer.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(sample: Sample) -> None:
        print(json.dumps(asdict(sample)), file=channel, flush=True)

    workload = load(name)
    case = next(case for case in workload.cases(bool(int(quick))) if case.key == key)
    try:
        trial = workload.trial(case, contender)
        next(trial)
        say(Sample())
        for _ in sys.stdin:
            say(next(trial))
    except BaseException as error:  # whatever a peer raises goes into the table
        lines = str(error).strip().splitlines() or [""]
        say(Sample(failed=f"{type(error).__name__}: {lines[0][:160]}"))
        raise SystemExit(1) from error
    trial.close()


if __name__ == "__main__":
    main()
