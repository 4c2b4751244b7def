"""A worker process of Dask, as parmap starts it: it is told what to do by its standard input.

A command line is for all to see, and what the worker is told may hold the key that lets it in.
The pipe stays open as long as its parent lives, so its end ends the worker, too. Without that
workers notice that their scheduler is gone, and then try for half a minute to tell it that they
leave. Where the kernel can, it kills a worker when the parent's thread that started it ends: Dask's
event loop, or the agent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import distributed

import parmap.worker.run  # noqa: F401 - before the first task, not in it
from parmap.backends.dask.servers import Worker
from parmap.backends.own_random import keep_apart
from parmap.backends.processes.system_unix import die_with_parent
from parmap.worker import family

__all__ = ["PACKAGES", "PROMPT", "order"]

PACKAGES = frozenset({"dask", "distributed", "tornado", "zict"})  # Dask, and what of it draws

# Dask holds each message back for 2 to 10 ms, in order to send many at once. Ours are few:
# with this, in seconds, a small call takes 8 ms there and back instead of 15.
PROMPT = 0.0005


def order(
    scheduler: str,
    options: dict[str, Any],
    security: dict[str, Any] | None = None,
    *,
    number: int = 0,
    trust: family.Trust = (None, None),
    path: Sequence[str] = (),
) -> bytes:
    """Say what a worker is to do, for its standard input.

    Parameters
    ----------
    scheduler : str
        Whom to serve.
    options : dict
        Of `distributed.Worker`.
    security : dict, optional
        Of `distributed.Security`.
    number : int
        Its place among the workers of its machine, from 1 on.
    trust : Trust, optional
        What the script's processes share; only for workers of this machine, to which this goes by
        a pipe that nobody else reads. See `parmap.worker.family`.
    path : sequence of str
        Where it looks for modules, first, if the environment has no room for that.
    """
    key, tracker = trust
    kin = [number, None if key is None else key.hex(), tracker]
    return json.dumps([kin, [*path], scheduler, options, security]).encode() + b"\n"


async def _serve(scheduler: str, options: dict[str, Any], security: dict[str, Any] | None) -> None:
    if security is not None:
        options = {**options, "security": distributed.Security(**security)}
    keep_apart(PACKAGES)
    worker = Worker(scheduler, **options)
    worker.batched_stream.interval = PROMPT
    await worker
    await worker.finished()


def _hang_on(leash: int) -> None:
    os.read(leash, 1)
    with contextlib.suppress(Exception):  # nobody may be left to read it
        sys.stdout.flush()
    os._exit(1)


def _main() -> None:
    leash = os.dup(0)
    # Byte by byte: what comes after the line, its end, is for the thread.
    with os.fdopen(leash, "rb", buffering=0, closefd=False) as stream:
        line = stream.readline()
    if not line:  # the parent is gone already
        return
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # for tasks that read
    os.close(nothing)
    die_with_parent(os.getppid())  # a task that holds the GIL stops the thread that follows
    threading.Thread(target=_hang_on, args=(leash,), name="parmap-leash", daemon=True).start()
    (number, key, tracker), path, *told = json.loads(line)
    sys.path[:] = dict.fromkeys([*path, *sys.path])
    parent = family.Parent("MainProcess", os.getppid())
    trust = None if key is None else bytes.fromhex(key), tracker and tuple(tracker)
    family.become(parent, number, trust)
    asyncio.run(_serve(*told))


if __name__ == "__main__":
    _main()
