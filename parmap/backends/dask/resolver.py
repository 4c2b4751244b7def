"""Sends tasks to Dask, and resolves their futures, in the client's event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from distributed.comm import get_address_host
from distributed.scheduler import KilledWorker

from parmap.backends.dask.cluster import Exits
from parmap.backends.dask.tasks import DaskTask
from parmap.engine.callbacks import resolve
from parmap.errors import ParmapError, WorkerDied
from parmap.failures import PoolBroken

__all__ = ["Resolver"]


class Resolver:
    """Sends each task by a coroutine of its own, and resolves its future when that ends.

    All that talks to Dask runs in the client's event loop, which alone changes the state, so there
    is no lock. Futures are the border to the callers' threads. Any thread may call `check`, `send`
    and `stop`.

    Parameters
    ----------
    client : distributed.Client
        Where tasks are sent.
    exits : dict
        How worker processes end, as far as that is known.

    Attributes
    ----------
    ident : int or None
        The identifier of the loop's thread; None until `start`.
    """

    def __init__(self, client: Any, exits: Exits) -> None:
        self._client, self._exits = client, exits
        self._open: set[DaskTask] = set()  # tasks whose futures are not resolved; for the loop only
        self._why = ""  # all workers are lost; the loop sets it once
        self.ident: int | None = None

    def check(self) -> None:
        """Refuse a task once all workers are lost."""
        if self._why:
            raise PoolBroken(self._why)

    def send(self, task: DaskTask) -> None:
        """Send a task, and resolve its future in the end."""
        self._client.loop.add_callback(self._serve, task)

    def stop(self, task: DaskTask, cancel: Callable[[Any], Awaitable[None]]) -> None:
        """Have a coroutine function take back a task whose future is cancelled."""
        self._client.loop.add_callback(task.stop, cancel)

    # -- in the client's loop ------------------------------------------------------------

    def start(self) -> None:
        """Note which thread the loop has: callbacks of futures run there."""
        self.ident = threading.get_ident()

    async def give_up(self, why: str) -> None:
        """Fail all open tasks, and those to come: no worker will come any more."""
        self._why = why
        pending = list(self._open)
        for task in pending:
            self._resolve(task, None, PoolBroken(why))
        await asyncio.gather(*(task.stop(self._client.cancel) for task in pending))

    async def _serve(self, task: DaskTask) -> None:
        """Run a task, and resolve its future."""
        value = error = None
        self._open.add(task)
        try:
            self.check()
            value = await task.run()
        except BaseException as caught:  # noqa: BLE001 - it is the future's
            error = await self._translated(caught)
        self._resolve(task, value, error)

    def _resolve(self, task: DaskTask, value: Any, error: BaseException | None) -> None:
        """Resolve a future: the one place that does. Who comes second does nothing."""
        if task not in self._open:
            return
        self._open.remove(task)
        if not task.future.set_running_or_notify_cancel():
            return
        resolve(task.future, value, error)

    async def _translated(self, error: BaseException) -> BaseException:
        if not isinstance(error, KilledWorker):
            return _translated(error, self._client)
        last = error.last_worker
        host = get_address_host(last.address)
        ending = self._exits.get((host, last.pid))
        code = None if ending is None else await asyncio.shield(ending)
        return WorkerDied(last.pid, code, host=host, times=error.allowed_failures + 1)


def _translated(error: BaseException, client: Any) -> BaseException:
    """Say in parmap's words what went wrong with Dask."""
    if isinstance(error, asyncio.CancelledError):
        return ParmapError(
            f"Dask has given up a task ({error}), and its scheduler at {client.scheduler.address} "
            f"is {client.status}: was the cluster closed, or restarted?"
        )
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("parmap"):
        return PoolBroken(
            f"a worker of Dask cannot import parmap ({error}): install parmap-plans there, in the "
            "same version as here"
        )
    return error
