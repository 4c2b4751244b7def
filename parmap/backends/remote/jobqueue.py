"""Plans for batch systems: each job is a machine's share, with workers; by `dask_jobqueue`.

That package knows how each system wants its scripts, and how to submit and cancel; what runs in
a job is parmap's agent, as on hosts that are reached by ssh.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, ClassVar

from parmap.backends.remote.ssh import credentials
from parmap.errors import BackendUnavailable, PlanError
from parmap.plans import registry
from parmap.plans.plan import Plan
from parmap.transport.messages import CoreShare

__all__ = ["LSF", "OAR", "PBS", "SGE", "HTCondor", "JobQueue"]

_EXTRA = "slurm"  # it brings what all of them need


@dataclass(frozen=True, kw_only=True)
class JobQueue(Plan):
    """Workers in batch jobs.

    The scheduler is in this process, so the script runs on a login node, or wherever jobs are
    submitted; the nodes must be able to connect to it. All that connect must have credentials
    that are made anew for each session (TLS). They stand in a file that only you can read, in
    a folder of the session's own.

    Parameters
    ----------
    jobs : int, default 1
        How many jobs. Slurm's are replaced when they end. A job that ends within 30 s of its
        start is replaced on another node, after a pause that grows. If no job is left after
        three such ends in a row, calls raise `PoolBroken`.
    cores : int, default 1
        The cores of each job.
    memory : str, default "2GB"
        The memory of each job.
    adapt : tuple of (int, int), optional
        The least and the most jobs, instead of `jobs`: as many as have work; after a minute
        without any, the least, 1 or more.
    workers : int, optional
        How many workers in each job. Default: as many as it has cores.
    options : mapping, optional
        More for the job's class in `dask_jobqueue`, such as ``{"walltime": "1:00:00"}``.
    extra : sequence of str, optional
        More lines for the head of the job script: ``["--constraint=fast"]``.
    prologue : sequence of str, optional
        Lines of shell for the job script, before the workers start: ``["module load python"]``.
    python : str, optional
        The command that starts Python in the job. Default: the path of this one.
    environ : mapping of str to str, optional
        More for the workers' environment.
    min_workers : int, optional
        How many workers are enough to begin. Default: all those of the first job that starts.
    start_timeout : float, default 300
        Seconds until so many must be there: the queue may be long. Where the system is not
        asked about its queue (all but Slurm): also until a worker must be back after all are
        lost.
    folder : str, default "~/.parmap"
        Where the session's folder is made: on a disk that all nodes see.
    host : str, optional
        The address of this machine at which the scheduler listens. Default: that which leads
        to the nodes, where the system tells (Slurm), else that which leads outside.
    security : bool or None, default True
        Whether who connects needs credentials. None: whoever reaches this machine can run code
        as you, here and in the jobs.
    dashboard : bool, default False
        Whether to serve Dask's page, on this machine only. `Session.dashboard` has its address,
        which holds a secret: without it no page answers.
    """

    jobs: int = 1
    cores: int = 1
    memory: str = "2GB"
    adapt: tuple[int, int] | None = None
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    extra: Sequence[str] = ()
    prologue: Sequence[str] = ()
    python: str | None = None
    environ: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    min_workers: int | None = None
    start_timeout: float = 300.0
    folder: str = "~/.parmap"
    host: str | None = None
    security: bool | None = True
    dashboard: bool = False

    modules: ClassVar[tuple[str, ...]] = ("dask_jobqueue", "distributed", "cryptography")
    install: ClassVar[str] = f"parmap-plans[{_EXTRA}]"
    # Of `dask_jobqueue`: the module and the class.
    system: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("jobs", "cores", "min_workers"):
            number = getattr(self, name)
            whole = isinstance(number, int) and not isinstance(number, bool) and number > 0
            if not whole and (number is not None or name != "min_workers"):
                raise PlanError(f"{name}={number!r}: give a whole number, at least 1")
        if self.adapt is not None:
            bounds = tuple(self.adapt)
            if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:  # noqa: PLR2004 - a pair
                raise PlanError(f"adapt={self.adapt!r}: give the least and the most jobs: (1, 10)")
            object.__setattr__(self, "adapt", bounds)
        if not 0 < self.start_timeout < math.inf:
            raise PlanError(f"start_timeout={self.start_timeout!r}: give seconds, more than 0")
        for name in ("options", "environ"):
            object.__setattr__(self, name, tuple(sorted(dict(getattr(self, name)).items())))
        for name in ("extra", "prologue"):
            lines = getattr(self, name)
            if isinstance(lines, str):
                raise PlanError(f"{name}={lines!r}: give a list of lines")
            object.__setattr__(self, name, tuple(lines))

    @property
    def per_job(self) -> int:
        """How many workers run in each job."""
        return self.cores if self.workers is None else super().count()

    def count(self) -> int:
        """Resolve how many workers there are when all jobs run."""
        return self.jobs * self.per_job

    def core_share(self, workers: int) -> CoreShare | None:  # noqa: ARG002 - jobs may share a node
        """Share the cores of each job out among its workers."""
        own = super().core_share(self.per_job)
        return None if own is None else own._replace(kept=True, among=self.per_job)

    @property
    def directives(self) -> dict[str, Any]:
        """What the job's class is told of this plan's own options."""
        return dict(self.options)

    def address(self) -> str:
        """Find the address of this machine that leads to the nodes."""
        from distributed.utils import get_ip

        return self.host or str(get_ip())

    def script(self) -> str:
        """Show the script of a job, as it would be submitted."""
        where = os.path.join(os.path.expanduser(self.folder), "<session>", "order.json")
        return str(self._job()("tls://<scheduler>", "0", file=where, log=None).job_script())

    def _job(self) -> Any:
        jobqueue = registry.require("dask_jobqueue", self.name, _EXTRA)
        from parmap.backends.remote.jobs import job_class

        return job_class(
            getattr(getattr(jobqueue, self.system.lower()), f"{self.system}Job"),
            cores=self.cores,
            memory=self.memory,
            processes=self.per_job,
            job_name="parmap",
            python=self.python or shlex.quote(sys.executable),
            job_extra_directives=list(self.extra),
            job_script_prologue=list(self.prologue),
            **self.directives,
        )

    def start(self) -> Executor:
        """Submit the jobs, and wait for the first workers."""
        job = self._job()
        # Of what `missing` asks for: the packages are asked for where they are used, if they are.
        if not all(map(shutil.which, self.commands)):
            raise BackendUnavailable(
                f"the plan {self.name!r} submits jobs by {', '.join(self.commands)}, and here is "
                "no such command: run the script where jobs are submitted"
            )
        from parmap.backends.dask.executor import serving
        from parmap.backends.remote import jobs
        from parmap.backends.remote.orders import JobOrder

        wanted = jobs.Wanted(
            job=job,
            cancel=job.cancel_command,
            jobs=self.jobs if self.adapt is None else self.adapt[0],
            adapt=self.adapt,
            workers=self.min_workers or self.per_job,
            patience=self.start_timeout,
        )
        order = JobOrder(
            workers=self.per_job,
            threads=self.threads_per_worker,
            memory=self.memory,
            environ=dict(self.environ),
            security=credentials(self.name, wanted=bool(self.security), extra=_EXTRA),
        )
        own = jobs.started(
            wanted,
            order,
            host=self.address(),
            folder=os.path.expanduser(self.folder),
            dashboard=self.dashboard,
        )
        return serving(own, self.initializer)


class PBS(JobQueue):
    """Workers in jobs of PBS; see `JobQueue`."""

    name: ClassVar[str] = "pbs"
    system: ClassVar[str] = "PBS"
    commands: ClassVar[tuple[str, ...]] = ("qsub",)


class SGE(JobQueue):
    """Workers in jobs of Grid Engine; see `JobQueue`."""

    name: ClassVar[str] = "sge"
    system: ClassVar[str] = "SGE"
    commands: ClassVar[tuple[str, ...]] = ("qsub",)


class LSF(JobQueue):
    """Workers in jobs of LSF; see `JobQueue`."""

    name: ClassVar[str] = "lsf"
    system: ClassVar[str] = "LSF"
    commands: ClassVar[tuple[str, ...]] = ("bsub",)


class HTCondor(JobQueue):
    """Workers in jobs of HTCondor; see `JobQueue`."""

    name: ClassVar[str] = "htcondor"
    system: ClassVar[str] = "HTCondor"
    commands: ClassVar[tuple[str, ...]] = ("condor_submit",)


class OAR(JobQueue):
    """Workers in jobs of OAR; see `JobQueue`."""

    name: ClassVar[str] = "oar"
    system: ClassVar[str] = "OAR"
    commands: ClassVar[tuple[str, ...]] = ("oarsub",)
