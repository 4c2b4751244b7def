"""Plan ``joblib``: whatever joblib reaches."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, ClassVar

from parmap import registry
from parmap.backends.adopted import DeathWatch, Ticket
from parmap.engine.site import Traits
from parmap.errors import BackendUnavailable, PlanError, WorkerDied
from parmap.plans import Plan
from parmap.worker.setup import prepared
from parmap.worker.values import Embedded, embedded

__all__ = ["Joblib"]

# There and back for one task, seconds: joblib's own threads hand it on several times.
_ROUND_TRIP = 0.005


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
    With one worker joblib uses no backend: tasks then run in a thread of this process.
    """

    backend: str = "loky"

    name: ClassVar[str] = "joblib"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backend, str):
            raise PlanError(f"backend={self.backend!r}: give the name of a backend of joblib")

    def facts(self, executor: Any) -> Traits:
        """Tell whether tasks see the caller's memory."""
        return executor.traits  # type: ignore[no-any-return]

    def start(self) -> Executor:
        """Start the backend's workers."""
        joblib = registry.require("joblib", "joblib")
        parallel = joblib.parallel
        known = sorted({*parallel.BACKENDS, *parallel.EXTERNAL_BACKENDS} - {"sequential"})
        if self.backend not in known:
            raise PlanError(
                f"joblib has no backend {self.backend!r}{registry.suggest(self.backend, known)}. "
                f"Backends: {', '.join(known)}; joblib.register_parallel_backend adds others"
            )
        workers = self.count()
        setup = None if self.initializer is None else embedded(self.initializer, "setup")
        why = f"joblib's backend {self.backend!r} cannot start"
        try:
            return JoblibExecutor(joblib, self.backend, workers, setup)
        except ImportError as error:
            raise BackendUnavailable(f"{why}: {error}") from error
        except (RuntimeError, ValueError) as error:
            raise PlanError(f"{why}: {error}") from error


