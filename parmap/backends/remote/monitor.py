"""Which of our batch jobs run, wait, or have ended; and what becomes of them then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from parmap.backends.remote import cleanup

__all__ = ["JobMonitor"]

# Seconds between looks at the queue, and until it is told that jobs wait there.
_LOOK = 3.0
_PATIENCE = 10.0
# A slot whose jobs end within so many seconds, so many times in a row, is failing; so is one
# whose jobs the system refuses so many times in a row.
_SHORT_LIFE = 30.0
_SHORT_LIVES = 3
_REFUSALS = 5
_LONGEST_PAUSE = 600.0
_AT_MOST = 5  # slots that an error names
_GONE = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
}
# After these another node may do better. Somebody's `scancel` says nothing about the node.
_OF_THE_NODE = {"BOOT_FAIL", "COMPLETED", "FAILED", "NODE_FAIL"}
_log = logging.getLogger("parmap.dask")


class Seen(NamedTuple):
    """What the queue says of a job.

    Parameters
    ----------
    state, reason : str, default ""
        As Slurm calls them.
    seconds : float, default 0.0
        How long the job has run, or had run when it ended.
    node : str, default ""
        Where.
    """

    state: str = ""
    reason: str = ""
    seconds: float = 0.0
    node: str = ""

    def __str__(self) -> str:
        """Say how the job ended."""
        where = f" on {self.node}" if self.node else ""
        reason = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return f"{self.state}{reason} after {self.seconds:g} s{where}"


@dataclass(slots=True)
class _Slot:
    """One of our jobs, and the jobs that were submitted in its place.

    Parameters
    ----------
    since : float
        When the newest job was submitted.
    short : int, default 0
        How many of its jobs in a row have ended too soon.
    refused : int, default 0
        How many times in a row the system has refused the next job.
    ended : str, default ""
        How the newest job ended, or why the next was refused; empty while a job waits or runs.
    again : float, default 0.0
        Before this time no other job is submitted.
    """

    since: float = field(default_factory=time.monotonic)
    short: int = 0
    refused: int = 0
    ended: str = ""
    again: float = 0.0

    @property
    def failing(self) -> bool:
        """Whether its jobs do not stay, so that none is there now."""
        return bool(self.ended) and (self.short >= _SHORT_LIVES or self.refused >= _REFUSALS)

    def pause(self) -> None:
        """Submit the next job later the more often that has failed."""
        failures = max(self.short, self.refused)
        wait = min(2.0**failures, _LONGEST_PAUSE) if failures else 0.0
        self.again = time.monotonic() + wait

    def renew(self) -> None:
        """Note that another job was submitted."""
        self.since, self.refused, self.ended = time.monotonic(), 0, ""


class JobMonitor:
    """What the batch system says of our jobs; those that end are replaced.

    Only Slurm is asked: what the commands of others say was not tried. Here, too, it is settled
    how many jobs there are, where that may change.

    A job that ends soon after its start costs its slot a pause that grows, and its node all
    later jobs, where the system has others. One bad node costs no other slot anything.

    Parameters
    ----------
    own : Path
        The session's folder.
    lock : int
        The descriptor of its lock; the monitor's own.
    cancel : str
        The command that cancels a job.

    Attributes
    ----------
    states : dict of str to Seen
        What the queue says, by the jobs' numbers.
    answers : bool
        Whether the queue has answered the last time that it was asked.
    hopeless : bool
        Whether no slot has a job any more, for they all end as soon as they run, or are refused.
        Then no job is submitted any more.
    """

    def __init__(self, own: Path, lock: int, cancel: str) -> None:
        self._lock = lock
        self._cleanup = subprocess.Popen(
            [sys.executable, cleanup.__file__, os.fspath(own), str(lock), cancel],
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=[lock],
            start_new_session=True,  # neither Ctrl-C nor the end of a terminal is for it
        )
        _monitors.add(self)
        # A machine may have the commands of two systems.
        self._asks = shlex.split(cancel)[:1] == ["scancel"]
        self._slots: dict[Any, _Slot] = {}
        self._watch: asyncio.Task[None] | None = None
        self._scale: Callable[[], None] | None = None
        self._avoided: dict[str, None] = {}  # nodes, in the order of their failures
        self.states: dict[str, Seen] = {}
        self.answers = self.hopeless = False

    def add(self, job: Any) -> None:
        """Watch a job."""
        self._slots[job] = _Slot()
        self._tell(f"+{job.job_id}")
        if self._watch is None:
            self._watch = asyncio.create_task(self._look())

    def renew(self, job: Any, number: str) -> None:
        """Watch a job that was submitted in the place of another, by its number."""
        self._tell(f"+{number}")
        self._tell(f"-{job.job_id}")
        job.job_id = number
        self._slots[job].renew()

    def remove(self, job: Any) -> None:
        """Watch it no longer."""
        if self._slots.pop(job, None) is not None:
            self._tell(f"-{job.job_id}")

    def close(self) -> None:
        """Remove the folder, and cancel what is left."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)
        if self._cleanup.poll() is None:
            self._cleanup.communicate()

    def let_go(self) -> None:
        """In a fork, which may live on: leave the line to the cleanup process to the parent."""
        assert self._cleanup.stdin is not None
        with contextlib.suppress(ValueError):  # it is closed already
            nothing = os.open(os.devnull, os.O_RDWR)
            # In their places, for both objects may be closed here once more.
            os.dup2(nothing, self._cleanup.stdin.fileno())
            if self._lock >= 0:
                os.dup2(nothing, self._lock)
            os.close(nothing)

    def follow(self, scale: Callable[[], None]) -> None:
        """Settle again and again how many jobs there are."""
        self._scale = scale

    def _tell(self, line: str) -> None:
        assert self._cleanup.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # somebody has killed it, or it is closed
            print(line, file=self._cleanup.stdin, flush=True)

    @property
    def waiting(self) -> str:
        """Say which jobs wait in the queue, and why."""
        reasons = Counter(seen.reason for seen in self.states.values() if seen.state == "PENDING")
        said = ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        if not said:
            return ""
        without = f"; not on {', '.join(self._avoided)}, where jobs failed" * bool(self._avoided)
        return f"{reasons.total()} of {len(self._slots)} jobs wait in the queue: {said}{without}"

    @property
    def ended(self) -> list[str]:
        """Say how the newest jobs have ended, or why the next ones were refused."""
        said = [slot.ended for slot in self._slots.values() if slot.ended]
        more = len(said) - _AT_MOST
        return [*said[:_AT_MOST], *([f"and {more} more"] if more > 0 else [])]

    def all_run(self, seconds: float) -> bool:
        """Whether each job has run for so long, so that none waits or has ended."""
        seen = [self.states.get(job.job_id, Seen()) for job in self._slots]
        return all(one.state == "RUNNING" and one.seconds >= seconds for one in seen)

    async def _look(self) -> None:
        told = ""
        while self._slots and not self.hopeless:
            await asyncio.sleep(_LOOK)
            if self._scale is not None:
                self._scale()
            self.answers = self._asks and await self._ask()
            if not self.answers:
                continue
            oldest = min((self._age(slot) for slot in self._slots.values()), default=0.0)
            if self.waiting != told and oldest > _PATIENCE:
                told = self.waiting
                if told:
                    _log.warning("%s", told)
            for job in list(self._slots):
                await self._look_after(job)
            slots = self._slots.values()
            self.hopeless = bool(slots) and all(slot.failing for slot in slots)
        self._watch = None

    @staticmethod
    def _age(slot: _Slot) -> float:
        return time.monotonic() - slot.since

    async def _ask(self) -> bool:
        """Ask for all of the user's jobs: one question, however many there are."""
        if not shutil.which("squeue"):
            return False
        try:
            process = await asyncio.create_subprocess_exec(
                *("squeue", "--noheader", "--me", "--states=all", "--format=%i|%T|%M|%N|%r"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:  # too much is open, or runs
            return False
        said, _ = await process.communicate()
        if process.returncode:
            return False  # it is too busy to answer, say
        known = dict(map(_read, said.decode(errors="replace").splitlines()))
        before, self.states = self.states, {}
        for job, slot in self._slots.items():
            last = before.get(job.job_id, Seen())
            # One submitted just now may not be listed yet; one that ended long ago is not.
            unlisted = last._replace(state="COMPLETED", reason="")
            unlisted = unlisted if self._age(slot) > _PATIENCE else Seen()
            self.states[job.job_id] = known.get(job.job_id, unlisted)
        return True

    async def _look_after(self, job: Any) -> None:
        """Replace a job that has ended, when its slot's pause is over."""
        slot, seen = self._slots.get(job), self.states.get(job.job_id, Seen())
        if slot is None or seen.state not in _GONE:
            return
        if not slot.ended:
            self._note(job, slot, seen)
        if time.monotonic() < slot.again:
            return
        try:
            await self._submit(job)
        except (OSError, RuntimeError, ValueError) as error:  # what sbatch says, or of it
            slot.refused += 1
            slot.pause()
            slot.ended = f"the next job is refused: {_essence(error)}"
            _log.warning("No job can take the place of job %s: %s", job.job_id, _essence(error))

    def _note(self, job: Any, slot: _Slot, seen: Seen) -> None:
        """Draw the lesson from a job's end."""
        short = seen.seconds < _SHORT_LIFE
        slot.short = slot.short + 1 if short else 0
        slot.ended = f"job {job.job_id}: {seen}"
        slot.pause()
        if short and seen.node and seen.state in _OF_THE_NODE:
            self._avoided[seen.node] = None
        if slot.failing:
            _log.warning("%d jobs in a row did not stay; the last was %s", slot.short, slot.ended)
        else:
            _log.warning("Job %s has ended (%s): another takes its place", job.job_id, seen.state)

    async def _submit(self, job: Any) -> None:
        """Submit another job, to a node where none has failed, if there is such a node."""
        if self._avoided:
            try:
                await job.again([*self._avoided])
            except RuntimeError:
                await job.again([])
                self._avoided.clear()  # it is they, or none
        else:
            await job.again([])


# A fork has the line to the cleanup process, too, and would keep jobs alive as long as it lives.
_monitors: weakref.WeakSet[JobMonitor] = weakref.WeakSet()


def _forked() -> None:
    for monitor in list(_monitors):
        monitor.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _read(line: str) -> tuple[str, Seen]:
    number, state, ran, node, reason = (*line.split("|", 4), "", "", "", "")[:5]
    return number, Seen(state, reason, _seconds(ran), node)


def _seconds(text: str) -> float:
    """Read Slurm's ``days-hours:minutes:seconds``; what it cannot tell is 0."""
    days, _, rest = text.rpartition("-")
    total = 0
    try:
        for part in rest.split(":"):
            total = 60 * total + int(part)
        return float(total + 24 * 60 * 60 * int(days or 0))
    except ValueError:  # it says INVALID where the clocks of two machines differ
        return 0.0


def _essence(error: Exception) -> str:
    """Give the last line that says something: what a command wrote comes last."""
    lines: Sequence[str] = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
