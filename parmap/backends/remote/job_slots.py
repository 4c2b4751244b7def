"""The slots of our batch jobs: a job that ends is replaced in its slot."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from parmap.backends.remote.slurm_queue import JobState

__all__ = ["JobSlots"]

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


class JobSlots:
    """Replaces jobs that end, each in its slot.

    A job that ends soon after its start costs its slot a pause that grows, and its node all
    later jobs, where the system has others. One bad node costs no other slot anything.
    """

    def __init__(self) -> None:
        self._slots: dict[Any, _Slot] = {}  # by the jobs
        self._avoided: dict[str, None] = {}  # nodes, in the order of their failures

    def __len__(self) -> int:
        """Count the slots."""
        return len(self._slots)

    def add(self, job: Any) -> None:
        """Make a slot for a job."""
        self._slots[job] = _Slot()

    def renew(self, job: Any) -> None:
        """Note that another job was submitted in the place of one."""
        self._slots[job].renew()

    def remove(self, job: Any) -> bool:
        """Give up a job's slot; tell whether there was one."""
        return self._slots.pop(job, None) is not None

    @property
    def jobs(self) -> list[Any]:
        """The job of each slot."""
        return list(self._slots)

    @property
    def avoided(self) -> list[str]:
        """The nodes where jobs failed: others are asked for."""
        return list(self._avoided)

    @property
    def ended(self) -> list[str]:
        """Say how the newest jobs have ended, or why the next ones were refused."""
        said = [slot.ended for slot in list(self._slots.values()) if slot.ended]
        more = len(said) - _AT_MOST
        return [*said[:_AT_MOST], *([f"and {more} more"] if more > 0 else [])]

    @property
    def failing(self) -> bool:
        """Whether no slot has a job any more, for all end as soon as they run, or are refused."""
        return bool(self._slots) and all(slot.failing for slot in self._slots.values())

    def ages(self) -> dict[str, float]:
        """Tell how many seconds ago each job was submitted, by the jobs' numbers."""
        now = time.monotonic()
        return {job.job_id: now - slot.since for job, slot in self._slots.items()}

    async def replace(self, job: Any, known: JobState) -> None:
        """Replace a job that has ended, when its slot's pause is over."""
        slot = self._slots.get(job)
        if slot is None or known.state not in _GONE:
            return
        if not slot.ended:
            self._note(job, slot, known)
        if time.monotonic() < slot.again:
            return
        try:
            await self._submit(job)
        except (OSError, RuntimeError, ValueError) as error:  # what sbatch says, or of it
            slot.refused += 1
            slot.pause()
            slot.ended = f"the next job is refused: {_essence(error)}"
            _log.warning("No job can take the place of job %s: %s", job.job_id, _essence(error))

    def _note(self, job: Any, slot: _Slot, known: JobState) -> None:
        """Draw the lesson from a job's end."""
        short = known.seconds < _SHORT_LIFE
        slot.short = slot.short + 1 if short else 0
        slot.ended = f"job {job.job_id}: {known}"
        slot.pause()
        if short and known.node and known.state in _OF_THE_NODE:
            self._avoided[known.node] = None
        if slot.failing:
            _log.warning("%d jobs in a row did not stay; the last was %s", slot.short, slot.ended)
        else:
            _log.warning("Job %s has ended (%s): another takes its place", job.job_id, known.state)

    async def _submit(self, job: Any) -> None:
        """Submit another job, to a node where none has failed, if there is such a node."""
        if self._avoided:
            try:
                await job.again(self.avoided)
            except RuntimeError:
                await job.again([])
                self._avoided.clear()  # it is they, or none
        else:
            await job.again([])


def _essence(error: Exception) -> str:
    """Give the last line that says something: what a command wrote comes last."""
    lines: Sequence[str] = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
