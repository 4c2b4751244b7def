"""The house's own rules: floors, names, sizes, and what an import may load."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

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
    {
        f"parmap.{name}"
        for name in (
            "errors",
            "cores",
            "events",
            "failures",
            "html",
            "identity",
            "progress",
            "sharing",
            "sockets",
            "untouched",
        )
    },
    {name for name in FILES if name.startswith("parmap.worker")},
    {name for name in FILES if name.startswith(("parmap.engine", "parmap.backends"))}
    | {"parmap.plans.plan", "parmap.plans.registry", "parmap.plans.session", "parmap.plans.current"}
    | {
        "parmap.plans.blocks",
        "parmap.plans.lent",
        "parmap.plans.loans",
        "parmap.plans.spare_threads",
    },
    {"parmap.calls.options"},
    {"parmap.calls.map", "parmap.calls.submit"},
    {
        "parmap.calls.graph",
        "parmap.calls.picture",
        "parmap.calls.grid",
        "parmap.cli.doctor",
        "parmap.__main__",
    },
    {"parmap"} | {name for name in FILES if name.startswith("parmap.testing")},
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
            # `from parmap import plans` names a module, `from parmap.plans.plan import plan` does not
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


def test_engine_and_maps_name_no_backend():
    words = {"sequential", "threads", "processes", "dask", "ray", "joblib", "ssh", "slurm"}
    for name, path in FILES.items():
        if not name.startswith(("parmap.engine", "parmap.calls.map")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name | ast.Attribute):
                assert getattr(node, "id", getattr(node, "attr", "")) not in words, name


def test_files_stay_short():
    for name, path in FILES.items():
        assert len(path.read_text().splitlines()) <= 400, name


def test_no_name_hides_what_a_file_is_for():
    for name, path in FILES.items():
        last = name.rpartition(".")[2]
        assert last not in {"utils", "helpers", "common", "misc", "base"}, name
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                assert not node.name.startswith("Base"), node.name
                assert not node.name.endswith(("Manager", "Mixin", "Helper")), node.name


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
