"""Tasks that run, and that nobody waits for any more: their workers are restarted.

Dask cannot stop a task that runs. It forgets the task, takes its worker for idle, and gives it more
to do, which waits there for as long as the task runs, also while other workers have nothing to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from distributed.core import Status

from parmap.backends.dask.cluster import taken_out

__all__ = ["CancelledTasks"]

# Seconds that a task has to end by itself: about what it costs to restart its worker.
_GRACE = 1.0
# Seconds more until a worker that does not answer is taken for one whose task holds the GIL.
_SILENCE = 4.0


class CancelledTasks:
    """Stops tasks on workers that were started here.

    Its methods run in the cluster's loop.

    Parameters
    ----------
    client : distributed.Client
        Whose tasks they are.
    cluster : distributed.SpecCluster
        Whose scheduler is in this process.
    changed : coroutine function
        Is told that there is a worker less.
    """

    def __init__(
        self, client: Any, cluster: Any, changed: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._client, self._cluster, self._changed = client, cluster, changed

    async def stop(self, task: Any) -> None:
        """Take a task back; if it runs on, restart the worker that runs it.

        Parameters
        ----------
        task : distributed.Future
            The task.
        """
        known = self._cluster.scheduler.tasks.get(task.key)
        worker = None if known is None else known.processing_on
        # Tasks begin in the order in which they are given to a worker.
        first = worker is not None and next(iter(worker.processing)) is known
        await self._client.cancel([task])
        if worker is not None and await self._runs(task.key, worker.address, unknown=first):
            await self._restart(worker)

    async def _runs(self, key: Any, address: str, *, unknown: bool) -> bool:
        """Tell whether a worker still runs a task, after a while; `unknown` if it does not say."""
        asked = self._client.run(_runs_on, key, _GRACE, workers=[address], on_error="ignore")
        try:
            said = await asyncio.wait_for(asked, _GRACE + _SILENCE)
        except TimeoutError:
            return unknown
        except OSError:  # it is gone
            return False
        return any(said.values())

    async def _restart(self, worker: Any) -> None:
        cluster, scheduler = self._cluster, self._cluster.scheduler
        # It may have ended meanwhile, by itself or for another of its tasks; or all ends.
        if scheduler.workers.get(worker.address) is not worker or cluster.status != Status.running:
            return
        known = list(cluster.workers.values())
        restart = [one for one in known if one.keeps(worker.host, worker.pid)]
        if not restart:  # it is kept where nobody here has a line to
            with contextlib.suppress(OSError):
                await self._client.run(_end, workers=[worker.address], wait=False)
        # Now, not when its end is noticed: what waits behind the task goes elsewhere.
        await taken_out(scheduler, worker.address, "parmap-cancelled")
        await self._changed()
        for one in restart:
            await one.restart(worker.pid)


async def _runs_on(key: Any, grace: float, dask_worker: Any) -> bool:
    """In a worker: tell whether it runs a task, and still after so many seconds."""
    await asyncio.sleep(grace)
    state = dask_worker.state
    return any(task.key == key for task in (*state.executing, *state.long_running))


def _end() -> None:
    """In a worker: end it, and what its tasks have started."""
    with contextlib.suppress(Exception):  # nobody may be left to read it
        sys.stdout.flush()
    os.killpg(0, signal.SIGKILL)
