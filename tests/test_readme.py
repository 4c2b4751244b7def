"""The README's commands are those that are checked; that its code runs, test_pages checks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import parmap

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FRESH = ["python -m venv .venv", ". .venv/bin/activate"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_commands_are_those_of_a_fresh_machine():
    sessions, install = (re.sub(" +#.*", "", block).splitlines() for block in blocks("sh"))
    assert sessions == [*FRESH, "pip install nox", "nox -s demo", "nox -s tests"]
    assert install == [
        "pip install '.[examples,dask]'",
        "python examples/cross_validation.py",
        "PARMAP_PLAN=dask python examples/cross_validation.py",
    ]


def test_the_demo_runs_those_commands_and_is_not_one_of_the_checks():
    checks, sessions = noxfile()
    demo = ast.unparse(sessions["demo"])
    for word in ("'.[examples,dask]'", "'examples/cross_validation.py'", "'processes'", "'dask'"):
        assert word in demo
    assert "demo" not in checks
    assert "tests" in checks


def test_sessions_that_pages_name_exist():
    _, sessions = noxfile()
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    named = {name for page in pages for name in re.findall(r'nox -s "?(\w+)', page.read_text())}
    assert named >= {"demo", "tests", "docs"}
    assert named <= {*sessions, "long"}  # a session whose function has another name


def noxfile():
    """The names of the default sessions, and all sessions by the names of their functions."""
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    (checks,) = (
        [name.value for name in ast.walk(node.value) if isinstance(name, ast.Constant)]
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "nox.options.sessions"
    )
    sessions = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("nox.session" in ast.unparse(one) for one in node.decorator_list)
    }
    return checks, sessions


def test_the_checks_of_a_commit_run_the_readmes_commands():
    assert "`nox` alone runs all checks and tests" in README
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert any("-m venv" in line for line in lines)
    assert "pip install nox" in lines
    checks, _ = noxfile()
    run = " ".join(line for line in lines if line.startswith("nox -s"))
    assert sorted(set(checks) & set(re.findall(r'[^ "]+', run))) == sorted(checks)


def test_the_documentation_gives_the_same_commands():
    index = (ROOT / "docs" / "index.md").read_text()
    assert all(block in index for block in blocks("sh"))
    assert "\n".join(FRESH) in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_reference_lists_every_name():
    reference = (ROOT / "docs" / "reference.md").read_text()
    listed = re.findall(r"^\.\. auto\w+:: (\w+)$", reference, re.MULTILINE)
    assert sorted(listed) == parmap.__all__
