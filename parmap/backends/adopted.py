"""What somebody else runs: an executor, or a pool with ``apply_async``. Used, never closed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from typing import Any, ClassVar

from parmap.engine.site import Traits
from parmap.errors import ParmapError, PlanError, WorkerDied
from parmap.plans import Plan
from parmap.worker.values import Budget

__all__ = ["Adopted", "DeathWatch", "Ticket"]

# What executors and pools call the number of their workers; those that count now come first.
_COUNTS = ("num_workers", "_max_workers", "max_workers", "_processes")


class Guest(Executor):
    """Passes tasks on to an executor of the user's.

    Parameters
    ----------
    host : concurrent.futures.Executor
        The user's.
    workers : int
        How many tasks it runs at once.
    """

    def __init__(self, host: Any, workers: int) -> None:
        self._host, self.workers = host, workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit to the user's executor."""
        try:
            return self._host.submit(fn, *args, **kwargs)  # type: ignore[no-any-return]
        except BrokenExecutor as error:
            raise _broken(self._host, error) from error

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Do nothing: the executor belongs to the user."""


class PoolGuest(Guest):
    """Passes tasks on to a pool of the user's, by its ``apply_async``.

    A `multiprocessing.Pool` replaces a worker that dies, and forgets its task: whoever waits
    for it waits for ever. So the deaths are watched, and every task that is out then fails
    with `WorkerDied`, for the pool does not say whose worker it was.
    """

    def __init__(self, host: Any, workers: int) -> None:
        super().__init__(host, workers)
        self._watch = DeathWatch(lambda: getattr(host, "_pool", ()))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit to the user's pool."""
        ticket = Ticket()
        self._watch.guard(ticket)
        try:
            self._host.apply_async(
                *(fn, args, kwargs),
                callback=ticket.settle,
                error_callback=lambda error: ticket.settle(None, error),
            )
        except ValueError as error:  # it is closed
            raise _broken(self._host, error) from error
        return ticket.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002, ARG002
        """Stop watching: the pool belongs to the user."""
        self._watch.stop()


def _broken(host: object, error: BaseException) -> ParmapError:
    return ParmapError(
        f"the adopted {type(host).__name__} is broken or closed ({error}), and only its owner can "
        "replace it. parmap's own plan 'processes' survives the death of a worker"
    )


class Ticket:
    """A future that two threads may want to resolve: one has the result, one a death."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self._lock = threading.Lock()
        self._settled = False  # under `_lock`

    def settle(self, value: Any, error: BaseException | None = None) -> None:
        """Resolve the future; the first who comes does, and a cancel goes before both."""
        with self._lock:
            first, self._settled = not self._settled, True
        if not first or not self.future.set_running_or_notify_cancel():
            return
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


class DeathWatch:
    """Fails the tasks that are out when a worker process of a pool dies.

    Invariant, under `_lock`: `_seen` are the processes that the pool had, all of them alive,
    when the newest task was sent. So a task can come to a process that is not among them only
    after one of them has died, and then it has been failed.

    Parameters
    ----------
    processes : callable
        Gives the processes of the pool as they are now; none if it is of another kind.
    """

    def __init__(self, processes: Callable[[], Iterable[Any]]) -> None:
        self._processes = processes
        self._lock = threading.Lock()
        self._out: dict[Future[Any], Ticket] = {}  # under `_lock`
        self._seen = self._known()
        self._count = len(self._seen)
        self._reader, self._writer = connection.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="parmap-watch", daemon=True)
        if self._count:
            self._thread.start()

    def guard(self, ticket: Ticket) -> None:
        """Fail this one, too, if a worker dies before it is done."""
        whole = self._whole()
        with self._lock:
            self._out[ticket.future] = ticket
            if whole != self._seen:
                self._seen = whole
                self._writer.send_bytes(_LOOK)
        ticket.future.add_done_callback(self._let_go)

    def stop(self) -> None:
        """End the watch."""
        if self._thread.is_alive():
            # In words, for the pool's forks hold the pipe's other end open, too.
            self._writer.send_bytes(_END)
            self._thread.join()
        self._reader.close()
        self._writer.close()

    def _let_go(self, future: Future[Any]) -> None:
        with self._lock:
            self._out.pop(future, None)

    def _known(self) -> list[Any]:
        return [one for one in list(self._processes()) if hasattr(one, "sentinel")]

    def _whole(self) -> list[Any]:
        """Give the processes, once the pool has put new ones in the places of the dead."""
        there = self._known()
        while self._count and self._thread.is_alive():
            dead = connection.wait([process.sentinel for process in there], timeout=0)
            if not dead and len(there) == self._count:
                break
            self._thread.join(_PAUSE)  # the pool looks ten times a second, and tells nobody
            there = self._known()
        return there

    def _run(self) -> None:
        buried: list[Any] = []
        while True:
            with self._lock:
                living = {one.sentinel: one for one in self._seen if one not in buried}
            ready = connection.wait([self._reader, *living])
            if self._reader in ready and self._reader.recv_bytes() == _END:
                return
            for process in (living[sentinel] for sentinel in ready if sentinel in living):
                process.join()
                buried.append(process)
                if process.exitcode != 0:  # as after `maxtasksperchild` tasks
                    self._fail(process.pid, process.exitcode)

    def _fail(self, pid: int, exitcode: int | None) -> None:
        with self._lock:
            out = list(self._out.values())
        for ticket in out:
            ticket.settle(None, WorkerDied(pid, exitcode))


_LOOK, _END = b"look again", b"end"
_PAUSE = 0.01  # seconds


@dataclass(frozen=True, kw_only=True)
class Adopted(Plan):
    """A running executor or pool as a plan: ``parmap.plan(executor)``.

    Parameters
    ----------
    adopted : concurrent.futures.Executor or pool
        Used for tasks, and never shut down by parmap. A pool has ``apply_async``, as
        `multiprocessing.Pool`.
    workers : int, optional
        How many tasks it runs at once. Default: what it says of itself, else
        `available_cores`.
    """

    adopted: Any = field()

    name: ClassVar[str] = "adopted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.setup is not None:
            raise PlanError(
                "an adopted executor's workers run already: give setup= to the executor itself, "
                "as its initializer"
            )

    def facts(self, executor: Executor) -> Traits:
        """Tell whether its tasks see the caller's memory, and whether workers are replaced."""
        from multiprocessing.pool import ThreadPool

        if isinstance(self.adopted, (ThreadPoolExecutor, ThreadPool)):
            return Traits(shares_memory=True)
        return Traits(replaces_workers=isinstance(executor, PoolGuest))

    def count(self) -> int:
        """Ask the executor, where it keeps the number under a usual name."""
        known = (getattr(self.adopted, name, None) for name in _COUNTS)
        counts = [number for number in known if isinstance(number, int) and number > 0]
        return counts[0] if self.workers is None and counts else super().count()

    def budget(self, workers: int) -> Budget | None:
        """Share the cores out; the workers are the user's, and get their numbers back."""
        own = super().budget(workers)
        return None if own is None else replace(own, lent=True)

    def start(self) -> Executor:
        """Wrap the executor, so that shutting down leaves it open."""
        guest = Guest if isinstance(self.adopted, Executor) else PoolGuest
        return guest(self.adopted, self.count())
