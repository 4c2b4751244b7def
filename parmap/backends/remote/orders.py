"""What the agents on other machines are told: which workers to start."""

from __future__ import annotations

import json
import os
import site
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed
from dask.utils import parse_bytes

from parmap.backends.dask.cluster import plain
from parmap.backends.hash_seed import VARIABLE, hash_seed
from parmap.backends.remote.agent import facts

__all__ = ["AgentOrder", "JobOrder"]

# Seconds without a sign of life until an agent gives up this process.
_PATIENCE = 15.0
_OURS = 0.9  # of a job's memory: the rest is the agent's


@dataclass(frozen=True, kw_only=True)
class AgentOrder:
    """What all agents are told.

    Parameters
    ----------
    workers : int or None
        How many workers each agent starts; None: as many as its machine has cores.
    threads : int, "auto" or None
        The option ``threads_per_worker``.
    environ : mapping of str to str
        More for the workers' environment.
    security : distributed.Security or None
        Who may connect.
    """

    workers: int | None
    threads: int | str | None
    environ: Mapping[str, str]
    security: distributed.Security | None

    @property
    def protocol(self) -> str:
        """How the scheduler, the workers and the client connect."""
        return "tcp" if self.security is None else "tls"

    def told(self) -> dict[str, Any]:
        """Give the order as JSON can carry it; the scheduler, and ``count``, are to be added."""
        return {
            "directory": os.getcwd(),
            "path": _own_path(),
            "environ": {VARIABLE: hash_seed(os.environ), **self.environ},
            "threads": self.threads,
            "options": {"nthreads": 1, "protocol": self.protocol},
            "security": None if self.security is None else plain(self.security),
            "patience": _PATIENCE,
        }


@dataclass(frozen=True, kw_only=True)
class JobOrder(AgentOrder):
    """What the agent in each job is told, by a file.

    Parameters
    ----------
    workers : int
        How many workers each agent starts.
    memory : str
        Of the job.
    threads, environ, security
        See `AgentOrder`.
    """

    workers: int
    memory: str

    def write(self, file: Path, scheduler: str) -> None:
        """Write it to a new file, which only this user can read."""
        told = self.told() | {
            "count": self.workers,
            "facts": facts(),  # a machine that does not fit says so, and takes no work
            "scheduler": scheduler,
        }
        told["options"]["memory_limit"] = int(_OURS * parse_bytes(self.memory)) // self.workers
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as order:
            json.dump(told, order)


def _own_path() -> list[str]:
    """Give what the user has put on the path: packages are the interpreter's there."""
    own = {os.path.realpath(one) for one in site.getsitepackages()}
    prefixes = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix})
    return [
        os.path.abspath(one)
        for one in sys.path
        if os.path.realpath(one) not in own and not os.path.abspath(one).startswith(prefixes)
    ]
