"""Deaths among a pool's processes, of which the pool itself does not tell."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

__all__ = ["ProcessWatch"]


class ProcessWatch:
    """Waits for the first death among processes.

    Parameters
    ----------
    processes : list
        Of multiprocessing.
    died : callable
        Is told those that have died, once.
    """

    def __init__(self, processes: list[Any], died: Callable[[list[Any]], None]) -> None:
        self._processes, self._died = processes, died
        self._wake_reader, self._wake_writer = connection.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="parmap-joblib", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        # In words: forks have the other end, too, so that to let it go would tell nothing.
        self._wake_writer.send_bytes(b"stop")
        self._thread.join()
        self._wake_reader.close()
        self._wake_writer.close()

    def kill(self) -> None:
        """Kill the processes that have not ended, and wait until they have."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            ends = {_end(one, stack): one for one in self._processes}
            ready = connection.wait([self._wake_reader, *ends])
        if self._wake_reader not in ready:
            self._died([ends[end] for end in ends if end in ready])


def _end(process: Any, stack: contextlib.ExitStack) -> int:
    """Give a descriptor that becomes ready at a process's end."""
    try:
        # multiprocessing's own is not ready as long as a child of the process lives.
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not on this system
        return int(process.sentinel)
    stack.callback(os.close, descriptor)
    return descriptor
