"""Large data to and from workers, in one run: ``python benchmarks/memory.py``.

Prints three Markdown tables. What it takes to have an array read by eight tasks, and how many
copies of it there are at most, beyond the caller's own. What it takes to get large results
back, and how much the caller's memory grows. And the milliseconds for one buffer from this
process to another one, which lets go of it as a worker does of an argument, and back to this
one, which keeps it as a caller does a result: by its size and its way. The limits in
``parmap/backends/processes`` come from there.

Needs Linux, psutil and NumPy; of ``pip install joblib loky`` a library that is missing is left out.
"""

import argparse
import importlib.util
import json
import mmap
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil

from parmap.backends.processes.memory import Block, opened
from parmap.backends.processes.system import fresh_memory

READS = 8  # tasks that read the array
RESULTS = 16
MB = 10**6


@dataclass(frozen=True)
class Way:
    """A way to give tasks an array, or to get results, as the code that uses it."""

    start: str  # before the clock runs; the workers are there and have NumPy
    call: str
    package: str = "parmap"


def plan(spec: str, before: str = "") -> str:
    """Write how a plan is entered, and its workers made ready."""
    return f"""
import parmap
session = parmap.plan({spec}).__enter__()
{before}
"""


READY = "parmap.pmap(wait, range(WORKERS), chunks=1)"
PROCESSES = "'processes', workers=WORKERS"
POOL = """
import multiprocessing
pool = multiprocessing.get_context("fork").Pool(WORKERS)
pool.map(wait, range(WORKERS), 1)
"""
FUTURES = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
pool = ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("fork"))
list(pool.map(wait, range(WORKERS)))
"""
JOBLIB = """
from joblib import Parallel, delayed
pool = Parallel(WORKERS).__enter__()
pool(delayed(wait)(i) for i in range(WORKERS))
"""
LOKY = """
import loky
pool = loky.get_reusable_executor(WORKERS)
list(pool.map(wait, range(WORKERS)))
"""

PARMAP_READS = "parmap.pmap(read, repeat(x), range(READS), chunks=1)"
READING = {
    "threads": Way(plan("'threads', workers=WORKERS", READY), PARMAP_READS),
    "processes": Way(plan(PROCESSES, READY), PARMAP_READS),
    "processes, shared before": Way(
        plan(PROCESSES, f"{READY}\nx = session.share(x)"), PARMAP_READS
    ),
    "processes(start='fork'), first call": Way(plan(f"{PROCESSES}, start='fork'"), PARMAP_READS),
    "multiprocessing.Pool (fork)": Way(
        POOL, "pool.starmap(read, [(x, i) for i in range(READS)], 1)", "multiprocessing"
    ),
    "multiprocessing.Pool (fork), first call with a global": Way(
        "import multiprocessing\nfork = multiprocessing.get_context('fork')",
        "fork.Pool(WORKERS).map(read_global, range(READS), 1)",
        "multiprocessing",
    ),
    "concurrent.futures (fork)": Way(
        FUTURES, "list(pool.map(read, repeat(x), range(READS)))", "concurrent"
    ),
    "joblib": Way(JOBLIB, "pool(delayed(read)(x, i) for i in range(READS))", "joblib"),
    "loky": Way(LOKY, "list(pool.map(read, repeat(x), range(READS)))", "loky"),
}

PARMAP_MAKES = "parmap.pmap(make, range(RESULTS), chunks=1)"
MAKING = {
    "threads": Way(plan("'threads', workers=WORKERS", READY), PARMAP_MAKES),
    "processes": Way(plan(PROCESSES, READY), PARMAP_MAKES),
    "multiprocessing.Pool (fork)": Way(
        POOL, "pool.map(make, range(RESULTS), 1)", "multiprocessing"
    ),
    "concurrent.futures (fork)": Way(FUTURES, "list(pool.map(make, range(RESULTS)))", "concurrent"),
    "joblib": Way(JOBLIB, "pool(delayed(make)(i) for i in range(RESULTS))", "joblib"),
    "loky": Way(LOKY, "list(pool.map(make, range(RESULTS)))", "loky"),
}

SCRIPT = """
import json, re, sys, time
from itertools import repeat
import numpy as np
WORKERS, READS, RESULTS, SIZE = {workers}, {reads}, {results}, {size}

def wait(_):
    np.ones(10).sum()
    time.sleep(0.2)

def read(x, _):
    return float(x.sum())

