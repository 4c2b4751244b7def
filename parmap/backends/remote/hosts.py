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
import functools
import json
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from distributed.comm.addressing import unparse_host_port
from distributed.deploy.spec import ProcessInterface

from parmap.backends.dask.cluster import Exits, OwnCluster, awaited, cluster, taken_out
from parmap.backends.remote.host_command import HostCheck, listening
from parmap.backends.remote.orders import AgentOrder

__all__ = ["Host", "started"]

# Seconds between signs of life: several within the patience of an agent.
_BEAT = 5.0
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
        ending = asyncio.create_task(process.wait())
        # What tasks have printed comes to the end; not where the line is cut. Wait for the process,
        # too: after its output it ends by itself. `kill` would first look whether it has ended, and
        # take its status away from asyncio, which then reports an unknown child process.
        await asyncio.wait([hear, ending], timeout=_GRACE)
        if not ending.done():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await ending
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
    found: Sequence[HostCheck], order: AgentOrder, *, patience: float, dashboard: bool
) -> OwnCluster:
    """Start a scheduler here, and workers on hosts; return when all workers are there.

    Parameters
    ----------
    found : sequence of HostCheck
        The hosts.
    order : AgentOrder
        What their agents are told.
    patience : float
        Seconds until all workers must be there; and, if all are lost, until one must be back.
    dashboard : bool
        Whether to serve Dask's page.
    """
    exits: Exits = {}
    told, specs, workers = order.told(), {}, 0
    for one in found:
        assert one.facts is not None
        count = order.workers or one.facts["cores"]
        options = {"found": one, "told": {**told, "count": count}, "exits": exits}
        specs[one.command.name] = {"cls": Host, "options": options}
        workers += count
    listens = {"host": listening(found), "protocol": order.protocol}
    here = cluster(specs, listens, dashboard=dashboard, security=order.security)
    awaited(here, workers, lambda: _why(here, workers, patience), patience=patience)
    lost = functools.partial(_lost, here, patience)
    return OwnCluster(cluster=here, restarts=True, exits=exits, lost=lost)


def _why(here: Any, workers: int, patience: float) -> str:
    """Say why not all workers came."""
    known = len(here.scheduler_info["workers"])
    first = f"{known} of {workers} workers came within {patience:g} s. What the hosts said:"
    return "\n".join([first, *_words(here)])


def _lost(here: Any, patience: float, seconds: int) -> str:
    """Say that all hosts are lost for good; nothing as long as one may come back."""
    if seconds < patience:
        return ""
    first = (
        f"all hosts are lost, and none has come back within {seconds} s (start_timeout= waits "
        "for longer). What they said:"
    )
    return "\n".join([first, *_words(here)])


def _words(here: Any) -> list[str]:
    """Give the end of what each host has written."""
    return [
        f"  {host.found.command.name}: "
        f"{' / '.join(host.tail) or host.trouble or 'nothing was said'}"
        for host in list(here.workers.values())
    ]
