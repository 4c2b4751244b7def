"""The README's commands are those that are checked; that its code runs, test_pages checks."""

from __future__ import annotations

import re
from pathlib import Path

import parmap

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FRESH = ["python -m venv .venv", ". .venv/bin/activate"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_commands_are_those_of_a_fresh_machine():
    try_it, check_it = ([line for line in block.splitlines() if line] for block in blocks("sh"))
    assert try_it == [
        *FRESH,
        "pip install '.[examples,dask]'",
        "python examples/cross_validation.py",
        "PARMAP_PLAN=dask python examples/cross_validation.py",
    ]
    assert check_it == [*FRESH, "pip install nox", "nox"]


def test_the_checks_of_a_commit_run_the_readmes_commands():
    checks = (ROOT / ".ci" / "run").read_text().splitlines()
    assert checks[-2:] == ["pip install nox", "nox"]
    assert any("-m venv" in line for line in checks)


def test_the_documentation_gives_the_same_commands():
    assert blocks("sh")[0] in (ROOT / "docs" / "index.md").read_text()
    assert "\n".join(FRESH) in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_reference_lists_every_name():
    reference = (ROOT / "docs" / "reference.md").read_text()
    listed = re.findall(r"^\.\. auto\w+:: (\w+)$", reference, re.MULTILINE)
    assert sorted(listed) == parmap.__all__
