"""How many cores this process may use, and who says so.

Each source grants some: the machine, the affinity mask, the cgroups' CPU quotas, the
variables of a batch system, and parmap itself, for its workers. The smallest grant counts.
A file or variable that is missing, unreadable or nonsense says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from math import ceil
from typing import Literal, overload

__all__ = ["available_cores", "grant", "share"]

# The tests' one seam: below which directory files are looked for.
_ROOT = "/"

# What a task that runs in a thread may use, where it is less than its process may.
share: ContextVar[int | None] = ContextVar("parmap.share", default=None)

_granted: int | None = None


def grant(cores: int | None) -> None:
    """Set what this process, a worker, may use; None: it is not limited.

    A thread's `share` goes before it.
    """
    global _granted  # noqa: PLW0603 - the process's own; its pool sets it before the first task
    _granted = cores


@overload
def available_cores(*, explain: Literal[False] = False) -> int: ...
@overload
def available_cores(*, explain: Literal[True]) -> dict[str, float]: ...


def available_cores(*, explain: bool = False) -> int | dict[str, float]:
    """Count the cores that this process may use.

    Parameters
    ----------
    explain : bool, default False
        Tell each source's grant instead of the count.

    Returns
    -------
    int or dict of str to float
        The smallest grant, rounded up; at least 1. With `explain`, the sources that say
        something, each with the number of cores that it grants: a quota may grant a
        fraction of one.

    Notes
    -----
    The sources are the machine; the process's affinity mask; the CPU quotas of its cgroup,
    version 1 or 2, and of all cgroups around that; what Slurm, PBS, Grid Engine, LSF,
    Fujitsu's PJM and HTCondor tell their jobs, for this node only;
    ``OMP_NUM_THREADS``, from 2 on; ``PYTHON_CPU_COUNT``; and, inside a task, the share of
    the worker that runs it.

    Examples
    --------
    >>> import parmap
    >>> parmap.available_cores() >= 1
    True

    Who grants the least:

    >>> import math
    >>> grants = parmap.available_cores(explain=True)
    >>> who = min(grants, key=grants.__getitem__)
    >>> max(1, math.ceil(grants[who])) == parmap.available_cores()
    True
    """
    grants = _grants(_ROOT, users_environ())
    if explain:
        return grants
    # Up, as the JVM, Go, loky and dask do: of a quota of 1.5 cores, one worker could never use
    # more than two thirds; two use all, and are held back only for what goes beyond it.
    # Down, as Uber's automaxprocs, would suit a server, which lives by its latency.
    return max(1, ceil(min(grants.values(), default=1)))


# What parmap has set in the environment for the calls that run, and what was there before, if
# anything. Filled by `parmap.worker.thread_variables`.
aside: dict[str, tuple[str, str | None]] = {}


def users_variable(name: str) -> str | None:
    """Give a variable of the environment as the user has set it."""
    text = os.environ.get(name)
    ours, before = aside.get(name, (None, None))
    return before if text is not None and text == ours else text  # else it was set since


def users_environ() -> Mapping[str, str]:
    """Give the environment as the user has set it."""
    if not aside:
        return os.environ
    # Not of a copy: that raises if another thread takes a variable out meanwhile.
    users = ((name, users_variable(name)) for name in os.environ)
    return {name: text for name, text in users if text is not None}


def _grants(root: str, environ: Mapping[str, str]) -> dict[str, float]:
    own = share.get()
    said = {
        "machine": os.cpu_count(),
        "affinity mask": affinity(),
        **_quotas(root),
        **_batch_system(root, environ),
        "OMP_NUM_THREADS": _openmp(environ),
        "PYTHON_CPU_COUNT": _number(environ.get("PYTHON_CPU_COUNT", "")),
        "worker's share": _granted if own is None else own,
    }
    return {source: float(cores) for source, cores in said.items() if cores is not None}


def affinity() -> int | None:
    """Count the cores of this process's affinity mask, where there is one."""
    # Only Linux and the BSDs have affinity masks; macOS and Windows lack the call.
    try:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    except OSError:
        return None


