"""Locks: who may come in between. Every lock is listed, and every step under one is struck at."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import parmap
from tests.sections import SECTIONS
from tests.sweep import one_python, swept

ROOT = Path(parmap.__file__).parent

# Every lock of parmap, and the section of tests/sections.py that strikes at each step under it.
LOCKS = {
    ("worker/native_threads.py", "self._lock"): "limits",
    ("worker/setup.py", "_lock"): "setup",
    ("worker/once.py", "self.lock"): "once",
    ("transport/functions.py", "_hearing"): "classes",
    ("plans/current.py", "self._lock"): "process-wide",
    ("plans/registry.py", "_importing"): "importing",
    ("backends/joblib/plan.py", "self._lock"): "joblib",
    ("backends/remote/agent.py", "self._speaking"): "speaking",
    ("backends/pending.py", "self._over"): "ends",
    ("backends/processes/executor.py", "self._beginning"): "beginning",
    ("backends/processes/system_unix.py", "unforked"): "beginning",
    ("backends/processes/task_queue.py", "self._lock"): "queue",
    ("backends/ray/runtime.py", "_lock"): "ray",
    ("backends/ray/tasks.py", "self._lock"): "ray",
}
# An event of one call, which one thread sets and another waits for: nothing is changed under it.
LOCAL = {("backends/dask/uninterrupted.py", "over")}
_MADE = r"= threading\.[A-Z]\w+\("
KINDS = {"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Event", "Barrier"}
# Those of asyncio belong to one thread; a coroutine gives way only where it awaits.
SWEPT = {name for name in SECTIONS if name not in ("joblib", "ray")}  # those need their library

# The compiler gives this a `return` for each way out of its loops' conditions. One is taken only if
# another thread comes in between two steps, with its hold. In `Driving._answered` two steps are for
# a pool that has given up: it would not go on.
LEAST_SIGNALS = {"_Limits._drain": 0.9, "Driving._answered": 0.9}
SIGNALLED = [
    "beginning",
    "classes",
    "driven",
    "ends",
    "generators",
    "importing",
    "interrupted",
    "limits",
    "once",
    "placing",
    "process-wide",
    "restored",
    "setup",
]


def constructions(path: Path) -> set[tuple[str, str]]:
    """Find where a file makes locks: its name, and what it assigns them to."""
    tree = ast.parse(path.read_text())
    targets: dict[int, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            names = getattr(node.targets[0], "elts", [])
            pairs = zip(names, node.value.elts, strict=False)
            targets |= {id(value): ast.unparse(name) for name, value in pairs}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            name = getattr(node, "target", None) or node.targets[0]
            targets[id(node.value)] = ast.unparse(name)
    return {
        (path.relative_to(ROOT).as_posix(), targets.get(id(node), f"line {node.lineno}"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _makes_a_lock(node.func)
    }


def _makes_a_lock(function: ast.expr) -> bool:
    match function:
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            return name in KINDS and module != "asyncio"
        case ast.Name(id=name):
            return name in KINDS
    return False


def test_every_lock_is_listed_and_swept():
    files = [path for path in ROOT.rglob("*.py") if "testing" not in path.parts]
    found = set().union(*map(constructions, files))
    assert found == LOCKS.keys() | LOCAL
    assert set(LOCKS.values()) <= SECTIONS.keys()


@pytest.mark.parametrize(("file", "name"), LOCKS)
def test_every_lock_says_who_may_come_in_between(file, name):
    lines = (ROOT / file).read_text().splitlines()
    places = [i for i, line in enumerate(lines) if name in line and re.search(_MADE, line)]
    assert places
    for place in places:
        # Beside it, or in the docstring of its class, which stands above.
        assert any("finalizer" in line for line in lines[max(0, place - 45) : place + 1])


@one_python
@pytest.mark.timeout(300)
@pytest.mark.parametrize("section", sorted(SWEPT - {"driven", "interrupted"}))
def test_a_collection_at_each_step(section):
    """Its finalizers close a forgotten `imap`, drop handles, cancel and submit."""
    hits = swept(section, "collect")
    assert {name: hit for name, hit in hits.items() if hit[0] < 0.95 * hit[1]} == {}


@one_python
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["handle", "interrupt"])
@pytest.mark.parametrize("section", SIGNALLED)
def test_a_signal_at_each_step(section, kind):
    """Its handler makes calls, or raises KeyboardInterrupt; all still works afterwards."""
    hits = swept(section, kind)
    few = {n: hit for n, hit in hits.items() if hit[0] < LEAST_SIGNALS.get(n, 0.95) * hit[1]}
    assert few == {}
