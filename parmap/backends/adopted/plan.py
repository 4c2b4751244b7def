"""What somebody else runs: an executor, or a pool with ``apply_async``. Used, never closed."""

from __future__ import annotations

import functools
import os
import socket
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

from parmap.backends.adopted.death_watch import DeathWatch
from parmap.backends.once_future import OnceFuture, resolver_of
from parmap.backends.packing import PackingExecutor
from parmap.backends.pending import PendingFutures
from parmap.engine.traits import Traits
from parmap.errors import ParmapError, PlanError
from parmap.plans.plan import Plan
from parmap.transport.payload import Payload
from parmap.worker.announce import present
from parmap.worker.single_call import run_call

__all__ = ["Adopted", "refuse_in_a_fork"]

# What executors and pools call the number of their workers; those that count now come first.
_COUNTS = ("num_workers", "_max_workers", "max_workers", "_processes")


class AdoptedExecutor(PackingExecutor):
    """Passes tasks on to an executor of the user's.

    Parameters
    ----------
    host : concurrent.futures.Executor
        The user's.
    workers : int
        How many tasks it runs at once.

    Attributes
    ----------
    traits : Traits
        Facts about the place.
    """

    def __init__(self, host: Any, workers: int) -> None:
        self._host, self.workers = host, workers
        threads = isinstance(host, ThreadPoolExecutor)
        self.traits, self.chunks = Traits(shares_memory=threads), not threads

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that resolves futures, where there is one."""
        return resolver_of(self._host)

    def send(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit to the user's executor."""
        try:
            return self._host.submit(fn, *args, **kwargs)  # type: ignore[no-any-return]
        except BrokenExecutor as error:
            raise _broken(self._host, error) from error

    def send_packed(self, call: Payload) -> Future[Any]:
        """Have a worker run a packed call; the user's executor resolves a future of its own."""
        once, theirs = OnceFuture(), self.send(run_call, call)
        theirs.add_done_callback(functools.partial(_hand_on, once))
        known = weakref.ref(theirs)  # it keeps the future: not the other way round, too
        once.future.add_done_callback(functools.partial(_take_back, known))
        return once.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Do nothing: the executor belongs to the user."""


class AdoptedPoolExecutor(PackingExecutor):
    """Passes tasks on to a pool of the user's, by its ``apply_async``.

    Parameters
    ----------
    host : object
        The user's pool.
    workers : int
        How many tasks it runs at once.

    Attributes
    ----------
    traits : Traits
        Facts about the place.
    """

    def __init__(self, host: Any, workers: int) -> None:
        self._host, self.workers = host, workers
        # Other pools than that of multiprocessing, and its like, are asked for no more than
        # they promise, which is to say when a task fails, whatever the reason.
        forgets = hasattr(socket, "AF_UNIX") and any(
            hasattr(one, "sentinel") for one in getattr(host, "_pool", ())
        )
        self._death_watch = DeathWatch(host) if forgets else None
        self._tasks = PendingFutures(self._leave)
        threads = _is(host, "multiprocessing.pool", "ThreadPool")
        self.traits = Traits(shares_memory=threads, replaces_workers=forgets)
        self.chunks = not threads

    @property
    def resolver(self) -> int | None:
        """The identifier of the thread that resolves futures, where there is one."""
        if self.traits.shares_memory:  # a task resolves its own future, in its thread
            return None
        return resolver_of(self._host)

    def send(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit to the user's pool."""
        once = OnceFuture()
        try:
            self._tasks.add(once.future)
            call: tuple[Any, ...] = (fn, *args)
            if self.traits.shares_memory:
                # So that a task which is cancelled does not begin, and one which runs is known to.
                call = (once.run, *call)
            elif self._death_watch is not None:
                call = (present, self._death_watch.address, self._death_watch.number(once), *call)
            self._host.apply_async(
                *(call[0], call[1:], kwargs),
                callback=once.resolve,
                error_callback=lambda error: once.resolve(None, error),
            )
        except ValueError as error:  # it is closed
            once.future.cancel()
            raise _broken(self._host, error) from error
        except BaseException:  # Ctrl-C: nobody gets the future, and the end must not wait for it
            once.future.cancel()
            raise
        return once.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take leave of the pool, once it has done what it was given: it belongs to the user."""
        self._tasks.close(wait=wait, cancel=cancel_futures, resolver=self.resolver)

    def _leave(self) -> None:
        if self._death_watch is not None:
            self._death_watch.stop()


def _hand_on(once: OnceFuture, theirs: Future[Any]) -> None:
    if theirs.cancelled():
        once.future.cancel()
    elif (error := theirs.exception()) is not None:
        once.resolve(None, error)
    else:
        once.resolve(theirs.result())


def _take_back(known: weakref.ref[Future[Any]], ours: Future[Any]) -> None:
    theirs = known()
    if theirs is not None and ours.cancelled():
        theirs.cancel()


def _broken(host: object, error: BaseException) -> ParmapError:
    return ParmapError(
        f"the adopted {type(host).__name__} is broken or closed ({error}), and only its owner can "
        "replace it. parmap's own plan 'processes' survives the death of a worker"
    )


def _is(thing: object, module: str, name: str) -> bool:
    """Whether a thing is of a class that may not have been imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(thing, kind)


def refuse_in_a_fork(plan: Plan, running: object) -> None:
    """Raise PlanError if what a plan was given runs in the process that this one is a fork of."""
    if plan.made_in != os.getpid():
        raise PlanError(
            f"the {type(running).__name__} of this plan belongs to process {plan.made_in}, of "
            f"which this one ({os.getpid()}) is a fork, where its threads do not run: make one "
            "here, or choose another plan"
        )


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
        if _is(getattr(self.adopted, "view", None), "ipyparallel.client.view", "DirectView"):
            raise PlanError(
                "this executor of ipyparallel has all of its engines run each task; give the "
                "client's: client.executor()"
            )
        if _is(self.adopted, "concurrent.futures.interpreter", "InterpreterPoolExecutor"):
            # To the standard library it is a pool of threads, but its threads share no objects.
            raise PlanError(
                "parmap cannot use an InterpreterPoolExecutor: NumPy, which tasks and random "
                "streams need, cannot be imported in its interpreters. Use plan('processes'), "
                "whose workers can import every package, or plan('threads')"
            )

    def count(self) -> int:
        """Ask the executor, where it keeps the number under a usual name."""
        known = (getattr(self.adopted, name, None) for name in _COUNTS)
        counts = [number for number in known if isinstance(number, int) and number > 0]
        return counts[0] if self.workers is None and counts else super().count()

    def start(self) -> Executor:
        """Wrap the executor, so that shutting down leaves it open."""
        refuse_in_a_fork(self, self.adopted)
        kind = AdoptedExecutor if isinstance(self.adopted, Executor) else AdoptedPoolExecutor
        return kind(self.adopted, self.count())
