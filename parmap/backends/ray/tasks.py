"""The tasks of one executor: those that Ray has, and those that wait because of its limit."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from parmap.backends.ray.runtime import Nodes

__all__ = ["LimitedTasks", "RayTask"]


@dataclass(eq=False)
class RayTask:
    """One task: what it calls, who waits for it, and what Ray calls its result once it is sent."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    future: Future[Any] = field(default_factory=Future)
    ref: Any = None
    killed: bool = False
    resolved: bool = False  # after Ctrl-C its end may be told twice


class LimitedTasks:
    """Which tasks Ray has, and which wait, so that Ray runs no more at once than it may.

    Each task is in one of two places, ``out`` or ``_waiting``, from `admit` until `replace`,
    `remove_waiting` or `clear`. It sends none itself: its caller does, without the lock.

    Parameters
    ----------
    nodes : Nodes
        How many tasks the cluster has room for.
    limit : int or None
        How many tasks may run at once, where the cluster has room for more.

    Attributes
    ----------
    out : set of RayTask
        Those that Ray has, or is about to be given.
    """

    def __init__(self, nodes: Nodes, limit: int | None) -> None:
        self._nodes, self._limit = nodes, limit
        # Under `_lock` tasks move between these. It is reentrant: a finalizer or a signal handler
        # may submit in between, and so each step looks anew at what it finds. Who cancels, as a
        # forgotten iterator does, does not take it: `ResolverThread` hears of it through a queue.
        self._lock = threading.RLock()
        self.out: set[RayTask] = set()
        self._waiting: deque[RayTask] = deque()  # beyond the limit

    @property
    def workers(self) -> int:
        """How many tasks run at once."""
        room = sum(self._nodes.room())
        return max(1, room if self._limit is None else min(room, self._limit))

    @property
    def per_node(self) -> int:
        """How many tasks run at once on the node where most do."""
        return max(1, min(self.workers, max(self._nodes.room(), default=1)))

    def admit(self, task: RayTask) -> bool:
        """Take a new task; tell whether to send it now. If not, `replace` returns it later."""
        with self._lock:
            self.out.add(task)  # first, so that who comes in between counts it
            full = self._is_full()
            if full:
                self.out.discard(task)
                self._waiting.append(task)
        return not full

    def replace(self, ended: RayTask) -> RayTask | None:
        """Forget a task that has ended; return one to send that need wait no more, if any."""
        with self._lock:
            self.out.discard(ended)
            ready = None
            with contextlib.suppress(IndexError):  # nothing waits
                ready = self._waiting.popleft()
                self.out.add(ready)
                if self._is_full():
                    self.out.discard(ready)
                    self._waiting.appendleft(ready)
                    ready = None
        return ready

    def remove_waiting(self, task: RayTask) -> bool:
        """Forget a task if it waits; tell whether it did. Needs no lock: it is a single step."""
        try:
            self._waiting.remove(task)
        except ValueError:
            return False
        return True

    def clear(self) -> tuple[RayTask, ...]:
        """Forget all tasks, and return them."""
        with self._lock:
            rest = (*self.out.copy(), *self._waiting.copy())
            self.out.clear()
            self._waiting.clear()
        return rest

    def _is_full(self) -> bool:
        """Tell whether so many tasks are out that Ray would run more at once than it may."""
        limit = self._limit
        return limit is not None and len(self.out) > limit < sum(self._nodes.room())
