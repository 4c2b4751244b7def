"""Spare threads: for calls whose chunks no worker begins, since all workers wait for them.

On a pool of threads, a task can open a thread, and that thread can make a call on the same pool.
If all workers run such tasks, they wait for chunks that wait for a worker: for ever. Nobody can
tell a worker that waits from one that computes. So a thread whose chunks nobody has begun for a
while gets a spare thread, which runs them one by one until a worker has time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from parmap.backends.once_future import OnceFuture
from parmap.failures import PoolBroken
from parmap.transport.identity import Key, fresh_key

__all__ = ["SpareThreads", "key_of", "run_by_key"]

# How long no worker may begin a caller's chunks, in seconds, until a spare thread does.
_PATIENCE = 0.1

# Of chunks that go packed to a thread of this process; each is here until its future is resolved.
_by_key: dict[Key, OnceFuture] = {}


def key_of(once: OnceFuture) -> Key:
    """Give a key by which a worker in this process finds a future."""
    key = fresh_key()
    _by_key[key] = once
    once.future.add_done_callback(lambda _: _by_key.pop(key, None))
    return key


def run_by_key(key: Key, fn: Callable[..., Any], /, *args: Any) -> None:
    """Resolve a future by a call, unless somebody else has begun to."""
    once = _by_key.get(key)
    if once is not None:
        once.run(fn, *args)


class _Entry:
    """A chunk that waits for a worker.

    Parameters
    ----------
    caller : int
        The thread that has sent it.
    once : OnceFuture
        Its future; whoever takes it first runs the chunk.
    call : tuple
        What to call.
    """

    __slots__ = ("call", "caller", "once")

    def __init__(self, caller: int, once: OnceFuture, call: tuple[Any, ...]) -> None:
        self.caller, self.once, self.call = caller, once, call

    @property
    def waits(self) -> bool:
        """Whether nobody has begun it."""
        return not (self.once.future.running() or self.once.future.done())


class _Group:
    """The chunks of one calling thread; only the watching thread uses it."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.first: _Entry | None = None  # that waited at the last look
        self.offers: SimpleQueue[_Entry] = SimpleQueue()
        self.thread: threading.Thread | None = None

    def starves(self) -> bool:
        """Look whether anything has begun since the last look."""
        self.entries = [entry for entry in self.entries if not entry.once.future.done()]
        if self.thread is not None and self.thread.is_alive():
            return False
        waiting = [entry for entry in self.entries if entry.waits]
        first = waiting[0] if len(waiting) == len(self.entries) and waiting else None
        starves = first is not None and first is self.first
        self.first = first
        return starves


class SpareThreads:
    """Watches what other threads than the main one send to a pool of threads.

    Parameters
    ----------
    setup : callable or None
        Run first in each spare thread, as in each worker.
    """

    def __init__(self, setup: Callable[[], object] | None) -> None:
        self._setup = setup
        self._inbox: SimpleQueue[_Entry | None] = SimpleQueue()
        self._starts = [None]  # whoever takes it starts the thread

    def add(self, once: OnceFuture, *call: Any) -> None:
        """Watch a chunk that was sent, by this thread, and that ``call`` would run."""
        self._inbox.put(_Entry(threading.get_ident(), once, call))
        try:
            self._starts.pop()
        except IndexError:
            return
        # A daemon: a chunk that never ends must not keep the interpreter from its end.
        threading.Thread(target=self._watch, name="parmap-spares", daemon=True).start()

    def end(self) -> None:
        """Stop watching."""
        self._inbox.put(None)

    def _watch(self) -> None:
        groups: dict[int, _Group] = {}
        look = 0.0
        while self._take(groups):
            if time.monotonic() >= look:
                look = time.monotonic() + _PATIENCE
                for caller in list(groups):
                    if groups[caller].starves():
                        self._start(groups[caller])
                    if not groups[caller].entries:
                        del groups[caller]

    def _take(self, groups: dict[int, _Group]) -> bool:
        """Take in what comes until the next look; False at the end."""
        try:
            entry = self._inbox.get(timeout=_PATIENCE if groups else None)
        except Empty:
            return True
        if entry is not None:
            group = groups.setdefault(entry.caller, _Group())
            group.entries.append(entry)
            group.offers.put(entry)
        return entry is not None

    def _start(self, group: _Group) -> None:
        _drain(group.offers)  # they are among the entries
        group.thread = threading.Thread(
            target=self._run, args=(list(group.entries), group.offers), name="parmap", daemon=True
        )
        group.thread.start()

    def _run(self, entries: list[_Entry], offers: SimpleQueue[_Entry]) -> None:
        """Run chunks, until a worker has begun one, or none has come for a while."""
        why = self._set_up()
        while entries and not any(entry.once.future.running() for entry in entries):
            entry = entries.pop(0)
            if why is None:
                entry.once.run(*entry.call)
            else:
                entry.once.resolve(None, why)
            del entry  # or this thread would keep its results while it waits
            entries += _drain(offers)
            if not entries:
                entries += _next(offers)

    def _set_up(self) -> PoolBroken | None:
        try:
            if self._setup is not None:
                self._setup()
        except BaseException as error:  # noqa: BLE001 - told to the call
            return PoolBroken(f"setup= failed in a worker: {type(error).__name__}: {error}")
        return None


def _drain(offers: SimpleQueue[_Entry]) -> list[_Entry]:
    entries = []
    while not offers.empty():
        entries.append(offers.get())
    return entries


def _next(offers: SimpleQueue[_Entry]) -> list[_Entry]:
    try:
        return [offers.get(timeout=_PATIENCE)]
    except Empty:
        return []