def _openmp(environ: Mapping[str, str]) -> float | None:
    # People set it to 1 in order to run one process per core, so 1 says nothing of how many
    # processes. A list, such as "4,2", has a number for each level of nested threads.
    threads = _number(environ.get("OMP_NUM_THREADS", "").partition(",")[0])
    return None if threads == 1 else threads


def _number(text: str) -> float | None:
    """Read a whole number above 0, else None."""
    try:
        number = float(int(text))
    except (ValueError, OverflowError):
        return None
    return number if number > 0 else None


def _read(root: str, path: str) -> str:
    try:
        with open(root.rstrip("/") + path, "rb") as file:
            return os.fsdecode(file.read())
    except (OSError, ValueError):  # a NUL in the path is a ValueError
        return ""


def _quotas(root: str) -> dict[str, float]:
    """Find the quota that binds, of each version: a hybrid machine has both."""
    groups = _read(root, "/proc/self/cgroup").split("\n")
    mounts = _read(root, "/proc/self/mountinfo").split("\n")
    found = {}
    for version, quota in (("v2", _quota_v2), ("v1", _quota_v1)):
        cores = {
            directory: ratio
            for directory in _directories(_group(version, groups), _mounts(version, mounts))
            if (ratio := quota(root, directory)) is not None
        }
        if cores:
            binding = min(cores, key=cores.__getitem__)
            found[f"cgroup {version} quota of {binding}"] = cores[binding]
    return found


def _quota_v2(root: str, directory: str) -> float | None:
    quota, _, period = _read(root, f"{directory}/cpu.max").partition(" ")
    return _ratio(quota, period)


