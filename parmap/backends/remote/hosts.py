"""Other machines as a cluster.

::

    this process                     a host
    scheduler, client                agent ── worker
      Host ── ssh or srun ─ stdin ──→  │  └── worker
           ←─────────────── stdout ────┘
                TLS between scheduler, client and workers

One line for each host: a command, such as ssh, whose standard input is the agent's.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import os
import site
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import distributed
from distributed.comm.addressing import unparse_host_port
from distributed.deploy.spec import ProcessInterface

from parmap.backends.dask.cluster import Exits, awaited, cluster, plain, taken_out
from parmap.backends.remote.host_command import HostCheck, listening

__all__ = ["Host", "orders", "started"]

# Seconds between signs of life, and without one until the other end is given up.
_BEAT = 5.0
_PATIENCE = 15.0
# Seconds that a closed line has to end by itself.
_GRACE = 5.0
# Seconds before a lost host is connected to again; twice as many after each life that is short.
_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_SHORT_LIFE = 30.0
_TAIL = 20  # lines
_LONGEST_LINE = 1 << 20
_log = logging.getLogger("parmap.dask")


class Host(ProcessInterface):  # type: ignore[misc]
    """A host and its workers, as a cluster of Dask has them.

    Parameters
    ----------
    scheduler : str
        The scheduler's address.
    name : object
        What the cluster calls it.
    found : HostCheck
        What was found there.
    told : dict
        What its agent is told; the scheduler is added.
    exits : dict
        Where to tell how its processes end.

    Attributes
    ----------
    tail : deque of str
        The last lines that it wrote to its standard error.
    trouble : str
        Why it was lost the last time.
    """

    def __init__(
        self, scheduler: str, name: Any, found: HostCheck, told: dict[str, Any], exits: Exits
    ) -> None:
        super().__init__(scheduler=scheduler, name=name)
        there = urlsplit(scheduler)
        address = unparse_host_port(found.address, there.port)
        self.found = found
        self._told = {**told, "scheduler": f"{there.scheme}://{address}"}
        self._exits = exits
        self._address = ""
        self._living: dict[int, asyncio.Future[int | None]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._watch: asyncio.Task[None] | None = None
        self.tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
        self.trouble = ""

    async def start(self) -> None:
        """Start its agent, without waiting until the workers have found the scheduler."""
        await self._connect()
        self._watch = asyncio.create_task(self._stay())
        await super().start()

    async def close(self) -> None:
        """End its workers: the end of their agent's input does."""
        if self._watch is not None:
            self._watch.cancel()
        await self._hang_up()
        await super().close()

    def keeps(self, host: str, number: int) -> bool:
        """Whether the process that has this number on a host is one of its workers."""
        return host == self._address and number in self._living

    async def restart(self, number: int) -> None:
        """End a worker's process, and start another."""
        line = None if self._process is None else self._process.stdin
        if line is not None:
            with contextlib.suppress(OSError):  # cut: `_stay` hears of it, and all are lost
                line.write(json.dumps({"restart": number}).encode() + b"\n")
                await line.drain()

    async def _connect(self) -> None:
        self._process = process = await asyncio.create_subprocess_exec(
            *self.found.command.agent(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,  # Ctrl-C in a terminal is for the script
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(self._told).encode() + b"\n")
        parts = (self._hear(process.stdout), self._pass_on(process.stderr))
        self._tasks = [asyncio.create_task(part) for part in (*parts, self._beat(process.stdin))]

    async def _hang_up(self) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        hear, *others = self._tasks
        # What tasks have printed comes to the end; not where the line is cut.
        await asyncio.wait([hear], timeout=_GRACE)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        for task in (hear, *others):
            task.cancel()

    async def _stay(self) -> None:
        """Connect again whenever the line is cut, with ever longer pauses."""
        pause = _PAUSE
        while True:
            assert self._process is not None
            began = time.monotonic()
            code = await self._process.wait()
            self.trouble = self.tail[-1] if self.tail else f"status {code}"
            _log.warning(
                "Host %s is lost (%s): what it had in hand runs elsewhere",
                self.found.command.name,
                self.trouble,
            )
            if time.monotonic() - began > _SHORT_LIFE:
                pause = _PAUSE
            await self._hang_up()
            await self._give_up()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            self.tail.clear()
            try:
                await self._connect()
            except OSError as error:  # the old process is still known, and known to have ended
                self.tail.append(str(error))

    async def _give_up(self) -> None:
        """Tell the scheduler that its workers are gone: it would wait for half a minute."""
        lost = set(self._living)
        for ending in self._living.values():
            ending.set_result(None)
        self._living.clear()
        here = self._cluster()
        scheduler = None if here is None else here.scheduler
        if scheduler is None:
            return
        for worker in list(scheduler.workers.values()):
            if worker.host == self._address and worker.pid in lost:
                await taken_out(scheduler, worker.address, "parmap-host-lost")

    async def _hear(self, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            try:
                said = json.loads(line)
            except ValueError:  # a shell's greeting
                continue
            match said:
                case {"host": address}:
                    self._address = address
                case {"started": number}:
                    ending = asyncio.get_running_loop().create_future()
                    self._living[number] = self._exits[self._address, number] = ending
                case {"ended": [number, code]}:
                    self._living.pop(number).set_result(code)
                case {"out": text}:
                    sys.stdout.write(text)
                    sys.stdout.flush()

    async def _pass_on(self, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            text = line.decode(errors="replace")
            self.tail.append(text.strip())
            if self._living:  # before that it is the reason why there are none
                sys.stderr.write(text)

    async def _beat(self, line: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # cut: `_stay` hears of it
            while True:
                await asyncio.sleep(_BEAT)
                line.write(b"\n")
                await line.drain()


def started(
    found: Sequence[HostCheck],
    per_host: int | None,
    threads: int | str | None,
    *,
    environ: Mapping[str, str],
    security: distributed.Security | None,
    patience: float,
    dashboard: bool,
) -> tuple[Any, Exits, Callable[[int], str]]:
    """Start a scheduler here, and workers on hosts.

    Parameters
    ----------
    found : sequence of HostCheck
        The hosts.
    per_host : int or None
        How many workers on each; None: as many as it has cores.
    threads : int, "auto" or None
        The option ``threads_per_worker``.
    environ : mapping of str to str
        More for the workers' environment.
    security : distributed.Security or None
        Who may connect.
    patience : float
        Seconds until all workers must be there; and, if all are lost, until one must be back.
    dashboard : bool
        Whether to serve Dask's page.

    Returns
    -------
    cluster : distributed.SpecCluster
        The cluster, when its workers are there.
    exits : dict
        How the worker processes end.
    lost : callable
        See `parmap.backends.dask.executor.DaskExecutor`.
    """
    exits: Exits = {}
    told = orders(threads, environ, security)
    specs, workers = {}, 0
    for one in found:
        assert one.facts is not None
        count = per_host or one.facts["cores"]
        options = {"found": one, "told": {**told, "count": count}, "exits": exits}
        specs[one.command.name] = {"cls": Host, "options": options}
        workers += count
    listens = {"host": listening(found), "protocol": "tcp" if security is None else "tls"}
    here = cluster(specs, listens, dashboard=dashboard, security=security)

    def said() -> list[str]:
        return [
            f"  {host.found.command.name}: "
            f"{' / '.join(host.tail) or host.trouble or 'nothing was said'}"
            for host in list(here.workers.values())
        ]

    def why() -> str:
        known = len(here.scheduler_info["workers"])
        first = f"{known} of {workers} workers came within {patience:g} s. What the hosts said:"
        return "\n".join([first, *said()])

    def lost(seconds: int) -> str:
        if seconds < patience:
            return ""
        first = (
            f"all hosts are lost, and none has come back within {seconds} s (start_timeout= waits "
            "for longer). What they said:"
        )
        return "\n".join([first, *said()])

    return awaited(here, workers, why, patience=patience), exits, lost


def orders(
    threads: int | str | None,
    environ: Mapping[str, str],
    security: distributed.Security | None,
) -> dict[str, Any]:
    """Give what all agents are told; the scheduler, and how many workers, are to be added.

    Parameters
    ----------
    threads : int, "auto" or None
        The option ``threads_per_worker``.
    environ : mapping of str to str
        More for the workers' environment.
    security : distributed.Security or None
        Who may connect.
    """
    return {
        "directory": os.getcwd(),
        "path": _own_path(),
        "environ": dict(environ),
        "threads": threads,
        "options": {
            "nthreads": 1,
            "protocol": "tcp" if security is None else "tls",
        },
        "security": None if security is None else plain(security),
        "patience": _PATIENCE,
    }


def _own_path() -> list[str]:
    """Give what the user has put on the path: packages are the interpreter's there."""
    own = {os.path.realpath(one) for one in site.getsitepackages()}
    prefixes = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix})
    return [
        os.path.abspath(one)
        for one in sys.path
        if os.path.realpath(one) not in own and not os.path.abspath(one).startswith(prefixes)
    ]
