"""The house's own rules: floors, names, sizes, and what an import may load."""

from __future__ import annotations

import ast
import importlib
import pickle
import re
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

import parmap

ROOT = Path(parmap.__file__).parent
FILES = {
    ".".join(("parmap", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}

# From the ground up; a file may import from its own floor and those below.
FLOORS = [
    {f"parmap.{name}" for name in ("errors", "failures", "cores", "html", "untouched")}
    | {"parmap.observe", "parmap.observe.events"},
    {name for name in FILES if name.startswith("parmap.transport")},
    {name for name in FILES if name.startswith("parmap.worker")},
    {name for name in FILES if name.startswith("parmap.engine")},
    {name for name in FILES if name.startswith(("parmap.plans", "parmap.backends"))},
    {name for name in FILES if name.startswith("parmap.calls")} | {"parmap.observe.progress"},
    {name for name in FILES if name.startswith(("parmap.cli", "parmap.testing"))}
    | {"parmap", "parmap.__main__"},
]


def imports(name: str) -> set[str]:
    """The modules of parmap that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            module = str(node.module)
            # `from parmap import errors` names a module, `from parmap.errors import said` does not
            found |= {
                full if (full := f"{module}.{alias.name}") in FILES else module
                for alias in node.names
            }
    return {module for module in found if module in FILES}


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def test_every_file_has_a_floor_and_imports_go_down_only():
    for name in FILES:
        for other in imports(name) - {"parmap"}:
            assert floor(other) <= floor(name), f"{name} imports {other}, which is above it"


def test_imports_go_in_no_circles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join((*path, name))}"
        if name not in done:
            for other in imports(name) - {"parmap"}:
                visit(other, (*path, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_engine_and_calls_name_no_backend():
    words = {"sequential", "threads", "processes", "dask", "ray", "joblib", "ssh", "slurm"}
    for name, path in FILES.items():
        if not name.startswith(("parmap.engine", "parmap.calls")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name | ast.Attribute):
                assert getattr(node, "id", getattr(node, "attr", "")) not in words, name


def test_files_stay_short():
    for name, path in FILES.items():
        assert len(path.read_text().splitlines()) <= 400, name


# One lock guards one invariant of the queue, the idle workers and the living ones.
LARGE = {"TaskQueue"}


def test_classes_stay_small():
    for name, node in classes():
        if not name.startswith("parmap.testing") and node.name not in LARGE:
            assert node.end_lineno - node.lineno < 200, node.name
        stored = {
            one.attr
            for one in ast.walk(node)
            if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)
            if isinstance(one.value, ast.Name) and one.value.id == "self"
        }
        assert len(stored) <= 10, f"{node.name} has {len(stored)} attributes: {sorted(stored)}"


def test_functions_take_few_arguments():
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                own = {one.arg for one in arguments} - {"self", "cls"}
                # Of an error, all of it: pickle gives them by their places.
                assert len(own) <= 6 or name == "parmap.errors", f"{name}: {node.name}"


def classes():
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield name, node


def test_the_files_that_sessions_name_are_there():
    text = (Path(__file__).parents[1] / "noxfile.py").read_text()
    lists = re.findall(r'test_\{name\}\.py".*? in (\(.*?\)\n?\]|\(.*?\))', text, re.DOTALL)
    named = [name for names in lists for name in re.findall(r'"(\w+)"', names)]
    assert {"pages", "processes", "cpython"} <= set(named)
    for name in named:
        assert (Path(__file__).parent / f"test_{name}.py").exists(), name


def test_no_name_hides_what_a_file_is_for():
    for name, path in FILES.items():
        last = name.rpartition(".")[2]
        assert last not in {"utils", "helpers", "common", "misc", "base"}, name
    for _, node in classes():
        assert not node.name.startswith("Base"), node.name
        assert not node.name.endswith(("Manager", "Mixin", "Helper")), node.name


# Words that once had several meanings, or none that a newcomer knew; what to say instead.
OLD_NAMES = {
    "crew": "pool thread",
    "desk": "task queue",
    "zygote": "fork server",
    "birth": "spawned",
    "burial": "exited",
    "heirlooms": "inherited values",
    "settle": "resolve, apply, copy, chdir",
    "settled": "resolved, stable",
    "opened": "unwrapped, unpickled, mapped, started",
    "ticket": "OnceFuture",
    "claim": "right",
    "outstanding": "pending",
    "errand": "task",
    "reach": "host command",
    "board": "monitor",
    "keeper": "restarter",
    "guardian": "cleanup",
    "rollcall": "death watch",
    "guest": "adopted executor",
    "life": "instance",
    "parcel": "payload",
    "embedded": "cached payload",
    "trip": "collector",
    "misfire": "element error",
    "origin": "location",
    "piece": "chunk plan",
    "shelf": "result buffer",
    "cutting": "cutter",
    "site": "backend",
    "dial": "thread control",
    "budget": "core share",
    "staying": "remote result",
    "apart": "isolated",
    "swift": "fast",
    "culprit": "pickle errors",
    "blame": "recovery",
    "nudge": "wake",
    "enlist": "add worker",
    "strays": "cancelled",
    "spares": "spare threads",
    "bell": "waker",
    "dice": "own random",
    "steadily": "uninterrupted",
}
# Where a word of these is another library's, a file format's, or has its plain meaning.
MAY_STAY = {
    ("claims", "parmap.backends.ray"),  # what a worker takes of Ray's resources
    ("life", "parmap.backends"),  # _SHORT_LIFE: a worker that ends soon
    ("site", "parmap.backends.remote.orders"),  # the module of Python
    ("trips", "parmap.cli.doctor"),  # round trips
    ("trip", "parmap"),  # round_trip
    ("origin", "parmap.transport.modules"),  # of a module, as importlib has it
    ("trips", "parmap.engine.policies"),
    ("apart", "parmap"),  # large_apart, keep_apart: adverbs
}


def test_no_name_has_an_old_meaning():
    for name, path in FILES.items():
        if name.startswith("parmap.testing"):
            continue  # its names tell what a test finds
        for found in sorted(names_in(path)):
            words = re.split(r"_+|(?<=[a-z0-9])(?=[A-Z])", found)
            for word in map(str.lower, words):
                old = next((old for old in OLD_NAMES if word in (old, f"{old}s")), None)
                if old and not any(w == word and name.startswith(where) for w, where in MAY_STAY):
                    raise AssertionError(f"{name}: {found}: say {OLD_NAMES[old]}")


def names_in(path: Path) -> set[str]:
    """List the names that a file defines or uses, and those of its attributes and arguments."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name():
                found.add(node.id)
            case ast.Attribute():
                found.add(node.attr)
            case ast.arg() | ast.keyword():
                found.add(node.arg or "")
        if isinstance(node, kinds):
            found.add(node.name)
    return found


def test_public_names_are_sorted_and_all_there():
    assert parmap.__all__ == sorted(parmap.__all__)
    homes = [(home, name) for home, names in parmap._HOMES.items() for name in names]
    assert sorted(name for _, name in homes) == parmap.__all__
    assert set(dir(parmap)) == {*parmap.__all__, "__version__"}
    for home, name in homes:
        module = importlib.import_module(f"parmap.{home}")
        assert name in module.__all__
        assert getattr(parmap, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="no attribute 'pmapp'"):
        parmap.pmapp


@pytest.mark.parametrize("name", parmap.__all__)
def test_what_is_public_travels_by_the_name_that_users_know(name):
    public = getattr(parmap, name)
    assert public.__module__ == "parmap"
    packed = pickle.dumps(public)
    assert b"parmap." not in packed  # where it is defined may change
    assert pickle.loads(packed) is public
    assert cloudpickle.loads(cloudpickle.dumps(public)) is public


EXAMPLES = """
import doctest, parmap, threadpoolctl
import sklearn.linear_model  # brings OpenMP, of which each thread has a number
from parmap.testing.surroundings import surroundings
threadpoolctl.threadpool_limits(7)  # more than any worker's share
finder, runner = doctest.DocTestFinder(exclude_empty=False), doctest.DocTestRunner(verbose=False)
changed = 0
for name in parmap.__all__:
    before = surroundings()
    for example in finder.find(getattr(parmap, name), name, False, {}):
        runner.run(example)
    for what, now in surroundings().items():
        if now != before[what]:
            changed += 1
            print(f"{name} has changed: {what}, {before[what]} to {now}")
print(runner.tries, runner.failures + changed)
"""


def test_examples_of_public_objects():
    """Those of classes are found only here: pytest looks where they say that they are defined.

    They leave their process as it was, among them that of an executor which runs its tasks in the
    caller's thread. In an interpreter of its own, where no other test has set anything.
    """
    done = subprocess.run([sys.executable, "-c", EXAMPLES], capture_output=True, text=True)
    *said, last = done.stdout.splitlines()
    tries, failures = map(int, last.split())
    assert not failures, "\n".join(said)
    assert tries > 50


def test_every_public_object_is_documented():
    for name in parmap.__all__:
        assert (getattr(parmap, name).__doc__ or "").strip(), name


def test_type_checkers_see_the_names_that_users_see():
    tree = ast.parse(FILES["parmap"].read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = [alias.name for node in block.body for alias in node.names]
    assert sorted(seen) == parmap.__all__


def test_every_file_says_what_it_offers():
    for name, path in FILES.items():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{name} has no docstring"


def loaded(code: str) -> set[str]:
    """The top-level modules that a new interpreter has loaded after running some code."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.splitlines()[-1].split())


def test_importing_parmap_loads_the_standard_library_only():
    # What the interpreter itself loads at its start (.pth files of site-packages) is not ours.
    ours = loaded("import parmap") - loaded("pass")
    assert ours - set(sys.stdlib_module_names) == {"parmap"}


def test_a_call_on_threads_loads_no_more():
    ours = loaded("import parmap\nwith parmap.plan('threads'): parmap.pmap(abs, [1])")
    # Python 3.15's `traceback` has a list of what its builder left out; the list is not listed.
    standard = {*sys.stdlib_module_names, "_missing_stdlib_info"}
    assert ours - loaded("pass") - standard == {"parmap"}
