"""What Dask runs: a `DaskTask` for each call, values that were broadcast, results that stay."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from parmap.transport.messages import CachedPayload, RemoteResult
from parmap.transport.payload import Payload

__all__ = ["SMALL", "DaskReference", "DaskTask", "Stay"]

# Below this many bytes a value goes along with each task, by way of the scheduler: less than
# the messages cost that would place it. From here on it goes to the workers beforehand.
SMALL = 1 << 18
# How often a task is sent anew because its data went with the workers that had them.
_LOSSES = 4


class DaskReference:
    """A value that is placed on all workers when a task first needs it.

    Parameters
    ----------
    cargo : CachedPayload
        The value. Kept here, for it must be placed again if all workers are lost.
    """

    def __init__(self, cargo: CachedPayload) -> None:
        self.cargo: CachedPayload | None = cargo
        self._placing: asyncio.Task[Any] | None = None

    async def placed(self, client: Any) -> Any:
        """Give Dask's future of the value."""
        if self._placing is None or _is_lost(self._placing):
            self._placing = asyncio.ensure_future(self._place(client))
        # Several tasks wait for it, and any of them may be cancelled.
        return await asyncio.shield(self._placing)

    async def _place(self, client: Any) -> Any:
        if not await client.scheduler.ncores():
            # A cluster that adapts starts workers for tasks, not for data.
            await client.submit(int, pure=False)
        return await client.scatter(self.cargo, broadcast=True, hash=False)

    def drop(self) -> None:
        """Forget the value, here and on the workers."""
        self.cargo = self._placing = None


def _is_lost(placing: asyncio.Task[Any]) -> bool:
    if not placing.done():
        return False
    failed = placing.cancelled() or placing.exception() is not None
    return failed or placing.result().status != "finished"


class Stay:
    """A result that stays with the workers.

    Parameters
    ----------
    task : distributed.Future
        The task that gave it; Dask runs it again if the result is lost.
    """

    def __init__(self, task: Any) -> None:
        self.task = task

    def drop(self) -> None:
        """Forget the result."""
        self.task.release()


class DaskTask:
    """One task and its data: sent, awaited, and sent anew if the data were lost.

    Its coroutine is never cancelled: Dask gathers results for several tasks at once, and who
    is cancelled while he waits for them cancels them all.

    Parameters
    ----------
    client : distributed.Client
        Where to send it.
    call : callable
        What the task calls.
    args : tuple
        Its arguments; a `DaskReference` stands for the value that is placed.
    made : callable, optional
        What to make of a `Stay`, if the result is to stay there. Default: it is brought.

    Attributes
    ----------
    future : Future
        Whoever waits for it.
    """

    def __init__(
        self,
        client: Any,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        made: Callable[[Stay], Any] | None = None,
    ) -> None:
        self.future: Future[Any] = Future()
        self._made = made
        self._client, self._call, self._args = client, call, args
        self._task: Any = None

    async def run(self) -> Any:
        """Send it, and give what comes back."""
        for attempt in range(1, _LOSSES + 1):
            sent = [await self._sent(arg) for arg in self._args]
            if self.future.done():  # cancelled, say
                break
            self._task = task = self._client.submit(self._call, *sent, pure=False)
            try:
                if self._made is not None and await self._stays(task):
                    task, stay = None, Stay(task)
                    return self._made(stay)
                return await task
            except asyncio.CancelledError:
                # Dask cancels tasks whose data are gone.
                if self.future.done() or attempt == _LOSSES or not self._connected:
                    raise
            finally:
                # Now, not when the collector comes to it: an error's traceback holds this frame.
                if task is not None:
                    task.release()
        return None

    async def _stays(self, task: Any) -> bool:
        # By its type, which comes with the news: what there is more to tell of is brought.
        return await task.exception() is None and task.type is RemoteResult

    async def stop(self, cancel: Callable[[Any], Awaitable[None]]) -> None:
        """Take it back, if it has been sent."""
        if self._task is not None and self._connected:
            await cancel(self._task)

    @property
    def _connected(self) -> bool:
        return bool(self._client.status == "running")

    async def _sent(self, arg: Any) -> Any:
        """Put in an argument's place what Dask is to send for it."""
        if type(arg) is DaskReference and arg.cargo is not None:
            return arg.cargo if arg.cargo.key else await arg.placed(self._client)
        if type(arg) is Stay:
            return arg.task
        if type(arg) is Payload and arg.size >= SMALL:
            return await self._client.scatter(arg, hash=False)
        return arg
