"""How to reach other machines, and what is there: whether they can serve.

A machine can if parmap's agent starts there, if functions and data can travel between its Python
and this one, and if it can connect to this machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from parmap.backends.remote.agent import facts, misfit, towards
from parmap.failures import PoolBroken

__all__ = ["AGENT", "HostCheck", "HostCommand", "gathered", "listening", "look"]

AGENT = "parmap.backends.remote.agent"
_AT_ONCE = 64  # hosts
_log = logging.getLogger("parmap.dask")


@dataclass(frozen=True)
class HostCommand:
    """How to run something on a host.

    Parameters
    ----------
    name : str
        What the user calls the host.
    command : tuple of str
        What is put before: ssh with its options, or srun.
    python : str
        The interpreter there, as its shell finds it.
    shell : bool
        Whether the command is given to a shell there.
    """

    name: str
    command: tuple[str, ...]
    python: str
    shell: bool = True

    def agent(self, *arguments: str) -> list[str]:
        """Give the command that starts the agent there."""
        words = ["-m", AGENT, *arguments]
        if self.shell:
            return [*self.command, f"{self.python} {shlex.join(words)}"]
        return [*self.command, *shlex.split(self.python), *words]


@dataclass(frozen=True)
class HostCheck:
    """What was found at a host.

    Parameters
    ----------
    command : HostCommand
        How to run something there.
    facts : dict, optional
        What it says of itself; see `parmap.backends.remote.agent.facts`.
    trouble : str, default ""
        Why it cannot be used.
    """

    command: HostCommand
    facts: dict[str, Any] | None = None
    trouble: str = ""

    @property
    def address(self) -> str:
        """The address by which the host reaches this machine."""
        assert self.facts is not None
        reached = self.facts["reached"]
        return str(reached[0]) if reached else towards(self.facts["host"], 9)

    def __str__(self) -> str:
        """Say it in a line."""
        if self.facts is None:
            return f"{self.command.name}: {self.trouble}"
        known = ", ".join(f"{name} {version}" for name, version in self.facts["packages"].items())
        there = f"Python {self.facts['python']}, {known}, {self.facts['cores']} cores"
        return f"{self.command.name}: {self.trouble or 'ready'} ({there})"


def look(commands: Sequence[HostCommand], timeout: float) -> list[HostCheck]:
    """Look at hosts, all at once: whether they can be reached, and fit.

    Parameters
    ----------
    commands : sequence of HostCommand
        How to run something on each host.
    timeout : float
        Seconds that each has to answer.
    """
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(commands)))) as threads:
        return list(threads.map(lambda command: _found(command, timeout), commands))


def _found(command: HostCommand, timeout: float) -> HostCheck:
    try:
        done = subprocess.run(
            command.agent("facts"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return HostCheck(command, trouble=f"no answer after {timeout:g} s")
    except OSError as error:
        return HostCheck(command, trouble=f"{command.command[0]} cannot be run here: {error}")
    for line in done.stdout.splitlines():  # shells may print more
        with contextlib.suppress(ValueError, TypeError, KeyError):
            there = json.loads(line)["facts"]
            return HostCheck(command, there, misfit(there, facts()))
    return HostCheck(
        command, trouble=_why(done.stderr, command) or f"exit status {done.returncode}"
    )


def _why(stderr: str, command: HostCommand) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if "No module named" in last:
        return f"{last.split(': ')[-1]}: install parmap-plans[ssh] for {command.python} there"
    if "not found" in last or "No such file" in last:
        return f"{last} (python={command.python!r} is what parmap runs there)"
    return last


def gathered(found: Sequence[HostCheck], least: int | None) -> list[HostCheck]:
    """Give the hosts that can be used.

    Raises
    ------
    PoolBroken
        If there are fewer than `least`; the message says why.
    """
    good = [one for one in found if not one.trouble]
    bad = [one for one in found if one.trouble]
    if len(good) < (len(found) if least is None else least):
        reasons = "\n".join(f"  {one.command.name}: {one.trouble}" for one in bad)
        more = "" if least is not None else "; min_hosts= lets the others serve"
        raise PoolBroken(f"{len(bad)} of {len(found)} hosts cannot be used{more}:\n{reasons}")
    for one in bad:
        _log.warning("Host %s is left out: %s", one.command.name, one.trouble)
    return good


def listening(found: Sequence[HostCheck]) -> str | None:
    """Give the address at which the scheduler listens; None for all: hosts see several.

    Raises
    ------
    PoolBroken
        If a host sees an address that is not of this machine.
    """
    for one in found:
        with socket.socket(_family(one.address)) as probe:
            try:
                probe.bind((one.address, 0))
            except OSError as error:
                raise PoolBroken(
                    f"{one.command.name} sees this machine as {one.address}, which is no address "
                    "of it: behind a router, or a jump host, workers cannot connect to it. Run the "
                    f"script on a machine that the hosts reach, such as a login node ({error})"
                ) from error
    addresses = {one.address for one in found}
    return addresses.pop() if len(addresses) == 1 else None


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