def _quota_v1(root: str, directory: str) -> float | None:
    quota = _read(root, f"{directory}/cpu.cfs_quota_us")
    return _ratio(quota, _read(root, f"{directory}/cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    # Without a quota the files say "max" or -1: neither is a number above 0.
    time, per = _number(quota), _number(period)
    return None if time is None or per is None else time / per


def _group(version: str, groups: list[str]) -> str | None:
    """Find the own cgroup in lines such as ``0::/a/b`` and ``4:cpu,cpuacct:/a/b``."""
    for line in groups:
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and (not controllers if version == "v2" else "cpu" in controllers.split(",")):
            return path.rstrip("/")
    return None


def _mounts(version: str, mounts: list[str]) -> list[tuple[str, str]]:
    """Find where cgroups are mounted: the topmost cgroup there, and the mount point."""
    found = []
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        try:
            kind, _, options = rest.split(" ")
            _, _, _, top, point, *_ = fields.split(" ")
            place = _unescape(top).rstrip("/"), _unescape(point).rstrip("/")
        except ValueError:
            continue
        is_version = {
            "v2": kind == "cgroup2",
            "v1": kind == "cgroup" and "cpu" in options.split(","),
        }
        if is_version[version]:
            found.append(place)
    return found


def _unescape(path: str) -> str:
    # The kernel writes a space, tab, newline or backslash as \ and three octal digits.
    first, *rest = path.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def _directories(group: str | None, mounts: list[tuple[str, str]]) -> Iterator[str]:
    """Go from the own cgroup's directory up to the mount point: quotas nest."""
    if group is None or not mounts:
        return
    # A container may see no more than its own cgroup, which /proc names as it is called
    # outside, or with ".." where that is out of its namespace: take what is mounted for it.
    point, below = mounts[0][1], ""
    for top, candidate in mounts:
        path = group.removeprefix(top)
        if f"{group}/".startswith(f"{top}/") and ".." not in path.split("/"):
            point, below = candidate, path
            break
    while below:
        yield point + below
        below = below.rpartition("/")[0]
    yield point


# Grants of this node. Left out is what counts processes instead of cores, PJM_PROC_BY_NODE
# and _CONDOR_NPROCS, and OAR, which sets the affinity mask.
_HERE = (
    # What was asked for; Slurm sets the next one anew for each step, on each node, and it
    # may be less. SLURM_JOB_CPUS_PER_NODE, "4(x2),2", says the same of all nodes.
    "SLURM_CPUS_PER_TASK",
    "SLURM_CPUS_ON_NODE",
    "PBS_NUM_PPN",
    # PBS takes the number of OpenMP threads for it, where a job asks for one.
    "NCPUS",
    "PJM_VNODE_CORE",
)


def _batch_system(root: str, environ: Mapping[str, str]) -> dict[str, float | None]:
    return {
        **_numbers(environ, *_HERE),
        **_pbs(root, environ),
        **_grid_engine(root, environ),
        **_lsf(environ),
        "Cpus of _CONDOR_MACHINE_AD": _htcondor(root, environ),
    }


def _numbers(environ: Mapping[str, str], *names: str) -> dict[str, float | None]:
    return {name: _number(environ.get(name, "")) for name in names}


def _pbs(root: str, environ: Mapping[str, str]) -> dict[str, float | None]:
    # PBS itself sets NCPUS, on each node. Some sites set this one, to the sum over all nodes.
    nodes = set(_read(root, environ.get("PBS_NODEFILE", "")).split())
    moot = _number(environ.get("NCPUS", "")) is not None or len(nodes) > 1
    return {} if moot else _numbers(environ, "PBS_NCPUS")


def _grid_engine(root: str, environ: Mapping[str, str]) -> dict[str, float | None]:
    # NSLOTS is the sum over NHOSTS hosts; a file, on the first of them, has each one's part.
    slots = _number(environ.get("NSLOTS", ""))
    hosts = _number(environ.get("NHOSTS", "")) or 1
    if slots is None or hosts == 1:
        return {"NSLOTS": slots}
    lines = _read(root, environ.get("PE_HOSTFILE", "")).split("\n")
    own = _own_part([(words[0], words[1]) for line in lines if len(words := line.split()) > 1])
    return {"NSLOTS / NHOSTS": slots / hosts} if own is None else {"PE_HOSTFILE": own}


def _lsf(environ: Mapping[str, str]) -> dict[str, float | None]:
    # The numbers are sums over all hosts; LSB_MCPU_HOSTS, "one 4 two 8", has each one's part.
    words = environ.get("LSB_MCPU_HOSTS", "").split()
    parts = list(zip(words[::2], words[1::2], strict=False))
    if len({host for host, _ in parts}) > 1:
        return {"LSB_MCPU_HOSTS": _own_part(parts)}
    return _numbers(environ, "LSB_DJOB_NUMPROC", "LSB_MAX_NUM_PROCESSORS")


def _own_part(parts: list[tuple[str, str]]) -> float | None:
    """Find the number that stands with this host's name."""
    cores: dict[str, float] = {}
    for name, text in parts:
        if (number := _number(text)) is not None:
            # Domains may be left out. A host may be listed once for each of its queues.
            host = name.partition(".")[0]
            cores[host] = cores.get(host, 0) + number
    own = os.uname().nodename.partition(".")[0] if hasattr(os, "uname") else ""
    # Under an alias, take the smallest part: that is granted on each host.
    return cores.get(own, min(cores.values(), default=None))


def _htcondor(root: str, environ: Mapping[str, str]) -> float | None:
    # A slot of one core can be told from OMP_NUM_THREADS=1 only here.
    for line in _read(root, environ.get("_CONDOR_MACHINE_AD", "")).split("\n"):
        name, _, value = line.partition("=")
        if name.strip().lower() == "cpus":
            return _number(value)
    return None


# Public: pickles and tracebacks name it as users do, wherever it is defined.
available_cores.__module__ = "parmap"
