"""What Slurm's ``squeue`` says of our jobs."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

__all__ = ["JobState", "SlurmQueue"]

# Seconds until `squeue` lists a job that was submitted just now.
_UNLISTED = 10.0
_COMMAND = ("squeue", "--noheader", "--me", "--states=all", "--format=%i|%T|%M|%N|%r")


class JobState(NamedTuple):
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


class SlurmQueue:
    """The states of our jobs, as the batch system told them the last time.

    Only Slurm is asked: what the commands of others say was not tried.

    Parameters
    ----------
    cancel : str
        The command that cancels a job: a machine may have the commands of two systems.

    Attributes
    ----------
    answers : bool
        Whether the queue has answered the last time that it was asked.
    """

    def __init__(self, cancel: str) -> None:
        self._asks = shlex.split(cancel)[:1] == ["scancel"]
        # By the jobs' numbers. Replaced whole, never changed, so any thread may read it.
        self._states: dict[str, JobState] = {}
        self.answers = False

    def state(self, number: str) -> JobState:
        """Tell what is known of a job; of one that was not listed yet, nothing is."""
        return self._states.get(number, JobState())

    def waiting(self) -> Counter[str]:
        """Count the jobs that wait, by the reasons."""
        states = self._states.values()
        return Counter(known.reason for known in states if known.state == "PENDING")

    async def ask(self, ages: Callable[[], Mapping[str, float]]) -> None:
        """Ask for all of the user's jobs: one question, however many there are.

        Parameters
        ----------
        ages : callable
            Gives, by the numbers of our jobs, for how many seconds each has been submitted. Called
            once the queue has answered, for jobs come and go meanwhile.
        """
        said = await _squeue() if self._asks else None
        self.answers = said is not None
        if said is not None:
            known = dict(map(_read, said.splitlines()))
            self._states = {
                number: known.get(number, self._unlisted(number, age))
                for number, age in ages().items()
            }

    def _unlisted(self, number: str, age: float) -> JobState:
        # One submitted just now may not be listed yet; one that ended long ago is not.
        if age <= _UNLISTED:
            return JobState()
        return self.state(number)._replace(state="COMPLETED", reason="")


async def _squeue() -> str | None:
    """Give what the command prints; None where it does not answer."""
    if not shutil.which("squeue"):
        return None
    try:
        process = await asyncio.create_subprocess_exec(
            *_COMMAND, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:  # too much is open, or runs
        return None
    said, _ = await process.communicate()
    # With another status it is too busy to answer, say.
    return None if process.returncode else said.decode(errors="replace")


def _read(line: str) -> tuple[str, JobState]:
    number, state, ran, node, reason = (*line.split("|", 4), "", "", "", "")[:5]
    return number, JobState(state, reason, _seconds(ran), node)


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
