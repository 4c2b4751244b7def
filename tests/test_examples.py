"""The examples run, and print the same on every plan."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[1]


def table(example, plan):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / example],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PARMAP_PLAN": plan},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    *lines, time = done.stdout.splitlines()
    assert time.endswith(f"s on {plan}")
    return lines


@pytest.mark.parametrize("example", ["cross_validation.py", "nested_loops.py", "simulation.py"])
def test_an_example_prints_the_same_table_on_every_plan(example):
    plans = ["sequential", "threads(workers=2)", "processes(workers=2)"]
    one, *others = [table(example, plan) for plan in plans]
    assert len(one) >= 4
    assert others == [one, one]
