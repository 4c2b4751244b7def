"""The executor of plan ``ray``: chunks as Ray's tasks, futures as everywhere."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from parmap.backends.packing import PackingExecutor
from parmap.backends.pending import PendingFutures
from parmap.backends.ray.api import RayApi, RayReference, remote_run
from parmap.backends.ray.resolver import ResolverThread
from parmap.backends.ray.runtime import Nodes
from parmap.backends.ray.tasks import LimitedTasks, RayTask
from parmap.engine.traits import Traits

__all__ = ["RayExecutor"]

_ROUND_TRIP = 0.003  # there and back for one task, seconds


class RayExecutor(PackingExecutor):
    """A PEP 3148 executor on Ray's tasks.

    It makes a task of each call. `LimitedTasks` decides when Ray gets the task, `RayApi` calls
    Ray, and `ResolverThread` resolves the task's future.

    Parameters
    ----------
    ray : module
        The package, initialised.
    claims : dict
        What Ray is told of each task.
    limit : int or None
        How many tasks may run at once, where the cluster has room for more.
    setup : callable or None
        Run once in each worker.
    leave : callable
        What to call in the end.
    """

    def __init__(
        self,
        ray: Any,
        claims: dict[str, Any],
        limit: int | None,
        setup: Callable[[], object] | None,
        leave: Callable[[], None],
    ) -> None:
        self._leave = leave
        self.references = (ray.ObjectRef,)
        remote, nodes = remote_run(ray, claims), Nodes(ray, claims)
        self._api = RayApi(ray, remote, setup)
        self._tasks = LimitedTasks(nodes, limit)
        self._pending = PendingFutures(self._close)
        self.traits = Traits(
            same_host=nodes.hosts() == {socket.gethostname()},
            replaces_workers=True,
            places=True,
            frees=True,
            exclusive=True,
            round_trip=_ROUND_TRIP,
        )
        self._thread = ResolverThread(self._api, self._tasks)

    def send(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call a function; Ray pickles the call."""
        task = RayTask(functools.partial(fn, **kwargs) if kwargs else fn, args)
        try:
            self._pending.add(task.future)
            task.future.add_done_callback(functools.partial(self._thread.stop, task))
            if self._tasks.admit(task):
                self._thread.send(task)
        except BaseException:
            # Ctrl-C: nobody gets this future, and neither the limit nor the end may count it.
            self._thread.give_up(task)
            raise
        return task.future

    def put(self, value: Any, /) -> RayReference:
        """Place a value; the reference may stand among the arguments of `submit`."""
        return self._api.put(value)

    def drop(self, reference: RayReference, /) -> None:
        """Forget a placed value; Ray frees it when the tasks that need it have ended."""
        reference.cargo = None

    @property
    def workers(self) -> int:
        """How many tasks run at once."""
        return self._tasks.workers

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that resolves futures."""
        return self._thread.ident

    @property
    def per_node(self) -> int:
        """How many tasks run at once on the node where most do."""
        return self._tasks.per_node

    @property
    def dashboard(self) -> str | None:
        """The address of Ray's page, where it has one."""
        return self._api.dashboard

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; leave Ray when all that were taken are done."""
        self._pending.close(wait=wait, cancel=cancel_futures, resolver=self.resolver)

    def _close(self) -> None:
        # Tasks that were cancelled may still be out; the thread sees to it that they end.
        self._thread.close()
        self._leave()
