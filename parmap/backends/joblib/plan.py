"""Plan ``joblib``: whatever joblib reaches, by the interface that it has for its backends."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from typing import Any, ClassVar

from parmap.backends.inline import SequentialExecutor
from parmap.backends.joblib.backend import JoblibBackend
from parmap.backends.joblib.instance import BackendInstance
from parmap.backends.once_future import OnceFuture
from parmap.backends.packing import PackingExecutor
from parmap.backends.pending import PendingFutures
from parmap.engine.traits import Traits
from parmap.errors import PlanError
from parmap.failures import PoolBroken
from parmap.plans import registry
from parmap.plans.plan import Plan
from parmap.transport.identity import Key, fresh_key
from parmap.transport.messages import cached_payload
from parmap.worker.setup import prepared

__all__ = ["Joblib"]

# How often a task may meet a backend that has just been broken again.
_STARTS = 5


@dataclass(frozen=True, kw_only=True)
class Joblib(Plan):
    """A backend of joblib: its own, or one that a package has registered there.

    Parameters
    ----------
    backend : str, default "loky"
        ``"loky"``, ``"threading"``, ``"multiprocessing"``, or the name of any backend that was
        given to `joblib.register_parallel_backend`, such as that of joblib-spark.

    Notes
    -----
    With one worker joblib uses no backend: tasks then run in this thread, as on the plan
    ``sequential``. So they do where joblib itself starts no processes: in the workers of
    some of its backends.
    """

    backend: str = "loky"

    name: ClassVar[str] = "joblib"
    modules: ClassVar[tuple[str, ...]] = ("joblib",)
    install: ClassVar[str] = "parmap-plans[joblib]"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backend, str):
            raise PlanError(f"backend={self.backend!r}: give the name of a backend of joblib")

    def start(self) -> Executor:
        """Start the backend."""
        joblib = registry.require("joblib", "joblib")
        known = sorted({*joblib.parallel.BACKENDS, *joblib.parallel.EXTERNAL_BACKENDS})
        if self.backend not in known:
            from parmap.plans.guesses import suggest

            raise PlanError(
                f"joblib has no backend {self.backend!r}{suggest(self.backend, known)}. "
                f"Backends: {', '.join(known)}; joblib.register_parallel_backend adds others"
            )
        threads = self.threads_per_worker if isinstance(self.threads_per_worker, int) else None
        enter = functools.partial(JoblibBackend, joblib, self.backend, self.count(), threads)

        def begin() -> BackendInstance:
            return BackendInstance(enter())

        instance = begin()
        if not instance.alone:
            executor = JoblibExecutor(begin, instance, self.initializer)
            executor.look()
            return executor
        instance.end()
        if self.initializer:
            self.initializer()
        return _Alone()


class _Alone(SequentialExecutor):
    """What joblib does with one worker."""

    traits = Traits(shares_memory=True, same_thread=True)


class JoblibExecutor(PackingExecutor):
    """A PEP 3148 executor on a backend, which is started anew when one of its processes dies.

    Parameters
    ----------
    begin : callable
        Starts the backend.
    instance : BackendInstance
        The first start.
    setup : callable or None
        Run in each worker before its first task.
    """

    def __init__(
        self,
        begin: Callable[[], BackendInstance],
        instance: BackendInstance,
        setup: Callable[[], object] | None,
    ) -> None:
        self._begin = begin
        # Under `_lock` one task is given at a time, and `_instance` changes. Reentrant: a backend
        # may run a task, and so its callbacks, while it is submitted; it pickles what is the
        # user's; and a finalizer or a signal handler may submit in between. All of them find an
        # `_instance` that takes tasks. Finalizers of parmap's own do not take it: to cancel needs
        # no lock.
        self._lock = threading.RLock()
        self._instance = instance  # and those that run tasks in vain, or have been replaced
        self._spent: list[BackendInstance] = []
        instance.again = self._again
        self._tasks = PendingFutures(self._end)
        self._setup = _setup(setup, threads=instance.traits.shares_memory)
        self.workers, self.traits = instance.workers, instance.traits
        self.chunks = not instance.traits.shares_memory

    def look(self) -> None:
        """See whether tasks of somebody else's backend run in threads of this process."""
        if not self.traits.threaded or self.traits.shares_memory:
            return
        key = fresh_key()
        _asked.add(key)
        try:
            seen = self.send(_is_here, os.getpid(), key)
            # What fails here fails again in the first call, which tells the user.
            inside = seen.exception() is None and seen.result()
        except BaseException:  # Ctrl-C, mostly
            self.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            _asked.discard(key)
        self.traits = self.traits._replace(inside=inside)

    def send(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call a function; the backend pickles the call."""
        call = functools.partial(fn, **kwargs) if kwargs else fn
        task = (call, *args) if self._setup is None else (self._setup, call, *args)
        once = OnceFuture()
        try:
            self._tasks.add(once.future)
            with self._lock:
                self._take(once, task)
        except BaseException:
            once.future.cancel()
            raise
        return once.future

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that resolves futures, where it is known."""
        return self._instance.resolver

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; give the workers back to joblib when all are done."""
        self._tasks.close(wait=wait, cancel=cancel_futures, resolver=self.resolver)

    def _end(self) -> None:
        for instance in (*self._spent, self._instance):
            instance.end()

    def _again(self, once: OnceFuture, *task: Any) -> None:
        """Have another worker run a task."""
        if once.future.done():
            return
        try:
            with self._lock:
                self._take(once, task)
        except BaseException as error:  # noqa: BLE001 - it is the future's
            once.resolve(None, error)

    def _take(self, once: OnceFuture, task: tuple[Any, ...]) -> None:
        over: BackendInstance | None = None
        starts = 0
        while True:
            try:
                instance = self._instance
                if instance is over:
                    instance = self._replaced(instance)
                instance.take(once, *task)
                return
            except (BrokenExecutor, RuntimeError):
                # Broken, or ended by somebody else: loky's executor is the whole process's, so
                # that the deaths of another session break this one's, too. Or it could not
                # start: filelock, if it is loaded, lets no two threads fork at a time.
                starts += 1
                if starts == _STARTS:
                    raise
                over = instance

    def _replaced(self, over: BackendInstance) -> BackendInstance:
        """Begin an instance in the place of one that takes no more tasks."""
        fresh = self._begin()
        # Not ended here, but by `_end`: that waits for threads of the backend, and in one of them a
        # callback or a finalizer may submit, and so wait for the lock, which this thread has.
        if self._instance is not over:
            # A finalizer has begun one while `_begin` ran, which takes long, and tasks run there.
            self._retire(fresh)
            return self._instance
        fresh.again, self._instance = self._again, fresh
        self._retire(over)
        return fresh

    def _retire(self, instance: BackendInstance) -> None:
        """Keep an instance that takes no more tasks, to end it with the executor, if not sooner."""
        instance.retire()
        # In single steps: a finalizer that submits in between may retire another.
        self._spent.append(instance)
        for one in [one for one in self._spent if one.ended]:
            with contextlib.suppress(ValueError):
                self._spent.remove(one)


# Keys that tasks are given which look whether they are in this process.
_asked: set[Key] = set()


def _is_here(pid: int, key: Key) -> bool:
    """In a worker: tell whether it is a thread of the process that asks, and not a fork of it."""
    return pid == os.getpid() and key in _asked


class _PerThread:
    """Runs a setup once in each thread, before the first call there."""

    def __init__(self, setup: Callable[[], object]) -> None:
        self._setup, self._here = setup, threading.local()

    def __call__(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a thread where the setup has run."""
        if not hasattr(self._here, "why"):
            self._here.why = None
            try:
                self._setup()
            except BaseException as error:  # noqa: BLE001 - told to the tasks
                self._here.why = error
        why = self._here.why
        if why is not None:
            raise PoolBroken(f"setup= failed in a worker: {type(why).__name__}: {why}") from why
        return fn(*args)


def _setup(setup: Callable[[], object] | None, *, threads: bool) -> Callable[..., Any] | None:
    if setup is None:
        return None
    return (
        _PerThread(setup)
        if threads
        else functools.partial(prepared, cached_payload(setup, "setup"))
    )
