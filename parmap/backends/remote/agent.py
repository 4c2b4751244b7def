"""What runs on another machine for parmap: it keeps that machine's workers.

Started by ssh, or by srun, it reads one line of JSON from its standard input, which says what to
do, and then empty lines, which say that the other end is alive, and ``{"restart": number}`` where a
process is to be replaced by another. It answers on its standard
output, in lines of JSON, too: ``{"host": address}``, then ``{"started": number}`` and ``{"ended":
[number, status]}`` for each process, and ``{"out": text}`` for what tasks print. With the argument
``facts`` it tells those, and ends.

In a batch job there is no line: what to do stands in a file, named by the argument, and what tasks
print goes to the job's log.

Whatever happens to the other end, or to the line between, ends the workers: the end of the
input, or silence on it; in a job, a scheduler that does not answer.
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
from parmap.transport.messages import CoreShare
from parmap.worker import native_threads

__all__ = ["Agent", "facts", "misfit", "towards"]

# What is on both sides of the wire.
_PACKAGES = ("parmap-plans", "distributed", "cloudpickle", "msgpack", "numpy")
_AT_ONCE = 1 << 16  # bytes
# Seconds for what tasks have printed, when all ends.
_LAST_WORDS = 2.0
# Seconds between looks at the scheduler.
_PAUSE = 5.0


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


def misfit(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Say what keeps functions and data from travelling between two; nothing if they fit.

    Parameters
    ----------
    there, here : dict
        The `facts` of a worker's machine, and of the caller's.
    """
    if there["python"].split(".")[:2] != here["python"].split(".")[:2]:
        return (
            f"Python {there['python']} there, {here['python']} here: functions cannot travel "
            "between them; python= names the interpreter to use"
        )
    for name, version in here["packages"].items():
        other = there["packages"].get(name)
        exact = name in ("parmap-plans", "distributed")
        if version is None or (other is None and name == "numpy"):
            continue
        same = other == version if exact else _major(other) == _major(version)
        if not same:
            return f"{name} {other or 'is missing'} there, {version} here: make them the same"
    return ""


