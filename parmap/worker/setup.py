"""``setup=``: what workers run before their first task, also where a backend has no initializer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from parmap.failures import PoolBroken
from parmap.transport.identity import is_own
from parmap.transport.messages import CachedPayload
from parmap.transport.worker_globals import Declared
from parmap.worker import context
from parmap.worker.random_state import renew

__all__ = ["prepared", "set_up"]

# What ran in this process, with its error if it failed. Under `_lock`, so that tasks that begin
# at the same time wait for it. The setup is the user's, and runs under the lock: it must, for no
# task may overtake it. So the lock is reentrant, and a setup counts as run before it begins: a
# task that a finalizer or the setup itself runs in this thread goes on. A setup that waits for such
# a task in another thread waits for itself, as two modules do that import each other.
_ran: dict[Any, BaseException | None] = {}
_lock = threading.RLock()


def prepared(setup: CachedPayload, fn: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process where `setup` has run once.

    Parameters
    ----------
    setup : CachedPayload
        A function without arguments; its key says whether it has run.
    fn, *args
        What to call then.

    Raises
    ------
    PoolBroken
        If the setup failed, now or before.
    """
    with _lock:
        if setup.key not in _ran:
            if not is_own(setup.key):
                renew()  # before a setup that may seed
            _ran[setup.key] = None
            try:
                setup.open()()
            except KeyboardInterrupt:
                # A call was stopped; the setup has not failed. It runs again before the next task.
                _ran.pop(setup.key, None)
                raise
            except BaseException as error:  # noqa: BLE001 - told to every task
                _ran[setup.key] = error
        why = _ran[setup.key]
    if why is not None:
        raise PoolBroken(f"setup= failed in a worker: {type(why).__name__}: {why}")
    return fn(*args)


def set_up(setup: Callable[[], object], nested: tuple[Any, ...], declared: Declared) -> None:
    """Run a setup, and note which globals it has assigned.

    As part of a task: a call that it makes must not look for the session that waits for it.
    """
    with context.Inside(nested):
        setup()
    declared.take()
