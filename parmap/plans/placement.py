"""The values of handles, where workers reach them: each is placed once, and dropped in the end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from parmap.transport.identity import Key
from parmap.transport.shared import Shared, travelling

__all__ = ["Values"]


class Values:
    """The values that a session has placed.

    Changes in single steps, without a lock: a handle's end takes its value out at any time, in any
    thread, and to place a value runs the user's pickling. A thread that needs a value which another
    is placing waits for it. The thread that is placing it, and comes back to it in its pickling or
    in a finalizer, does not wait for itself: it places the value once more.

    Parameters
    ----------
    drop : callable
        Forgets what was placed.
    """

    def __init__(self, drop: Callable[[Any], object]) -> None:
        self._drop: Callable[[Any], object] | None = drop
        self._broadcast: dict[Key, _Broadcasting] = {}

    def broadcast(self, handle: Shared[Any], put: Callable[[Any, str], Any]) -> Any:
        """Give the reference to a handle's value, which `put` makes if it is not placed yet."""
        fresh = _Broadcasting()
        try:
            # All of it in here: Ctrl-C strikes after any call, and nobody may wait for ever.
            while True:
                placing = self._broadcast.setdefault(handle.key, fresh)
                if placing is fresh or (placing.mine and not placing.done()):
                    break
                if placing.exception() is None:
                    return placing.result()
            with travelling(None):  # a handle inside of the value goes along with it
                fresh.set_result(put(handle.value, "share(...)"))
            self._until_gone(handle, fresh)
        except BaseException as error:
            self._leave(handle.key, fresh)
            if not fresh.done():
                fresh.set_exception(error)
            raise
        return fresh.result()

    def add(self, handle: Shared[Any], reference: Any) -> None:
        """Take in a value that is there already."""
        placing = _Broadcasting()
        placing.set_result(reference)
        self._until_gone(handle, placing)
        # Last: who finds it may wait for it, and Ctrl-C strikes after any call.
        self._broadcast[handle.key] = placing

    def close(self) -> None:
        """Forget all: what is placed ends with its executor."""
        self._drop = None
        self._broadcast.clear()

    def forget(self, key: Key, placing: _Broadcasting) -> None:
        """Forget the value of a handle that is gone."""
        self._leave(key, placing)
        drop = self._drop
        if drop is not None:
            drop(placing.result())

    def _until_gone(self, handle: Shared[Any], placing: _Broadcasting) -> None:
        forget = weakref.finalize(handle, _forget, weakref.ref(self), handle.key, placing)
        forget.atexit = False

    def _leave(self, key: Key, placing: _Broadcasting) -> None:
        """Take a value out, unless another stands in its place."""
        if self._broadcast.get(key) is placing:
            self._broadcast.pop(key, None)


class _Broadcasting(Future[Any]):
    """A reference to a handle's value, once that is placed."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    @property
    def mine(self) -> bool:
        """Whether this thread places it."""
        return self._thread == threading.get_ident()


def _forget(values: weakref.ref[Values], key: Key, placing: _Broadcasting) -> None:
    here = values()
    if here is not None:
        here.forget(key, placing)
