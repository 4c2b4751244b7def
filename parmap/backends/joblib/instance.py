"""One start of a backend of joblib, until one of its processes dies."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import Any

from parmap.backends.joblib.backend import JoblibBackend
from parmap.backends.joblib.cancelled import CancelledTasks
from parmap.backends.joblib.process_watch import ProcessWatch
from parmap.backends.joblib.tasks_out import TasksOut
from parmap.backends.once_future import OnceFuture
from parmap.engine.traits import Traits
from parmap.errors import WorkerDied
from parmap.transport.identity import Key, fresh_key

__all__ = ["BackendInstance"]

# Seconds that a pool's processes have to end by SIGTERM.
_GRACE = 1.0


class BackendInstance:
    """A backend, from its start until one of its processes dies.

    `JoblibBackend` runs tasks, `TasksOut` counts them; here is what becomes of them: a result, an
    error, a death, or another start.

    Parameters
    ----------
    backend : JoblibBackend
        The backend, just entered.

    Attributes
    ----------
    again : callable
        Is given the `OnceFuture` and the call of each task that must run elsewhere.
    """

    def __init__(self, backend: JoblibBackend) -> None:
        self._backend = backend
        self._tasks = TasksOut()
        # Its own processes, all of them: those that it puts in the place of dead ones do not count.
        processes = backend.unwatched
        self._watch = None if processes is None else ProcessWatch(processes, self._break)
        self._cancelled = CancelledTasks(self._late) if backend.has_processes else None
        self.again: Callable[..., None] = _forget

    @property
    def alone(self) -> bool:
        """Whether joblib has taken no backend at all."""
        return self._backend.alone

    @property
    def workers(self) -> int:
        """How many tasks run at once."""
        return self._backend.workers

    @property
    def traits(self) -> Traits:
        """Facts about the place."""
        return self._backend.traits

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that resolves futures, where it is known."""
        return self._backend.resolver

    @property
    def ended(self) -> bool:
        """Whether it has been given back."""
        return self._tasks.ended

    # -- a task's way --------------------------------------------------------------------

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
            self._tasks.add(key, once, (fn, *args))
            # First: Ctrl-C may strike after any call, and nothing may stay out then.
            once.future.add_done_callback(lambda _: self._let_go(key))
            self._give(once, fn, args)
        except BaseException as error:
            mine = self._let_go(key)
            if not isinstance(error, Exception):
                raise
            if not mine:
                return  # it has failed with the backend, or runs elsewhere
            if self._tasks.ended:
                # It ended in the middle, and its backend has an error of its own for that.
                raise BrokenExecutor from error
            raise

    def _give(self, once: OnceFuture, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self._backend.traits.shares_memory:
            fn, args = once.run, (fn, *args)
        job = self._backend.submit(fn, args, functools.partial(self._resolve, once))
        if job is not None and self._cancelled is not None:
            once.future.add_done_callback(self._cancelled.hearing(job))

    def _resolve(self, once: OnceFuture, retrieve: Callable[[Any], Any], out: Any) -> None:
        """Take in what came of a task."""
        try:
            values = retrieve(out)
        except BaseException as error:  # noqa: BLE001 - it is the future's
            if self._tasks.moved:
                return  # it runs elsewhere
            if self._backend.has_ended(error):
                self._break(self._backend.dead(), str(error))
            else:
                once.resolve(None, error)
        else:
            once.resolve(values[0])

    def _let_go(self, key: Key) -> bool:
        """Forget a task; tell whether nobody else had taken it out."""
        mine = self._tasks.remove(key)
        if self._tasks.spent and not self._tasks and self._cancelled is not None:
            self._cancelled.look()
        return mine

    # -- how it ends ---------------------------------------------------------------------

    def end(self) -> None:
        """Give the backend back to joblib, and end what nobody waits for."""
        mine = self._tasks.may_end()
        if self._cancelled is not None:
            self._cancelled.end()  # it may itself be in the middle of this end
        if mine:
            self._leave()

    def retire(self) -> None:
        """Take no more tasks; those that are out come to their end here."""
        self._tasks.spend()
        if self._cancelled is not None:
            self._cancelled.look()

    def _leave(self) -> None:
        self._backend.stop()
        if self._watch is None:
            self._backend.leave()
            return
        self._watch.stop()
        # A process that is killed while it waits for a task, or sends a result, takes a lock of the
        # pool with it: then the pool can never be closed, and its other processes go with this
        # one. So the wait for it has a limit.
        end = threading.Thread(target=self._backend.leave, daemon=True)
        end.start()
        if not self._tasks.broken:
            end.join(_GRACE)
            # What nobody waits for may run on after a SIGTERM: the script handles it, or blocks it.
            self._watch.kill()
            end.join(_GRACE)

    def _break(self, dead: list[Any], words: str = "") -> None:
        """Fail all that is out: whose process died, the backend does not say."""
        out = self._tasks.break_off()
        if out is None:
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

    def _late(self, cancelled: int) -> bool:
        """Make an end, as cancelled tasks run on; tell whether it has come.

        Whatever else runs here comes to its own end first, unless all workers are taken: then what
        is out waits behind those tasks, and runs elsewhere instead.
        """
        tasks = self._tasks
        if cancelled:
            tasks.spend()
        if tasks.ended or not tasks.spent:
            return tasks.ended
        if tasks and cancelled < self.workers:
            return False
        others = tasks.move()
        if tasks.may_end():
            self._leave()
        for once, call in others:
            self.again(once, *call)
        return True


def _forget(*_: object) -> None:
    """Run a task nowhere else, before anybody has said where."""
