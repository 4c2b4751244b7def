"""joblib's side of plan ``joblib``: a backend is entered, is given tasks, and is left."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from multiprocessing import connection
from typing import Any

from parmap.backends.joblib.loky import owning
from parmap.backends.once_future import resolver_of
from parmap.engine.traits import Traits
from parmap.errors import BackendUnavailable, PlanError
from parmap.failures import PoolBroken

__all__ = ["JoblibBackend"]

# How a result comes: what retrieves it, and what that needs.
Told = Callable[[Callable[[Any], Any], Any], None]


class JoblibBackend:
    """A backend of joblib, entered: what it is, how it takes tasks, what it says of them.

    It keeps no tasks. Which of joblib's versions is there, and what the backend lacks, is
    known here alone.

    Parameters
    ----------
    joblib : module
        The package.
    name : str
        The backend.
    workers : int
        How many workers to ask for.
    threads : int or None
        What native libraries that load later in a worker are told, if not joblib's default.

    Attributes
    ----------
    workers : int
        How many tasks run at once.
    traits : Traits
        Facts about the place.
    """

    def __init__(self, joblib: Any, name: str, workers: int, threads: int | None) -> None:
        self._module = joblib.parallel
        self._parallel = _entered(joblib, name, workers, threads)
        self._theirs: Any = self._parallel._backend  # noqa: SLF001 - it has no public name
        self._theirs.start_call()
        self._submit = _submitting(self._theirs, self._module.ParallelBackendBase)
        # Some look into what they are given, so it is of joblib's own kind.
        nested = self._theirs.get_nested_backend()
        self._batch = functools.partial(self._module.BatchedCalls, backend_and_jobs=nested)
        self.workers: int = self._theirs.effective_n_jobs(workers)
        self.traits = _traits(self._theirs, replaces=self.has_processes)
        # Some backends say when a task is done, but not what came of it.
        asks = not getattr(self._theirs, "supports_retrieve_callback", False)
        self._waiters = ThreadPoolExecutor(2 * self.workers, "parmap-joblib") if asks else None

    @property
    def alone(self) -> bool:
        """Whether joblib has taken no backend at all."""
        return isinstance(self._theirs, self._module.SequentialBackend)

    @property
    def has_processes(self) -> bool:
        """Whether its workers are processes that joblib itself has started."""
        return self._is_loky or self._is_pool

    @property
    def _is_loky(self) -> bool:
        return isinstance(self._theirs, self._module.LokyBackend)

    @property
    def _is_pool(self) -> bool:
        return isinstance(self._theirs, self._module.MultiprocessingBackend)

    @property
    def unwatched(self) -> list[Any] | None:
        """The processes whose deaths the backend does not tell of; None if it does."""
        return list(self._theirs._pool._pool) if self._is_pool else None  # noqa: SLF001

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that resolves futures, where it is known."""
        pool = getattr(self._theirs, "_pool", None)
        return resolver_of(getattr(self._theirs, "_workers", None)) or resolver_of(pool)

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], told: Told) -> Any:
        """Have a worker call a function.

        Parameters
        ----------
        fn, args
            The call.
        told : callable
            Is given what retrieves the result, and its argument; at least once.

        Returns
        -------
        concurrent.futures.Future or multiprocessing.pool.AsyncResult
            What joblib has for the task. None where a thread here waits for it.
        """
        batch = self._batch([(fn, args, {})])
        if self._waiters is not None:
            job = self._submit(batch, _ignore)
            self._waiters.submit(told, _asking(self._theirs), job)
            return None
        retrieve = self._theirs.retrieve_result_callback
        job = self._submit(batch, lambda out: told(retrieve, out))
        if isinstance(job, Future):
            # Dask's backend is silent about a task of which it has not even an error to send.
            job.add_done_callback(lambda job: _tell_of_failure(job, told))
        return job

    def has_ended(self, error: BaseException) -> bool:
        """Tell whether a task's error says that the backend takes no more."""
        return self._is_loky and _is_end(error)

    def dead(self) -> list[Any]:
        """Find the processes of loky that have died; it tells us before it kills the others."""
        executor = getattr(self._theirs, "_workers", None)
        processes = list(getattr(executor, "_processes", {}).values())
        ready = connection.wait([process.sentinel for process in processes], timeout=0)
        return [process for process in processes if process.sentinel in ready]

    def stop(self) -> None:
        """Wait for no more results."""
        if self._waiters is not None:
            self._waiters.shutdown(wait=False)
        self._theirs.stop_call()

    def leave(self) -> None:
        """Give the workers back to joblib."""
        self._parallel.__exit__(None, None, None)


