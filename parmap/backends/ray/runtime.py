"""Ray in this process: started, joined and left; and the nodes that it has."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from parmap.backends.hash_seed import VARIABLE, hash_seed
from parmap.backends.own_random import keep_apart
from parmap.cores import users_environ
from parmap.errors import PlanError
from parmap.failures import PoolBroken
from parmap.plans import registry
from parmap.plans.plan import Plan
from parmap.transport.messages import CoreShare
from parmap.worker import native_threads

__all__ = ["Nodes", "enter", "loaded"]

# For so many seconds an answer of the cluster about its nodes holds: it is a message each time.
_FRESH = 1.0
# Read by Ray as it is imported. All lines that tasks print come out, also those that look alike;
# and not Ray's own account of each death, for the call tells of it.
_DEATH = "A worker died or was killed"
_PRINTS = {
    "RAY_DEDUP_LOGS_ALLOW_REGEX": f"^(?!{_DEATH})",
    "RAY_DEDUP_LOGS_SKIP_REGEX": f"^{_DEATH}",
}


def loaded() -> Any:
    """Import Ray, whose output is the user's own unless he has said otherwise."""
    with _changed({} if _PRINTS.keys() & os.environ else _PRINTS):
        return registry.require("ray", "ray")


@dataclass
class _Runtime:
    """A Ray that was started here, or connected to; and how many executors use it."""

    address: str | None
    users: int = 0


# Held while Ray starts and ends, for seconds, and while the user's `workers=` is asked. Reentrant:
# in this thread, meanwhile, a finalizer may leave a plan, and the user's code may enter one. So a
# user counts before anything else is asked, and a Ray that begins is known only once it is there.
_lock = threading.RLock()
_runtime: _Runtime | None = None  # under `_lock`; Ray itself runs once in a process


def enter(ray: Any, plan: Any) -> tuple[Callable[[], None], bool]:
    """See that Ray runs; give what ends that, and whether it was started for this plan."""
    global _runtime  # noqa: PLW0603 - see there
    address = plan.address or os.environ.get("RAY_ADDRESS")
    with _lock:
        runtime = _runtime
        if runtime is not None:
            runtime.users += 1  # first, or a finalizer that leaves might end it
        found = ray.is_initialized()
        if not found:
            _begin(ray, plan, address)
            _runtime = runtime = _Runtime(address, users=1)
        elif runtime is None:
            return _nothing, False
        elif plan.address not in (None, runtime.address):
            _leave(ray, runtime)
            where = runtime.address or "this machine"
            raise PlanError(
                f"address={plan.address!r}: another session uses Ray at {where}, and a process can "
                "use one Ray at a time: leave that session first"
            )
        return functools.partial(_leave, ray, runtime), not found and address is None


def _begin(ray: Any, plan: Any, address: str | None) -> None:
    options: dict[str, Any] = {"address": address or "local", "logging_level": logging.ERROR}
    environ: dict[str, str] = {}
    if address is None:
        workers = plan.count()
        cpus = math.ceil(workers * (plan.claims["num_cpus"] or 1))
        options |= {"num_cpus": cpus, "include_dashboard": False}
        environ = _environment(Plan.core_share(plan, workers))
    try:
        keep_apart(("ray",))
        with _changed(environ), _own_sigterm():
            _knock(address)
            ray.init(**options)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        where = f"no Ray answers at {address}" if address else "Ray does not start on this machine"
        raise PoolBroken(f"{where}: {error}") from error


def _knock(address: str | None) -> None:
    """See that somebody listens there: Ray itself tries for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and "//" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _leave(ray: Any, runtime: _Runtime) -> None:
    """End what plans have started, if this was its last user."""
    global _runtime  # noqa: PLW0603 - see there
    with _lock:
        runtime.users -= 1
        if runtime.users == 0 and runtime is _runtime:
            _runtime = None
            ray.shutdown()
            _reset_sigterm()


def _nothing() -> None:
    """Leave a Ray that others have started as it is."""


def _environment(core_share: CoreShare | None) -> dict[str, str]:
    """Give what is to change in the environment of a Ray of our own, and so of its workers."""
    changes: dict[str, str] = {}
    environ = ChainMap(changes, {**users_environ()})
    environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Tasks that claim no GPU see what they see on other plans.
    environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    environ[VARIABLE] = hash_seed(environ)
    # What is beside the script, or was added to the path, is found there, too.
    environ["PYTHONPATH"] = os.pathsep.join(
        entry for entry in list[object](sys.path) if entry and isinstance(entry, str)
    )
    if core_share is not None and core_share.threads is not None:
        # Else Ray sets one thread for each CPU that a task claims.
        native_threads.set_environment(core_share.threads, exact=core_share.exact, environ=environ)
    return changes


@contextlib.contextmanager
def _changed(environ: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environ}
    os.environ.update(environ)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the script's own handler of SIGTERM, if it has one: Ray sets another, for good."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # By default Ray's is good: it ends the script by `sys.exit`, and so Ray's processes. Ray
        # sets it in the main thread only, as Python allows; None is no handler of Python's.
        default = before is None or before is signal.SIG_DFL
        if not default and signal.getsignal(signal.SIGTERM) is not before:
            signal.signal(signal.SIGTERM, before)


def _reset_sigterm() -> None:
    """Have SIGTERM do what it does by default, if it does what Ray has set."""
    handler = signal.getsignal(signal.SIGTERM)
    rays = type(handler) is FunctionType and handler.__module__ == "ray._private.worker"
    if rays and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Nodes:
    """The nodes of a cluster, and how many tasks that claim so much each has room for."""

    def __init__(self, ray: Any, claims: dict[str, Any]) -> None:
        self._ray = ray
        wanted = {"CPU": claims["num_cpus"], "GPU": claims.get("num_gpus", 0)}
        wanted |= claims.get("resources", {})
        # Tasks that claim nothing: as many as there are cores.
        self._wanted = {name: amount for name, amount in wanted.items() if amount} or {"CPU": 1}
        self._known: list[dict[str, Any]] = []
        self._asked = -math.inf
        if not any(self.room()):
            raise PlanError(
                f"each task of this plan takes {_written(self._wanted)}, and no node of Ray has "
                f"that. Nodes: {'; '.join(_written(node['Resources']) for node in self._known)}"
            )

    def hosts(self) -> set[str]:
        """Name the machines that have room."""
        return {node["NodeManagerHostname"] for node in self._known if self._fitting(node)}

    def room(self) -> list[int]:
        """Tell for each node how many tasks it runs at once."""
        now = time.monotonic()
        if now > self._asked + _FRESH and self._ray.is_initialized():
            self._asked = now
            self._known = [node for node in self._ray.nodes() if node["Alive"]]
        return [self._fitting(node) for node in self._known]

    def _fitting(self, node: dict[str, Any]) -> int:
        has = node["Resources"]
        # Fractions do not divide evenly: 0.3 / 0.1 is a bit less than 3.
        return min(int(has.get(name, 0) / amount + 1e-6) for name, amount in self._wanted.items())


def _written(resources: Mapping[str, float]) -> str:
    known = {k: v for k, v in resources.items() if "memory" not in k and not k.startswith("node:")}
    return ", ".join(f"{name}: {amount:g}" for name, amount in sorted(known.items())) or "nothing"
