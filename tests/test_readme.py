"""The README does what it says: its code runs, and its commands are those that are checked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import parmap

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FRESH = ["python -m venv .venv", ". .venv/bin/activate"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(code, folder):
    # A script of its own, without a guard, in another directory than the checkout.
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PARMAP_PLAN", None)
    return subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("code", blocks("python"))
def test_code_runs_as_a_script(code, tmp_path):
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_output_is_what_the_text_says(tmp_path):
    first, *_, last = (run(code, tmp_path).stdout for code in blocks("python"))
    assert first == f"{[sum(i**3 for i in range(n)) / n for n in (10, 1_000, 100_000)]}\n"
    assert "<Failure of element 3: WorkerDied:" in last
    assert "SIGSEGV" in last
    assert "script.py" in last


def test_commands_are_those_of_a_fresh_machine():
    try_it, check_it = ([line for line in block.splitlines() if line] for block in blocks("sh"))
    assert try_it == [
        *FRESH,
        "pip install '.[examples]'",
        "python examples/cross_validation.py",
        "PARMAP_PLAN=threads python examples/cross_validation.py",
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


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
