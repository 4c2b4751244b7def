"""``python -m parmap run``, and ``doctor --plan``."""

from __future__ import annotations

import os
import subprocess
import sys


def parmap(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "parmap", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def test_run_runs_a_script_on_a_plan(tmp_path):
    (tmp_path / "beside.py").write_text("def half(x): return x / 2")
    (tmp_path / "script.py").write_text(
        "import sys, parmap\n"
        "from beside import half\n"
        "if __name__ == '__main__':\n"
        "    print(parmap.pmap(half, [4]), sys.argv[1:], parmap.current_plan())\n"
    )
    done = parmap("run", "--plan", "threads(workers=2)", "script.py", "-x", "1", cwd=tmp_path)
    assert done.stdout == "[2.0] ['-x', '1'] threads(workers=2)\n", done.stderr


def test_run_refuses_a_plan_that_is_none(tmp_path):
    done = parmap("run", "--plan", "thread", "script.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'threads'?" in done.stderr


def test_run_refuses_a_script_that_is_missing(tmp_path):
    done = parmap("run", "--plan", "threads", "scirpt.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "there is no file 'scirpt.py': give the script's path\n"


def test_doctor_looks_at_one_plan(tmp_path):
    done = parmap("doctor", "--plan", "threads(workers=2)", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("threads(workers=2) works; workers=2, ")
    assert len(done.stdout.splitlines()) == 1


def test_doctor_says_what_is_wrong_with_a_plan(tmp_path):
    done = parmap("doctor", "--plan", "threads(worker=2)", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("PlanError: the plan 'threads' has no option 'worker'")
