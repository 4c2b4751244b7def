"""Which of our batch jobs run, wait, or have ended; and what becomes of them then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parmap.backends.remote.cleanup_process import CleanupProcess
from parmap.backends.remote.job_slots import JobSlots
from parmap.backends.remote.slurm_queue import SlurmQueue

__all__ = ["JobMonitor"]

# Seconds between looks at the queue, and from the newest job on until a warning that jobs wait.
_LOOK = 3.0
_PATIENCE = 10.0
_log = logging.getLogger("parmap.dask")


class JobMonitor:
    """Looks at our jobs every few seconds, and has those that end replaced.

    `SlurmQueue` asks the batch system, `JobSlots` replaces jobs, and `CleanupProcess` cancels them
    in the end. The monitor also adjusts the number of jobs, where that may change.

    The cluster's event loop alone changes the state, so there is no lock.

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
    hopeless : bool
        Whether no slot has a job any more, for they all end as soon as they run, or are refused.
        Then no job is submitted any more.
    """

    def __init__(self, own: Path, lock: int, cancel: str) -> None:
        self._cleanup = CleanupProcess(own, lock, cancel)
        self._queue, self._slots = SlurmQueue(cancel), JobSlots()
        self._watch: asyncio.Task[None] | None = None
        self._scale: Callable[[], None] | None = None
        self.hopeless = False

    def add(self, job: Any) -> None:
        """Watch a job."""
        self._slots.add(job)
        self._cleanup.add(job.job_id)
        if self._watch is None:
            self._watch = asyncio.create_task(self._look())

    def renew(self, job: Any, number: str) -> None:
        """Watch a job that was submitted in the place of another, by its number."""
        self._cleanup.add(number)
        self._cleanup.remove(job.job_id)
        job.job_id = number
        self._slots.renew(job)

    def remove(self, job: Any) -> None:
        """Watch it no longer."""
        if self._slots.remove(job):
            self._cleanup.remove(job.job_id)

    def close(self) -> None:
        """Remove the folder, and cancel what is left."""
        self._cleanup.close()

    def follow(self, scale: Callable[[], None]) -> None:
        """Adjust the number of jobs again and again."""
        self._scale = scale

    @property
    def answers(self) -> bool:
        """Whether the queue has answered the last time that it was asked."""
        return self._queue.answers

    @property
    def waiting(self) -> str:
        """Say which jobs wait in the queue, and why."""
        reasons = self._queue.waiting()
        said = ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        if not said:
            return ""
        avoided = self._slots.avoided
        without = f"; not on {', '.join(avoided)}, where jobs failed" * bool(avoided)
        return f"{reasons.total()} of {len(self._slots)} jobs wait in the queue: {said}{without}"

    @property
    def ended(self) -> list[str]:
        """Say how the newest jobs have ended, or why the next ones were refused."""
        return self._slots.ended

    def all_run(self, seconds: float) -> bool:
        """Whether each job has run for so long, so that none waits or has ended."""
        known = [self._queue.state(job.job_id) for job in self._slots.jobs]
        return all(one.state == "RUNNING" and one.seconds >= seconds for one in known)

    async def _look(self) -> None:
        told = ""
        while self._slots and not self.hopeless:
            await asyncio.sleep(_LOOK)
            if self._scale is not None:
                self._scale()
            await self._queue.ask(self._slots.ages)
            if not self._queue.answers:
                continue
            newest = min(self._slots.ages().values(), default=0.0)
            if self.waiting != told and newest > _PATIENCE:
                told = self.waiting
                if told:
                    _log.warning("%s", told)
            for job in self._slots.jobs:
                await self._slots.replace(job, self._queue.state(job.job_id))
            self.hopeless = self._slots.failing
        self._watch = None
