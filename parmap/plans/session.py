"""A plan at work: the executor, and what the engine needs to use it."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from parmap.engine.callbacks import Callbacks
from parmap.engine.loop import Call, Settings
from parmap.engine.script_settings import find_offered
from parmap.engine.single_call import single
from parmap.engine.source import Source
from parmap.engine.traits import Traits
from parmap.errors import ParmapError, SessionClosed
from parmap.plans import registry
from parmap.plans.blocks import Block
from parmap.plans.loans import Loans
from parmap.plans.placement import BroadcastSpec, Values, placed, sent
from parmap.transport.messages import CallSpec, Chunk, CoreShare, Outcome
from parmap.transport.payload import Known
from parmap.transport.shared import Shared, share
from parmap.transport.worker_globals import Declared
from parmap.worker import context, native_threads
from parmap.worker.run import run_chunk, run_remote, run_small

__all__ = ["Session"]

R = TypeVar("R")
T = TypeVar("T")


class Session:
    """A plan at work: its executor, and what parmap needs to use it.

    Made by entering a plan; ends with the ``with`` block.

    Attributes
    ----------
    plan : Plan
        What was entered.
    executor : concurrent.futures.Executor
        Where tasks run.
    """

    def __init__(self, plan: Any, executor: Executor, outer: object = None) -> None:
        # Any: a Plan, whose file imports this one.
        self.plan, self.executor, self.block = plan, executor, Block(outer)
        self._backend = registry.backend(executor, plan)
        self.traits: Traits = self._backend.traits or plan.traits  # some are known only as it runs
        self._values = Values(self._backend, self.traits)
        self._values.owned = self.block.owned = _offered_and_owned(plan, self.traits)
        self._core_shares: dict[int, CoreShare | None] = {}
        self.callbacks, self.loans, self._pid = Callbacks(), Loans(), os.getpid()

    @property
    def lender(self) -> Session:
        """The session itself; of a loan, the session that is on loan."""
        return self

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the one that has opened the session."""
        return self._pid != os.getpid()

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        known = self._backend.workers  # they may change
        return int(self.plan.count() if known is None else known)

    @property
    def core_share(self) -> CoreShare | None:
        """What each worker may use of its machine."""
        known = self._backend.per_node
        sharers = self.workers if known is None else known
        if sharers not in self._core_shares:  # to look at the cores takes as long as a small call
            self._core_shares[sharers] = self.plan.core_share(sharers)
        return self._core_shares[sharers]

    @property
    def nested(self) -> tuple[Any, ...]:
        """The plans for calls made inside the tasks."""
        return self.plan.nested  # type: ignore[no-any-return]

    @property
    def dashboard(self) -> str | None:
        """The address of a page that shows the workers, where the plan has one."""
        return self._backend.dashboard  # type: ignore[no-any-return]

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Start one call in a worker, as `parmap.submit` does in the current session."""
        return single(self, fn, args, kwargs)

    def map(self, fn: Callable[..., R], /, *iterables: Iterable[Any]) -> list[R]:
        """Map like the built-in; for every library that takes ``pool.map`` or ``workers=``."""
        self.check()
        if not iterables:
            raise TypeError("map() needs data to map over: session.map(fn, data)")
        call = Call(self, fn, Source(iterables, stable=True), Settings())
        return list(itertools.chain.from_iterable(call.results()))

    def share(self, value: T, /) -> Shared[T]:
        """Put a value where all workers of this session reach it, now; see `parmap.share`."""
        self.check()
        handle = share(value)
        if self.traits.places:
            self._values.broadcast(handle)
        return handle

    def broadcast(
        self, spec: CallSpec, chunks: int | None = None, *, waits: bool = True, known: Known = None
    ) -> BroadcastSpec:
        """Put a call's spec where every worker reaches it.

        One for no more chunks than there are workers, if it is small, travels with each.
        """
        self.check(waits=waits)
        traits = self.traits
        if traits.shares_memory:
            return BroadcastSpec(spec, hold=_hold(spec.core_share))
        few = chunks is not None and traits.places and traits.copies and chunks <= self.workers
        return placed(spec, self._values, few=few, known=known)

    def send(self, broadcast: BroadcastSpec, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run a chunk as a broadcast spec says."""
        self.check()
        if self.traits.shares_memory:
            return self._backend.submit(run_chunk, broadcast.spec, chunk)
        submit = functools.partial(self._backend.submit, run_chunk)
        return sent(submit, broadcast, chunk, self._values, copies=self.traits.copies)

    def send_small(self, spec: bytes, fn: bytes, chunk: Chunk) -> Future[Any]:
        """Have a worker run a chunk of a small call; see `parmap.worker.run`."""
        self.check()
        return self._backend.submit(run_small, spec, fn, chunk.columns, chunk.seconds, chunk.number)

    def drive(self, futures: Collection[Future[Outcome]], *, seconds: float) -> None:
        """Wait for these chunks, as `Backend.drive` does."""
        self._backend.drive(futures, seconds=seconds)

    def run_remote(self, broadcast: BroadcastSpec, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run one element; a `RemoteHandle` stands for the result, which stays."""
        self.check()
        submit = functools.partial(self._backend.run_remote, self._values.remote, run_remote)
        return sent(submit, broadcast, chunk, self._values, copies=self.traits.copies)

    def drop(self, broadcast: BroadcastSpec | None) -> None:
        """Forget a broadcast spec, if there is one: the call is over."""
        if broadcast is None:
            return
        if broadcast.hold is not None:
            native_threads.release(broadcast.hold)
        if self.traits.places and not broadcast.carried and not self._values.closed:
            self._backend.drop(broadcast.spec)

    def abandon(self, future: Future[Outcome], chunk: Chunk) -> None:
        """Stop a chunk that nobody waits for any more, as far as the place can."""
        if self.traits.shares_memory:
            # map() reads this very list as it goes: emptied, it ends after the element
            # that runs now, which nothing can stop in a thread.
            chunk.columns[0].clear()  # type: ignore[attr-defined]
        elif self.traits.abandons:
            self._backend.abandon(future)

    def recall(
        self, future: Future[Outcome], chunk: int, *, only_slow: bool
    ) -> tuple[int, bool] | None:
        """Take back elements of a chunk that have not begun, as `Backend.recall` does."""
        return self._backend.recall(future, chunk, only_slow=only_slow)

    def check(self, *, begins: bool = False, waits: bool = False) -> None:
        """Refuse work after the end.

        Parameters
        ----------
        begins : bool, default False
            Whether it is for a new call. After the end of the block, only calls that have the
            session on loan go on.
        waits : bool, default False
            Whether the caller waits for its results.

        Raises
        ------
        SessionClosed
            If the session is over, or belongs to the process that this one was forked from.
        """
        if self._values.closed or (begins and self.loans.over):
            raise _over(self.plan)
        if self._pid != os.getpid():
            raise _foreign(self.plan, self._pid)
        if waits and self._backend.resolver == threading.get_ident():
            raise _waits_forever(self.plan)

    def leave(self, *, cancel: bool = False) -> None:
        """End the session's block: close it, unless calls of other threads have it on loan.

        Parameters
        ----------
        cancel : bool, default False
            Whether to close it at once, and cancel what has not begun.
        """
        if cancel or not self.loans:
            self.loans.over = True
            self.close(cancel=cancel)
        else:
            self.loans.end(self.close)

    def close(self, *, cancel: bool = False) -> None:
        """End the session; wait for what was submitted. An adopted executor stays open.

        Parameters
        ----------
        cancel : bool, default False
            Whether to cancel what has not begun.
        """
        if self._values.closed:
            return
        self._values.close()
        self.loans.end_threads()
        if self._pid == os.getpid():
            self._backend.shutdown(wait=True, cancel_futures=cancel)
            self.callbacks.join()
        context.kept.pop(self.block.key, None)  # of threads, which have ended

    def __repr__(self) -> str:
        """Show the plan and whether the session is open."""
        return f"<Session of {self.plan}: {'closed' if self._values.closed else 'open'}>"

    def _repr_html_(self) -> str:
        """Show in a notebook what runs, and where to watch it."""
        return _html(self, closed=self._values.closed)


def _html(session: Session, *, closed: bool) -> str:
    from parmap.html import table

    rows: list[Any] = [("plan", session.plan), ("state", "closed" if closed else "open")]
    if not closed:
        rows += [("workers", session.workers)]
    if not closed and session.dashboard:
        rows += [("dashboard", session.dashboard)]
    return table("Session", rows)


def _offered_and_owned(plan: Any, traits: Traits) -> Any:
    """Find the settings that packages offer; give the globals that `setup=` assigns in workers."""
    if not traits.same_thread:
        find_offered()
    if plan.setup is None or traits.shares_memory:
        return None
    return Declared.behind(plan.setup).names


def _over(plan: Any) -> SessionClosed:
    return SessionClosed(
        f"the session of {plan} is over: its `with` block has ended. Enter the plan again"
    )


def _foreign(plan: Any, owner: int) -> SessionClosed:
    return SessionClosed(
        f"the session of {plan} belongs to process {owner}, of which this one ({os.getpid()}) is "
        "a fork: enter a plan of its own here"
    )


def _waits_forever(plan: Any) -> ParmapError:
    return ParmapError(
        f"this call on {plan} would wait forever: it is made in a callback of one of the "
        "executor's own futures, in the thread that resolves all of them. Use a future of "
        "parmap.submit or session.submit: its callbacks may wait for other calls"
    )


def _hold(core_share: CoreShare | None) -> native_threads.Held | None:
    if core_share is None or core_share.threads is None:
        return None
    return native_threads.hold(core_share.threads, exact=core_share.exact, later=True)


Session.__module__ = "parmap"  # public: pickles and tracebacks name it as users do
