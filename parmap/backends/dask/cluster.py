"""Clusters on this machine, and connections to clusters.

Dask's own local cluster starts its workers by `multiprocessing`, which runs the main script
once more in each of them, so that it needs a guard. These workers are commands instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import distributed
from distributed.deploy.spec import ProcessInterface, SpecCluster

from parmap.backends.dask import leash
from parmap.errors import PoolBroken
from parmap.worker import blas
from parmap.worker.values import Budget

__all__ = ["connected", "processes", "threads"]

_HOST = "127.0.0.1"
_ADDRESS = f"{_HOST}:0"  # any port
# Seconds until the first workers must be there: each imports Dask, on a disk that may be slow.
_PATIENCE = 120
# One that lives for less than so many seconds, so many times in a row, may not be able to start.
_SHORT_LIFE = 1.0
_SHORT_LIVES = 10
_log = logging.getLogger("parmap.dask")


# How the worker processes that were started here end, or will, by their numbers.
Exits = dict[int, "asyncio.Task[int]"]


def processes(workers: int, budget: Budget | None, *, dashboard: bool) -> tuple[Any, Exits]:
    """Start a scheduler in this process, and workers in processes of their own.

    Parameters
    ----------
    workers : int
        How many.
    budget : Budget or None
        What each may use of the machine.
    dashboard : bool
        Whether to serve Dask's page.
    """
    exits: Exits = {}
    options = {"workers": workers, "budget": budget, "exits": exits}
    worker = {"cls": LocalWorker, "options": options}
    return _awaited(_cluster(worker, workers, dashboard=dashboard), workers), exits


def threads(workers: int, budget: Budget | None, *, dashboard: bool) -> tuple[Any, Exits]:  # noqa: ARG001
    """Start a scheduler and one worker, with so many threads, in this process."""
    options = {"nthreads": workers, "host": _HOST, "dashboard_address": _ADDRESS}
    worker = {"cls": distributed.Worker, "options": {**options, "memory_limit": 0}}
    return _awaited(_cluster(worker, 1, dashboard=dashboard), 1), {}


def _cluster(worker: dict[str, Any], count: int, *, dashboard: bool) -> Any:
    options = {"host": _HOST, "port": 0, "dashboard": dashboard, "dashboard_address": _ADDRESS}
    return SpecCluster(
        scheduler={
            "cls": distributed.Scheduler,
            "options": {**options, "plugins": [_Prompt()]},
        },
        workers=dict.fromkeys(range(count), worker),
        worker=worker,
        # What the scheduler logs of deaths the calls tell themselves.
        silence_logs=logging.CRITICAL,
        name="parmap",
    )


class _Prompt(distributed.SchedulerPlugin):  # type: ignore[misc]
    """Has the scheduler send tasks to workers at once, not after 5 ms."""

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Look after a worker that has come."""
        scheduler.stream_comms[worker].interval = leash.PROMPT


def _awaited(cluster: Any, workers: int) -> Any:
    deadline = time.monotonic() + _PATIENCE
    try:
        while time.monotonic() < deadline and not _hopeless(cluster):
            with contextlib.suppress(TimeoutError):
                cluster.wait_for_workers(workers, timeout=1)
                return cluster
    except BaseException:
        cluster.close()
        raise
    cluster.close()
    raise PoolBroken("workers of Dask do not start on this machine: what they wrote stands above")


def _hopeless(cluster: Any) -> bool:
    return any(isinstance(w, LocalWorker) and w.hopeless for w in cluster.workers.values())


