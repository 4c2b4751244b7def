"""A session whose chunks a test runs, fails or kills by hand, in the order that it likes.

The engine blocks in one place only: where it waits for the next future to land. There the
test's `step` is called; it resolves what it wants to. So every order of events can be
forced in one thread, without waiting.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

from parmap.engine.callbacks import Callbacks
from parmap.engine.loop import Call, Settings
from parmap.engine.policies import policy_named
from parmap.engine.retry import Retry
from parmap.engine.source import Source
from parmap.engine.traits import Traits
from parmap.errors import WorkerDied
from parmap.plans.blocks import Block
from parmap.transport.messages import CallSpec, Chunk
from parmap.worker.run import run_chunk


@dataclass(eq=False)
class Sent:
    """A chunk in the session's hands."""

    future: Future
    spec: CallSpec
    chunk: Chunk

    @property
    def elements(self) -> list:
        return list(self.chunk.columns[0])

    def begin(self) -> None:
        assert self.future.set_running_or_notify_cancel()

    def run(self, *, brief: bool = False, seconds: float = 1e-3) -> None:
        """Run it and resolve its future; if brief, one that may end itself does at once."""
        if not self.future.running():
            self.begin()
        chunk = self.chunk._replace(number=0)  # no other process recalls any of it now
        if chunk.seconds is not None:
            chunk = chunk._replace(seconds=0.0 if brief else math.inf)
        # The same time each time, for chunks are cut by it.
        self.future.set_result(run_chunk(self.spec, chunk)._replace(seconds=seconds))

    def die(self, exitcode: int | None = -11, position: int | None = None, words: str = "") -> None:
        if not self.future.running():
            self.begin()
        self.future.set_exception(WorkerDied(4711, exitcode, None, position, words))


@dataclass(eq=False)
class HandSession:
    """Takes chunks; does nothing with them."""

    workers: int = 2
    traits: Traits = field(default_factory=lambda: Traits(shares_memory=True))
    nested: tuple = ()
    core_share: None = None
    callbacks: Callbacks = field(default_factory=Callbacks)
    block: Block = field(default_factory=functools.partial(Block, None))
    sent: list[Sent] = field(default_factory=list)
    dropped: list[CallSpec] = field(default_factory=list)
    abandoned: list[Future] = field(default_factory=list)
    refuse: Callable[[Chunk], None] = lambda chunk: None
    # How many elements stay of a chunk, and whether its worker is at a slow one.
    recalled: Callable[[Chunk], tuple[int, bool] | None] = lambda chunk: None

    def broadcast(
        self,
        spec: CallSpec,
        chunks: int | None = None,
        *,
        waits: bool = True,
        known: object = None,
    ) -> CallSpec:
        return spec

    def send(self, broadcast: CallSpec, chunk: Chunk) -> Future:
        self.refuse(chunk)
        sent = Sent(Future(), broadcast, chunk)
        self.sent.append(sent)
        return sent.future

    def drop(self, broadcast: CallSpec) -> None:
        self.dropped.append(broadcast)

    def abandon(self, future: Future, chunk: Chunk) -> None:
        self.abandoned.append(future)

    def recall(self, future: Future, number: int, *, only_slow: bool) -> tuple[int, bool] | None:
        (sent,) = (sent for sent in self.sent if sent.future is future)
        found = None if only_slow else self.recalled(sent.chunk)
        if found is not None:
            sent.chunk = sent.chunk.part(0, found[0])
        return found

    @property
    def flying(self) -> list[Sent]:
        return [sent for sent in self.sent if not sent.future.done()]


class HandQueue(SimpleQueue):
    """Calls `step` when the engine would wait."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.step = step

    def get(self, timeout=None):
        if self.empty():
            self.step()
        # A step that resolves nothing is a test's mistake, unless something waits for its time.
        return super().get(block=False)


def hand_call(
    session: HandSession,
    step: Callable[[], None],
    fn: Callable,
    *iterables,
    chunks: object = 1,
    errors: str = "raise",
    retries: int | Retry = 0,
    timeout: float | None = None,
    ordered: bool = True,
    window: int | None = None,
    observers: tuple = (),
) -> Call:
    """Make a call in a session by hand, driven by `step`."""
    retry = retries if isinstance(retries, Retry) else Retry(retries)
    settings = Settings(
        policy_named(chunks), errors, retry, timeout, "", observers, ordered=ordered, window=window
    )
    call = Call(session, fn, Source(iterables), settings)
    call._in_flight.landed = HandQueue(step)
    return call
