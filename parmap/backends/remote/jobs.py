"""Batch jobs as a cluster of Dask: submitted, watched, and replaced when they end.

::

    this process                     a job
    scheduler, client  ←── TLS ──→   worker, worker
    JobMonitor ── squeue             agent ── looks whether the scheduler answers
      Job ── sbatch, scancel           └── reads order.json, in a folder that is yours alone
    CleanupProcess ── scancel, rm

A process of its own cleans up: it cancels and removes also where this one is killed.
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.core import Status

from parmap.backends.dask.cluster import OwnCluster, awaited, cluster
from parmap.backends.remote.folders import private, sweep
from parmap.backends.remote.host_command import AGENT
from parmap.backends.remote.monitor import JobMonitor
from parmap.backends.remote.orders import JobOrder
from parmap.failures import PoolBroken

__all__ = ["Wanted", "job_class", "started"]

_TAIL = 20  # lines of a job's log
# Of Dask's tasks.
_OPEN = {"waiting", "queued", "no-worker", "processing"}
# Seconds without a task until jobs are given back.
IDLE = 60.0


def job_class(kind: type[Any], **options: Any) -> type[Any]:
    """Give what makes jobs of a class of `dask_jobqueue` that run parmap's agent.

    Parameters
    ----------
    kind : type
        The class.
    **options
        What it is told of each job.
    """

    class Job(kind):  # type: ignore[misc]
        """A job, in the place of a worker."""

        def __init__(
            self,
            scheduler: str,
            name: Any,
            *,
            file: str,
            log: str | None,
            monitor: JobMonitor | None = None,
        ) -> None:
            super().__init__(scheduler=scheduler, name=name, log_directory=log, **options)
            self._command_template = f"{options['python']} -m {AGENT} {shlex.quote(file)}"
            self._monitor = monitor
            # Under `_turn`: the newest job's number. To submit and to cancel take a while.
            self._turn = asyncio.Lock()

        async def start(self) -> None:
            """Submit it."""
            await super().start()
            if self._monitor is not None:
                self._monitor.add(self)

        async def again(self, avoid: Iterable[str]) -> None:
            """Submit another in its place, to none of some nodes."""
            assert self._monitor is not None
            async with self._turn:
                if self.status is Status.closed:
                    return
                self.submit_command = shlex.join(
                    [*shlex.split(kind.submit_command), *_exclude(self.job_header, avoid)]
                )
                with self.job_file() as script:
                    number = self._job_id_from_submit_output(await self._submit_job(script))
                self._monitor.renew(self, number)

        def keeps(self, host: str, number: int) -> bool:  # noqa: ARG002
            """Whether workers can be restarted from here: a job has no line to this process."""
            return False

        async def close(self) -> None:
            """Cancel it."""
            async with self._turn:  # or one that is being submitted would be left
                await super().close()
                if self._monitor is not None:
                    self._monitor.remove(self)
                self.status = Status.closed  # as the cluster wants it, which the class forgets

    return Job


def _exclude(header: str, avoid: Iterable[str]) -> list[str]:
    """Give the option of `sbatch` that excludes nodes, and those that the script excludes.

    Parameters
    ----------
    header : str
        The script's, with options of the user's, which those of the command line replace.
    avoid : iterable of str
        The nodes.
    """
    users = re.findall(r"^#SBATCH\s+(?:--exclude[=\s]\s*|-x\s*)(\S+)", header, re.MULTILINE)
    nodes = [*users[-1:], *avoid]
    # The user's may stand in a file, which cannot be named together with others.
    if len(nodes) == len(users[-1:]) or "/" in nodes[0]:
        return []
    return [f"--exclude={','.join(nodes)}"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How many jobs there shall be, and how long to wait for them.

    Parameters
    ----------
    job : callable
        Makes one; see `job_class`.
    cancel : str
        The command that cancels one.
    jobs : int
        How many at first.
    adapt : tuple of int or None
        The least and the most, where their number follows the load.
    workers : int
        How many workers to wait for.
    patience : float
        Seconds to wait for them.
    """

    job: Callable[..., Any]
    cancel: str
    jobs: int
    adapt: tuple[int, int] | None
    workers: int
    patience: float


