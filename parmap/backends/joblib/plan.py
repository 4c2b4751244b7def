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
from parmap.backends.joblib.instance import Life
from parmap.backends.once_future import Ticket
from parmap.backends.packing import PackingExecutor
from parmap.backends.pending import Outstanding
from parmap.engine.traits import Traits
from parmap.errors import PlanError
from parmap.failures import PoolBroken
from parmap.plans import registry
from parmap.plans.plan import Plan
from parmap.transport.identity import Key, fresh_key
from parmap.transport.messages import Budget, embedded
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

    def budget(self, workers: int) -> Budget | None:
        """Share the cores out; the workers are joblib's, and get their numbers back."""
        own = super().budget(workers)
        return None if own is None else own._replace(lent=True)

    def start(self) -> Executor:
        """Start the backend."""
        joblib = registry.require("joblib", "joblib")
        known = sorted({*joblib.parallel.BACKENDS, *joblib.parallel.EXTERNAL_BACKENDS})
        if self.backend not in known:
            raise PlanError(
                f"joblib has no backend {self.backend!r}{registry.suggest(self.backend, known)}. "
                f"Backends: {', '.join(known)}; joblib.register_parallel_backend adds others"
            )
        threads = self.threads_per_worker if isinstance(self.threads_per_worker, int) else None
        begin = functools.partial(Life, joblib, self.backend, self.count(), threads)
        life = begin()
        if not life.alone:
            executor = JoblibExecutor(begin, life, self.initializer)
            executor.look()
            return executor
        life.end()
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
    life : Life
        The first start.
    setup : callable or None
        Run in each worker before its first task.
    """

    def __init__(
        self, begin: Callable[[], Life], life: Life, setup: Callable[[], object] | None
    ) -> None:
        self._begin = begin
        # Under `_lock` one task is given at a time, and `_life` changes. Reentrant: a backend may
        # run a task, and so its callbacks, while it is submitted; it pickles what is the user's;
        # and a finalizer or a signal handler may submit in between. All of them find a `_life`
        # that takes tasks. Finalizers of parmap's own do not take it: to cancel needs no lock.
        self._lock = threading.RLock()
        self._life = life  # and those that run tasks in vain, or have been replaced
        self._spent: list[Life] = []
        life.again = self._again
        self._tasks = Outstanding(self._end)
        self._setup = _setup(setup, threads=life.traits.shares_memory)
        self.workers, self.traits = life.workers, life.traits
        self.chunks = not life.traits.shares_memory

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
        ticket = Ticket()
        try:
            self._tasks.add(ticket.future)
            with self._lock:
                self._take(ticket, task)
        except BaseException:
            ticket.future.cancel()
            raise
        return ticket.future

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that resolves futures, where it is known."""
        return self._life.resolver

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; give the workers back to joblib when all are done."""
        self._tasks.close(wait=wait, cancel=cancel_futures, resolver=self.resolver)

    def _end(self) -> None:
        for life in (*self._spent, self._life):
            life.end()

    def _again(self, ticket: Ticket, *task: Any) -> None:
        """Have another worker run a task."""
        if ticket.future.done():
            return
        try:
            with self._lock:
                self._take(ticket, task)
        except BaseException as error:  # noqa: BLE001 - it is the future's
            ticket.settle(None, error)

    def _take(self, ticket: Ticket, task: tuple[Any, ...]) -> None:
        over: Life | None = None
        starts = 0
        while True:
            try:
                life = self._life
                if life is over:
                    life = self._replaced(life)
                life.take(ticket, *task)
                return
            except (BrokenExecutor, RuntimeError):
                # Broken, or ended by somebody else: loky's executor is the whole process's, so
                # that the deaths of another session break this one's, too. Or it could not
                # start: filelock, if it is loaded, lets no two threads fork at a time.
                starts += 1
                if starts == _STARTS:
                    raise
                over = life

    def _replaced(self, over: Life) -> Life:
        """Begin a life in the place of one that takes no more tasks."""
        fresh = self._begin()
        # Not ended here, but by `_end`: that waits for threads of the backend, and in one of them a
        # callback or a finalizer may submit, and so wait for the lock, which this thread has.
        if self._life is not over:
            # A finalizer has begun one while `_begin` ran, which takes long, and tasks run there.
            self._retire(fresh)
            return self._life
        fresh.again, self._life = self._again, fresh
        self._retire(over)
        return fresh

    def _retire(self, life: Life) -> None:
        """Keep a life that takes no more tasks, to end it with the executor, if not sooner."""
        life.retire()
        # In single steps: a finalizer that submits in between may retire another.
        self._spent.append(life)
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
    return _PerThread(setup) if threads else functools.partial(prepared, embedded(setup, "setup"))
