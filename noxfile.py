"""Every check, each in its own environment: ``nox``, or one of them: ``nox -s lint``."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import nox

RUFF = "ruff==0.17.6"
MYPY = "mypy==2.4.1"
PYRIGHT = "pyright[nodejs]==1.1.414"

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = [
    *("lint", "types", "docs", "tests", "core", "newest(3.15-core)"),
    *("engines", "cluster"),
]


# Whole programs: which interpreter runs them matters little, so they run on one, with all engines.
_PROGRAMS = [f"tests/test_{name}.py" for name in ("benchmarks", "examples", "notebook", "pages")]
# All tests but those of engines, clusters and programs.
_LOCAL = [f"--ignore={path}" for path in ("tests/engines", "tests/cluster", *_PROGRAMS)]
# Tests wait, for processes to start and to die, so two run at a time.
_TWO = ("-n", "2", "--dist", "loadscope")
# Some repeat on another number of workers, engine or job what the others show: `nox -s long`.
_BRIEF = ("-m", "not long")
# While a command writes nothing, this says every few seconds that it still runs. The command then
# writes to a pipe, and pytest must be told about colors.
_HEARTBEAT = ("python", "tests/heartbeat.py")
_COLOR = f"--color={'yes' if sys.stdout.isatty() else 'auto'}"
# What depends on the interpreter most.
_CORE = [
    f"tests/test_{name}.py"
    for name in (
        *("async", "callbacks", "executors", "family", "forks", "identity", "inherited"),
        *("pickle_errors", "plans", "processes", "sequential", "threads"),
    )
]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(RUFF)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, and what users' type checkers make of its functions."""
    session.install(MYPY, PYRIGHT, ".[test]")  # the conformance suite is typed, too
    session.run("mypy", "--strict", "parmap")
    session.run("mypy", "--strict", "tests/typing")
    session.run("pyright")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, where a warning is an error, and run the docstrings' examples."""
    # Modules of plan dask import it; the conformance suite, which has a page, imports pytest.
    session.install("-e", ".[docs,test,dask]")
    session.run("pytest", "--doctest-modules", "parmap")
    session.run(
        *("sphinx-build", "-W", "--keep-going", "-n", "-b", "html"), "docs", "docs/_build/html"
    )


# nox brings virtualenv along, which needs a second; `python -m venv` is silent for up to twelve.
@nox.session(venv_backend="virtualenv")
def demo(session: nox.Session) -> None:
    """Cross-validate four models on processes, then on Dask. Not one of the checks."""
    session.log("Install parmap, scikit-learn and Dask into a new environment")
    _install(session, ".[examples,dask]")
    for plan, where in (("processes", "worker processes"), ("dask", "Dask, on this machine")):
        session.log(f"Cross-validate four models (40 fits) on {where}")
        command = ("python", "examples/cross_validation.py")
        session.run(*_HEARTBEAT, *command, env={"PARMAP_PLAN": plan})
    session.log("Compare the two tables: only the line with the time differs")


@nox.session(venv_backend="virtualenv")
def tests(session: nox.Session) -> None:
    """Run the tests on the Python that runs nox; arguments after ``--`` go to pytest."""
    _install(session, ".[test]")
    what = (*_TWO, *_BRIEF, *_LOCAL, *session.posargs)
    session.run(*_HEARTBEAT, "pytest", _COLOR, *what)


def _install(session: nox.Session, what: str) -> None:
    """Install packages; never be silent for long."""
    session.run_install(*_HEARTBEAT, "python", "-m", "pip", "install", what)


@nox.session(python="3.13")
def core(session: nox.Session) -> None:
    """Run Python 3.13's own tests of executors, and the tests of what forks.

    The contract runs on 3.11, and its core on 3.15: what holds on both has held on those between.
    `nox -s long` runs all on each.
    """
    session.install(".[test]")
    own = [f"tests/test_{name}.py" for name in ("cpython", "forks", "identity")]
    session.run("pytest", *_TWO, *_BRIEF, *own, *session.posargs)


