"""One start of a backend of joblib, until one of its processes dies."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from multiprocessing import connection
from typing import Any

from parmap.backends.joblib.cancelled import CancelledTasks
from parmap.backends.joblib.loky import owning
from parmap.backends.once_future import OnceFuture, resolver_of
from parmap.engine.traits import Traits
from parmap.errors import BackendUnavailable, PlanError, WorkerDied
from parmap.failures import PoolBroken
from parmap.transport.identity import Key, fresh_key

__all__ = ["BackendInstance"]

# Seconds that a pool's processes have to end by SIGTERM.
_GRACE = 1.0


class BackendInstance:
    """A backend, from its start until one of its processes dies.

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
    alone : bool
        Whether joblib has taken no backend at all.
    workers : int
        How many tasks run at once.
    traits : Traits
        Facts about the place.
    again : callable
        Is given each `OnceFuture`, and what it calls, whose task must run elsewhere.
    """

    def __init__(self, joblib: Any, name: str, workers: int, threads: int | None) -> None:
        parallel = joblib.parallel
        self._parallel = _entered(joblib, name, workers, threads)
        self._backend: Any = self._parallel._backend  # noqa: SLF001 - it has no public name
        self._backend.start_call()
        self._submit = _submitting(self._backend, parallel.ParallelBackendBase)
        # Some look into what they are given, so it is of joblib's own kind.
        nested = self._backend.get_nested_backend()
        self._batch = functools.partial(parallel.BatchedCalls, backend_and_jobs=nested)
        self.alone = isinstance(self._backend, parallel.SequentialBackend)
        self.workers = self._backend.effective_n_jobs(workers)
        self._loky = isinstance(self._backend, parallel.LokyBackend)
        pool = isinstance(self._backend, parallel.MultiprocessingBackend)
        self.traits = _traits(self._backend, replaces=self._loky or pool)
        # No lock: a finalizer may cancel or submit a task, in any thread and at any step, and so
        # want the executor's lock, whose owner may be in `take`. Each change is a single step.
        # Whoever pops a task from `_out` decides what becomes of it. `take` adds it before it
        # looks at the flags, and those who set them look at `_out` afterwards: none is forgotten.
        self._out: dict[Key, tuple[OnceFuture, tuple[Any, ...]]] = {}
        # Whether a process has died; tasks run in vain, so that no more are taken; those that were
        # out run elsewhere; and it ends.
        self._broken = self._spent = self._moved = self._ended = False
        self._ends = [True]  # who pops it gives the backend back
        # Its own processes, all of them: those that it puts in the place of dead ones do not count.
        self._watch = _Watch(list(self._backend._pool._pool), self._break) if pool else None  # noqa: SLF001
        # Some backends say when a task is done, but not what came of it.
        asks = not getattr(self._backend, "supports_retrieve_callback", False)
        self._waiters = ThreadPoolExecutor(2 * self.workers, "parmap-joblib") if asks else None
        self._cancelled = CancelledTasks(self._late) if self._loky or pool else None
        self.again: Callable[..., None] = _ignore

    def take(self, once: OnceFuture, fn: Callable[..., Any], /, *args: Any) -> None:
        """Have a worker call a function; one call at a time.

        Raises
        ------
        concurrent.futures.BrokenExecutor
            If it has ended, a process has died, or one runs what nobody waits for.
        RuntimeError
            If somebody else has ended the backend.
        """
        key = fresh_key()  # a count would be shared by threads
        try:
            self._out[key] = once, (fn, *args)
            if self._broken or self._spent or self._ended:
                raise BrokenExecutor  # noqa: TRY301 - or a task that was moved would run twice
            # First: Ctrl-C may strike after any call, and nothing may stay in `_out` then.
            once.future.add_done_callback(lambda _: self._let_go(key))
            task = (once.run, fn, *args) if self.traits.shares_memory else (fn, *args)
            self._give(once, task)
        except BaseException as error:
            mine = self._let_go(key)
            if not isinstance(error, Exception):
                raise
            if not mine:
                return  # it has failed with the backend, or runs elsewhere
            if self._ended:
                # It ended in the middle, and its backend has an error of its own for that.
                raise BrokenExecutor from error
            raise

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that resolves futures, where it is known."""
        pool = getattr(self._backend, "_pool", None)
        return resolver_of(getattr(self._backend, "_workers", None)) or resolver_of(pool)

    def end(self) -> None:
        """Give the backend back to joblib, and end what nobody waits for."""
        mine = self._may_end()
        if self._cancelled is not None:
            self._cancelled.end()  # it may itself be in the middle of this end
        if mine:
            self._leave()

    def retire(self) -> None:
        """Take no more tasks; those that are out come to their end here."""
        self._spent = True
        if self._cancelled is not None:
            self._cancelled.look()

    @property
    def ended(self) -> bool:
        """Whether it has been given back."""
        return self._ended

    def _may_end(self) -> bool:
        try:
            return self._ends.pop()
        except IndexError:
            return False
        finally:
            self._ended = True

    def _leave(self) -> None:
        if self._waiters is not None:
            self._waiters.shutdown(wait=False)
        self._backend.stop_call()
        if self._watch is None:
            self._parallel.__exit__(None, None, None)
            return
        self._watch.stop()
        # A process that is killed while it waits for a task, or sends a result, takes a lock of the
        # pool with it: then the pool can never be closed, and its other processes go with this
        # one. So the wait for it has a limit.
        end = threading.Thread(target=self._parallel.__exit__, args=(None,) * 3, daemon=True)
        end.start()
        if not self._broken:
            end.join(_GRACE)
            # What nobody waits for may run on after a SIGTERM: the script handles it, or blocks it.
            self._watch.kill()
            end.join(_GRACE)

    def _give(self, once: OnceFuture, task: tuple[Any, ...]) -> None:
        batch = self._batch([(task[0], task[1:], {})])
        if self._waiters is not None:
            job = self._submit(batch, _ignore)
            self._waiters.submit(self._resolve, once, _asking(self._backend), job)
            return
        retrieve = self._backend.retrieve_result_callback
        job = self._submit(batch, lambda out: self._resolve(once, retrieve, out))
        if isinstance(job, Future):
            # Dask's backend is silent about a task of which it has not even an error to send.
            job.add_done_callback(lambda job: self._look(once, job))
        if self._cancelled is not None:
            once.future.add_done_callback(self._cancelled.hearing(job))

    def _look(self, once: OnceFuture, job: Future[Any]) -> None:
        if job.cancelled() or job.exception() is not None:
            self._resolve(once, Future.result, job)

    def _resolve(self, once: OnceFuture, retrieve: Callable[[Any], Any], out: Any) -> None:
        """Take in what came of a task."""
        try:
            values = retrieve(out)
        except BaseException as error:  # noqa: BLE001 - it is the future's
            if self._moved:
                return  # it runs elsewhere
            if self._loky and _is_end(error):
                self._break(_dead(self._backend), str(error))
            else:
                once.resolve(None, error)
        else:
            once.resolve(values[0])

    def _break(self, dead: list[Any], words: str = "") -> None:
        """Fail all that is out: whose process died, the backend does not say."""
        first, self._broken = not self._broken, True
        out = self._taken_out()
        if not (first or out):
            return
        death = functools.partial(WorkerDied, 0, last_words=words)
        if dead:
            dead[0].join()
            death = functools.partial(WorkerDied, dead[0].pid, dead[0].exitcode)

        def fail() -> None:
            if self._watch is not None:
                self.end()  # or the pool would fork new processes, beside those of the next start
            for once, _ in out:
                once.resolve(None, death())

        # Not in this thread: what follows may be the next start, which waits for it to end.
        threading.Thread(target=fail, name="parmap-joblib", daemon=True).start()

    def _taken_out(self) -> list[tuple[OnceFuture, tuple[Any, ...]]]:
        """Take all tasks that are out, to fail them or to run them elsewhere."""
        out = []
        with contextlib.suppress(KeyError):  # none is left
            while True:
                out.append(self._out.popitem()[1])
        return out[::-1]

    def _let_go(self, key: Key) -> bool:
        """Forget a task; tell whether nobody else had taken it out."""
        mine = self._out.pop(key, None) is not None
        if self._spent and not self._out and self._cancelled is not None:
            self._cancelled.look()
        return mine

    def _late(self, cancelled: int) -> bool:
        """Make an end, as cancelled tasks run on; tell whether it has come.

        Whatever else runs here comes to its own end first, unless all workers are taken: then what
        is out waits behind those tasks, and runs elsewhere instead.
        """
        self._spent = self._spent or bool(cancelled)
        if self._ended or not self._spent:
            return self._ended
        if self._out and cancelled < self.workers:
            return False
        others = self._taken_out()
        self._moved = True
        if self._may_end():
            self._leave()
        for once, call in others:
            self.again(once, *call)
        return True


