"""What runs on another machine for parmap: it keeps that machine's workers.

Started by ssh, or by srun, it reads one line of JSON from its standard input, which says what to
do, and then empty lines, which say that the other end is alive. It answers on its standard
output, in lines of JSON, too: ``{"host": address}``, then ``{"started": number}`` and ``{"ended":
[number, status]}`` for each process, and ``{"out": text}`` for what tasks print. With the argument
``facts`` it tells those, and ends.

Whatever happens to the other end, or to the line between, ends the workers: the end of the
input, or silence on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import platform
import select
import socket
import sys
import threading
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

from parmap.cores import available_cores
from parmap.worker import blas
from parmap.worker.values import Budget

__all__ = ["Agent", "facts", "towards"]

# What is on both sides of the wire.
_PACKAGES = ("parmap-plans", "distributed", "cloudpickle", "msgpack", "numpy")
_AT_ONCE = 1 << 16  # bytes
# Seconds for what tasks have printed, when all ends.
_LAST_WORDS = 2.0


def facts() -> dict[str, Any]:
    """Tell what matters here: versions, cores, and by which address we were reached."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in _PACKAGES},
        "cores": available_cores(),
        "reached": os.environ.get("SSH_CONNECTION", "").split(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def towards(host: str, port: int) -> str:
    """Give the address of this machine on the network that leads to another."""
    kind, *_, there = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(kind, socket.SOCK_DGRAM) as probe:
        probe.connect(there)  # sends nothing
        return str(probe.getsockname()[0])


class Agent:
    """Keeps workers as it is told.

    Parameters
    ----------
    told : dict
        What to do; see `parmap.backends.dask.hosts.Host`.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self._keepers: list[Any] = []
        self._output = -1
        self._handing_on: threading.Thread | None = None
        # Under `_speaking` a line is written whole.
        self._speaking = threading.Lock()

    async def run(self) -> None:
        """Start the workers, and keep them, until this process ends."""
        from parmap.backends.dask.keeper import Keeper, environment
        from parmap.backends.dask.worker import order

        told = self._told
        # Watched by a thread: where the line is cut, what is written here may block the loop.
        threading.Thread(target=self._hang_on, name="parmap-line", daemon=True).start()
        with contextlib.suppress(OSError):  # homes may be on no common disk
            os.chdir(told["directory"])
        there = urlsplit(told["scheduler"])
        assert there.hostname is not None
        assert there.port is not None
        host = towards(there.hostname, there.port)
        self._say(host=host)
        search = [*told["path"], os.environ.get("PYTHONPATH", "")]
        environ = environment(search, told["environ"])
        cores, count = available_cores(), told["count"]
        budget = Budget.share(cores, count, told["threads"])
        if budget.threads is not None:
            blas.set_environment(budget.threads, exact=budget.exact, environ=environ)
        options = {"host": host, **told["options"]}
        options["memory_limit"] = _memory() // count
        line = order(told["scheduler"], options, told["security"])
        output, self._output = os.pipe()
        self._handing_on = threading.Thread(target=self._hand_on, args=(output,), daemon=True)
        self._handing_on.start()
        self._keepers = [
            Keeper(line, environ, self._started, output=self._output) for _ in range(count)
        ]
        await asyncio.gather(*(keeper.start() for keeper in self._keepers))
        await asyncio.Event().wait()

    def _started(self, number: int, ending: asyncio.Task[int]) -> None:
        self._say(started=number)
        ending.add_done_callback(lambda done: self._say(ended=[number, done.result()]))

    def _hand_on(self, output: int) -> None:
        while text := os.read(output, _AT_ONCE):
            self._say(out=text.decode(errors="replace"))

    def _say(self, **what: Any) -> None:
        with self._speaking:
            sys.stdout.write(json.dumps(what) + "\n")
            sys.stdout.flush()

    def _hang_on(self) -> None:
        """Wait until the other end falls silent; then kill the workers, and end."""
        heard = time.monotonic()
        while (left := heard + self._told["patience"] - time.monotonic()) > 0:
            if select.select([0], [], [], left)[0]:
                if not os.read(0, _AT_ONCE):
                    break
                heard = time.monotonic()
        for keeper in self._keepers:
            keeper.let_go()
        if self._handing_on is not None:
            os.close(self._output)
            self._handing_on.join(_LAST_WORDS)  # until the last worker has ended
        for keeper in self._keepers:
            keeper.kill()
        os._exit(1)


@functools.cache
def _memory() -> int:
    import distributed

    return int(distributed.system.MEMORY_LIMIT)


def _line() -> bytes:
    """Read one line, and nothing of the next."""
    with os.fdopen(0, "rb", buffering=0, closefd=False) as stream:
        return stream.readline()


def _main(arguments: Sequence[str]) -> None:
    if arguments == ["facts"]:
        sys.stdout.write(json.dumps({"facts": facts()}) + "\n")
    else:
        asyncio.run(Agent(json.loads(_line())).run())


if __name__ == "__main__":
    _main(sys.argv[1:])
