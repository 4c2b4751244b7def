"""A session as one call has it on loan."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from parmap.backends.once_future import OnceFuture
from parmap.plans.placement import BroadcastSpec, packed, sent
from parmap.plans.session import Session
from parmap.plans.spare_threads import SpareThreads, key_of, run_by_key
from parmap.transport.messages import cached_payload
from parmap.worker.run import run_chunk

if TYPE_CHECKING:
    from parmap.engine.traits import Traits
    from parmap.transport.messages import CallSpec, Chunk, Outcome
    from parmap.transport.payload import Payload

__all__ = ["Lent"]


class Lent(Session):
    """A session on loan to one call: it stays open until that call is over.

    It is the lender in all but that: the two have one state.

    Parameters
    ----------
    lender : Session
        The session.
    """

    # Outside of the state that is the lender's, too.
    __slots__ = ("_lender", "_out", "_spec", "_starves")

    def __init__(self, lender: Session) -> None:
        self._lender, self.__dict__ = lender, lender.__dict__
        self._out = object()
        self.loans.take(self._out)
        # A task in a thread of this process may have opened this thread, and wait for it. No task
        # waits for the main thread.
        known = lender.traits
        inside = known.inside or (known.shares_memory and not known.same_thread)
        self._starves = inside and threading.current_thread() is not threading.main_thread()

    @property
    def lender(self) -> Session:
        """The session that is on loan."""
        return self._lender

    @property
    def traits(self) -> Traits:  # type: ignore[override]
        """Facts about the place; what a spare thread has run does not stay with the workers."""
        known: Traits = self.__dict__["traits"]
        return known._replace(keeps=False) if self._starves else known

    def broadcast(self, spec: CallSpec, *args: Any, **kwargs: Any) -> BroadcastSpec:
        """Put the call's spec where every worker reaches it."""
        self._spec = spec
        return super().broadcast(spec, *args, **kwargs)

    def send(self, broadcast: BroadcastSpec, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run a chunk, or a spare thread, if all workers wait for this thread."""
        if not self._starves:
            return super().send(broadcast, chunk)
        self.check()
        once, spare_threads = OnceFuture(), self.loans.spare_threads
        call: tuple[Any, ...]
        if self.traits.shares_memory:
            call = (run_chunk, broadcast.spec, chunk)
            theirs = self._backend.submit(once.run, *call)
        else:
            # Packed for the spare thread, too: elements are copies there as in the workers.
            copies = self.traits.copies
            payload = packed(chunk, star=broadcast.star, copies=copies)
            call = (_run_packed, self._spec, payload)
            submit = functools.partial(self._backend.submit, run_by_key, key_of(once), run_chunk)
            theirs = sent(submit, broadcast, chunk, self._values, copies=copies)
        theirs.add_done_callback(functools.partial(_ended, once))
        if not spare_threads:  # another thread may come first: then its own are first in the list
            spare_threads.append(SpareThreads(self.plan.initializer))
        spare_threads[0].add(once, *call)
        return once.future

    def drop(self, broadcast: BroadcastSpec | None) -> None:
        """Forget the spec: the call is over."""
        super().drop(broadcast)
        self._return()

    def __del__(self) -> None:
        self._return()

    def _return(self) -> None:
        # Ctrl-C may strike before `__init__` has set it: then there is no loan.
        if hasattr(self, "_out"):
            self.loans.give_back(self._out)


def _run_packed(spec: CallSpec, payload: Payload) -> Outcome:
    return run_chunk(cached_payload(spec), payload)


def _ended(once: OnceFuture, theirs: Future[object]) -> None:
    """Hear that the pool is done with a chunk, or that it never began it."""
    if theirs.cancelled():
        once.future.cancel()
    elif (error := theirs.exception()) is not None:
        once.resolve(None, error)