def read_global(_):
    return float(x.sum())

def make(i):
    return np.full(SIZE // 8, float(i))

def status(name):
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(name + r":\\s+(\\d+)", file.read())[1])

x = np.ones(SIZE // 8 if {reading} else 1)
{start}
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = status("VmRSS")
print("ready", flush=True)
sys.stdin.readline()
began = time.perf_counter()
found = {call}
took = time.perf_counter() - began
grown = status("VmHWM") - before
if {reading}:
    assert found == [SIZE // 8] * READS
else:
    assert [float(one[-1]) for one in found] == [float(i) for i in range(RESULTS)]
print(json.dumps([took, grown]), flush=True)
sys.stdin.readline()
"""


@contextmanager
def running(text: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script in a new interpreter; end all that it has started with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.py")
        path.write_text(text)
        with subprocess.Popen(
            [sys.executable, path],
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout.readline() == "ready\n"
                yield process
            finally:
                os.killpg(process.pid, signal.SIGKILL)


def go(process: subprocess.Popen[str]) -> None:
    """Let the script make its call."""
    process.stdin.write("\n")
    process.stdin.flush()


def timed(text: str) -> list[float]:
    """Run a script; give its seconds, and by how many bytes its memory grew."""
    with running(text) as process:
        go(process)
        return json.loads(process.stdout.readline())


def peak(text: str) -> int:
    """Run a script and look at it often; give the most bytes that it and its workers had, more."""
    with running(text) as process:
        before = most = held(process.pid)
        go(process)
        os.set_blocking(process.stdout.fileno(), False)
        while not process.stdout.readline():
            most = max(most, held(process.pid))
    return most - before


def held(root: int) -> int:
    """Count the memory of a process and all below it, each page and each file in memory once."""
    private, files = 0, {}
    for process in (psutil.Process(root), *psutil.Process(root).children(recursive=True)):
        folder = Path("/proc", str(process.pid))
        try:
            for line in (folder / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    private += 1024 * int(line.split()[1])
            mapped = [line.split()[-1] for line in (folder / "maps").read_text().splitlines()]
            for file in {*(folder / "fd").iterdir(), *map(Path, mapped)}:
                target = os.fspath(file.readlink() if file.is_symlink() else file)
                if target.startswith(("/memfd:", "/dev/shm/")) and file.exists():  # noqa: S108
                    files[file.stat().st_ino] = 512 * file.stat().st_blocks
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return private + sum(files.values())


# -- one buffer, by socket or by memory ----------------------------------------------------


def receive(channel: socket.socket, into: memoryview) -> memoryview:
    """Fill a buffer from a socket, and look at all of it."""
    rest = into
    while rest.nbytes:
        rest = rest[channel.recv_into(rest) :]
    np.frombuffer(into, np.uint8).max()
    return into


def by_memfd(channel: socket.socket, data: memoryview) -> None:
    """Write a buffer into memory without a name, and send that."""
    block = Block([data])
    socket.send_fds(channel, [b"x"], [block.descriptor])


def from_memfd(channel: socket.socket, size: int) -> memoryview:
    """Map what was sent, and look at all of it."""
    _, (descriptor,), _, _ = socket.recv_fds(channel, 1, 1)
    (data,) = opened(descriptor, [size])
    np.frombuffer(data, np.uint8).max()
    return data


def by_socket(channel: socket.socket, data: memoryview) -> None:
    """Send a buffer."""
    channel.sendall(data)


TRANSFERS: dict[str, tuple[Callable[..., None], Callable[[socket.socket, int], memoryview]]] = {
    "socket, huge pages": (by_socket, lambda c, size: receive(c, memoryview(fresh_memory(size)))),
    "socket, bytearray": (by_socket, lambda c, size: receive(c, memoryview(bytearray(size)))),
    "memfd": (by_memfd, from_memfd),
}
SIZES = [2**16, 2**18, 2**20, 2**22, 2**24, 2**26, 2**28]


def transfers(rounds: int) -> dict[tuple[int, str], tuple[float, float]]:
    """Measure each way for each size: medians of the seconds there, and back."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    times: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for size in SIZES:
        data = memoryview(mmap.mmap(-1, size))
        data[:] = bytes([1]) * size
        # As results are: what is freed at once gives its pages to the next. A gigabyte at most.
        kept: deque[memoryview] = deque(maxlen=2**30 // size)
        for _ in range(rounds if size > MB else 10 * rounds):
            for place, (name, (send, get)) in enumerate(TRANSFERS.items()):
                ours.sendall(bytes([place]) + size.to_bytes(8, "little"))
                ours.recv(1)
                began = time.perf_counter()
                send(ours, data)
                ours.recv(1)
                there = time.perf_counter() - began
                began = time.perf_counter()
                ours.sendall(b"x")
                kept.append(get(ours, size))
                back = time.perf_counter() - began
                times.setdefault((size, name), []).append((there, back))
    ours.close()
    os.waitpid(pid, 0)
    return {
        key: (statistics.median(t for t, _ in all_), statistics.median(b for _, b in all_))
        for key, all_ in times.items()
    }


def serve(channel: socket.socket) -> None:
    """Be the other end."""
    ways, data = list(TRANSFERS.values()), memoryview(b"")
    while order := channel.recv(9, socket.MSG_WAITALL):
        (send, get), size = ways[order[0]], int.from_bytes(order[1:], "little")
        if data.nbytes != size:
            data = memoryview(bytearray(b"x") * size)
        channel.sendall(b"x")
        get(channel, size)
        channel.sendall(b"x")
        channel.recv(1)
        send(channel, data)


# -- the tables ----------------------------------------------------------------------------


def machine() -> str:
    """Describe the machine and the versions."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    model = next((value.strip() for key, _, value in lines if key.startswith("model n")), "unknown")
    versions = [f"Python {platform.python_version()}", f"NumPy {np.__version__}"]
    for package in ("parmap-plans", "joblib", "loky"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{platform.system()}, {model}, {os.cpu_count()} cores; {', '.join(versions)}"


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def measured(ways: dict[str, Way], rounds: int, **numbers: int) -> dict[str, list[list[float]]]:
    """Measure all ways whose package is there, in interleaved rounds; the last is for peaks."""
    texts = {
        name: textwrap.dedent(SCRIPT).format(start=way.start, call=way.call, **numbers)
        for name, way in ways.items()
        if importlib.util.find_spec(way.package)
    }
    found: dict[str, list[list[float]]] = {name: [] for name in texts}
    for _ in range(rounds):  # interleaved: what else the machine does hits all alike
        for name, text in texts.items():
            found[name].append(timed(text))
    for name, text in texts.items():
        found[name].append([peak(text)] if numbers["reading"] else [])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--array", type=int, default=400, help="MB that tasks read")
    parser.add_argument("--result", type=int, default=50, help="MB of each result")
    chosen = parser.parse_args()
    numbers = {"workers": chosen.workers, "reads": READS, "results": RESULTS}

    print(
        f"{machine()}. Medians of {chosen.rounds} interleaved rounds, {chosen.workers} workers.\n"
    )
    size = chosen.array * MB
    found = measured(READING, chosen.rounds, reading=True, size=size, **numbers)
    row(f"{READS} tasks read {chosen.array} MB", "time", "to threads", "extra copies, at most")
    row(*["---"] * 4)
    medians = {n: statistics.median(t for t, _ in times) for n, (*times, _) in found.items()}
    for name, (*_, (most,)) in found.items():
        middle = medians[name]
        cells = f"{middle * 1e3:,.0f} ms", f"{middle / medians['threads']:.2f} ×"
        row(name, *cells, f"{most / size:.2f}")

    size = chosen.result * MB
    found = measured(MAKING, chosen.rounds, reading=False, size=size, **numbers)
    print()
    row(f"{RESULTS} results of {chosen.result} MB", "time", "the caller's memory grows by")
    row(*["---"] * 3)
    for name, (*times, _) in found.items():
        middle = statistics.median(t for t, _ in times)
        grown = statistics.median(g for _, g in times) / (RESULTS * size)
        row(name, f"{middle * 1e3:,.0f} ms", f"{grown:.2f} × their size")

    print()
    row("one buffer", *(f"{way}: there / back" for way in TRANSFERS))
    row(*["---"] * (1 + len(TRANSFERS)))
    times = transfers(chosen.rounds)
    for size in SIZES:
        label = f"{size >> 20} MiB" if size >= MB else f"{size >> 10} KiB"
        pairs = (times[size, way] for way in TRANSFERS)
        row(label, *(f"{there * 1e3:,.2f} / {back * 1e3:,.2f} ms" for there, back in pairs))


if __name__ == "__main__":
    main()
