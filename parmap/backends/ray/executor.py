"""The executor of plan ``ray``: chunks as Ray's tasks, futures as everywhere."""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from parmap.backends.packing import PackingExecutor
from parmap.backends.pending import PendingFutures
from parmap.backends.ray.runtime import Nodes
from parmap.engine.callbacks import resolve
from parmap.engine.traits import Traits
from parmap.errors import PlanError, WorkerDied
from parmap.failures import PoolBroken
from parmap.transport.messages import CachedPayload, cached_payload
from parmap.worker.setup import prepared

__all__ = ["RayExecutor"]

# Below this many bytes a value goes along with each task. From here on it stays in Ray's store,
# which all workers of a node read in place.
_SMALL = 1 << 16
_ROUND_TRIP = 0.003  # there and back for one task, seconds
# So often, in seconds, to look whether somebody has shut Ray down, or a task ignores its end.
_LOOK = 0.5
# So many seconds has a cancelled task that runs to end, before its worker is killed.
_GRACE = 1.0
_STOP = object()  # in a result's place: the task was cancelled


class RayReference:
    """A value that was put: what stands for it among a task's arguments. Equal only to itself."""

    def __init__(self, cargo: Any) -> None:
        self.cargo = cargo


@dataclass(eq=False)
class RayTask:
    """One task: what it calls, who waits for it, and what Ray calls its result once it is sent."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    future: Future[Any] = field(default_factory=Future)
    ref: Any = None
    killed: bool = False
    resolved: bool = False  # after Ctrl-C its end may be told twice


class RayExecutor(PackingExecutor):
    """A PEP 3148 executor on Ray's tasks.

    Ray calls back, in a thread of its own, when a task has ended. From there a queue leads to
    one thread here, the only one that resolves futures: what those call may use Ray again.

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
        self._ray, self._limit, self._leave = ray, limit, leave
        try:
            # Without retries of Ray's own a death is seen at once, and known to be one.
            self._remote = ray.remote(max_retries=0, name="parmap", **claims)(_run).remote
        except (TypeError, ValueError) as error:
            raise PlanError(f"Ray does not take these options for a task: {error}") from error
        self._nodes = Nodes(ray, claims)
        self.references = (ray.ObjectRef,)
        self._setup = None if setup is None else cached_payload(setup, "setup")
        self._tasks = PendingFutures(self._close)
        self._ready = ray.put(None)  # of what is there Ray's own thread says so at once
        # Under `_lock` tasks move between these. It is reentrant: a finalizer or a signal handler
        # may submit in between, and so each step looks anew at what it finds. Who cancels, as a
        # forgotten iterator does, does not take it: the thread here hears of it through `_ended`.
        self._lock = threading.RLock()
        self._out: set[RayTask] = set()  # Ray has them
        self._waiting: deque[RayTask] = deque()  # beyond the limit
        self._stopped: dict[
            RayTask, float
        ] = {}  # the thread's own: cancelled, still out; since when
        self._ended: SimpleQueue[tuple[RayTask, Any] | None] = SimpleQueue()
        self.traits = Traits(
            same_host=self._nodes.hosts() == {socket.gethostname()},
            replaces_workers=True,
            places=True,
            frees=True,
            round_trip=_ROUND_TRIP,
        )
        self._thread = threading.Thread(target=self._resolve_all, name="parmap-ray", daemon=True)
        self._thread.start()

    def send(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call a function; Ray pickles the call."""
        task = RayTask(functools.partial(fn, **kwargs) if kwargs else fn, args)
        try:
            self._tasks.add(task.future)
            task.future.add_done_callback(functools.partial(self._stop, task))
            with self._lock:
                self._out.add(task)  # first, so that who comes in between counts it
                full = self._is_full()
                if full:
                    self._out.discard(task)
                    self._waiting.append(task)
            if not full:
                self._send(task)
        except BaseException:
            # Ctrl-C: nobody gets this future, and neither the limit nor the end may count it.
            if task.future.cancel() and task.ref is None:
                self._ended.put((task, None))
            elif task.ref is not None:
                self._hear(task)  # perhaps once more
            raise
        return task.future

    def put(self, value: Any, /) -> RayReference:
        """Place a value; the reference may stand among the arguments of `submit`."""
        cargo = cached_payload(value, small=_SMALL)
        return RayReference(
            cargo if cargo.key else self._ray.put(Stored(uuid.uuid4().bytes, cargo))
        )

    def drop(self, reference: RayReference, /) -> None:
        """Forget a placed value; Ray frees it when the tasks that need it have ended."""
        reference.cargo = None

    @property
    def workers(self) -> int:
        """How many tasks run at once."""
        room = sum(self._nodes.room())
        return max(1, room if self._limit is None else min(room, self._limit))

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that resolves futures."""
        return self._thread.ident

    @property
    def per_node(self) -> int:
        """How many tasks run at once on the node where most do."""
        return max(1, min(self.workers, max(self._nodes.room(), default=1)))

    @property
    def dashboard(self) -> str | None:
        """The address of Ray's page, where it has one."""
        url = None
        with contextlib.suppress(Exception):  # it has no public name
            url = self._ray._private.worker.get_dashboard_url()  # noqa: SLF001
        return f"http://{url}" if url else None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; leave Ray when all that were taken are done."""
        self._tasks.close(wait=wait, cancel=cancel_futures, resolver=self.resolver)

    def _close(self) -> None:
        # Tasks that were cancelled may still be out; the thread sees to it that they end.
        self._ended.put(None)
        self._thread.join()
        self._leave()

    # -- tasks ---------------------------------------------------------------------------

    def _is_full(self) -> bool:
        """Tell whether so many tasks are out that Ray would run more at once than it may."""
        limit = self._limit
        return limit is not None and len(self._out) > limit < sum(self._nodes.room())

    def _send(self, task: RayTask) -> None:
        args = [arg.cargo if type(arg) is RayReference else arg for arg in task.args]
        try:
            task.ref = self._remote(self._setup, task.call, *args)
        except Exception as error:  # noqa: BLE001 - an argument that cannot be pickled, say
            self._ended.put((task, error))
            return
        task.args = ()
        self._hear(task)
        if task.future.cancelled():
            self._stop(task, task.future)

    def _hear(self, task: RayTask) -> None:
        # The public way to a future makes one more of them, and resolves it in Ray's thread.
        task.ref._on_completed(lambda value: self._ended.put((task, value)))  # noqa: SLF001

    def _stop(self, task: RayTask, future: Future[Any]) -> None:
        """Have a task taken back that was cancelled: without a lock, in any thread, at any time."""
        if future.cancelled():
            self._ended.put((task, _STOP))

    def _take_back(self, task: RayTask) -> None:
        """End a task that was cancelled: one that runs is interrupted, as by Ctrl-C."""
        try:
            self._waiting.remove(task)
        except ValueError:  # it does not wait; before it has a name at Ray's, `_send` comes again
            if task in self._out and task.ref is not None and task not in self._stopped:
                self._stopped[task] = time.monotonic()
                self._cancel(task.ref, force=False)
        else:
            self._resolve(task, None)

    def _cancel(self, ref: Any, *, force: bool) -> None:
        """Have Ray cancel a task, in its own thread: there tasks end, too, one after the other.

        Cancelled from another thread while its result comes in, a task is ended twice; then a
        check of Ray's fails, in C++, and brings the whole process down.
        """
        if not self._ray.is_initialized():
            return
        if self._ray.util.client.ray.is_connected():
            # By "ray://": Ray's thread is at the far end, and the one here must not wait for it.
            self._ray.cancel(ref, force=force)
        else:
            self._ready._on_completed(lambda _: self._ray.cancel(ref, force=force))  # noqa: SLF001

    def _resolve_all(self) -> None:
        """Resolve futures as tasks end: the one place that does."""
        lost = PoolBroken("Ray was shut down while tasks were out: enter the plan again")
        closing = False
        while not closing or self._stopped:
            if self._stopped:
                self._kill_deaf()
            try:
                ended = self._ended.get(timeout=_LOOK)
            except Empty:
                if not self._ray.is_initialized():
                    self._resolve_rest(lost)
                continue
            if ended is None:
                closing = True
            elif ended[1] is _STOP:
                self._take_back(ended[0])
            else:
                self._resolve(*ended)
            del ended  # or it would live until the next task ends
        self._resolve_rest(lost)  # they were cancelled

    def _kill_deaf(self) -> None:
        """Kill the workers of cancelled tasks that an interrupt does not end.

        Ray's reaches Python code only: not a task that sleeps, or runs in a library.
        """
        late = time.monotonic() - _GRACE
        deaf = [e for e, since in self._stopped.items() if since < late and not e.killed]
        for task in deaf:
            task.killed = True
            self._cancel(task.ref, force=True)

    def _resolve_rest(self, error: Exception) -> None:
        with self._lock:
            rest = (*self._out.copy(), *self._waiting.copy())
            self._out.clear()
            self._waiting.clear()
            self._stopped.clear()
        for task in rest:
            task.resolved = True
            if task.future.set_running_or_notify_cancel():
                resolve(task.future, error=error)

    def _resolve(self, task: RayTask, value: Any) -> None:
        if task.resolved:
            return
        task.resolved = True
        theirs, future, error = self._ray.exceptions, task.future, None
        if task.ref is None:
            error = value  # it was not sent
        elif isinstance(value, (theirs.RayError, ConnectionError)):
            error = self._translated(value, task.ref)
        if isinstance(error, theirs.TaskCancelledError):
            future.cancel()
        self._go_on(task)
        if not future.set_running_or_notify_cancel():
            return
        resolve(future, value, error)

    def _go_on(self, ended: RayTask) -> None:
        """Send what need wait no more."""
        with self._lock:
            self._out.discard(ended)
            self._stopped.pop(ended, None)
            ready = None
            with contextlib.suppress(IndexError):  # nothing waits
                ready = self._waiting.popleft()
                self._out.add(ready)
                if self._is_full():
                    self._out.discard(ready)
                    self._waiting.appendleft(ready)
                    ready = None
        if ready is not None:
            self._send(ready)

    def _translated(self, error: BaseException, ref: Any) -> BaseException:
        """Say in parmap's words what went wrong with Ray."""
        theirs = self._ray.exceptions
        with contextlib.suppress(Exception):
            # An error that nobody has asked for Ray writes to the log.
            self._ray.get(ref, timeout=0)
        if isinstance(error, theirs.RayTaskError):
            return _cause(error)
        if isinstance(error, (theirs.RuntimeEnvSetupError, theirs.TaskUnschedulableError)):
            return PoolBroken(f"Ray cannot start a worker for this plan: {error}")
        lost = (theirs.NodeDiedError, theirs.LocalRayletDiedError, theirs.ObjectLostError)
        if isinstance(error, (theirs.OutOfMemoryError, *lost)):
            return WorkerDied(0, last_words=str(error))
        # Of a crash Ray only says that it was one.
        return WorkerDied(0) if isinstance(error, theirs.WorkerCrashedError) else error


def _cause(error: Any) -> BaseException:
    cause: BaseException = getattr(error, "cause", None) or error
    if "No module named 'parmap" in str(cause):
        return PoolBroken(
            "a worker of Ray cannot import parmap: install parmap-plans on its nodes, in the same "
            "version as here, or name it in runtime_env="
        )
    return cause


@dataclass(frozen=True)
class Stored:
    """A value in Ray's store, which gives it anew, without a copy, to each task."""

    key: bytes
    cargo: CachedPayload


_unpickled: dict[bytes, CachedPayload] = {}


def _run(setup: CachedPayload | None, call: Callable[..., Any], *args: Any) -> Any:
    """Run in a worker, in its main thread."""
    if setup is not None:
        # A task that is cancelled meanwhile must not spoil the setup for all others.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            prepared(setup, int)
        finally:
            signal.signal(signal.SIGINT, before)
    needed = {arg.key for arg in args if type(arg) is Stored}
    for key in _unpickled.keys() - needed:
        del _unpickled[key]  # or the store could not free it
    return call(*(_unpickled.setdefault(a.key, a.cargo) if type(a) is Stored else a for a in args))
