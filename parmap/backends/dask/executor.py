"""The executor of plan ``dask``: chunks as Dask's tasks, futures as everywhere."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from typing import Any

import distributed
from distributed.comm import get_address_host
from distributed.utils import get_ip

from parmap.backends.dask.cancelled import CancelledTasks
from parmap.backends.dask.cluster import OwnCluster
from parmap.backends.dask.connection import connected
from parmap.backends.dask.resolver import Resolver
from parmap.backends.dask.tasks import SMALL, DaskReference, DaskTask, Stay
from parmap.backends.dask.uninterrupted import uninterrupted
from parmap.backends.dask.worker_watch import WorkerWatch
from parmap.backends.packing import PackingExecutor
from parmap.backends.pending import PendingFutures
from parmap.engine.traits import Traits
from parmap.failures import PoolBroken
from parmap.transport.identity import fresh_key
from parmap.transport.messages import cached_payload

__all__ = ["DaskExecutor", "serving"]

# There and back for one task, seconds: Dask gathers messages for 2 to 10 ms before it sends them.
_ROUND_TRIP = 0.01


class DaskExecutor(PackingExecutor):
    """A PEP 3148 executor on a client of Dask.

    It makes a task of each call. `Resolver` sends the task and resolves its future, `WorkerWatch`
    counts the workers, and `CancelledTasks` restarts a worker that goes on with a cancelled task.

    Parameters
    ----------
    client : distributed.Client
        Connected.
    closing : sequence of callable
        What to call in the end, in this order.
    setup : callable or None
        Run once in each worker, also in those that come later.
    own : OwnCluster, optional
        The cluster, if parmap started it.
    """

    references = (distributed.Future,)

    def __init__(
        self,
        client: Any,
        closing: Iterable[Callable[[], object]],
        setup: Callable[[], object] | None,
        own: OwnCluster | None = None,
    ) -> None:
        self._client, self._closing, self._own = client, list(closing), own
        known = own or OwnCluster(cluster=None)  # of others' clusters parmap knows no more
        self._resolver = Resolver(client, known.exits)
        self._watch = WorkerWatch(client, known.lost, self._resolver.give_up)
        self._frees = known.restarts
        self._cancel: Callable[[Any], Awaitable[None]] = client.cancel
        # A thread cannot be stopped: its process is this one.
        if self._frees:
            self._cancel = CancelledTasks(client, known.cluster, self._watch.look).stop
        self._tasks = PendingFutures(self._close)
        try:
            if setup is not None:
                self._set_up(setup)
            replaces = client.sync(self._start)
        except BaseException:
            self._close()
            raise
        self.traits = self._facts(replaces=replaces)

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
        self._resolver.check()
        try:
            self._tasks.add(task.future)
            task.future.add_done_callback(functools.partial(self._ended, task))
            self._resolver.send(task)
        except BaseException:  # Ctrl-C: nobody gets the future, and the end must not wait for it
            task.future.cancel()
            raise
        return task.future

    def _ended(self, task: DaskTask, future: Future[Any]) -> None:
        if future.cancelled():
            self._resolver.stop(task, self._cancel)

    def put(self, value: Any, /) -> DaskReference:
        """Place a value; the reference may stand among the arguments of `submit`."""
        return DaskReference(cached_payload(value, small=SMALL))

    def drop(self, reference: DaskReference | Stay, /) -> None:
        """Forget a placed value."""
        self._client.loop.add_callback(reference.drop)

    @property
    def workers(self) -> int:
        """How many tasks run at once; at least 1, for a cluster may start workers on demand."""
        return self._watch.workers

    @property
    def per_node(self) -> int:
        """How many tasks run at once on the machine where most do."""
        return self._watch.per_node

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that resolves futures."""
        return self._resolver.ident

    @property
    def dashboard(self) -> str | None:
        """The address of Dask's page, where the scheduler has one."""
        if self._own is not None:
            return self._own.page
        known = self._client.scheduler_info(n_workers=1)["services"]
        return str(self._client.dashboard_link) if "dashboard" in known else None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; end what was started here when all that were taken are done."""
        self._tasks.close(wait=wait, cancel=cancel_futures, resolver=self.resolver)

    def _close(self) -> None:
        self._watch.stop()
        uninterrupted(self._close_all)

    def _close_all(self) -> None:
        while self._closing:
            self._closing.pop(0)()

    # -- the workers ---------------------------------------------------------------------

    async def _start(self) -> bool:
        """In the client's loop: look at the workers; tell whether those that end are replaced."""
        self._resolver.start()
        await self._watch.start()
        return self._frees or await self._watch.nannies()

    def _facts(self, *, replaces: bool) -> Traits:
        slots = self._watch.slots
        hosts = {get_address_host(address) for address in slots}
        return Traits(
            same_host=hosts <= {"127.0.0.1", get_ip()},
            threaded=any(count > 1 for count in slots.values()),
            replaces_workers=replaces,
            places=True,
            keeps=True,
            frees=self._frees,
            noisy=self._own is None,  # Dask's own threads draw there
            round_trip=_ROUND_TRIP,
            exclusive=self._frees,  # then they are our processes, of one thread each
            inside=not slots.keys().isdisjoint(_here()),
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


def serving(own: OwnCluster, setup: Callable[[], object] | None) -> DaskExecutor:
    """Make an executor on a cluster that parmap started, and that ends with the executor."""
    cluster = own.cluster
    try:
        client, close = uninterrupted(
            functools.partial(connected, cluster, own=True), lambda made: made[1][0]()
        )
    except BaseException:
        uninterrupted(cluster.close)
        raise
    return DaskExecutor(client, (*close, cluster.close), setup, own)


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
