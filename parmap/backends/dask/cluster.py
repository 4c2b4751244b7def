"""Clusters that are started here: their scheduler, and workers on this machine.

Dask's own local cluster starts its workers by `multiprocessing`, which runs the main script
once more in each of them, so that it needs a guard. These workers are commands instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import distributed
from distributed.core import Status
from distributed.deploy.spec import ProcessInterface, SpecCluster

from parmap.backends.dask.restarter import WorkerRestarter, environment, trusted
from parmap.backends.dask.servers import Scheduler, Worker
from parmap.backends.dask.uninterrupted import uninterrupted
from parmap.backends.dask.worker import PACKAGES, PROMPT, order
from parmap.backends.own_random import keep_apart
from parmap.failures import PoolBroken
from parmap.transport.messages import CoreShare
from parmap.worker import native_threads

__all__ = [
    "INSIDE",
    "Exits",
    "OwnCluster",
    "awaited",
    "cluster",
    "lost",
    "plain",
    "processes",
    "taken_out",
    "threads",
]

_HOST = "127.0.0.1"
INSIDE = "inproc"  # Dask's protocol within one process
# Seconds until the first workers must be there: each imports Dask, on a disk that may be slow.
_PATIENCE = 120.0

# How the worker processes that were started here end, or will, by their address and number.
Exits = dict[tuple[str, int], "asyncio.Task[int] | asyncio.Future[int | None]"]


@dataclass(frozen=True, kw_only=True)
class OwnCluster:
    """A cluster that parmap started, and how it learns what becomes of the workers.

    Parameters
    ----------
    cluster : distributed.SpecCluster
        The cluster. Its scheduler is in this process.
    restarts : bool, default False
        Whether workers that end are replaced.
    exits : dict, optional
        How the worker processes end. Default: nobody tells.
    lost : callable, optional
        Is told for how many seconds there has been no worker, and returns why none will come;
        the empty string as long as one may come. Default: one may always come.
    """

    cluster: Any
    restarts: bool = False
    exits: Exits = field(default_factory=dict)
    lost: Callable[[int], str] = lambda _: ""

    @property
    def page(self) -> str | None:
        """The address of Dask's page; None where it is not served."""
        return self.cluster.scheduler.link or None


def processes(
    workers: int, core_share: CoreShare | None, *, dashboard: bool, security: Any
) -> OwnCluster:
    """Start a scheduler in this process, and workers in processes of their own.

    Parameters
    ----------
    workers : int
        How many.
    core_share : CoreShare or None
        What each may use of the machine.
    dashboard : bool
        Whether to serve Dask's page.
    security : distributed.Security or None
        Who may connect.
    """
    exits: Exits = {}
    told = None if security is None else plain(security)
    options = {"workers": workers, "core_share": core_share, "exits": exits, "security": told}
    specs = {number: {"cls": LocalWorker, "options": options} for number in range(workers)}
    listens = {"host": _HOST, "protocol": "tcp" if security is None else "tls"}
    here = cluster(specs, listens, dashboard=dashboard, security=security)

    def hopeless() -> bool:
        return any(one.restarter.hopeless for one in here.workers.values())

    why = "workers of Dask do not start on this machine: what they wrote stands above"
    awaited(here, workers, lambda: why, hopeless=hopeless)
    return OwnCluster(cluster=here, restarts=True, exits=exits, lost=lost)


def threads(workers: int, *, dashboard: bool) -> OwnCluster:
    """Start a scheduler and one worker, with so many threads, in this process.

    They talk within it, so that nothing listens.
    """
    spec = {"cls": Worker, "options": {"nthreads": workers, "memory_limit": 0}}
    here = cluster({0: spec}, {"protocol": INSIDE}, dashboard=dashboard)
    awaited(here, 1, lambda: "the worker of Dask does not start in this process")
    return OwnCluster(cluster=here)


def lost(seconds: int) -> str:
    """Say that the workers on this machine are lost for good; nothing as long as one may come.

    Parameters
    ----------
    seconds : int
        For how long there has been none.
    """
    if seconds < _PATIENCE:
        return ""
    return (
        f"all workers of Dask have ended, and none has started within {seconds} s: what they "
        "wrote stands above"
    )


def cluster(
    specs: Mapping[Any, dict[str, Any]],
    options: dict[str, Any],
    *,
    dashboard: bool,
    security: Any = None,
) -> Any:
    """Start a scheduler in this process, and workers anywhere.

    Parameters
    ----------
    specs : mapping
        The workers, as `distributed.SpecCluster` has them.
    options : dict
        More for the scheduler.
    dashboard : bool
        Whether to serve Dask's page.
    security : distributed.Security, optional
        Who may connect. Default: everybody who can reach it.
    """
    keep_apart(PACKAGES)  # the scheduler, and the client, are in this process
    # At the end it tells, with a traceback, that a worker has hung up first.
    logging.getLogger("distributed.batched").setLevel(logging.WARNING)
    options = {"port": 0, "dashboard": dashboard, "plugins": [_Prompt()], **options}
    if options["protocol"] != INSIDE:  # there the client connects
        options["host"] = [options["host"], None]
        options["protocol"] = [options["protocol"], INSIDE]
    begin = functools.partial(
        SpecCluster,
        scheduler={"cls": Scheduler, "options": {**options, "security": security}},
        workers=dict(specs),
        security=security,
        # What the scheduler logs of deaths the calls tell themselves.
        silence_logs=logging.CRITICAL,
        name="parmap",
    )
    begun = uninterrupted(begin, lambda begun: begun.close())
    _clusters.add(begun)
    return begun


