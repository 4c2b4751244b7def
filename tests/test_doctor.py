"""``python -m parmap doctor``."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest

import parmap
from parmap.__main__ import main
from parmap.cli import doctor
from parmap.plans import registry
from parmap.worker import native_threads


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
    assert "cores that this process may use: 1" in told
    lines = [line.split() for line in told.splitlines()]
    assert ["machine", str(os.cpu_count())] in [line[:2] for line in lines]
    assert ["SLURM_CPUS_PER_TASK", "1", "<-", "the", "least"] in lines


def test_native_libraries_are_told_with_their_threads(told):
    import numpy as np

    assert np.ones(1).sum() == 1
    for library in native_threads.loaded():
        line = next(line for line in told.splitlines() if library.filepath in line)
        assert "threads" in line
        assert library.internal_api in line


def test_plans_are_told_with_versions_and_times(told):
    for name in ("sequential", "threads", "processes"):
        line = next(line for line in told.splitlines() if line.split()[:1] == [name])
        assert "works; workers=1, first answer after" in line
        assert line.endswith("µs")


def test_each_thing_is_told_once(told):
    assert told.count("parmap 0.1.0") == 1
    assert "parmap-plans 0.1.0" not in told
    lines = [line for line in told.splitlines() if line]
    assert len(set(lines)) == len(lines)


def test_what_takes_long_is_told_before_it_begins(monkeypatch, capsys):
    """Whoever waits sees for what."""
    seen = {}

    def tried(name):
        seen[name] = capsys.readouterr().out.splitlines()[-1]
        return {"state": "is not tried", "why": "this is a test\nof two lines"}, True

    def imported(name):
        seen[name] = capsys.readouterr().out
        return found(name)

    found = doctor.import_module
    monkeypatch.setattr(doctor, "_tried", tried)
    monkeypatch.setattr(doctor, "import_module", imported)
    monkeypatch.setattr(doctor, "_NATIVE", ("numpy", "math"))
    monkeypatch.setattr(registry, "names", lambda: ["threads", "processes"])
    assert main(["doctor"]) == 0
    assert seen["numpy"].endswith("  importing numpy")
    assert seen["math"] == " math"
    assert seen["threads"] == "  threads      "
    assert seen["processes"] == "  processes    "
    last = capsys.readouterr().out.splitlines()
    assert last == ["is not tried: this is a test", f"{'':<15}of two lines"]


def test_what_is_not_installed_is_told_and_is_no_fault(monkeypatch, capsys):
    for package in ("distributed", "ray"):
        monkeypatch.setitem(sys.modules, package, None)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("dask", "ray"):
        line = next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert "is not available" in line
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
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    verdicts = {line[0]: line[1] for line in lines if line[:1] and line[0] in plans}
    assert verdicts["broken"] == "of somewhere 1.0: fails: OSError: no such machine"
    assert verdicts["wrong"].startswith("of somewhere 1.0: gives wrong results; workers=")
    assert verdicts["threads"].startswith("works; workers=")


def _wrongly(fn, *args, **kwargs):
    outcome = fn(*args, **kwargs)
    outcome.values[:] = [-1]
    return outcome


def test_a_library_that_fails_to_import_is_told(monkeypatch, tmp_path):
    (tmp_path / "breaks_when_imported.py").write_text("raise RuntimeError('built for another CPU')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "_NATIVE", ("breaks_when_imported",))
    lines = {found.line: found.fine for found in doctor._libraries() if found.facts}
    told = "breaks_when_imported fails to import: RuntimeError: built for another CPU"
    assert lines[told] is False


def test_the_same_for_programs(capsys):
    assert main(["doctor", "--json", "--plan", "threads(workers=1)"]) == 0
    told = json.loads(capsys.readouterr().out)
    (found,) = told["plans"]
    assert told["well"] is True
    assert (found["plan"], found["state"], found["workers"]) == ("threads(workers=1)", "works", 1)
    assert main(["doctor", "--json", "--plan", "threads(worker=1)"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["well"] is False
    assert "has no option 'worker'" in told["plans"][0]["why"]


def test_all_that_is_found_can_be_told_to_programs(monkeypatch, capsys):
    monkeypatch.setattr(registry, "names", lambda: ["sequential"])
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["well", "versions", "cores", "libraries", "plans"]
    assert {"source": "machine", "cores": os.cpu_count()} in told["cores"]
    assert {found["filepath"] for found in told["libraries"]} == {
        library.filepath for library in native_threads.loaded()
    }


def test_plans_are_listed_with_what_they_lack(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else found(name)
    )
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "qsub" else name)
    assert main(["plans"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = {line.split()[0]: place for place, line in enumerate(lines) if line[0] != " "}
    assert list(at) == registry.names()
    assert lines[at["processes"]].split(maxsplit=2)[1:] == [
        "ready",
        "Worker processes on this machine: for Python code that computes",
    ]
    assert lines[at["ray"] + 1].strip() == "needs ray: pip install 'parmap-plans[ray]'"
    # Its packages may be missing, too, where these tests run.
    assert lines[at["pbs"]].split(maxsplit=1)[1] == "Workers in jobs of PBS"
    assert "needs" in lines[at["pbs"] + 1]


def test_a_plan_of_another_package_that_is_broken_is_listed(monkeypatch, capsys):
    def named(name):
        raise parmap.BackendUnavailable(f"the plan {name!r} fails to import: no such disk")

    monkeypatch.setattr(registry, "names", lambda: ["theirs"])
    monkeypatch.setattr(registry, "named", named)
    assert main(["plans"]) == 0
    assert "fails to import: no such disk" in capsys.readouterr().out


def test_a_command_that_there_is_not(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["docter"])
    assert ended.value.code == 2
    assert "invalid choice: 'docter'" in capsys.readouterr().err
