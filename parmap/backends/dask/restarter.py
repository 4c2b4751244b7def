"""Keeps one worker process of Dask running, and knows how each of its processes ends.

Dask's nanny would do so, in one more process for each worker: that takes half as long again to
start, and does not tell how the worker ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import distributed

import parmap
from parmap.backends.hash_seed import VARIABLE, hash_seed
from parmap.cores import users_environ
from parmap.worker import family

__all__ = ["WorkerRestarter", "environment", "searched", "trusted"]

# One that lives for less than so many seconds, so many times in a row, may not be able to start.
_SHORT_LIFE = 1.0
_SHORT_LIVES = 10
# Seconds for what tasks have printed, at the end.
_LAST_WORDS = 2.0
_PIPE = 1 << 16  # bytes that a pipe holds, if nothing else is asked for
_VARIABLE = 100_000  # bytes; Linux takes 128 KiB
_log = logging.getLogger("parmap.dask")


class WorkerRestarter:
    """Starts a worker process, and starts it again when it ends.

    Parameters
    ----------
    order : bytes
        What the worker reads first; see `parmap.backends.dask.worker`.
    environ : mapping of str to str
        Its environment.
    started : callable
        Is told of each process: its number, and the task whose result is its exit status.
    output : file descriptor or None, default None
        Where it writes what tasks print. Default: where this process does.

    Attributes
    ----------
    hopeless : bool
        Whether its processes end too soon, again and again.
    """

    def __init__(
        self,
        order: bytes,
        environ: Mapping[str, str],
        started: Callable[[int, asyncio.Task[int]], None],
        *,
        output: int | None = None,
    ) -> None:
        self._order, self._environ = order, environ
        self._tell, self._output = started, output
        self._leash: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ending: asyncio.Task[int] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._over = False
        self.hopeless = False

    async def start(self) -> None:
        """Start it, without waiting until it has found the scheduler."""
        self._over = False  # also one that was stopped
        await self._begin()
        self._watch = asyncio.create_task(self._replace())

    async def stop(self) -> None:
        """End it, and what it has started."""
        if self._watch is not None:
            self._watch.cancel()
        self.let_go()
        if self._ending is not None:
            await asyncio.wait([self._ending], timeout=_LAST_WORDS)
            self.kill()
            await self._ending

    def let_go(self) -> None:
        """Have it write what tasks have printed, and end: by the end of its input."""
        self._over = True
        self._release()

    def _release(self) -> None:
        leash, self._leash = self._leash, None
        if leash is not None:
            os.close(leash)

    def kill(self) -> None:
        """Kill its process group, now."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _begin(self) -> None:
        self._release()  # the one before
        theirs, self._leash = os.pipe()
        try:
            if len(self._order) >= _PIPE:
                fcntl.fcntl(self._leash, fcntl.F_SETPIPE_SZ, len(self._order))
            # Shorter than what the pipe holds.
            os.write(self._leash, self._order)
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "parmap.backends.dask.worker"),
                env=self._environ,
                stdin=theirs,
                stdout=self._output,
                start_new_session=True,  # Ctrl-C in a terminal is for the script
            )
        finally:
            os.close(theirs)
        self._ending = asyncio.create_task(process.wait())
        self._tell(process.pid, self._ending)

    async def _replace(self) -> None:
        """Start it again whenever it ends; with a pause if it does not live for long."""
        short = 0
        while True:
            assert self._ending is not None
            began = time.monotonic()
            code = await asyncio.shield(self._ending)
            if self._over:
                return
            short = short + 1 if time.monotonic() - began < _SHORT_LIFE else 0
            self.hopeless = short >= _SHORT_LIVES
            _log.warning("A worker of Dask has ended (status %s) and is replaced", code)
            if self.hopeless:  # or its task is what ends it
                await asyncio.sleep(_SHORT_LIFE)
            try:
                await self._begin()
            except OSError as error:  # the interpreter is gone, or too many files are open
                _log.warning("A worker of Dask cannot be started: %s", error)
                await asyncio.sleep(_SHORT_LIFE)


def searched(path: Iterable[object]) -> str:
    """Write as much of a path as one variable of the environment holds.

    First comes what a worker needs to hear of the rest.
    """
    entries = [entry for entry in path if entry and isinstance(entry, str)]
    text = os.pathsep.join(entries)
    if len(os.fsencode(text)) <= _VARIABLE:
        return text
    files = map(str, (parmap.__file__, distributed.__file__))
    first = [os.path.dirname(os.path.dirname(file)) for file in files]
    # A few that are longer than all others may be left out, too.
    longest = max(len(os.fsencode(entry)) for entry in entries) + 1
    return os.pathsep.join([*first, *entries[: _VARIABLE // longest - len(first)]])


def environment(path: list[str], more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Give this process's environment, for a worker that finds modules on a path."""
    return {
        "DASK_LOGGING__DISTRIBUTED": "warning",  # a worker that spills says so
        **users_environ(),
        **_flags(),
        VARIABLE: hash_seed(os.environ),
        "PYTHONPATH": searched(path),
        **(more or {}),
    }


def _flags() -> dict[str, str]:
    """Give what the interpreter was told on its command line, or since, and results depend on."""
    return {
        "PYTHONOPTIMIZE": str(sys.flags.optimize or ""),
        "PYTHONINTMAXSTRDIGITS": str(sys.get_int_max_str_digits()),
        "PYTHONUTF8": str(sys.flags.utf8_mode),
        "PYTHONDONTWRITEBYTECODE": "1" if sys.flags.dont_write_bytecode else "",
        # One with a comma cannot be said here.
        "PYTHONWARNINGS": ",".join(one for one in sys.warnoptions if "," not in one),
    }


def trusted() -> family.Trust:
    """Give what this process shares with its workers, once it has all of that."""
    if "multiprocessing.shared_memory" in sys.modules:
        # It begins with the first shared memory. Workers that do not know of it would begin one of
        # their own, which removes what they have opened, when they end.
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()
    return family.trust()
