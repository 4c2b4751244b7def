"""Process pools side by side, in one run: ``python benchmarks/pools.py``.

Prints a Markdown table: the milliseconds that each pool takes for a million tiny tasks and
for a first result from a cold script, the microseconds for one task there and back, and what
becomes of a map when one of its workers is killed.

Needs ``pip install loky joblib mpire``; a library that is missing is left out.
"""

import argparse
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

N = 1_000_000


@dataclass(frozen=True)
class Pool:
    """A library, as the code that uses it."""

    start: str
    many: str = ""  # N tasks, by the best setting that its documentation names
    one: str = ""  # one task
    fragile: str = ""  # 40 tasks, one by one
    guard: bool = False  # whether the script needs `if __name__ == "__main__":`
    package: str | None = None


def futures(start: str, *, guard: bool = False, package: str | None = None) -> Pool:
    """Give a pool of the interface of concurrent.futures."""
    return Pool(
        start,
        many="list(pool.map(f, range(N), chunksize=N // 8))",
        one="pool.submit(f, 1).result()",
        fragile="list(pool.map(fragile, range(40)))",
        guard=guard,
        package=package,
    )


def stdlib(method: str) -> dict[str, Pool]:
    """Give the two pools of the standard library, by how they start processes."""
    context = f"import multiprocessing\ncontext = multiprocessing.get_context({method!r})\n"
    guard = method != "fork"
    return {
        f"multiprocessing.Pool ({method})": Pool(
            f"{context}pool = context.Pool(2)",
            many="pool.map(f, range(N))",
            one="pool.apply(f, (1,))",
            fragile="pool.map(fragile, range(40), 1)",
            guard=guard,
        ),
        f"concurrent.futures ({method})": futures(
            f"{context}from concurrent.futures import ProcessPoolExecutor\n"
            "pool = ProcessPoolExecutor(2, mp_context=context)",
            guard=guard,
        ),
    }


POOLS = {
    "list comprehension": Pool("", many="[x + 1 for x in range(N)]"),
    "bare pipe": Pool(
        "import multiprocessing\n"
        "near, far = multiprocessing.Pipe()\n"
        "if os.fork() == 0:\n"
        "    while True:\n"
        "        far.send(f(far.recv()))\n",
        one="(near.send(1), near.recv())",
    ),
    "parmap": Pool(
        "import parmap\nparmap.set_plan('processes', workers=2)",
        many="parmap.pmap(f, range(N))",
        one="parmap.submit(f, 1).result()",
        fragile="parmap.pmap(fragile, range(40), chunks=1)",
        package="parmap",
    ),
    **stdlib("fork"),
    **stdlib("spawn"),
    "loky": futures("import loky\npool = loky.get_reusable_executor(2)", package="loky"),
    "joblib": Pool(
        "from joblib import Parallel, delayed\npool = Parallel(2).__enter__()",
        many="Parallel(2, batch_size=N // 8)(delayed(f)(x) for x in range(N))",
        one="pool([delayed(f)(1)])",
        fragile="pool(delayed(fragile)(x) for x in range(40))",
        package="joblib",
    ),
    "mpire": Pool(
        "from mpire import WorkerPool\npool = WorkerPool(2, keep_alive=True)",
        many="pool.map(f, range(N))",
        one="pool.apply(f, 1)",
        fragile="pool.map(fragile, range(40), chunk_size=1)",
        package="mpire",
    ),
}

FUNCTIONS = f"""
import os, time
N = {N}

def f(x):
    return x + 1

def fragile(x):
    time.sleep(0.02)
    if x == 10:
        try:
            os.close(os.open(os.environ["KILLED"], os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), 9)
        except FileExistsError:
            pass
    return x
"""

MANY = """
assert {many}[-1] == N
times["many"] = []
for _ in range(3):
    began = time.perf_counter()
    {many}
    times["many"].append(time.perf_counter() - began)
"""

ONE = """
for _ in range(100):
    {one}
times["one"] = []
for _ in range(1000):
    began = time.perf_counter()
    {one}
    times["one"].append(time.perf_counter() - began)
"""

WARM = """
{start}
import json, statistics
times = {{}}
{work}
print(json.dumps({{name: statistics.median(all) for name, all in times.items()}}), flush=True)
os.kill(os.getpid(), 9)
"""

COLD = """
{start}
{many}
print(1, flush=True)
"""

KILLED = """
{start}
began = time.perf_counter()
try:
    kept = {fragile} == list(range(40))
    end = "all results kept" if kept else "wrong results"
except Exception as error:
    end = f"all lost: {{type(error).__name__}}"
print(f"{{end}}, {{time.perf_counter() - began:.1f}} s", flush=True)
os.kill(os.getpid(), 9)
"""


def script(pool: Pool, body: str, **parts: str) -> str:
    """Write the script that has a pool do something."""
    text = body.format(**{"start": pool.start, **parts})
    if pool.guard:
        text = 'if __name__ == "__main__":\n' + textwrap.indent(text, "    ")
    return FUNCTIONS + text


def first_line(text: str, limit: float = 100) -> tuple[str, float]:
    """Run a script in a new interpreter; give the first line it prints, and when it came."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.py")
        path.write_text(text)
        began = time.perf_counter()
        # Its own session, so that whatever it leaves behind can be ended with it.
        with subprocess.Popen(
            [sys.executable, path],
            env={**os.environ, "KILLED": str(Path(folder, "killed"))},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            signal.setitimer(signal.ITIMER_REAL, limit)
            try:
                line = process.stdout.readline()
            except TimeoutError:
                line = f"hangs (watched for {limit:.0f} s)"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                took = time.perf_counter() - began
                os.killpg(process.pid, signal.SIGKILL)
        return line.strip(), took


def timed(pool: Pool) -> dict[str, float]:
    """Measure a pool once: warm, then cold."""
    work = (MANY if pool.many else "") + (ONE if pool.one else "")
    work = work.format(many=pool.many, one=pool.one)
    times = json.loads(first_line(script(pool, WARM, work=work))[0])
    if pool.many:
        few = pool.many.replace("range(N)", "range(4)")
        times["cold"] = first_line(script(pool, COLD, many=few))[1]
    return times


def machine() -> str:
    """Describe the machine and the versions."""
    model = "unknown processor"
    if (info := Path("/proc/cpuinfo")).exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.startswith("model n")), model)
    versions = [f"Python {platform.python_version()}"]
    for package in ("parmap-plans", "loky", "joblib", "mpire"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{platform.system()}, {model}, {os.cpu_count()} cores; {', '.join(versions)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds

    def late(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    pools = {
        name: pool
        for name, pool in POOLS.items()
        if pool.package is None or importlib.util.find_spec(pool.package)
    }
    times = {name: [] for name in pools}
    for _ in range(rounds):  # interleaved: what else the machine does hits all alike
        for name, pool in pools.items():
            times[name].append(timed(pool))

    print(f"{machine()}. Medians of {rounds} interleaved rounds, 2 workers.\n")
    print("| | 10⁶ × `x + 1` | one task, warm | cold script | a worker is killed |")
    print("|---|---|---|---|---|")
    for name, pool in pools.items():
        cells = [name]
        for what, unit in (("many", "ms"), ("one", "µs"), ("cold", "ms")):
            if what in times[name][0]:
                middle = statistics.median(each[what] for each in times[name])
                cells.append(f"{middle * (1e6 if unit == 'µs' else 1e3):,.0f} {unit}")
            else:
                cells.append("")
        killed = script(pool, KILLED, fragile=pool.fragile) if pool.fragile else None
        cells.append(first_line(killed, limit=20)[0] if killed else "")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
