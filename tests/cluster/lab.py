"""Real hosts, and a real Slurm on them, on one Debian machine; as root.

    python tests/cluster/lab.py up          # hosts node1 to node3, each with an sshd
    python tests/cluster/lab.py up slurm    # and Slurm: its nodes are those hosts
    python tests/cluster/lab.py cut node2   # pull its cable; join: put it back
    python tests/cluster/lab.py down

Each host is a network namespace with its own address, host name, process tree and sshd; they
share this machine's disk, as nodes of a cluster share homes. Everything of it lies in one
folder, which `down` removes. `up` ends what was left before.

What made it work: no control groups (``proctrack/linuxproc``, ``task/none``), so that it runs in
containers; more processors declared than there are (``config_overrides``); short waits
(``cred_expire``: a job that is queued again waits as long); ``ReturnToService=1``, for with 2 a
node that was set down is up again after a second; ``DefMemPerCPU``, without which each job
takes a whole node.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Tests that run at a time have a lab each; Slurm's files are the machine's, so one of them has it.
LAB = int("0" + os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw"))
FOLDER = Path(tempfile.gettempdir()) / f"parmap-lab{LAB}"
NODES = ("node1", "node2", "node3")
CORES, MEMORY = 4, 4000  # of each node, as Slurm has it; MiB
PACKAGES = {
    "ssh": ("openssh-server", "openssh-client", "iproute2", "procps"),
    "slurm": ("munge", "slurmctld", "slurmd", "slurm-client"),
}
_BRIDGE, NET = f"parmap{LAB}", f"10.78.{LAB}"
HEAD = f"{NET}.1"  # this machine, as the hosts see it
ADDRESSES = {node: f"{NET}.1{number}" for number, node in enumerate(NODES, 1)}
_SLURM = Path("/etc/slurm/slurm.conf")
_MARK = "# written by parmap's lab"
_PATIENCE = 20.0  # seconds


class Unavailable(Exception):
    """This machine cannot be a lab."""


def run(*command: str | Path, check: bool = True) -> str:
    """Run a command, and give what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr or done.stdout}")
    return done.stdout


