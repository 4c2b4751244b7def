"""Plan ``dask``."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, ClassVar

from parmap.backends.adopted.plan import refuse_in_a_fork
from parmap.backends.remote.ssh import credentials
from parmap.errors import PlanError
from parmap.plans import registry
from parmap.plans.plan import Plan
from parmap.transport.messages import CoreShare

__all__ = ["Dask"]

_ELSEWHERE = ("address", "cluster", "client")


@dataclass(frozen=True, kw_only=True)
class Dask(Plan):
    """Workers of Dask: on this machine, or a cluster that runs already.

    Without `address`, `cluster` or `client`, a scheduler and workers are started on this
    machine, and end with the session. What was running is left running.

    Parameters
    ----------
    processes : bool, default True
        Whether the workers that are started here are processes, each running one task at a
        time, or threads of this one. Functions and data are packed in both cases.
    security : bool or None, default True
        Whether the workers that are started here, and whoever gives them work, need credentials.
        They are made anew for each session (TLS), and are in no file and on no command line.
        None: each user of this machine can run code as you. Threads of this process
        (``processes=False``) need none: nothing listens.
    dashboard : bool, default False
        Whether to serve Dask's page on what is started here, on this machine only.
        `Session.dashboard` has its address, which holds a secret: without it no page answers.
    address : str, optional
        The address of a running scheduler, such as ``"tcp://node1:8786"``.
    cluster : distributed.deploy.Cluster, optional
        A running cluster of any kind; one that adapts changes the number of workers.
    client : distributed.Client, optional
        A client of yours, which is used, and never closed.
    """

    processes: bool = True
    security: bool | None = True
    dashboard: bool = False
    address: str | None = None
    cluster: Any = None
    client: Any = None

    name: ClassVar[str] = "dask"
    modules: ClassVar[tuple[str, ...]] = ("distributed", "cryptography")
    install: ClassVar[str] = "parmap-plans[dask]"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [option for option in _ELSEWHERE if getattr(self, option) is not None]
        if len(given) > 1:
            raise PlanError(f"{' and '.join(given)} both name a cluster: give one of them")
        own = self.workers is not None or not self.processes or not self.security or self.dashboard
        if given and own:
            raise PlanError(
                f"{given[0]}= names workers that run already: workers=, processes=, security= and "
                "dashboard= are for those that the plan starts itself"
            )
        if self.address is not None and not isinstance(self.address, str):
            raise PlanError(f"address={self.address!r}: give a text such as 'tcp://node1:8786'")

    def count(self) -> int:
        """Resolve how many workers to start, or to ask for when the cluster has none yet."""
        return 1 if self._found else super().count()

    def core_share(self, workers: int) -> CoreShare | None:
        """Share the cores of each machine out among the workers there."""
        own = super().core_share(workers)
        if own is None:
            return None
        # A cluster's machines are not this one.
        return own._replace(
            kept=self.processes and not self._found, among=workers if self._found else None
        )

    def start(self) -> Executor:
        """Start the workers, or connect to those that run."""
        registry.require("distributed", "dask")
        # Imported here: distributed takes half a second.
        from parmap.backends.dask import cluster
        from parmap.backends.dask.connection import connected
        from parmap.backends.dask.executor import DaskExecutor, serving

        if self.client is not None or self.cluster is not None:
            refuse_in_a_fork(self, self.cluster if self.client is None else self.client)
        if self.client is not None:
            return DaskExecutor(self.client, (), self.initializer)
        if self._found:
            return DaskExecutor(*connected(self.address or self.cluster), self.initializer)
        workers = self.count()
        if self.processes:
            own = cluster.processes(
                workers,
                super().core_share(workers),
                dashboard=self.dashboard,
                security=credentials("dask", wanted=bool(self.security)),
            )
        else:
            own = cluster.threads(workers, dashboard=self.dashboard)
        executor = serving(own, self.initializer)
        # They were started by pipes of this process's own, or are threads of it.
        executor.traits = executor.traits._replace(trusted=True)
        return executor

    @property
    def _found(self) -> bool:
        return any(getattr(self, option) is not None for option in _ELSEWHERE)