class LocalWorker(ProcessInterface):  # type: ignore[misc]
    """A worker process of Dask, started as a command, and started again when it dies.

    Dask's nanny would do so, in one more process for each worker: that takes half as long
    again to start, and does not tell how the worker ended.

    Parameters
    ----------
    scheduler : str
        The scheduler's address.
    name : object
        What the cluster calls it.
    workers : int
        How many there are: each may take its share of the memory.
    budget : Budget or None
        What it may use of the machine.
    exits : dict of int to asyncio.Task
        Where to tell how its processes end.

    Attributes
    ----------
    hopeless : bool
        Whether its processes end too soon, again and again.
    """

    def __init__(
        self, scheduler: str, name: Any, workers: int, budget: Budget | None, exits: Exits
    ) -> None:
        super().__init__(scheduler=scheduler, name=name)
        self._scheduler = scheduler
        self._workers, self._budget = workers, budget
        self._exits = exits
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self.hopeless = False

    async def start(self) -> None:
        """Start it, without waiting until it has found the scheduler."""
        self._process = await self._started()
        self._watch = asyncio.create_task(self._replace())
        await super().start()

    async def close(self) -> None:
        """Kill it: the cluster has retired it before."""
        if self._watch is not None:
            self._watch.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._exits[self._process.pid]
        await super().close()

    async def _replace(self) -> None:
        """Start it again whenever it ends; with a pause if it does not live for long."""
        short = 0
        while True:
            assert self._process is not None
            began = time.monotonic()
            code = await asyncio.shield(self._exits[self._process.pid])
            short = short + 1 if time.monotonic() - began < _SHORT_LIFE else 0
            self.hopeless = short >= _SHORT_LIVES
            _log.warning("A worker of Dask has ended (status %s) and is replaced", code)
            if self.hopeless:  # or its task is what ends it
                await asyncio.sleep(_SHORT_LIFE)
            self._process = await self._started()

    async def _started(self) -> asyncio.subprocess.Process:
        limit = distributed.system.MEMORY_LIMIT // self._workers
        # Not under the cluster's name for it: 15 seconds after a death the cluster gives up for
        # good what it knows by name and does not find, which may be on its way back again.
        options = {
            "nthreads": 1,
            "host": _HOST,
            "memory_limit": limit,
            "dashboard_address": _ADDRESS,
            "preload": ["parmap.backends.dask.leash", "parmap.worker.run"],
        }
        theirs, ours = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "distributed.cli.dask_spec", self._scheduler),
                *("--spec", json.dumps({"cls": "distributed.Worker", "opts": options})),
                env={**self._environment(), leash.VARIABLE: str(theirs)},
                pass_fds=[theirs],
                start_new_session=True,  # Ctrl-C in a terminal is for the script
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._exits[process.pid] = ending = asyncio.create_task(process.wait())
        ending.add_done_callback(lambda _: os.close(ours))
        return process

    def _environment(self) -> dict[str, str]:
        # What is beside the script, or was added to the path, is found there, too.
        environ = {
            "DASK_LOGGING__DISTRIBUTED": "warning",  # a worker that spills says so
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        if self._budget is not None and self._budget.threads is not None:
            blas.set_environment(self._budget.threads, exact=self._budget.exact, environ=environ)
        return environ


def connected(where: Any, *, own: bool = False) -> tuple[Any, tuple[Callable[[], None], ...]]:
    """Connect to a scheduler.

    Parameters
    ----------
    where : str or distributed.deploy.Cluster
        Its address, or the cluster that has it.
    own : bool, default False
        Whether its workers surely can be reached from here. Then data go to and from them past
        the scheduler: 20 results of 8 MB come in 0.2 s instead of 0.6 to 1.2.

    Returns
    -------
    client : distributed.Client
        A client that is nobody's default.
    close : tuple of callable
        What ends the connection.
    """
    try:
        # None: as Dask is configured.
        direct = True if own else None
        client = distributed.Client(where, set_as_default=False, direct_to_workers=direct)
    except (OSError, TimeoutError) as error:
        raise PoolBroken(f"no scheduler of Dask answers at {where}: {error}") from error
    streams = [getattr(client, "scheduler_comm", None)]
    if own:
        streams.append(where.scheduler.client_comms.get(client.id))
    for stream in filter(None, streams):
        stream.interval = leash.PROMPT
    return client, (client.close,)
