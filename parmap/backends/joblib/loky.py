"""joblib's backend ``"loky"`` with worker processes of its own, which end with the session.

joblib's own backend takes its workers from one pool for the whole process. They outlive the
session, with the environment and the working directory of the time when they started. And
each user of that pool resizes it, replaces it or breaks it for all others.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

from parmap.backends.hash_seed import VARIABLE, hash_seed

__all__ = ["owning"]

# Within so many seconds loky cleans up after processes that were killed.
_GRACE = 5.0


def owning(joblib: Any, name: str) -> Any:
    """Give a backend that owns its workers, where joblib's would share them; else the name.

    Parameters
    ----------
    joblib : module
        The package.
    name : str
        The backend's name.
    """
    # A user may have registered another backend under the same name.
    if joblib.parallel.BACKENDS.get(name) is not joblib.parallel.LokyBackend:
        return name
    return _backend(joblib)()


@functools.cache
def _backend(joblib: Any) -> Any:
    """Derive the backend's class: joblib is imported when a session starts, not before."""
    from joblib.externals.loky import ProcessPoolExecutor

    class OwnLoky(joblib.parallel.LokyBackend):  # type: ignore[misc]
        """Loky's workers, started here and ended by `terminate`."""

        def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
            """Start the workers; the other options concern memory-mapped arrays."""
            workers = int(self.effective_n_jobs(n_jobs))
            if workers == 1:
                raise joblib.parallel.FallbackToBackend(
                    joblib.parallel.SequentialBackend(nesting_level=self.nesting_level)
                )
            environ = self._prepare_worker_env(n_jobs=workers)
            environ[VARIABLE] = hash_seed(os.environ)
            self._workers = ProcessPoolExecutor(workers, env=environ)
            self.parallel = parallel
            return workers

        def terminate(self) -> None:
            """End the workers, also one that runs a task for which nobody waits any more."""
            workers, self._workers = self._workers, None
            if workers is not None:
                waiting = list(workers._pending_work_items.values())  # noqa: SLF001
                _end(workers, kill=any(not item.future.done() for item in waiting))
            self.reset_batch_stats()

        def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002
            """End the workers, now."""
            workers, self._workers = self._workers, None
            if workers is not None:
                _end(workers, kill=True)
            if ensure_ready:
                self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    return OwnLoky


def _end(workers: Any, *, kill: bool) -> None:
    """End the workers; `kill` those that have something in hand."""
    from joblib.externals.loky.backend.utils import kill_process_tree

    # The thread that reads results; none where no task was submitted.
    reader, results = workers._executor_manager_thread, workers._result_queue  # noqa: SLF001
    if kill:
        # Not by `shutdown`: that thread fails at the first future that was cancelled, and leaves
        # the processes. Of their deaths it hears, and cleans up.
        with workers._processes_management_lock:  # noqa: SLF001
            processes = list(workers._processes.values())  # noqa: SLF001
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                kill_process_tree(process)
        if reader is not None:
            reader.join(_GRACE)
        if reader is not None and reader.is_alive():
            # It waits for the rest of a result, in the middle of which a process was killed. With
            # this end closed the channel has no writer, and ends. Never before: two threads that
            # close it at a time close a descriptor that may be another file's by then.
            results._writer.close()  # noqa: SLF001
    workers.shutdown(wait=True)
