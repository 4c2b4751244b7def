"""The examples run, and print the same on every plan."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[1]


def table(example, plan, *flags):
    return output(example, plan, *flags)[0]


def output(example, plan, *flags):
    """The lines of the table, and what comes by standard error: each state of a bar."""
    every_state = {"TQDM_MININTERVAL": "0"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / example, *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PARMAP_PLAN": plan, **every_state},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    *lines, time = done.stdout.splitlines()
    assert time.endswith(f"s on {plan}")
    return lines, done.stderr


@pytest.mark.parametrize(
    ("example", "lines"),
    [
        ("cross_validation.py", 5),
        ("nested_loops.py", 4),
        ("one_big_model.py", 2 + sum(map(bool, map(find_spec, ("jax", "torch"))))),
        ("simulation.py", 4),
        ("strata.py", 9),
        ("three_models.py", 4),
        ("uneven_methods.py", 6),
    ],
)
def test_an_example_prints_the_same_table_on_every_plan(example, lines):
    plans = ["sequential", "threads(workers=2)", "processes(workers=2)"]
    one, *others = [table(example, plan) for plan in plans]
    assert len(one) == lines
    assert others == [one, one]


def test_cross_validation_shows_how_far_it_is():
    _, errors = output("cross_validation.py", "processes(workers=2)")
    fits = [int(done) for done in re.findall(r"\b(\d+)/40 ", errors)]
    assert (fits[0], fits[-1]) == (0, 40)
    assert fits == sorted(fits)
    # Each fold has its fits of a forest and of boosting: long ones, that share no chunk.
    assert len(set(fits)) > 10


def test_the_picture_of_who_waited_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "waits.png"
    table("uneven_methods.py", "processes(workers=2)", "--picture", os.fspath(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
