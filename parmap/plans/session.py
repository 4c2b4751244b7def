"""A plan at work: the executor, and what the engine needs to use it."""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple, Protocol, TypeVar

from parmap.engine.callbacks import Callbacks
from parmap.engine.loop import Call, Settings
from parmap.engine.single_call import single
from parmap.engine.source import Source
from parmap.engine.traits import Traits
from parmap.errors import ParmapError, SerializationError, SessionClosed
from parmap.plans.blocks import Block
from parmap.plans.loans import Loans
from parmap.plans.placement import Values
from parmap.transport.messages import (
    CachedPayload,
    CallSpec,
    Chunk,
    CoreShare,
    Location,
    Outcome,
    cached_payload,
)
from parmap.transport.payload import ATOMS, PROTOCOL, Payload, pack
from parmap.transport.shared import (
    HandleCollector,
    RemoteHandle,
    Shared,
    handles_exist,
    share,
    travelling,
)
from parmap.worker import native_threads as blas
from parmap.worker.run import run_chunk, run_remote

__all__ = ["Session", "Startable"]

R = TypeVar("R")
T = TypeVar("T")


class Startable(Protocol):
    """What a session needs of the plan that it runs."""

    @property
    def nested(self) -> tuple[Any, ...]:
        """The plans for calls inside tasks."""

    @property
    def traits(self) -> Traits:
        """Facts about the place, where the executor does not say."""

    def count(self) -> int:
        """Settle how many workers there are, where the executor does not say."""

    def core_share(self, workers: int) -> CoreShare | None:
        """Share the cores of a machine out among so many workers on it."""

    @property
    def initializer(self) -> Callable[[], object] | None:
        """What each worker runs first."""


class BroadcastSpec(NamedTuple):
    """A job where the workers reach it.

    Parameters
    ----------
    spec : object
        The job, or what stands for it among a task's arguments.
    references : tuple, default ()
        What stands for the values of the handles in it.
    handles : tuple of Shared, default ()
        Those handles: their values stay placed as long as the job.
    hold : Held, optional
        What limits native libraries in this process as long as the call runs.
    star : bool, default False
        Whether a chunk's elements are rows of arguments.
    carried : bool, default False
        Whether the job itself travels with each chunk: nothing has been put anywhere.
    """

    spec: Any
    references: tuple[Any, ...] = ()
    handles: tuple[Shared[Any], ...] = ()
    hold: blas.Held | None = None
    star: bool = False
    carried: bool = False


