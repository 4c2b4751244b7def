"""The thread that hears how Ray's tasks end, resolves their futures, and ends cancelled ones."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from parmap.backends.ray.api import RayApi
from parmap.backends.ray.tasks import LimitedTasks, RayTask
from parmap.engine.callbacks import resolve
from parmap.failures import PoolBroken

__all__ = ["ResolverThread"]

# So often, in seconds, to look whether somebody has shut Ray down, or a task ignores its end.
_LOOK = 0.5
# So many seconds has a cancelled task that runs to end, before its worker is killed.
_GRACE = 1.0
_STOP = object()  # in a result's place: the task was cancelled


class ResolverThread:
    """Sends tasks, and resolves their futures as they end.

    Ray calls back, in a thread of its own, when a task has ended. From there a queue leads to
    the thread here, the only one that resolves futures: what those call may use Ray again.

    Parameters
    ----------
    api : RayApi
        Where tasks are sent.
    tasks : LimitedTasks
        Those that were sent, or wait. Each end makes room there for another.
    """

    def __init__(self, api: RayApi, tasks: LimitedTasks) -> None:
        self._api, self._tasks = api, tasks
        # The thread's own, so it needs no lock: cancelled tasks that are still out; since when.
        self._stopped: dict[RayTask, float] = {}
        # The one way in, for any thread, also from a finalizer: to put is a single step.
        self._ended: SimpleQueue[tuple[RayTask, Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="parmap-ray", daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """The identifier of the thread."""
        return self._thread.ident

    def send(self, task: RayTask) -> None:
        """Give Ray a task that `LimitedTasks` counts as out."""
        try:
            self._api.send(task)
        except Exception as error:  # noqa: BLE001 - an argument that cannot be pickled, say
            self._ended.put((task, error))
            return
        self._hear(task)
        if task.future.cancelled():
            self.stop(task, task.future)

    def stop(self, task: RayTask, future: Future[Any]) -> None:
        """Have a task taken back that was cancelled: without a lock, in any thread, at any time."""
        if future.cancelled():
            self._ended.put((task, _STOP))

    def give_up(self, task: RayTask) -> None:
        """Take back a task whose submit Ctrl-C has struck: nobody gets its future."""
        if task.future.cancel() and task.ref is None:
            self._ended.put((task, None))
        elif task.ref is not None:
            self._hear(task)  # perhaps once more

    def close(self) -> None:
        """End the thread, once tasks that were cancelled and are still out have ended."""
        self._ended.put(None)
        self._thread.join()

    def _hear(self, task: RayTask) -> None:
        self._api.hear(task, lambda value: self._ended.put((task, value)))

    # -- in the thread -------------------------------------------------------------------

    def _run(self) -> None:
        """Resolve futures as tasks end: the one place that does."""
        lost = PoolBroken("Ray was shut down while tasks were out: enter the plan again")
        closing = False
        while not closing or self._stopped:
            if self._stopped:
                self._kill_deaf()
            try:
                ended = self._ended.get(timeout=_LOOK)
            except Empty:
                if not self._api.runs:
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

    def _take_back(self, task: RayTask) -> None:
        """End a task that was cancelled: one that runs is interrupted, as by Ctrl-C."""
        if self._tasks.remove_waiting(task):
            self._resolve(task, None)
        elif self._runs(task):
            self._stopped[task] = time.monotonic()
            self._api.cancel(task, force=False)

    def _runs(self, task: RayTask) -> bool:
        """Tell whether Ray has a task that was not stopped yet."""
        # Before it has a name at Ray's, `send` asks once more to stop it.
        return task in self._tasks.out and task.ref is not None and task not in self._stopped

    def _kill_deaf(self) -> None:
        """Kill the workers of cancelled tasks that an interrupt does not end.

        Ray's reaches Python code only: not a task that sleeps, or runs in a library.
        """
        late = time.monotonic() - _GRACE
        stopped = self._stopped.items()
        deaf = [task for task, since in stopped if since < late and not task.killed]
        for task in deaf:
            task.killed = True
            self._api.cancel(task, force=True)

    def _resolve_rest(self, error: Exception) -> None:
        rest = self._tasks.clear()
        self._stopped.clear()
        for task in rest:
            task.resolved = True
            if task.future.set_running_or_notify_cancel():
                resolve(task.future, error=error)

    def _resolve(self, task: RayTask, value: Any) -> None:
        if task.resolved:
            return
        task.resolved = True
        # What was not sent has an error, or nothing, in the value's place.
        error = value if task.ref is None else self._api.error_of(task, value)
        if self._api.is_cancellation(error):
            task.future.cancel()
        self._stopped.pop(task, None)
        ready = self._tasks.replace(task)
        if ready is not None:
            self.send(ready)
        if task.future.set_running_or_notify_cancel():
            resolve(task.future, value, error)