def _major(version: str | None) -> str | None:
    return None if version is None else version.partition(".")[0]


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
        What to do; see `parmap.backends.remote.orders`.
    lined : bool, default True
        Whether there is a line to whoever told it.
    """

    def __init__(self, told: dict[str, Any], *, lined: bool = True) -> None:
        self._told, self._lined = told, lined
        self._restarters: list[Any] = []
        # Of their restarters, from 1 on, by the processes' numbers.
        self._places: dict[int, int] = {}
        self._restarts: set[asyncio.Task[None]] = set()
        self._output: int | None = None
        self._scheduler = ("", 0)
        self._handing_on: threading.Thread | None = None
        # Under `_speaking` a line is written whole. Not reentrant, or a line would begin within
        # another; it need not be: this process runs no code of the user's, none of its
        # finalizers speaks, and it has no signal handlers.
        self._speaking = threading.Lock()

    async def run(self) -> None:
        """Start the workers, and keep them, until this process ends."""
        from parmap.backends.dask.restarter import WorkerRestarter, environment
        from parmap.backends.dask.worker import order

        told = self._told
        # Watched by a thread: where the line is cut, what is written here may block the loop.
        watch = (self._hang_on, asyncio.get_running_loop()) if self._lined else (self._look_on,)
        threading.Thread(target=watch[0], args=watch[1:], name="parmap-line", daemon=True).start()
        with contextlib.suppress(OSError):  # homes may be on no common disk
            os.chdir(told["directory"])
        there = urlsplit(told["scheduler"])
        assert there.hostname is not None
        assert there.port is not None
        self._scheduler = (there.hostname, there.port)
        host = towards(*self._scheduler)
        self._say(host=host)
        search = [*told["path"], os.environ.get("PYTHONPATH", "")]
        environ = environment(search, told["environ"])
        cores, count = available_cores(), told["count"]
        core_share = CoreShare.share(cores, count, told["threads"])
        if core_share.threads is not None:
            native_threads.set_environment(
                core_share.threads, exact=core_share.exact, environ=environ
            )
        options = {"host": host, "memory_limit": _memory() // count, **told["options"]}
        if self._lined:
            output, self._output = os.pipe()
            self._handing_on = threading.Thread(target=self._hand_on, args=(output,), daemon=True)
            self._handing_on.start()
        self._restarters = [
            WorkerRestarter(
                order(told["scheduler"], options, told["security"], number=number),
                environ,
                functools.partial(self._started, number),
                output=self._output,
            )
            for number in range(1, count + 1)
        ]
        await asyncio.gather(*(restarter.start() for restarter in self._restarters))
        await asyncio.Event().wait()

    def _started(self, place: int, number: int, ending: asyncio.Task[int]) -> None:
        self._places[number] = place
        self._say(started=number)
        ending.add_done_callback(lambda done: self._ended(number, done.result()))

    def _ended(self, number: int, code: int) -> None:
        self._places.pop(number, None)
        self._say(ended=[number, code])

    def _hand_on(self, output: int) -> None:
        while text := os.read(output, _AT_ONCE):
            self._say(out=text.decode(errors="replace"))

    def _say(self, **what: Any) -> None:
        if not self._lined:
            return
        with self._speaking:
            sys.stdout.write(json.dumps(what) + "\n")
            sys.stdout.flush()

    def _hang_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do what the other end says until it falls silent; then kill the workers, and end."""
        heard, code, rest = time.monotonic(), 1, b""
        while (left := heard + self._told["patience"] - time.monotonic()) > 0:
            if select.select([0], [], [], left)[0]:
                said = os.read(0, _AT_ONCE)
                if not said:
                    code = 0
                    break
                heard = time.monotonic()
                *lines, rest = (rest + said).split(b"\n")
                for line in filter(None, lines):
                    loop.call_soon_threadsafe(self._restart, json.loads(line)["restart"])
        self._end(code)

    def _restart(self, number: int) -> None:
        """Have another process in the place of one."""
        place = self._places.pop(number, None)
        if place is None:  # it has ended meanwhile
            return
        task = asyncio.create_task(_restarted(self._restarters[place - 1]))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    def _look_on(self) -> None:
        """Wait until the scheduler has not answered for so long; then do the same."""
        heard = time.monotonic()
        while time.monotonic() - heard < self._told["patience"]:
            with contextlib.suppress(OSError), socket.create_connection(self._scheduler, _PAUSE):
                heard = time.monotonic()
            time.sleep(_PAUSE)
        host, port = self._scheduler
        # The end of the job's log, which the caller shows if no job stays.
        sys.stderr.write(
            f"{socket.gethostname()}: the scheduler at {host}:{port} has not answered for "
            f"{self._told['patience']:g} s\n"
        )
        sys.stderr.flush()
        self._end(1)

    def _end(self, code: int) -> None:
        for restarter in self._restarters:
            restarter.let_go()
        if self._handing_on is not None and self._output is not None:
            os.close(self._output)
            self._handing_on.join(_LAST_WORDS)  # until the last worker has ended
        for restarter in self._restarters:
            restarter.kill()
        os._exit(code)


async def _restarted(restarter: Any) -> None:
    await restarter.stop()
    await restarter.start()


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
    elif arguments:
        with open(arguments[0], "rb") as file:
            told = json.load(file)
        trouble = misfit(facts(), told["facts"])
        if trouble:  # the log's last line, which the caller shows
            sys.exit(f"{socket.gethostname()}: {trouble}")
        asyncio.run(Agent(told, lined=False).run())
    else:
        asyncio.run(Agent(json.loads(_line())).run())


if __name__ == "__main__":
    _main(sys.argv[1:])