def until(condition, what: str, patience: float = _PATIENCE) -> None:
    """Wait for what happens in another process."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not happen within {patience:g} s")
        time.sleep(0.05)


_children: list[subprocess.Popen] = []


def _start(*command: str) -> int:
    """Start what runs until the lab ends."""
    nothing = subprocess.DEVNULL
    child = subprocess.Popen(
        command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
    )
    _children.append(child)
    return child.pid


def install(kind: str) -> None:
    """Install Debian's packages, without starting what is in them.

    Raises
    ------
    Unavailable
        If that cannot be done here.
    """
    if os.geteuid() != 0:
        raise Unavailable("only root can make network namespaces")
    if not shutil.which("apt-get"):
        raise Unavailable("no apt-get here: it wants Debian")
    with open(Path(tempfile.gettempdir()) / "parmap-lab.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time
        _install(PACKAGES[kind])


def _install(packages: tuple[str, ...]) -> None:
    known = "${db:Status-Status}"
    query = ("dpkg-query", "-W", "-f", known)
    missing = [name for name in packages if run(*query, name, check=False) != "installed"]
    if not missing:
        return
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        run("apt-get", "install", "-y", "--no-install-recommends", *missing)
    except RuntimeError as error:
        raise Unavailable(f"{', '.join(missing)} cannot be installed: {error}") from error
    finally:
        if ours:
            policy.unlink()


# -- hosts ---------------------------------------------------------------------------------


def up() -> Path:
    """Start the hosts; give the configuration for ssh that leads to them."""
    install("ssh")
    down()
    FOLDER.mkdir(mode=0o700)
    Path("/run/sshd").mkdir(exist_ok=True)
    try:
        run("ip", "link", "add", _BRIDGE, "type", "bridge")
    except RuntimeError as error:
        raise Unavailable(f"no bridge can be made: {error}") from error
    run("ip", "addr", "add", f"{HEAD}/24", "dev", _BRIDGE)
    run("ip", "link", "set", _BRIDGE, "up")
    for key in ("host_key", "user_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", FOLDER / key)
    shutil.copy(FOLDER / "user_key.pub", FOLDER / "authorized_keys")
    lines = ["127.0.0.1 localhost", f"{HEAD} {socket.gethostname()}"]
    lines += [f"{address} {node}" for node, address in ADDRESSES.items()]
    (FOLDER / "hosts").write_text("\n".join(lines) + "\n")
    public = (FOLDER / "host_key.pub").read_text().rsplit(" ", 1)[0]
    known = [f"{node},{address} {public}\n" for node, address in ADDRESSES.items()]
    (FOLDER / "known_hosts").write_text("".join(known))
    config = FOLDER / "config"
    config.write_text(
        "".join(f"Host {node}\n  HostName {at}\n" for node, at in ADDRESSES.items())
        + f"Host *\n  User root\n  IdentityFile {FOLDER}/user_key\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {FOLDER}/known_hosts\n  StrictHostKeyChecking yes\n"
    )
    for node, address in ADDRESSES.items():
        _boot(node, address)
    return config


def _boot(node: str, address: str) -> None:
    """Start a host: its first process is an sshd."""
    namespace, cable = f"{_BRIDGE}-{node}", _cable(node)
    run("ip", "netns", "add", namespace)
    run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    run("ip", "link", "set", cable, "master", _BRIDGE, "up")
    inside = ("ip", "-n", namespace)
    run(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
    for link in ("lo", "eth0"):
        run(*inside, "link", "set", link, "up")
    run(*inside, "route", "add", "default", "via", HEAD)
    (FOLDER / f"{node}.sshd").write_text(
        f"ListenAddress {address}\nHostKey {FOLDER}/host_key\nPidFile none\n"
        f"AuthorizedKeysFile {FOLDER}/authorized_keys\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\n"
    )
    script = (
        f"hostname {node} && mount --bind {FOLDER}/hosts /etc/hosts && "
        f"exec /usr/sbin/sshd -D -f {FOLDER}/{node}.sshd -E {FOLDER}/{node}.log"
    )
    number = _start(
        *("nsenter", f"--net=/run/netns/{namespace}"),
        *("unshare", "--uts", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", "--"),
        *("sh", "-c", script),
    )
    (FOLDER / f"{node}.pid").write_text(str(number))
    until(lambda: _first_process(node) is not None, f"the start of {node}")
    until(lambda: _answers(address), f"an answer of the sshd of {node}")


def _answers(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, 22)) == 0


def _first_process(node: str) -> int | None:
    unshare = (FOLDER / f"{node}.pid").read_text()
    children = run("ps", "-o", "pid=", "--ppid", unshare, check=False).split()
    return int(children[0]) if children else None


def on(node: str, *command: str) -> list[str]:
    """Give a command that runs another on a host, without ssh."""
    first = _first_process(node)
    # Not "ip netns exec": that hides parts of /sys, which slurmd looks for.
    return ["nsenter", "-t", str(first), "-n", "-u", "-m", "-p", "--", *command]


def processes(node: str, what: str) -> list[int]:
    """Give the numbers, as this machine has them, of a host's processes with such a command."""
    space = os.readlink(f"/proc/{_first_process(node)}/ns/pid")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            there = os.readlink(folder / "ns" / "pid") == space
            if there and what in (folder / "cmdline").read_text().replace("\0", " "):
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


def leftovers(node: str) -> list[int]:
    """Give what runs of parmap, or of Dask, on a host."""
    return [*processes(node, "parmap.backends"), *processes(node, "distributed.cli")]


def cut(node: str) -> None:
    """Pull a host's cable: packets vanish, and nobody is told."""
    run("ip", "link", "set", _cable(node), "down")


def join(node: str) -> None:
    """Put the cable back."""
    run("ip", "link", "set", _cable(node), "up")


def _cable(node: str) -> str:
    return f"pm{LAB}-{node}"


# -- Slurm ---------------------------------------------------------------------------------


