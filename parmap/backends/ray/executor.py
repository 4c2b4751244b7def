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
from parmap.backends.pending import Outstanding
from parmap.backends.ray.runtime import Nodes
from parmap.engine.callbacks import resolve
from parmap.engine.traits import Traits
from parmap.errors import PlanError, WorkerDied
from parmap.failures import PoolBroken
from parmap.transport.messages import Embedded, embedded
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


class Reference:
    """A value that was put: what stands for it among a task's arguments. Equal only to itself."""

    def __init__(self, cargo: Any) -> None:
        self.cargo = cargo


@dataclass(eq=False)
class Errand:
    """One task: what it calls, who waits for it, and what Ray calls its result once it is sent."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    future: Future[Any] = field(default_factory=Future)
    ref: Any = None
    killed: bool = False
    settled: bool = False  # after Ctrl-C its end may be told twice


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
        self._setup = None if setup is None else embedded(setup, "setup")
        self._tasks = Outstanding(self._close)
        self._ready = ray.put(None)  # of what is there Ray's own thread says so at once
        # Under `_lock` tasks move between these. It is reentrant: a finalizer or a signal handler
        # may submit in between, and so each step looks anew at what it finds. Who cancels, as a
        # forgotten iterator does, does not take it: the thread here hears of it through `_ended`.
        self._lock = threading.RLock()
        self._out: set[Errand] = set()  # Ray has them
        self._waiting: deque[Errand] = deque()  # beyond the limit
        self._stopped: dict[
            Errand, float
        ] = {}  # the thread's own: cancelled, still out; since when
        self._ended: SimpleQueue[tuple[Errand, Any] | None] = SimpleQueue()
        self.traits = Traits(
            same_host=self._nodes.hosts() == {socket.gethostname()},
            replaces_workers=True,
            places=True,
            frees=True,
            round_trip=_ROUND_TRIP,
        )
        self._thread = threading.Thread(target=self._settle_all, name="parmap-ray", daemon=True)
        self._thread.start()

    def send(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call a function; Ray pickles the call."""
        errand = Errand(functools.partial(fn, **kwargs) if kwargs else fn, args)
        try:
            self._tasks.add(errand.future)
            errand.future.add_done_callback(functools.partial(self._stop, errand))
            with self._lock:
                self._out.add(errand)  # first, so that who comes in between counts it
                full = self._is_full()
                if full:
                    self._out.discard(errand)
                    self._waiting.append(errand)
            if not full:
                self._send(errand)
        except BaseException:
            # Ctrl-C: nobody gets this future, and neither the limit nor the end may count it.
            if errand.future.cancel() and errand.ref is None:
                self._ended.put((errand, None))
            elif errand.ref is not None:
                self._hear(errand)  # perhaps once more
            raise
        return errand.future

    def put(self, value: Any, what: str = "") -> Reference:
        """Place a value; the reference may stand among the arguments of `submit`."""
        cargo = embedded(value, what, small=_SMALL)
        return Reference(cargo if cargo.key else self._ray.put(Kept(uuid.uuid4().bytes, cargo)))

    def drop(self, reference: Reference) -> None:
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

    def _send(self, errand: Errand) -> None:
        args = [arg.cargo if type(arg) is Reference else arg for arg in errand.args]
        try:
            errand.ref = self._remote(self._setup, errand.call, *args)
        except Exception as error:  # noqa: BLE001 - an argument that cannot be pickled, say
            self._ended.put((errand, error))
            return
        errand.args = ()
        self._hear(errand)
        if errand.future.cancelled():
            self._stop(errand, errand.future)

    def _hear(self, errand: Errand) -> None:
        # The public way to a future makes one more of them, and resolves it in Ray's thread.
        errand.ref._on_completed(lambda value: self._ended.put((errand, value)))  # noqa: SLF001

    def _stop(self, errand: Errand, future: Future[Any]) -> None:
        """Have a task taken back that was cancelled: without a lock, in any thread, at any time."""
        if future.cancelled():
            self._ended.put((errand, _STOP))

    def _take_back(self, errand: Errand) -> None:
        """End a task that was cancelled: one that runs is interrupted, as by Ctrl-C."""
        try:
            self._waiting.remove(errand)
        except ValueError:  # it does not wait; before it has a name at Ray's, `_send` comes again
            if errand in self._out and errand.ref is not None and errand not in self._stopped:
                self._stopped[errand] = time.monotonic()
                self._cancel(errand.ref, force=False)
        else:
            self._settle(errand, None)

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

    def _settle_all(self) -> None:
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
                    self._settle_rest(lost)
                continue
            if ended is None:
                closing = True
            elif ended[1] is _STOP:
                self._take_back(ended[0])
            else:
                self._settle(*ended)
            del ended  # or it would live until the next task ends
        self._settle_rest(lost)  # they were cancelled

    def _kill_deaf(self) -> None:
        """Kill the workers of cancelled tasks that an interrupt does not end.

        Ray's reaches Python code only: not a task that sleeps, or runs in a library.
        """
        late = time.monotonic() - _GRACE
        deaf = [e for e, since in self._stopped.items() if since < late and not e.killed]
        for errand in deaf:
            errand.killed = True
            self._cancel(errand.ref, force=True)

    def _settle_rest(self, error: Exception) -> None:
        with self._lock:
            rest = (*self._out.copy(), *self._waiting.copy())
            self._out.clear()
            self._waiting.clear()
            self._stopped.clear()
        for errand in rest:
            errand.settled = True
            if errand.future.set_running_or_notify_cancel():
                resolve(errand.future, error=error)

    def _settle(self, errand: Errand, value: Any) -> None:
        if errand.settled:
            return
        errand.settled = True
        theirs, future, error = self._ray.exceptions, errand.future, None
        if errand.ref is None:
            error = value  # it was not sent
        elif isinstance(value, (theirs.RayError, ConnectionError)):
            error = self._translated(value, errand.ref)
        if isinstance(error, theirs.TaskCancelledError):
            future.cancel()
        self._go_on(errand)
        if not future.set_running_or_notify_cancel():
            return
        resolve(future, value, error)

    def _go_on(self, ended: Errand) -> None:
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
class Kept:
    """A value in Ray's store, which gives it anew, without a copy, to each task."""

    key: bytes
    cargo: Embedded


_opened: dict[bytes, Embedded] = {}


def _run(setup: Embedded | None, call: Callable[..., Any], *args: Any) -> Any:
    """Run in a worker, in its main thread."""
    if setup is not None:
        # A task that is cancelled meanwhile must not spoil the setup for all others.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            prepared(setup, int)
        finally:
            signal.signal(signal.SIGINT, before)
    kept = {arg.key for arg in args if type(arg) is Kept}
    for key in _opened.keys() - kept:
        del _opened[key]  # or the store could not free it
    return call(*(_opened.setdefault(a.key, a.cargo) if type(a) is Kept else a for a in args))
