"""The tasks that a backend of joblib has, and whether it may be given more."""

from __future__ import annotations

import contextlib
from concurrent.futures import BrokenExecutor
from typing import Any

from parmap.backends.once_future import OnceFuture
from parmap.transport.identity import Key

__all__ = ["TasksOut"]

# A task's future, and what the task calls.
_Task = tuple[OnceFuture, tuple[Any, ...]]


class TasksOut:
    """What is out, and the reasons to take no more: a death, tasks that run in vain, the end.

    Has no lock: a finalizer may cancel or submit a task, in any thread and at any step, and so
    want the executor's lock, whose owner may be in `add`. Each change is a single step. Whoever
    pops a task from ``_out`` decides what becomes of it. `add` adds it before it looks at the
    reasons, and those who set one look at ``_out`` afterwards: none is forgotten.

    Attributes
    ----------
    broken : bool
        Whether a process has died.
    spent : bool
        Whether tasks run in vain, or others begin elsewhere.
    moved : bool
        Whether those that were out run elsewhere.
    ended : bool
        Whether the backend has been given back, or is just now.
    """

    def __init__(self) -> None:
        self._out: dict[Key, _Task] = {}
        self.broken = self.spent = self.moved = self.ended = False
        self._ends = [True]  # who pops it gives the backend back

    def __len__(self) -> int:
        return len(self._out)

    def add(self, key: Key, once: OnceFuture, call: tuple[Any, ...]) -> None:
        """Count a task as out. Whoever calls it removes the task if that raises.

        Raises
        ------
        concurrent.futures.BrokenExecutor
            If there is a reason to take no more.
        """
        self._out[key] = once, call
        if self.broken or self.spent or self.ended:
            raise BrokenExecutor  # or a task that was moved would run twice

    def remove(self, key: Key) -> bool:
        """Forget a task; tell whether nobody else had taken it out."""
        return self._out.pop(key, None) is not None

    def break_off(self) -> list[_Task] | None:
        """Take no more, for a process has died; return the tasks to fail, None if that is known."""
        first, self.broken = not self.broken, True
        out = self._taken_out()
        return out if first or out else None

    def spend(self) -> None:
        """Take no more, for tasks run in vain, or the next start takes them."""
        self.spent = True

    def move(self) -> list[_Task]:
        """Take out all tasks, to run them elsewhere."""
        others = self._taken_out()
        self.moved = True
        return others

    def may_end(self) -> bool:
        """Take no more, for this is the end; tell, once, that the backend is to be given back."""
        try:
            return self._ends.pop()
        except IndexError:
            return False
        finally:
            self.ended = True

    def _taken_out(self) -> list[_Task]:
        """Take all tasks that are out, to fail them or to run them elsewhere."""
        out = []
        with contextlib.suppress(KeyError):  # none is left
            while True:
                out.append(self._out.popitem()[1])
        return out[::-1]
