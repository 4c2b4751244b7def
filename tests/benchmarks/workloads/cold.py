"""Whole scripts, from the start of the interpreter to the first result."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.targets import Target
from tests.benchmarks.workload import Case, Sample, Workload


@dataclass(frozen=True)
class Script:
    """A library, as a script uses it."""

    text: str
    load: str  # what is imported to use it
    guard: bool = False  # whether it needs `if __name__ == "__main__":`


def stdlib(method):
    context = f"import multiprocessing\ncontext = multiprocessing.get_context({method!r})\n"
    return {
        f"multiprocessing.Pool ({method})": Script(
            f"{context}print(context.Pool(2).map(f, range(4)))",
            "import multiprocessing.pool",
            guard=method != "fork",
        ),
        f"concurrent.futures ({method})": Script(
            f"{context}from concurrent.futures import ProcessPoolExecutor\n"
            "print(list(ProcessPoolExecutor(2, mp_context=context).map(f, range(4))))",
            "from concurrent.futures import ProcessPoolExecutor",
            guard=method != "fork",
        ),
    }


SCRIPTS = {
    "bare interpreter": Script("print(list(map(f, range(4))))", "pass"),
    "parmap": Script(
        "import parmap\nparmap.set_plan('processes', workers=2)\nprint(parmap.pmap(f, range(4)))",
        "import parmap",
    ),
    "parmap, its names used": Script("", "from parmap import imap, plan, pmap, set_plan, submit"),
    **stdlib("fork"),
    **stdlib("spawn"),
    "loky": Script(
        "import loky\nprint(list(loky.get_reusable_executor(2).map(f, range(4))))", "import loky"
    ),
    "joblib": Script(
        "from joblib import Parallel, delayed\nprint(Parallel(2)(delayed(f)(x) for x in range(4)))",
        "from joblib import Parallel, delayed",
    ),
    "mpire": Script(
        "from mpire import WorkerPool\nprint(WorkerPool(2).map(f, range(4)))",
        "from mpire import WorkerPool",
    ),
    "distributed": Script("", "from distributed import Client"),
    "ray": Script("", "import ray"),
}
F = "def f(x):\n    return x + 1\n\n"
IMPORT = "import time\nbegan = time.perf_counter()\n{}\nprint(time.perf_counter() - began)"


def cases(quick):
    del quick
    scripts = tuple(name for name, script in SCRIPTS.items() if script.text)
    loads = tuple(name for name in SCRIPTS if name != "bare interpreter" and "spawn" not in name)
    return [
        Case("first result", "first result", 1, scripts, reference="bare interpreter"),
        Case("import", "import", 1, loads, reference="parmap"),
    ]


def first_line(text, folder):
    """Run a script; give the first line it prints, and when it came."""
    path = Path(folder, "script.py")
    path.write_text(text)
    began = time.perf_counter()
    # Its own session, so that whatever it leaves behind can be ended with it.
    with subprocess.Popen(
        [sys.executable, path], start_new_session=True, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            return time.perf_counter() - began, json.loads(line)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def trial(case, name):
    script = SCRIPTS[name]
    imports = case.key == "import"
    body = IMPORT.format(script.load) if imports else script.text
    if script.guard:
        body = 'if __name__ == "__main__":\n' + textwrap.indent(body, "    ")
    with tempfile.TemporaryDirectory() as folder:
        yield None
        while True:
            took, printed = first_line(F + body, folder)
            assert imports or printed == [1, 2, 3, 4]
            yield Sample(printed if imports else took)


WORKLOAD = Workload(
    name="cold",
    title="a script from its start",
    what="A script from the start of the interpreter to the first result of two workers, with a "
    "`__main__` guard where the library needs one (spawn); and how long the import takes.",
    cases=cases,
    trial=trial,
    packages={
        **{name: name for name in ("loky", "joblib", "mpire", "distributed", "ray")},
        "parmap": "parmap",
    },
    targets=(
        Target(
            "cold script, two workers, no guard: seconds beyond the interpreter",
            0.075,
            lambda m: m("first result", "parmap") - m("first result", "bare interpreter"),
        ),
        Target("`import parmap`: seconds", 0.010, lambda m: m("import", "parmap")),
    ),
)
