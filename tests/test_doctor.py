"""``python -m parmap doctor``."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

import parmap
from parmap import doctor, registry
from parmap.__main__ import main
from parmap.worker import blas


@pytest.fixture(scope="module")
def told():
    """What a new process prints, in a job of two cores."""
    done = subprocess.run(
        [sys.executable, "-m", "parmap", "doctor"],
        env=os.environ | {"SLURM_CPUS_PER_TASK": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout


def test_cores_are_told_with_each_source(told):
    assert "Cores that this process may use: 1" in told
    lines = [line.split() for line in told.splitlines()]
    assert ["machine", str(os.cpu_count())] in [line[:2] for line in lines]
    assert ["SLURM_CPUS_PER_TASK", "1", "<-", "the", "least"] in lines


def test_native_libraries_are_told_with_their_threads(told):
    import numpy as np

    assert np.ones(1).sum() == 1
    for library in blas.loaded():
        line = next(line for line in told.splitlines() if library.filepath in line)
        assert "threads" in line
        assert library.internal_api in line


def test_plans_are_told_with_versions_and_times(told):
    version = importlib.metadata.version("parmap-plans")
    for name in ("sequential", "threads", "processes"):
        line = next(line for line in told.splitlines() if line.split()[:1] == [name])
        assert f"parmap-plans {version}" in line
        assert "works; workers=1, first answer after" in line
        assert line.endswith("µs")


def test_what_is_not_installed_is_told_and_is_no_fault(monkeypatch, capsys):
    for package in ("distributed", "ray"):
        monkeypatch.setitem(sys.modules, package, None)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("dask", "ray"):
        line = next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert "is not installed" in line
        assert f"pip install 'parmap-plans[{name}]'" in line


def test_what_fails_is_told_and_the_exit_status_says_so(monkeypatch, capsys):
    class Broken(parmap.plan("threads").__class__):
        name = "broken"

        def start(self):
            raise OSError("no such machine")

    class Wrong(parmap.plan("threads").__class__):
        name = "wrong"

        def start(self):
            executor = super().start()
            submit = executor.submit
            executor.submit = lambda fn, *args, **kwargs: submit(_wrongly, fn, *args, **kwargs)
            return executor

    plans = {"broken": Broken, "wrong": Wrong, "threads": parmap.plan("threads").__class__}
    monkeypatch.setattr(registry, "names", lambda: list(plans))
    monkeypatch.setattr(registry, "named", plans.__getitem__)
    monkeypatch.setattr(registry, "provider", lambda _: "somewhere 1.0")
    monkeypatch.setattr(doctor, "_NATIVE", ("math", "no_such_library_at_all"))
    assert main(["doctor"]) == 1
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    verdicts = {line[0]: line[3] for line in lines if line[:1] and line[0] in plans}
    assert verdicts["broken"] == "fails: OSError: no such machine"
    assert verdicts["wrong"].startswith("gives wrong results; workers=")
    assert verdicts["threads"].startswith("works; workers=")


def _wrongly(fn, *args, **kwargs):
    outcome = fn(*args, **kwargs)
    outcome.values[:] = [-1]
    return outcome


def test_a_library_that_fails_to_import_is_told(monkeypatch, tmp_path):
    (tmp_path / "breaks_when_imported.py").write_text("raise RuntimeError('built for another CPU')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "_NATIVE", ("breaks_when_imported",))
    lines = dict(doctor._libraries())
    told = "  breaks_when_imported fails to import: RuntimeError: built for another CPU"
    assert lines[told] is False


def test_a_command_that_there_is_not(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["docter"])
    assert ended.value.code == 2
    assert "invalid choice: 'docter'" in capsys.readouterr().err