class _Prompt(distributed.SchedulerPlugin):  # type: ignore[misc]
    """Has the scheduler send tasks to workers at once, not after 5 ms."""

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Look after a worker that has come."""
        scheduler.stream_comms[worker].interval = PROMPT


def awaited(
    cluster: Any,
    workers: int,
    why: Callable[[], str],
    *,
    patience: float = _PATIENCE,
    hopeless: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until a cluster has so many workers.

    Parameters
    ----------
    cluster : distributed.deploy.Cluster
        Is closed if they do not come.
    workers : int
        How many.
    why : callable
        Says what to tell the user then; called before the cluster is closed.
    patience : float
        Seconds to wait.
    hopeless : callable
        Whether to wait no longer.

    Raises
    ------
    PoolBroken
        If they do not come.
    """
    deadline = time.monotonic() + patience
    try:
        while time.monotonic() < deadline and not hopeless():
            with contextlib.suppress(TimeoutError):
                cluster.wait_for_workers(workers, timeout=min(1.0, patience))
                return
        reason = why()
    except BaseException:
        uninterrupted(cluster.close)
        raise
    uninterrupted(cluster.close)
    raise PoolBroken(reason)


class LocalWorker(ProcessInterface):  # type: ignore[misc]
    """A worker process on this machine, as a cluster of Dask has it.

    Parameters
    ----------
    scheduler : str
        The scheduler's address.
    name : object
        What the cluster calls it.
    workers : int
        How many there are: each may take its share of the memory.
    core_share : CoreShare or None
        What it may use of the machine.
    exits : dict
        Where to tell how its processes end.
    security : dict or None
        Its credentials, as `plain` gives them.

    Attributes
    ----------
    restarter : WorkerRestarter
        What keeps it running.
    """

    def __init__(
        self,
        scheduler: str,
        name: Any,
        *,
        workers: int,
        core_share: CoreShare | None,
        exits: Exits,
        security: dict[str, Any] | None,
    ) -> None:
        super().__init__(scheduler=scheduler, name=name)
        # Not under the cluster's name for it: 15 seconds after a death the cluster gives up for
        # good what it knows by name and does not find, which may be on its way back again.
        limit = distributed.system.MEMORY_LIMIT // workers
        options = {"nthreads": 1, "memory_limit": limit, "host": _HOST}
        # What is beside the script, or was added to the path, is found there, too.
        environ = environment(sys.path)
        if core_share is not None and core_share.threads is not None:
            native_threads.set_environment(
                core_share.threads, exact=core_share.exact, environ=environ
            )

        def started(number: int, ending: asyncio.Task[int]) -> None:
            exits[_HOST, number] = ending
            self._number = number

        self._number = 0
        told = order(
            scheduler,
            options,
            security,
            number=name + 1,
            trust=trusted(),
            path=[entry for entry in list[object](sys.path) if entry and isinstance(entry, str)],
        )
        self.restarter = WorkerRestarter(told, environ, started)
        _kept.add(self)

    async def start(self) -> None:
        """Start it, without waiting until it has found the scheduler."""
        await self.restarter.start()
        await super().start()

    async def close(self) -> None:
        """Kill it: the cluster has retired it before."""
        self.status = Status.closing
        await self.restarter.stop()
        await super().close()

    def keeps(self, host: str, number: int) -> bool:
        """Whether it keeps the process that has this number on this host."""
        return (host, number) == (_HOST, self._number)

    async def restart(self, number: int) -> None:
        """End its process, if that still has this number, and start another."""
        if number != self._number:
            return
        await self.restarter.stop()
        if self.status == Status.running:  # and the cluster has not been closed meanwhile
            await self.restarter.start()


# What a fork of this process has, too, and must leave alone. Workers would live as long as it does;
# and as it exits, Dask would try for ten seconds to close clusters whose threads it has not.
_kept: weakref.WeakSet[LocalWorker] = weakref.WeakSet()
_clusters: weakref.WeakSet[Any] = weakref.WeakSet()


def _forked() -> None:
    for one in list(_kept):
        one.restarter.let_go()
    for cluster in list(_clusters):
        cluster.status = Status.closed


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def plain(security: distributed.Security) -> dict[str, Any]:
    """Give credentials as what JSON can carry; made by `Security.temporary` they are in no file."""
    names = [
        "tls_ca_file",
        *(
            f"tls_{role}_{part}"
            for role in ("client", "scheduler", "worker")
            for part in ("cert", "key")
        ),
    ]
    known = {name: getattr(security, name) for name in names}
    return {
        "require_encryption": True,
        **{name: value for name, value in known.items() if value is not None},
    }


async def taken_out(scheduler: Any, address: str, why: str) -> None:
    """Take a worker out of a scheduler, at once: what it has in hand runs elsewhere.

    Its tasks are not to blame; newer versions of Dask have another word for that.
    """
    innocent = "expected" if "expected" in _REMOVES else "safe"
    options: dict[str, Any] = {innocent: True, "stimulus_id": why, "close": False}
    await scheduler.remove_worker(address, **options)


_REMOVES = inspect.signature(distributed.Scheduler.remove_worker).parameters