def slurm() -> None:
    """Start Slurm on the hosts, which are up."""
    install("slurm")
    if _SLURM.exists() and _MARK not in _SLURM.read_text():
        raise Unavailable(f"{_SLURM} is somebody else's")
    runs = FOLDER / "slurm"
    runs.mkdir()
    # The daemon's own user looks for its files there.
    FOLDER.chmod(0o711)
    for folder in (runs, Path("/var/lib/slurm/parmap"), Path("/var/log/slurm")):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.chown(folder, "slurm", "slurm")
    nodes = "\n".join(
        f"NodeName={node} NodeAddr={address} CPUs={CORES} RealMemory={MEMORY}"
        for node, address in ADDRESSES.items()
    )
    _SLURM.parent.mkdir(exist_ok=True)
    _SLURM.write_text(f"""{_MARK}
ClusterName=lab
SlurmctldHost={socket.gethostname()}({HEAD})
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=10
MpiDefault=none
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
StateSaveLocation=/var/lib/slurm/parmap
SlurmdSpoolDir=/var/lib/slurm/parmap.%n
SlurmctldPidFile={runs}/slurmctld.pid
SlurmdPidFile={runs}/slurmd.%n.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.%n.log
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
AccountingStorageType=accounting_storage/none
ReturnToService=1
SlurmdTimeout=20
KillWait=5
MinJobAge=600
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000,sched_interval=2,bf_interval=2
{nodes}
PartitionName=normal Nodes=ALL Default=YES DefaultTime=60 MaxTime=24:00:00 State=UP
""")
    _munge()
    run("slurmctld", "-c")
    until(lambda: "is UP" in run("scontrol", "ping", check=False), "an answer of slurmctld")
    for node in NODES:
        Path(f"/var/lib/slurm/parmap.{node}").mkdir(exist_ok=True)
        _start(*on(node, "slurmd", "-D", "-N", node))
    until(lambda: run("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 3, "idle nodes")


def _munge() -> None:
    for folder, mode in (
        ("/run", 0o755),
        ("/var/lib", 0o711),
        ("/var/log", 0o700),
        ("/etc", 0o700),
    ):
        path = Path(folder) / "munge"
        path.mkdir(exist_ok=True)
        path.chmod(mode)
        shutil.chown(path, "munge", "munge")
    key = Path("/etc/munge/munge.key")
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        shutil.chown(key, "munge", "munge")
    if not run("munge", "-n", check=False):
        run("runuser", "-u", "munge", "--", "/usr/sbin/munged")
        (FOLDER / "munge-is-ours").touch()
        until(lambda: run("munge", "-n", check=False), "an answer of munged")


# -- the end -------------------------------------------------------------------------------


def down() -> None:
    """End all of it."""
    slurm_is_ours = (FOLDER / "slurm").exists()
    if slurm_is_ours:
        jobs = run("squeue", "-h", "-o", "%A", check=False).split()
        if jobs:
            run("scancel", *jobs, check=False)
            until(lambda: not run("squeue", "-h", "-o", "%A", check=False), "the end of jobs")
        _end(FOLDER / "slurm" / "slurmctld.pid")
        if (FOLDER / "munge-is-ours").exists():
            _end(Path("/run/munge/munged.pid"))
    # With its first process each host's other processes end.
    for file in FOLDER.glob("node*.pid"):
        _end(file, signal.SIGKILL)
    for child in _children:
        child.wait()
    _children.clear()
    for name in run("ip", "netns", "list", check=False).splitlines():
        if name.startswith(f"{_BRIDGE}-"):
            run("ip", "netns", "del", name.split()[0])
    for node in NODES:
        run("ip", "link", "del", _cable(node), check=False)
    run("ip", "link", "del", _BRIDGE, check=False)
    if slurm_is_ours:
        _SLURM.unlink(missing_ok=True)
        for folder in Path("/var/lib/slurm").glob("parmap*"):
            shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(FOLDER, ignore_errors=True)


def _end(file: Path, how: int = signal.SIGTERM) -> None:
    """End the process whose number stands in a file."""
    if not file.exists() or not file.read_text().strip():
        return
    number = int(file.read_text())
    here = Path(f"/proc/{number}")
    if here.exists():
        os.kill(number, how)
        until(lambda: not here.exists() or "Z" in (here / "stat").read_text().split()[2], "an end")


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    match arguments:
        case ["up"]:
            print(f"ssh -F {up()} node1")
        case ["up", "slurm"]:
            up()
            slurm()
            print(run("sinfo"))
        case ["down"]:
            down()
        case ["cut", node]:
            cut(node)
        case ["join", node]:
            join(node)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
