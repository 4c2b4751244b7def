"""What a plan can be made of: for type checkers, and for editors that complete names."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Literal, Protocol, TypeAlias

__all__ = ["PlanName", "Running"]

PlanName: TypeAlias = Literal[
    "sequential",
    "threads",
    "processes",
    "dask",
    "ray",
    "joblib",
    "ssh",
    "slurm",
    "pbs",
    "sge",
    "lsf",
    "htcondor",
    "oar",
]


class Pool(Protocol):
    """A pool in the manner of `multiprocessing`."""

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Start a call."""


class Client(Protocol):
    """A client of Dask."""

    def scatter(self, *args: Any, **kwargs: Any) -> Any:
        """Send data to the workers."""


Running: TypeAlias = Executor | Pool | Client
