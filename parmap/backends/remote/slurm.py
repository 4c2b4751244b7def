"""Plan ``slurm``: workers in jobs of Slurm, or on the nodes of the job that this script runs in."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from parmap.backends.remote.jobqueue import JobQueue
from parmap.backends.remote.ssh import credentials
from parmap.errors import BackendUnavailable
from parmap.plans import registry
from parmap.transport.messages import CoreShare

if TYPE_CHECKING:
    from parmap.backends.remote.host_command import HostCheck

__all__ = ["Slurm"]


@dataclass(frozen=True, kw_only=True)
class Slurm(JobQueue):
    """Workers in jobs of Slurm; inside of a job, on its nodes.

    On a login node jobs are submitted (see `JobQueue`). Where the script runs in a job itself
    (``SLURM_JOB_ID`` is set), no job is submitted: workers start on the nodes of that job, by
    ``srun``, as many on each as the job has cores there, or `workers`.

    Parameters
    ----------
    time : str, default "1:00:00"
        How long each job may run.
    partition : str, optional
        Where to.
    account : str, optional
        At whose cost.
    """

    time: str = "1:00:00"
    partition: str | None = None
    account: str | None = None

    name: ClassVar[str] = "slurm"
    system: ClassVar[str] = "SLURM"
    commands: ClassVar[tuple[str, ...]] = ("sbatch",)

    @property
    def directives(self) -> dict[str, Any]:
        """What the job's class is told of this plan's own options."""
        own = {"walltime": self.time, "queue": self.partition, "account": self.account}
        return {name: value for name, value in own.items() if value} | super().directives

    @property
    def inside(self) -> bool:
        """Whether this script runs in a job."""
        return "SLURM_JOB_ID" in os.environ

    def core_share(self, workers: int) -> CoreShare | None:
        """Share the cores of each job, or node, out among the workers there."""
        own = super().core_share(workers)
        if own is None or own.among is None or not self.inside:
            return own
        return own._replace(among=workers)

    def address(self) -> str:
        """Find the address of this machine that leads to the nodes."""
        if self.host is not None:
            return self.host
        from parmap.backends.remote.agent import towards

        lines = _slurm("scontrol", "-o", "show", "nodes").split()
        nodes = (word.partition("=")[2] for word in lines if word.startswith("NodeAddr="))
        return towards(next(nodes), 9)

    def check(self) -> list[HostCheck]:
        """Look at the nodes of the job that this script runs in, without starting workers.

        On a login node: at one node, by a job of a moment, which may have to wait in the queue.
        """
        registry.require("distributed", "slurm")
        from parmap.backends.remote.host_command import HostCommand, look

        if not self.inside:
            flags = {"partition": self.partition, "account": self.account, "time": self.time}
            given = (f"--{name}={value}" for name, value in flags.items() if value)
            srun = ("srun", "--quiet", "--nodes=1", "--ntasks=1", *given, *self.extra)
            one = HostCommand("a node", srun, self.python or sys.executable, shell=False)
            return look([one], self.start_timeout)
        nodes = _slurm("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
        srun = ("srun", "--quiet", "--unbuffered", "--nodes=1", "--ntasks=1", "--overlap")
        cores = os.environ.get("SLURM_CPUS_PER_TASK")
        more = (f"--cpus-per-task={cores}",) if cores else ()
        python = self.python or sys.executable
        commands = [
            HostCommand(node, (*srun, *more, f"--nodelist={node}"), python, shell=False)
            for node in nodes
        ]
        return look(commands, self.start_timeout)

    def start(self) -> Executor:
        """Submit jobs, or start workers in this one."""
        if not self.inside:
            return super().start()
        found = self.check()
        from parmap.backends.dask.executor import serving
        from parmap.backends.remote import hosts
        from parmap.backends.remote.host_command import gathered
        from parmap.backends.remote.orders import AgentOrder

        good = gathered(found, None)
        order = AgentOrder(
            workers=None if self.workers is None else self.per_job,
            threads=self.threads_per_worker,
            environ=dict(self.environ),
            security=credentials(self.name, wanted=bool(self.security)),
        )
        own = hosts.started(good, order, patience=self.start_timeout, dashboard=self.dashboard)
        return serving(own, self.initializer)


def _slurm(*command: str) -> str:
    """Ask Slurm."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendUnavailable(f"Slurm does not answer to {command[0]}: {done.stderr.strip()}")
    return done.stdout
