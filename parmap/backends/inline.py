"""An executor that runs each task at once, in the caller's thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from parmap.backends.mapping import MappingExecutor
from parmap.errors import SessionClosed

__all__ = ["SequentialExecutor"]


class SequentialExecutor(MappingExecutor):
    """Runs a task inside `submit`."""

    workers, per_node, chunks = 1, 1, False

    def __init__(self) -> None:
        self._open = True

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the task; give its finished future."""
        if not self._open:
            raise SessionClosed("cannot schedule new futures after shutdown")
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the future's; a KeyboardInterrupt goes through
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Take no more tasks."""
        self._open = False
