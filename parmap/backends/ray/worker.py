"""What runs in Ray's workers: the setup, then the call, with placed values in its arguments."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parmap.transport.messages import CachedPayload
from parmap.worker.setup import prepared

__all__ = ["Stored", "run"]


@dataclass(frozen=True)
class Stored:
    """A value in Ray's store, which gives it anew, without a copy, to each task."""

    key: bytes
    cargo: CachedPayload


_unpickled: dict[bytes, CachedPayload] = {}


def run(setup: CachedPayload | None, call: Callable[..., Any], *args: Any) -> Any:
    """Run in a worker, in its main thread."""
    if setup is not None:
        # A task that is cancelled meanwhile must not spoil the setup for all others.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            prepared(setup, int)
        finally:
            signal.signal(signal.SIGINT, before)
    needed = {arg.key for arg in args if type(arg) is Stored}
    for key in _unpickled.keys() - needed:
        del _unpickled[key]  # or the store could not free it
    return call(*(_unpickled.setdefault(a.key, a.cargo) if type(a) is Stored else a for a in args))