@nox.session(python="3.12")
def engines(session: nox.Session) -> None:
    """Run the conformance suite on Dask, Ray, joblib, MPI and ipyparallel, and whole programs."""
    session.install(".[test,engines]")
    suites = ["tests/engines", "docs/howto/test_futures_plan.py"]
    what = session.posargs or [*_BRIEF, *suites, *_PROGRAMS]
    # A test that kills many workers waits for as many new ones, here beside other engines.
    with tempfile.TemporaryDirectory() as folder:
        env = {} if session.posargs else {"PARMAP_MPI4PY": _mpi4py(session, folder)}
        session.run("pytest", *_TWO, "--timeout", "300", *what, env=env)


@nox.session(name="long", python=["3.11", "3.12", "3.13"])
def long_(session: nox.Session) -> None:
    """Run all tests on all Pythons, also those that take too long for each commit: at night."""
    session.install(".[test,engines,ssh,slurm]")
    what = [*session.posargs, "tests", "docs/howto/test_futures_plan.py"]
    more = ("--hypothesis-profile", "long", "--timeout", "600")
    with tempfile.TemporaryDirectory() as folder:
        env = {"PARMAP_MPI4PY": _mpi4py(session, folder)}
        session.run("pytest", "-n", "2", "--dist", "loadfile", *more, *what, env=env)


def _mpi4py(session: nox.Session, into: str) -> str:
    """Fetch mpi4py's sources, which hold its tests of executors; give their folder.

    Not into `session.create_tmp()`: that becomes TMPDIR, a path too long for Ray's sockets.
    """
    session.run_install(
        "pip", "download", "--no-deps", "--no-binary", "mpi4py", "-d", into, "mpi4py"
    )
    (archive,) = Path(into).glob("mpi4py-*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(into, filter="data")
    return str(archive).removesuffix(".tar.gz")


@nox.session(venv_backend="none")
@nox.parametrize(
    "version,extras,what",
    [
        nox.param("3.15", "test", ["tests", *_LOCAL], id="3.15"),
        nox.param("3.15", "test,engines", ["tests/engines"], id="3.15-engines"),
        nox.param("3.15", "test", _CORE, id="3.15-core"),
        nox.param("3.14", "test", _CORE, id="3.14-core"),
    ],
)
def newest(session: nox.Session, version: str, extras: str, what: list[str]) -> None:
    """Run the tests on Python 3.15, and their core on 3.14.

    As root, where debootstrap is or can be had: in a Debian that has both, which is kept in
    ``.nox/.cache/newest``. Elsewhere on the machine's own. Arguments after ``--`` go to pytest.
    """
    arguments = (*_TWO, "--timeout", "300", *(session.posargs or [*_BRIEF, *what]))
    check = [sys.executable, "tests/newest.py", "--check"]
    why = subprocess.run(check, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    if not why:
        folder = str(Path(session.cache_dir) / "newest")
        session.run(sys.executable, "tests/newest.py", folder, version, extras, *arguments)
    elif python := shutil.which(f"python{version}"):
        with tempfile.TemporaryDirectory() as venv:
            session.run(python, "-m", "venv", venv)
            session.run(f"{venv}/bin/pip", "install", "-q", f".[{extras}]")
            session.run(f"{venv}/bin/python", "-m", "pytest", *arguments)
    else:
        session.skip(f"there is no python{version} here, and {why}")


@nox.session(python="3.12")
def cluster(session: nox.Session) -> None:
    """Run plans ssh and slurm on real hosts, which are made of this machine, as root.

    Where that cannot be done, it says why, and skips.
    """
    session.install(".[test,ssh,slurm]")
    # Each file has hosts of its own.
    apart = ("-n", "2", "--dist", "loadfile")
    what = session.posargs or [*_BRIEF, "tests/cluster"]
    session.run("pytest", *apart, "--timeout", "400", *what)


@nox.session(python="3.12")
def bench(session: nox.Session) -> None:
    """Measure parmap and its peers side by side, and write docs/benchmarks; for a quiet machine.

    Arguments after ``--`` go to the command: ``nox -s bench -- --quick --only fine``.
    """
    session.install(".[bench]")
    session.run("python", "-m", "tests.benchmarks", *session.posargs)