# Bytes of a job that may travel several times.
_CARRIED = 1 << 14


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

    def __init__(self, plan: Startable, executor: Executor, outer: object = None) -> None:
        self.plan, self.block = plan, Block(outer)
        self.executor: Any = executor
        # Of some places the facts are known only when they run: then the executor has them.
        self.traits: Traits = getattr(self.executor, "traits", None) or plan.traits
        self._core_shares: dict[int, CoreShare | None] = {}
        self._closed = False
        self._pid = os.getpid()
        self.callbacks = Callbacks()
        self.loans = Loans()
        drop: Any = self.executor.drop if self.traits.places else _nothing  # type: ignore[attr-defined]
        self._values = Values(drop)

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
        # Any PEP 3148 executor will do; one whose number of workers changes says so itself.
        known = getattr(self.executor, "workers", None)
        return int(self.plan.count() if known is None else known)

    @property
    def core_share(self) -> CoreShare | None:
        """What each worker may use of its machine."""
        known = getattr(self.executor, "per_node", None)
        sharers = self.workers if known is None else known
        if sharers not in self._core_shares:  # to look at the cores takes as long as a small call
            self._core_shares[sharers] = self.plan.core_share(sharers)
        return self._core_shares[sharers]

    @property
    def nested(self) -> tuple[Any, ...]:
        """The plans for calls made inside the tasks."""
        return self.plan.nested

    @property
    def dashboard(self) -> str | None:
        """The address of a page that shows the workers, where the plan has one."""
        return getattr(self.executor, "dashboard", None)

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
            self._broadcast_value(handle)
        return handle

    def broadcast(
        self, spec: CallSpec, chunks: int | None = None, *, waits: bool = True
    ) -> BroadcastSpec:
        """Put a job where every worker reaches it.

        One for no more chunks than there are workers, if it is small, travels with each.
        """
        self.check()
        if waits and getattr(self.executor, "resolver", None) == threading.get_ident():
            raise ParmapError(
                f"this call on {self.plan} would wait forever: it is made in a callback of one of "
                "the executor's own futures, in the thread that resolves all of them. Use a future "
                "of parmap.submit or session.submit: its callbacks may wait for other calls"
            )
        if self.traits.shares_memory:
            return BroadcastSpec(spec, hold=_hold(spec.core_share))
        if not handles_exist():
            if not self.traits.places:
                return BroadcastSpec(cached_payload(spec), star=spec.star)
            if self.traits.copies and chunks is not None and chunks <= self.workers:
                carried = _carried(spec)
                if carried is not None:
                    return BroadcastSpec(carried, star=spec.star, carried=True)
            return BroadcastSpec(self.executor.put(spec), star=spec.star)
        collector = HandleCollector(self._broadcast_value)
        with travelling(collector):
            payload = pack(spec, "", views=True)
        reference = self._put(CachedPayload(None, payload))
        handles = tuple(collector.handles)
        return BroadcastSpec(reference, tuple(collector.references), handles, star=spec.star)

    def send(self, broadcast: BroadcastSpec, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run a chunk of a placed job."""
        self.check()
        if self.traits.shares_memory:
            return self.executor.submit(run_chunk, broadcast.spec, chunk)  # type: ignore[no-any-return]
        return self._sent(functools.partial(self.executor.submit, run_chunk), broadcast, chunk)

    def run_remote(self, broadcast: BroadcastSpec, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run one element; a `RemoteHandle` stands for the result, which stays."""
        self.check()
        submit = functools.partial(self.executor.run_remote, self._remote_handle, run_remote)
        return self._sent(submit, broadcast, chunk)

    def _remote_handle(self, reference: Any) -> Outcome:
        handle = RemoteHandle()
        self._values.add(handle, reference)
        return Outcome([handle], (), 0.0, Location("", 0))

    def _sent(
        self, submit: Callable[..., Future[Outcome]], broadcast: BroadcastSpec, chunk: Chunk
    ) -> Future[Outcome]:
        if not handles_exist():
            return submit(broadcast.spec, self._packed(chunk, star=broadcast.star))
        collector = HandleCollector(self._broadcast_value, broadcast.references)
        with travelling(collector):
            payload = self._packed(chunk, star=broadcast.star)
        future = submit(broadcast.spec, payload, *collector.references)
        # A handle may have been made by packing, and be nobody else's.
        future.add_done_callback(lambda _, handles=collector.handles: handles.clear())  # type: ignore[misc]
        return future

    def _packed(self, chunk: Chunk, *, star: bool) -> Payload:
        if _plain(chunk.columns):
            return Payload(pickle.dumps(chunk, PROTOCOL))
        try:
            return pack(chunk, "chunk", views=self.traits.copies, own=True)
        except SerializationError:
            if chunk.size == 1:  # then name the argument rather than its place in the chunk
                row = tuple(column[0] for column in chunk.columns)
                pack(row[0] if star else row, "args")
            raise

    def _broadcast_value(self, handle: Shared[Any]) -> Any:
        """Give the reference to a handle's value, which is placed once."""
        return self._values.broadcast(handle, self._put)

    def _put(self, value: Any, what: str = "") -> Any:
        """Place a value; where no backend does, it travels with each chunk that needs it.

        Then, too, each worker unpickles it once.
        """
        return self.executor.put(value, what) if self.traits.places else cached_payload(value, what)

    def drop(self, broadcast: BroadcastSpec) -> None:
        """Forget a placed job."""
        if broadcast.hold is not None:
            blas.release(broadcast.hold)
        if self.traits.places and not broadcast.carried and not self._closed:
            self.executor.drop(broadcast.spec)

    def abandon(self, future: Future[Outcome], chunk: Chunk) -> None:
        """Stop a chunk that nobody waits for any more, as far as the place can."""
        if self.traits.shares_memory:
            # map() reads this very list as it goes: emptied, it ends after the element
            # that runs now, which nothing can stop in a thread.
            chunk.columns[0].clear()  # type: ignore[attr-defined]
        elif self.traits.abandons:
            self.executor.abandon(future)

    def check(self, *, begins: bool = False) -> None:
        """Refuse work after the end.

        Parameters
        ----------
        begins : bool, default False
            Whether it is for a new call. After the end of the block, only calls that have the
            session on loan go on.

        Raises
        ------
        SessionClosed
            If the session is over, or belongs to the process that this one was forked from.
        """
        if self._closed or (begins and self.loans.over):
            raise SessionClosed(
                f"the session of {self.plan} is over: its `with` block has ended. "
                "Enter the plan again"
            )
        if self._pid != os.getpid():
            raise SessionClosed(
                f"the session of {self.plan} belongs to process {self._pid}, of which this one "
                f"({os.getpid()}) is a fork: enter a plan of its own here"
            )

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
        if self._closed:
            return
        self._closed = True
        self._values.close()
        for spare_threads in self.loans.spare_threads:
            spare_threads.end()
        if self._pid == os.getpid():
            self.executor.shutdown(wait=True, cancel_futures=cancel)
            self.callbacks.join()

    def __repr__(self) -> str:
        """Show the plan and whether the session is open."""
        return f"<Session of {self.plan}: {'closed' if self._closed else 'open'}>"

    def _repr_html_(self) -> str:
        """Show in a notebook what runs, and where to watch it."""
        from parmap.html import table

        rows: list[tuple[str, object]] = [("plan", self.plan)]
        rows += [("state", "closed" if self._closed else "open")]
        if not self._closed:
            rows += [("workers", self.workers)]
        if not self._closed and self.dashboard:
            rows += [("dashboard", self.dashboard)]
        return table("Session", rows)


def _plain(columns: Sequence[Any]) -> bool:
    """Whether these are a few arguments of which C pickle makes just what cloudpickle does.

    It does so in 2 µs instead of 9. To look at many would cost more than it saves.
    """
    return all(type(column) is range or _is_plain_column(column) for column in columns)


def _is_plain_column(column: Any) -> bool:
    if type(column) is not list or len(column) > _FEW:
        return False
    if len(column) == 1 and type(column[0]) is tuple and len(column[0]) <= _FEW:
        column = column[0]  # a row of arguments
    return ATOMS.issuperset(map(type, column))


_FEW = 16


def _carried(spec: CallSpec) -> CallSpec | None:
    """Pack the function of a job; None where that is large, or not all that is the user's."""
    if spec.nested or spec.constants:
        return None
    try:
        fn = pack(spec.fn, "", views=True)
    except SerializationError:
        pack(spec, "")  # which names it by its place in the job
        raise
    return CallSpec(fn, *spec[1:]) if fn.size <= _CARRIED else None


def _hold(core_share: CoreShare | None) -> blas.Held | None:
    if core_share is None or core_share.threads is None:
        return None
    return blas.hold(core_share.threads, exact=core_share.exact, later=True)


def _nothing(_: object) -> None:
    """Forget a value that travels with each chunk: there is nothing to do."""


Session.__module__ = "parmap"  # public: pickles and tracebacks name it as users do