class JoblibExecutor(Executor):
    """A PEP 3148 executor on the interface that joblib has for its backends.

    Parameters
    ----------
    joblib : module
        The package.
    name : str
        The backend.
    workers : int
        How many tasks run at once.
    setup : Embedded or None
        Run in each worker before its first task.
    """

    def __init__(self, joblib: Any, name: str, workers: int, setup: Embedded | None) -> None:
        self._joblib, self._setup = joblib, setup
        # Reentrant: a backend may call back, in the thread that submits, before it returns.
        self._lock = threading.RLock()
        # Under `_lock`: the tasks that are out; in which life the backend is, and whether that
        # has ended: a backend that breaks is started again, once, by the next task.
        self._out: set[Future[Any]] = set()
        self._life, self._broken = 0, False
        self._closed = False
        # What is sent is packed; of what users submit themselves nothing is memory-mapped.
        self._parallel = joblib.Parallel(n_jobs=workers, backend=name, max_nbytes=None)
        self._parallel.__enter__()
        self._backend: Any = self._parallel._backend  # noqa: SLF001 - it has no public name
        # With one worker, and inside of another backend's, joblib takes no backend at all.
        plain = isinstance(self._backend, joblib.parallel.BACKENDS["sequential"])
        self._thread = ThreadPoolExecutor(1, "parmap-joblib") if plain else None
        self.workers = 1 if plain else self._backend.effective_n_jobs(workers)
        self._backend.start_call()
        self._watch = DeathWatch(self._processes)
        here = plain or getattr(self._backend, "supports_sharedmem", False)
        self.traits = Traits(
            shares_memory=here,
            replaces_workers=not here,
            round_trip=_ROUND_TRIP,
        )

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call ``fn(*args, **kwargs)``."""
        call = functools.partial(fn, **kwargs) if kwargs else fn
        if self._setup is not None:
            call = functools.partial(prepared, self._setup, call)
        ticket = Ticket()
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._out.add(ticket.future)
        ticket.future.add_done_callback(self._let_go)
        if self._thread is not None:
            self._thread.submit(_run, ticket, call, args)
            return ticket.future
        self._watch.guard(ticket)
        batch = self._batch(call, args)
        try:
            self._send(ticket, batch)
        except RuntimeError:
            self._send(ticket, batch)
        return ticket.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; give the workers back to joblib when all are done."""
        with self._lock:
            first, self._closed = not self._closed, True
            out = list(self._out)
        if cancel_futures:
            for future in out:
                future.cancel()
        if first and wait:
            self._finish(out)
        elif first:
            threading.Thread(target=self._finish, args=(out,), name="parmap-joblib").start()

    def _finish(self, out: list[Future[Any]]) -> None:
        wait(out)
        if self._thread is not None:
            self._thread.shutdown()
        self._watch.stop()
        self._backend.stop_call()
        self._parallel.__exit__(None, None, None)

    def _let_go(self, future: Future[Any]) -> None:
        with self._lock:
            self._out.discard(future)

    def _processes(self) -> Any:
        # Of the backend on multiprocessing: a pool that forgets the task of a worker that dies.
        return getattr(getattr(self._backend, "_pool", None), "_pool", ())

    def _batch(self, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        # Some backends look into the batch, and so want joblib's own kind.
        nested = self._backend.get_nested_backend()
        return self._joblib.parallel.BatchedCalls([(call, args, {})], nested)

    def _send(self, ticket: Ticket, batch: Any) -> None:
        """Give a task to the backend; to a new life of it, if this one has ended."""
        # Tells the callback which job it is called for: it may be called before this returns.
        slot: Future[Any] = Future()
        with self._lock:
            if self._broken:
                # Here, and not when the news comes: that is in a thread which this waits for.
                self._backend.configure(n_jobs=self.workers, parallel=self._parallel)
                self._life, self._broken = self._life + 1, False
            life = self._life

            def landed(out: Any) -> None:
                slot.add_done_callback(lambda _: self._take(ticket, out, slot.result(), life))

            try:
                job = _submitting(self._backend)(batch, landed)
            except RuntimeError:
                # Broken; or ended: loky's executor is one for the whole process, and users who
                # call joblib themselves may have it started anew.
                self._broken = True
                raise
        slot.set_result(job)

    def _take(self, ticket: Ticket, out: Any, job: Any, life: int) -> None:
        """Take what came of a task."""
        try:
            if getattr(self._backend, "supports_retrieve_callback", False):
                values = self._backend.retrieve_result_callback(out)
            else:
                values = self._backend.retrieve_result(job)
        except BaseException as error:  # noqa: BLE001 - it is the future's
            if not _is_break(error):
                ticket.settle(None, error)
                return
            with self._lock:
                self._broken = self._broken or life == self._life
            # loky tells only that one of its workers died, and gives up all that were out.
            ticket.settle(None, WorkerDied(0, last_words=str(error)))
        else:
            ticket.settle(values[0])


def _is_break(error: BaseException) -> bool:
    """Whether the backend has ended; joblib says so in words where loky has a class for it."""
    ended = type(error.__context__).__name__ == "ShutdownExecutorError"
    return ended or isinstance(error, BrokenExecutor)


def _run(ticket: Ticket, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if ticket.future.cancelled():
        ticket.settle(None)
        return
    try:
        value = call(*args)
    except BaseException as error:  # noqa: BLE001 - it is the future's
        ticket.settle(None, error)
    else:
        ticket.settle(value)


def _submitting(backend: Any) -> Any:
    """Give the method that takes a task: before joblib 1.5 it had another name."""
    theirs = type(backend)
    old = getattr(theirs, "apply_async", None)
    base = next((one for one in theirs.__mro__ if one.__name__ == "ParallelBackendBase"), None)
    if old is not None and (base is None or old is not getattr(base, "apply_async", None)):
        return backend.apply_async
    return backend.submit
