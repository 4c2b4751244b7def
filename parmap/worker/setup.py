"""``setup=`` where a backend has no initializer of its own: run before a worker's first task."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from parmap.failures import PoolBroken
from parmap.worker.values import Embedded

__all__ = ["prepared"]

# What ran in this process, with its error if it failed. Under `_lock`, so that tasks that begin
# at the same time wait for it.
_ran: dict[Any, BaseException | None] = {}
_lock = threading.Lock()


def prepared(setup: Embedded, fn: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process where `setup` has run once.

    Parameters
    ----------
    setup : Embedded
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
            try:
                setup.open()()
                _ran[setup.key] = None
            except BaseException as error:  # noqa: BLE001 - told to every task
                _ran[setup.key] = error
        why = _ran[setup.key]
    if why is not None:
        raise PoolBroken(f"setup= failed in a worker: {type(why).__name__}: {why}")
    return fn(*args)
