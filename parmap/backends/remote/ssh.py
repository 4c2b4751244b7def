"""Plan ``ssh``: workers on other machines, reached as the user reaches them."""

from __future__ import annotations

import math
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from parmap.errors import PlanError
from parmap.plans import registry
from parmap.plans.plan import Plan
from parmap.transport.messages import CoreShare

if TYPE_CHECKING:
    from parmap.backends.remote.host_command import HostCheck, HostCommand

__all__ = ["SSH"]

# No questions, for there is nobody to answer; and a line that is cut is noticed after 15 s.
_OPTIONS = (
    *("-T", "-o", "BatchMode=yes"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)


@dataclass(frozen=True, kw_only=True)
class SSH(Plan):
    """Workers on other machines, started by ``ssh``.

    It is the command that runs, so your configuration holds: names, keys, agent, jump hosts,
    known hosts. It must log in without a question. The scheduler is in this process, and the
    machines must be able to connect to this one. All that connect must have credentials that are
    made anew for each session (TLS); they are in no file, and on no command line.

    Parameters
    ----------
    hosts : sequence of str
        The machines: ``"node1"``, ``"me@node1"``, ``"me@node1:22"``.
    workers : int, optional
        How many workers on each machine. Default: as many as it has cores for you.
    python : str, optional
        The command that starts Python there, for the shell there. Default: the path of this one.
    environ : mapping of str to str, optional
        More for the workers' environment.
    min_hosts : int, optional
        How many machines are enough. Default: all must start.
    start_timeout : float, default 60
        Seconds until all must be there; and, if all are lost later, until one must be back.
    ssh : str, default "ssh"
        The command, with options of yours: ``"ssh -F my_config"``.
    security : bool or None, default True
        Whether who connects needs credentials. None: whoever reaches this machine can run code
        as you, here and there.
    dashboard : bool, default False
        Whether to serve Dask's page, on this machine only. `Session.dashboard` has its address,
        which holds a secret: without it no page answers.
    """

    hosts: str | Sequence[str] = ()
    python: str | None = None
    environ: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    min_hosts: int | None = None
    start_timeout: float = 60.0
    ssh: str = "ssh"
    security: bool | None = True
    dashboard: bool = False

    name: ClassVar[str] = "ssh"
    modules: ClassVar[tuple[str, ...]] = ("distributed", "cryptography")
    commands: ClassVar[tuple[str, ...]] = ("ssh",)
    install: ClassVar[str] = "parmap-plans[ssh]"

    def __post_init__(self) -> None:
        super().__post_init__()
        hosts = (self.hosts,) if isinstance(self.hosts, str) else tuple(self.hosts)
        for host in hosts:
            # A dash would make it an option of ssh's.
            if not isinstance(host, str) or not host.strip("-") or host[0] == "-" or " " in host:  # type: ignore[redundant-expr]
                raise PlanError(f"hosts={host!r}: give names such as 'me@node1' or 'me@node1:22'")
        twice = {host for host in hosts if hosts.count(host) > 1}
        if twice:
            raise PlanError(
                f"hosts= names {', '.join(sorted(twice))} twice: workers= says how many"
            )
        object.__setattr__(self, "hosts", hosts)
        object.__setattr__(self, "environ", tuple(sorted(dict(self.environ).items())))
        if self.min_hosts is not None and not 1 <= self.min_hosts <= max(1, len(hosts)):
            raise PlanError(f"min_hosts={self.min_hosts!r}: give 1 to {len(hosts)}")
        if not 0 < self.start_timeout < math.inf:
            raise PlanError(f"start_timeout={self.start_timeout!r}: give seconds, more than 0")

    def count(self) -> int:
        """Resolve how many workers there are, before the machines have been asked."""
        return len(self.hosts)

    def core_share(self, workers: int) -> CoreShare | None:
        """Share the cores of each machine out among the workers there."""
        own = super().core_share(workers)
        return None if own is None else own._replace(kept=True, among=workers)

    def check(self) -> list[HostCheck]:
        """Look at the machines, without starting workers.

        Returns
        -------
        list of HostCheck
            One for each machine, which says in a line what is there, or what is wrong.
        """
        if not self.hosts:
            raise PlanError("hosts= names no machine: give hosts=['node1', 'me@node2']")
        registry.require("distributed", "ssh")
        from parmap.backends.remote.host_command import look

        return look(list(map(self._command, self.hosts)), self.start_timeout)

    def start(self) -> Executor:
        """Start the workers."""
        found = self.check()
        from parmap.backends.dask.executor import serving
        from parmap.backends.remote import hosts
        from parmap.backends.remote.host_command import gathered
        from parmap.backends.remote.orders import AgentOrder

        per_host = None if self.workers is None else super().count()
        good = gathered(found, self.min_hosts)
        order = AgentOrder(
            workers=per_host,
            threads=self.threads_per_worker,
            environ=dict(self.environ),
            security=credentials("ssh", wanted=bool(self.security)),
        )
        own = hosts.started(good, order, patience=self.start_timeout, dashboard=self.dashboard)
        return serving(own, self.initializer)

    def _command(self, host: str) -> HostCommand:
        from parmap.backends.remote.host_command import HostCommand

        # A port needs the form of an address.
        where = f"ssh://{host}" if host.rpartition(":")[2].isdigit() else host
        command = (*shlex.split(self.ssh), *_OPTIONS, where)
        return HostCommand(host, command, self.python or shlex.quote(sys.executable))


def credentials(plan: str, *, wanted: bool, extra: str | None = None) -> Any:
    """Make credentials that nobody else has; None, with a warning, if they are not wanted."""
    if not wanted:
        warnings.warn(
            f"{plan}: security=None lets whoever can connect to this machine run code as you, here "
            "and wherever its workers are",
            stacklevel=2,
        )
        return None
    from distributed import Security

    registry.require("cryptography", plan, extra)
    return Security.temporary()
