"""The executor of plan ``dask``: chunks as Dask's tasks, futures as everywhere.

All that talks to Dask runs in the client's event loop, one coroutine for each task; so what
is known of Dask's state needs no lock. Futures are the border to the callers' threads.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import distributed
from distributed.comm import get_address_host
from distributed.scheduler import KilledWorker
from distributed.utils import get_ip
from tornado.ioloop import PeriodicCallback

from parmap.backends.dask.cancelled import CancelledTasks
from parmap.backends.dask.cluster import Exits
from parmap.backends.dask.connection import connected
from parmap.backends.dask.tasks import SMALL, DaskReference, DaskTask, Stay
from parmap.backends.dask.uninterrupted import uninterrupted
from parmap.backends.packing import PackingExecutor
from parmap.backends.pending import PendingFutures
from parmap.engine.callbacks import resolve
from parmap.engine.traits import Traits
from parmap.errors import ParmapError, WorkerDied
from parmap.failures import PoolBroken
from parmap.transport.identity import fresh_key
from parmap.transport.messages import cached_payload

__all__ = ["DaskExecutor", "serving"]

# There and back for one task, seconds: Dask gathers messages for 2 to 10 ms before it sends them.
_ROUND_TRIP = 0.01


class DaskExecutor(PackingExecutor):
    """A PEP 3148 executor on a client of Dask.

    Parameters
    ----------
    client : distributed.Client
        Connected.
    closing : sequence of callable
        What to call in the end, in this order.
    setup : callable or None
        Run once in each worker, also in those that come later.
    page : str, optional
        The address of Dask's page; empty where it is not served. Default: what the client says.
    restarts : bool, default False
        Whether workers that end are replaced, though nobody tells how they ended.
    exits : dict, optional
        How the worker processes end that are this one's own; then they are replaced.
    lost : callable, optional
        Is told for how many seconds there has been no worker, and returns why none will come;
        the empty string as long as one may come. Default: one may always come.
    own : distributed.SpecCluster, optional
        The cluster, if parmap started it. Where its workers are replaced, one is restarted if its
        task runs on, though it is cancelled.
    """

    references = (distributed.Future,)

    def __init__(
        self,
        client: Any,
        closing: Iterable[Callable[[], object]],
        setup: Callable[[], object] | None,
        *,
        page: str | None = None,
        exits: Exits | None = None,
        restarts: bool = False,
        lost: Callable[[int], str] = lambda _: "",
        own: Any = None,
    ) -> None:
        self._client, self._closing = client, list(closing)
        self._page, self._exits = page, exits or {}
        self._restarts = restarts or bool(self._exits)
        self._own, self._frees = own is not None, own is not None and self._restarts
        # A thread cannot be stopped: its process is this one.
        self._cancel = (
            CancelledTasks(client, own, self._refresh).stop if self._frees else client.cancel
        )
        self._tasks = PendingFutures(self._close)
        self._ending = Ending(lost)
        self._slots: dict[str, int] = {}  # by the workers' addresses
        self._watch: Any = None
        try:
            if setup is not None:
                self._set_up(setup)
            nannies = client.sync(self._look)
        except BaseException:
            self._close()
            raise
        self.traits = self._facts(nannies=nannies)

    # -- the executor --------------------------------------------------------------------

    def send(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call a function; Dask pickles the call."""
        call = functools.partial(fn, **kwargs) if kwargs else fn
        return self._begin(DaskTask(self._client, call, args))

    def run_remote(
        self, made: Callable[[Stay], Any], fn: Callable[..., Any], /, *args: Any
    ) -> Future[Any]:
        """Have a worker keep what ``fn(*args)`` gives; give what `made` makes of the reference."""
        return self._begin(DaskTask(self._client, fn, args, made=made))

    def _begin(self, task: DaskTask) -> Future[Any]:
        self._ending.check()
        try:
            self._tasks.add(task.future)
            task.future.add_done_callback(functools.partial(self._ended, task))
            self._client.loop.add_callback(self._serve, task)
        except BaseException:  # Ctrl-C: nobody gets the future, and the end must not wait for it
            task.future.cancel()
            raise
        return task.future

    def _ended(self, task: DaskTask, future: Future[Any]) -> None:
        if future.cancelled():
            self._client.loop.add_callback(task.stop, self._cancel)

    def put(self, value: Any, /) -> DaskReference:
        """Place a value; the reference may stand among the arguments of `submit`."""
        return DaskReference(cached_payload(value, small=SMALL))

    def drop(self, reference: DaskReference | Stay, /) -> None:
        """Forget a placed value."""
        self._client.loop.add_callback(reference.drop)

    @property
    def workers(self) -> int:
        """How many tasks run at once; at least 1, for a cluster may start workers on demand."""
        return max(1, sum(self._slots.values()))

    @property
    def per_node(self) -> int:
        """How many tasks run at once on the machine where most do."""
        hosts: Counter[str] = Counter()
        for address, slots in list(self._slots.items()):
            hosts[get_address_host(address)] += slots
        return max(hosts.values(), default=1)

    @property
    def dashboard(self) -> str | None:
        """The address of Dask's page, where the scheduler has one."""
        if self._page is not None:
            return self._page or None
        known = self._client.scheduler_info(n_workers=1)["services"]
        return str(self._client.dashboard_link) if "dashboard" in known else None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; end what was started here when all that were taken are done."""
        self._tasks.close(wait=wait, cancel=cancel_futures, resolver=self.resolver)

    def _close(self) -> None:
        if self._watch is not None:
            self._client.loop.add_callback(self._watch.stop)
        uninterrupted(self._close_all)

    def _close_all(self) -> None:
        while self._closing:
            self._closing.pop(0)()

    # -- in the client's loop ------------------------------------------------------------

    async def _serve(self, task: DaskTask) -> None:
        """Run a task, and resolve its future."""
        value = error = None
        self._ending.serving.add(task)
        try:
            self._ending.check()
            value = await task.run()
        except BaseException as caught:  # noqa: BLE001 - it is the future's
            error = await self._translated(caught)
        self._resolve(task, value, error)

    def _resolve(self, task: DaskTask, value: Any, error: BaseException | None) -> None:
        """Resolve a future: the one place that does. Who comes second does nothing."""
        if task not in self._ending.serving:
            return
        self._ending.serving.remove(task)
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

    async def _look(self) -> bool:
        """Look at the workers, and go on doing so; tell whether all would be replaced."""
        self.resolver = threading.get_ident()  # callbacks run in this loop's thread
        await self._refresh()
        self._watch = PeriodicCallback(self._refresh, 1000)
        self._watch.start()
        known = (await self._client.scheduler.identity())["workers"].values()
        return self._restarts or all(worker.get("nanny") for worker in known)

    async def _refresh(self) -> None:
        try:
            self._slots = await self._client.scheduler.ncores()
        except (OSError, asyncio.CancelledError):
            if self._watch is None:
                raise
            # The scheduler is gone, or going: the tasks tell their callers.
            self._watch.stop()
            return
        if self._ending.comes(workers=bool(self._slots)):
            await self._break()

    async def _break(self) -> None:
        """Fail what is out, for no worker will come any more."""
        pending = list(self._ending.serving)
        for task in pending:
            self._resolve(task, None, PoolBroken(self._ending.why))
        await asyncio.gather(*(task.stop(self._client.cancel) for task in pending))

    # -- the workers ---------------------------------------------------------------------

    def _facts(self, *, nannies: bool) -> Traits:
        hosts = {get_address_host(address) for address in self._slots}
        return Traits(
            same_host=hosts <= {"127.0.0.1", get_ip()},
            threaded=any(slots > 1 for slots in self._slots.values()),
            replaces_workers=nannies,
            places=True,
            keeps=True,
            frees=self._frees,
            noisy=not self._own,  # Dask's own threads draw there
            round_trip=_ROUND_TRIP,
            inside=not self._slots.keys().isdisjoint(_here()),
        )

    def _set_up(self, setup: Callable[[], object]) -> None:
        plugin = SetUp(setup)
        try:
            self._client.register_plugin(plugin)
        except Exception as error:
            raise PoolBroken(
                f"setup= failed in a worker: {type(error).__name__}: {error}"
            ) from error
        unregister = functools.partial(self._client.unregister_worker_plugin, plugin.name)
        self._closing.insert(0, unregister)


def _here() -> set[str]:
    """Give the addresses of the workers that are in this process."""
    workers = list(distributed.Worker._instances)  # noqa: SLF001 - Dask's only list of them
    return {one.address for one in workers if one.status is distributed.core.Status.running}


def serving(
    own: Any,
    setup: Callable[[], object] | None,
    *,
    exits: Exits | None = None,
    restarts: bool = False,
    lost: Callable[[int], str] = lambda _: "",
) -> DaskExecutor:
    """Make an executor on a cluster that was started here, and ends with it.

    Parameters
    ----------
    own : distributed.deploy.Cluster
        The cluster.
    setup, exits, restarts, lost
        See `DaskExecutor`.
    """
    try:
        client, close = uninterrupted(
            functools.partial(connected, own, own=True), lambda made: made[1][0]()
        )
    except BaseException:
        uninterrupted(own.close)
        raise
    closing = (*close, own.close)
    return DaskExecutor(
        *(client, closing, setup),
        page=own.scheduler.link,
        exits=exits,
        restarts=restarts,
        lost=lost,
        own=own,
    )


class Ending:
    """Whether the workers are lost for good, so that all tasks fail.

    Parameters
    ----------
    lost : callable
        See `DaskExecutor`.

    Attributes
    ----------
    why : str
        What has happened; empty as long as workers are there, or may come.
    serving : set of DaskTask
        The tasks whose futures are open; only in the client's loop.
    """

    def __init__(self, lost: Callable[[int], str]) -> None:
        self._lost, self._looks = lost, 0
        self.why = ""
        self.serving: set[DaskTask] = set()

    def check(self) -> None:
        """Refuse a task once all workers are lost."""
        if self.why:
            raise PoolBroken(self.why)

    def comes(self, *, workers: bool) -> bool:
        """Look, each second; tell when the end has just come."""
        # Looks are counted, for this process may have been stopped for a while.
        self._looks = 0 if workers else self._looks + 1
        if workers or self.why:
            return False
        self.why = self._lost(self._looks)
        return bool(self.why)


class SetUp(distributed.WorkerPlugin):  # type: ignore[misc]
    """Runs ``setup=`` in each worker, before it gets tasks.

    Parameters
    ----------
    setup : callable
        What to run.
    """

    def __init__(self, setup: Callable[[], object]) -> None:
        # Dask knows plugins by their names: one of another script must not take this one's place.
        token, number = fresh_key()
        self.name = f"parmap-setup-{token.hex()}-{number}"
        # Packed here: Dask would send a copy of an open file, for one.
        self._setup = cached_payload(setup, "setup")

    async def setup(self, worker: Any) -> None:  # noqa: ARG002
        """Run it, while the worker goes on answering its scheduler."""
        await asyncio.to_thread(self._run)

    def _run(self) -> None:
        self._setup.open()()


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
