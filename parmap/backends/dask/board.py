"""Which of our batch jobs run, wait, or have ended; and what becomes of them then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parmap.backends.dask import guardian

__all__ = ["Board"]

# Seconds between looks at the queue, and until it is told that jobs wait there.
_LOOK = 3.0
_PATIENCE = 10.0
# One that ends within so many seconds, so many times in a row, may not be able to run.
_SHORT_LIFE = 30.0
_SHORT_LIVES = 3
_GONE = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
}
_log = logging.getLogger("parmap.dask")


class Board:
    """What the batch system says of our jobs; those that end are replaced.

    Only Slurm is asked: what the commands of others say was not tried. Here, too, it is settled
    how many jobs there are, where that may change.

    Parameters
    ----------
    own : Path
        The session's folder.
    cancel : str
        The command that cancels a job.

    Attributes
    ----------
    states : dict of str to tuple
        State and reason, by the jobs' numbers.
    """

    def __init__(self, own: Path, cancel: str) -> None:
        self._guardian = subprocess.Popen(
            [sys.executable, guardian.__file__, os.fspath(own), cancel],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # neither Ctrl-C nor the end of a terminal is for it
        )
        self._jobs: list[Any] = []
        self._watch: asyncio.Task[None] | None = None
        self._submitted: dict[str, float] = {}
        self._short: Counter[Any] = Counter()
        self._scale: Callable[[], None] | None = None
        self.states: dict[str, tuple[str, str]] = {}

    def add(self, job: Any) -> None:
        """Watch a job."""
        self._jobs.append(job)
        self._tell(f"+{job.job_id}")
        self._submitted[job.job_id] = time.monotonic()
        if self._watch is None:
            self._watch = asyncio.create_task(self._look())

    def remove(self, job: Any) -> None:
        """Watch it no longer."""
        if job in self._jobs:
            self._jobs.remove(job)
            self._tell(f"-{job.job_id}")

    def close(self) -> None:
        """Remove the folder, and cancel what is left."""
        if self._guardian.poll() is None:
            self._guardian.communicate()

    def follow(self, scale: Callable[[], None]) -> None:
        """Settle again and again how many jobs there are."""
        self._scale = scale

    def _tell(self, line: str) -> None:
        assert self._guardian.stdin is not None
        with contextlib.suppress(OSError):  # somebody has killed it
            print(line, file=self._guardian.stdin, flush=True)

    @property
    def hopeless(self) -> bool:
        """Whether jobs end as soon as they run, again and again."""
        return any(count >= _SHORT_LIVES for count in self._short.values())

    @property
    def waiting(self) -> str:
        """Say which jobs wait in the queue, and why."""
        reasons = Counter(reason for state, reason in self.states.values() if state == "PENDING")
        said = ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        return f"{reasons.total()} of {len(self._jobs)} jobs wait in the queue: {said}" * bool(said)

    async def _look(self) -> None:
        told = ""
        while self._jobs:
            await asyncio.sleep(_LOOK)
            if self._scale is not None:
                self._scale()
            if not shutil.which("squeue"):
                continue
            await self._ask()
            oldest = min(map(self._age, self._jobs), default=0.0)
            if self.waiting != told and oldest > _PATIENCE:
                told = self.waiting
                if told:
                    _log.warning("%s", told)
            for job in list(self._jobs):
                await self._replace(job)
        self._watch = None

    def _age(self, job: Any) -> float:
        return time.monotonic() - self._submitted.get(job.job_id, time.monotonic())

    async def _ask(self) -> None:
        """Ask for all of the user's jobs: one question, however many there are."""
        process = await asyncio.create_subprocess_exec(
            *("squeue", "--noheader", "--me", "--states=all", "--format=%i|%T|%r"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        said, _ = await process.communicate()
        if process.returncode:
            return  # it is too busy to answer, say
        rows = [line.split("|") for line in said.decode().splitlines()]
        known = {number: (state, reason) for number, state, reason in rows}
        self.states = {}
        for job in self._jobs:
            # One submitted just now may not be listed yet; one that ended long ago is not.
            unlisted = ("COMPLETED", "") if self._age(job) > _PATIENCE else ("", "")
            self.states[job.job_id] = known.get(job.job_id, unlisted)

    async def _replace(self, job: Any) -> None:
        state, _ = self.states.get(job.job_id, ("", ""))
        if state not in _GONE or self.hopeless:
            return
        self._short[job] = self._short[job] + 1 if self._age(job) < _SHORT_LIFE else 0
        if self.hopeless:
            _log.warning("Jobs end as soon as they run (%s): no more are submitted", state)
            return
        _log.warning("Job %s has ended (%s): another takes its place", job.job_id, state)
        with contextlib.suppress(RuntimeError):  # it cannot be submitted now: again next time
            await job.again()