def started(
    wanted: Wanted, order: JobOrder, *, host: str, folder: str, dashboard: bool
) -> OwnCluster:
    """Start a scheduler here, and submit jobs; return when enough workers are there.

    Parameters
    ----------
    wanted : Wanted
        The jobs.
    order : JobOrder
        What they are told.
    host : str
        Where the scheduler listens.
    folder : str
        Where the session's folder is made.
    dashboard : bool
        Whether to serve Dask's page.
    """
    sweep(Path(folder))
    own, lock = private(Path(folder))
    monitor, log = JobMonitor(own, lock, wanted.cancel), own / "log"
    try:
        listens = {"host": host, "protocol": order.protocol}
        here = cluster({}, listens, dashboard=dashboard, security=order.security)
        file = own / "order.json"
        order.write(file, here.scheduler_address)
        options = {"file": os.fspath(file), "log": os.fspath(log), "monitor": monitor}
        _submit(here, wanted, {"cls": wanted.job, "options": options}, order.workers)
        here.close = functools.partial(_closed, here.close, monitor)
        awaited(
            here,
            wanted.workers,
            lambda: _why(monitor, log, wanted.patience),
            patience=wanted.patience,
            hopeless=lambda: monitor.hopeless,
        )
        lost = functools.partial(_lost, monitor, log, wanted.patience)
        return OwnCluster(cluster=here, restarts=True, lost=lost)
    except BaseException:
        monitor.close()
        raise


def _submit(here: Any, wanted: Wanted, spec: dict[str, Any], per_job: int) -> None:
    """Submit the first jobs; where that fails, close the cluster."""
    here.worker_spec.update(dict.fromkeys(range(wanted.jobs), spec))
    if wanted.adapt is not None:
        spec["options"]["monitor"].follow(Load(here, spec, per_job, wanted.adapt).adjust)
    try:
        here.sync(here._correct_state)  # noqa: SLF001 - as `scale` does, with its one kind
    except RuntimeError as error:
        here.close()
        raise PoolBroken(f"a job cannot be submitted (plan.script() shows it): {error}") from error
    except BaseException:
        here.close()
        raise


class Load:
    """How many jobs there are: as many as have work, or as few as are allowed, after a while.

    A call keeps two chunks on their way for each worker, if it has so many. So the number at
    most doubles each time that workers have come.

    Parameters
    ----------
    here : distributed.SpecCluster
        The cluster, whose scheduler is in this process.
    spec : dict
        Of a job.
    per_job : int
        Workers in each.
    bounds : tuple of int
        The least and the most jobs.
    """

    def __init__(
        self, here: Any, spec: dict[str, Any], per_job: int, bounds: tuple[int, int]
    ) -> None:
        self._here, self._spec, self._per_job = here, spec, per_job
        self._least, self._most = bounds
        self._busy = time.monotonic()

    def adjust(self) -> None:
        """Ask for more jobs, or cancel some; in the cluster's loop."""
        specs, now = self._here.worker_spec, time.monotonic()
        states = (task.state for task in self._here.scheduler.tasks.values())
        tasks = sum(state in _OPEN for state in states)
        if tasks:
            self._busy = now
        wanted = min(max(math.ceil(tasks / self._per_job), self._least), self._most)
        names = sorted(specs)
        if wanted > len(names):
            first = names[-1] + 1 if names else 0
            more = range(first, first + wanted - len(names))
            specs.update(dict.fromkeys(more, self._spec))
        elif now - self._busy > IDLE:
            for name in names[self._least :]:
                del specs[name]
        if len(specs) != len(names):
            self._here.loop.add_callback(self._here._correct_state)  # noqa: SLF001 - as `scale` does


def _closed(close: Callable[..., Any], monitor: JobMonitor, *given: Any, **named: Any) -> None:
    close(*given, **named)  # at the interpreter's end with Dask's own timeout
    monitor.close()


def _why(monitor: JobMonitor, log: Path, patience: float) -> str:
    """Say why no workers came: the queue, and the end of the newest log."""
    lines = [f"no workers came within {patience:g} s"]
    if monitor.hopeless:
        lines = ["jobs end as soon as they run, and none is left:"]
    lines += [f"  {ended}" for ended in monitor.ended]
    if monitor.waiting:
        lines.append(f"{monitor.waiting}. start_timeout= waits for longer")
    return "\n".join([*lines, *_words(log)])


def _lost(monitor: JobMonitor, log: Path, patience: float, seconds: int) -> str:
    """Say why no worker will come any more; nothing as long as one may.

    A job that waits in the queue may start at any time. Time decides only if all jobs run, or
    if the queue says nothing, or is not asked.
    """
    if monitor.hopeless:
        return _why(monitor, log, patience)
    if seconds < patience or (monitor.answers and not monitor.all_run(patience)):
        return ""
    jobs = "All jobs run, but their workers do not connect"
    if not monitor.answers:
        jobs = "The batch system does not say whether jobs wait or have ended"
    said = f"no worker is left, and none has come for {seconds} s (start_timeout= waits for longer)"
    return "\n".join([f"{said}. {jobs}", *_words(log)])


def _words(log: Path) -> list[str]:
    """Give the end of the newest log of a job."""
    lines: list[str] = []
    logs = sorted(log.glob("*"), key=lambda one: one.stat().st_mtime) if log.exists() else []
    for newest in [one for one in logs if one.stat().st_size][-1:]:
        tail = newest.read_text(errors="replace").splitlines()[-_TAIL:]
        lines += ["The end of the job's log:", *(f"  {line}" for line in tail)]
    return lines