def _forks(joblib: Any) -> Any:
    """Return the context in which a pool forks its workers; None if it does so, or shall not.

    Python 3.14 changed the default on Linux: workers then run the script again, unless it has a
    guard, and have the environment of the time when the first of them started. Whether the user
    chose that very method nobody can tell; the variable JOBLIB_START_METHOD does.
    """
    import multiprocessing

    default = multiprocessing.get_all_start_methods()[0]
    chosen = joblib.parallel.DEFAULT_MP_CONTEXT is not None or (
        multiprocessing.get_start_method() != default
    )
    return None if chosen or default != "forkserver" else multiprocessing.get_context("fork")


def _entered(joblib: Any, name: str, workers: int, threads: int | None) -> Any:
    """Start a backend; give the `Parallel` that has it."""
    try:
        # What is sent is packed; of what users submit themselves, nothing shall be memory-mapped.
        with joblib.parallel_config(backend=owning(joblib, name)):
            parallel = joblib.Parallel(n_jobs=workers, max_nbytes=None)
        if name == "multiprocessing" and (forks := _forks(joblib)) is not None:
            parallel._backend_kwargs["context"] = forks  # noqa: SLF001 - no public way either
        backend = parallel._backend  # noqa: SLF001 - it has no public name
        # In its own threads joblib starts no processes, lest calls nest that nobody thought of.
        # Here the plan says so.
        backend.nesting_level = 0
        if threads is not None and getattr(backend, "supports_inner_max_num_threads", False):
            backend.inner_max_num_threads = threads
        return parallel.__enter__()
    except ImportError as error:
        raise BackendUnavailable(f"joblib's backend {name!r} cannot start: {error}") from error
    except ValueError as error:  # Dask's finds no client, say
        raise PlanError(f"joblib's backend {name!r} cannot start: {error}") from error


def _traits(backend: Any, *, replaces: bool) -> Traits:
    if getattr(backend, "supports_sharedmem", False):
        return Traits(shares_memory=True)
    if replaces:
        return Traits(replaces_workers=True, frees=True, exclusive=True)
    # Somebody else's: its workers may be anywhere, and threads.
    return Traits(same_host=False, threaded=True)


def _submitting(backend: Any, base: Any) -> Any:
    """Give the method that takes a task: before joblib 1.5 it had another name."""
    old = getattr(type(backend), "apply_async", None)
    if old is not None and old is not getattr(base, "apply_async", None):
        return backend.apply_async
    return backend.submit


def _asking(backend: Any) -> Callable[[Any], Any]:
    """Give what waits for a result: before joblib 1.4 backends had no say in it."""
    return getattr(backend, "retrieve_result", lambda job: job.get())


def _ignore(*_: object) -> None:
    """Hear that a task is done, from a backend that will be asked for its result."""


def _tell_of_failure(job: Future[Any], told: Told) -> None:
    if job.cancelled() or job.exception() is not None:
        told(Future.result, job)


def _is_end(error: BaseException) -> bool:
    """Whether loky's executor has ended: with a process, or by another call that gives it up."""
    # joblib says the latter in words, where loky has a class for it.
    given_up = type(error.__context__).__name__ == "ShutdownExecutorError"
    # A setup that failed is PoolBroken, and fails again.
    return given_up or (isinstance(error, BrokenExecutor) and type(error) is not PoolBroken)
