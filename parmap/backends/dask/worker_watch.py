"""The workers that a scheduler has, looked at each second."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from distributed.comm import get_address_host
from tornado.ioloop import PeriodicCallback

__all__ = ["WorkerWatch"]

_LOOK = 1000  # milliseconds


class WorkerWatch:
    """Counts the workers, and notices when all are lost for good.

    The client's event loop alone changes its state, so it has no lock. Any thread may read `slots`:
    a look replaces the dictionary, and never changes it.

    Parameters
    ----------
    client : distributed.Client
        Whose workers they are.
    lost : callable
        Is told for how many seconds there has been no worker, and returns why none will come;
        the empty string as long as one may come.
    broken : coroutine function
        Is told that reason, once.

    Attributes
    ----------
    slots : dict of str to int
        How many tasks run at once, by the workers' addresses.
    """

    def __init__(
        self,
        client: Any,
        lost: Callable[[int], str],
        broken: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self._client, self._lost, self._broken = client, lost, broken
        self._looks = 0  # in a row that found no worker
        self._over = False
        self._timer: PeriodicCallback | None = None
        self.slots: dict[str, int] = {}

    @property
    def workers(self) -> int:
        """How many tasks run at once; at least 1, for a cluster may start workers on demand."""
        return max(1, sum(self.slots.values()))

    @property
    def per_node(self) -> int:
        """How many tasks run at once on the machine where most do."""
        hosts: Counter[str] = Counter()
        for address, slots in self.slots.items():
            hosts[get_address_host(address)] += slots
        return max(hosts.values(), default=1)

    async def start(self) -> None:
        """Look at the workers, and go on doing so."""
        await self.look()
        self._timer = PeriodicCallback(self.look, _LOOK)
        self._timer.start()

    def stop(self) -> None:
        """Look no more. Any thread may call this."""
        if self._timer is not None:
            self._client.loop.add_callback(self._timer.stop)

    async def nannies(self) -> bool:
        """Tell whether each worker has one of Dask's nannies, which would replace it."""
        known = (await self._client.scheduler.identity())["workers"].values()
        return all(worker.get("nanny") for worker in known)

    async def look(self) -> None:
        """Ask for the workers."""
        try:
            self.slots = await self._client.scheduler.ncores()
        except (OSError, asyncio.CancelledError):
            if self._timer is None:
                raise
            # The scheduler is gone, or going: the tasks tell their callers.
            self._timer.stop()
            return
        # Looks are counted, for this process may have been stopped for a while.
        self._looks = 0 if self.slots else self._looks + 1
        why = "" if self.slots or self._over else self._lost(self._looks)
        if why:
            self._over = True
            await self._broken(why)