class _Watch:
    """Waits for the first death among processes.

    Parameters
    ----------
    processes : list
        Of multiprocessing.
    died : callable
        Is told those that have died, once.
    """

    def __init__(self, processes: list[Any], died: Callable[[list[Any]], None]) -> None:
        self._processes, self._died = processes, died
        self._wake_reader, self._wake_writer = connection.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="parmap-joblib", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        # In words: forks have the other end, too, so that to let it go would tell nothing.
        self._wake_writer.send_bytes(b"stop")
        self._thread.join()
        self._wake_reader.close()
        self._wake_writer.close()

    def kill(self) -> None:
        """Kill the processes that have not ended, and wait until they have."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            ends = {_end(one, stack): one for one in self._processes}
            ready = connection.wait([self._wake_reader, *ends])
        if self._wake_reader not in ready:
            self._died([ends[end] for end in ends if end in ready])


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
        return Traits(replaces_workers=True, frees=True)
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


def _is_end(error: BaseException) -> bool:
    """Whether loky's executor has ended: with a process, or by another call that gives it up."""
    # joblib says the latter in words, where loky has a class for it.
    given_up = type(error.__context__).__name__ == "ShutdownExecutorError"
    # A setup that failed is PoolBroken, and fails again.
    return given_up or (isinstance(error, BrokenExecutor) and type(error) is not PoolBroken)


def _dead(backend: Any) -> list[Any]:
    """Find the processes of loky that have died; it tells us before it kills the others."""
    executor = getattr(backend, "_workers", None)
    processes = list(getattr(executor, "_processes", {}).values())
    ready = connection.wait([process.sentinel for process in processes], timeout=0)
    return [process for process in processes if process.sentinel in ready]


def _end(process: Any, stack: contextlib.ExitStack) -> int:
    """Give a descriptor that becomes ready at a process's end."""
    try:
        # multiprocessing's own is not ready as long as a child of the process lives.
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not on this system
        return int(process.sentinel)
    stack.callback(os.close, descriptor)
    return descriptor
