"""``python -m parmap``: its commands, ``run``, and ``doctor --plan``."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def parmap(*arguments, cwd, path=ROOT, flags=()):
    return subprocess.run(
        [sys.executable, *flags, "-m", "parmap", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.fspath(path)},
    )


def python(script, *, cwd, path=ROOT):
    return subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.fspath(path)},
    )


def test_alone_it_shows_its_commands(tmp_path):
    done = parmap(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("doctor", "plans", "run"):
        assert f"\n    {command} " in done.stdout


def test_it_tells_its_version(tmp_path):
    done = parmap("--version", cwd=tmp_path)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (done.returncode, done.stdout) == (0, f"parmap {project['version']}\n")


def test_the_console_script_is_the_same(capsys, monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["parmap"].partition(":")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/parmap"])
    assert getattr(importlib.import_module(module), function)() == 0
    assert capsys.readouterr().out.startswith("usage: parmap [")


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


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    return 1 / x\n\nimport parmap\nparmap.pmap(f, [1, 0])\n",
        "import no_such_module\n",
        "try:\n    1 / 0\nfinally:\n    {}['x']\n",
        "def f(:\n",
        "import sys\nsys.excepthook = lambda kind, error, trace: print(trace.tb_lineno)\n1 / 0\n",
        "raise SystemExit('no data')\n",
    ],
    ids=["call", "import", "context", "syntax", "hook", "exit"],
)
def test_errors_of_run_begin_at_the_users_frame(tmp_path, source):
    """They are those of `python script.py`."""
    (tmp_path / "script.py").write_text(source)
    expected = python("script.py", cwd=tmp_path)
    done = parmap("run", "--plan", "sequential", "script.py", cwd=tmp_path)
    assert done.returncode == expected.returncode == 1
    assert done.stdout == expected.stdout
    lines = [
        [line for line in one.stderr.splitlines() if "host" not in line and "process" not in line]
        for one in (done, expected)
    ]
    assert lines[0] == lines[1]
    assert "runpy" not in done.stderr


def test_ctrl_c_ends_run_as_it_ends_a_script(tmp_path):
    (tmp_path / "script.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    done = parmap("run", "--plan", "sequential", "script.py", cwd=tmp_path)
    assert done.returncode == -signal.SIGINT
    assert "runpy" not in done.stderr
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("parmap.set_plan('threads', workers=3)", "threads(workers=3), wins over --plan threads("),
        ("parmap.set_plan('threads', workers=2)", ""),
        ("parmap.set_plan(os.environ['PARMAP_PLAN'])", ""),
        ("pass", ""),
    ],
)
def test_run_says_who_won(tmp_path, line, says):
    script = f"import os, parmap\nfor _ in range(2):\n    {line}\nprint(parmap.current_plan())\n"
    (tmp_path / "script.py").write_text(script)
    done = parmap("run", "--plan", "threads(workers=2)", "script.py", cwd=tmp_path)
    won = "threads(workers=3)" if says else "threads(workers=2)"
    assert done.stdout == f"{won}\n"
    assert done.stderr.count("wins over") == bool(says)
    if says:
        assert f"script.py, line 3, calls set_plan. Its plan, {says}" in done.stderr


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


# -- an unrelated project of the same name --------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    """Make a folder of installed packages: ours, and the other project beside it."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "parmap", site / "parmap", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "parmap-1.7.0.dist-info").mkdir()
    (site / "parmap-1.7.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: parmap\nVersion: 1.7.0\n"
    )
    return site


def test_doctor_tells_of_the_unrelated_project_beside_ours(site, tmp_path):
    (tmp_path / "doctor.py").write_text(
        "from parmap.__main__ import main\n"
        "from parmap.cli import doctor\n"
        "from parmap.plans import registry\n"
        "registry.names = lambda: ['sequential']\n"  # to try the others takes its time
        "doctor._NATIVE = ()\n"
        "main(['doctor'])\n"
    )
    done = python("doctor.py", cwd=tmp_path, path=site)
    (line,) = [line for line in done.stdout.splitlines() if "unrelated project" in line]
    assert "parmap 1.7.0 is installed in the same folder" in line
    assert "pip install --force-reinstall --no-deps parmap-plans" in line
    # Elsewhere on the path it does no harm.
    done = python("doctor.py", cwd=tmp_path, path=f"{ROOT}{os.pathsep}{site}")
    assert "sequential   works" in done.stdout
    assert "unrelated" not in done.stdout


@pytest.mark.parametrize("command", [("doctor",), ("plans",), ()])
def test_what_the_unrelated_project_has_removed_is_told(site, tmp_path, command):
    (site / "parmap" / "__init__.py").unlink()
    shutil.rmtree(site / "parmap-1.7.0.dist-info")
    # Without the packages that are installed here: parmap may be one, and whole.
    done = parmap(*command, cwd=tmp_path, path=site, flags=["-S"])
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{site}/parmap/__init__.py is missing" in done.stderr
    assert "install parmap-plans again" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_unrelated_project_has_replaced_is_told(site, tmp_path):
    (site / "parmap" / "parmap.py").write_text("def map(): pass\n")
    (site / "parmap" / "__init__.py").write_text("from .parmap import map\n")
    done = parmap("doctor", cwd=tmp_path, path=site)
    assert (done.returncode, done.stdout) == (1, "")
    assert "belongs to the unrelated project parmap 1.7.0" in done.stderr
    assert "pip uninstall parmap" in done.stderr
