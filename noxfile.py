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

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "docs", "doctests", "tests", "engines", "cluster"]


# Whole programs: which interpreter runs them matters little, so they run on one, with all engines.
_PROGRAMS = [f"tests/test_{name}.py" for name in ("benchmarks", "examples", "notebook", "pages")]
# All tests but those of engines, clusters and programs.
_LOCAL = [f"--ignore={path}" for path in ("tests/engines", "tests/cluster", *_PROGRAMS)]
# Tests wait, for processes to start and to die, so two run at a time.
_TWO = ("-n", "2", "--dist", "loadscope")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(RUFF)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package."""
    session.install(MYPY, ".[test]")  # the conformance suite is typed, too
    session.run("mypy", "--strict", "parmap")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install("-e", ".[docs,test]")  # the suite that it documents needs pytest
    session.run(
        *("sphinx-build", "-W", "--keep-going", "-n", "-b", "html"), "docs", "docs/_build/html"
    )


@nox.session
def doctests(session: nox.Session) -> None:
    """Run the examples of the docstrings."""
    session.install("-e", ".[test,dask]")  # modules of that plan import it
    session.run("pytest", "--doctest-modules", "parmap")


@nox.session(python=["3.11", "3.13"])
def tests(session: nox.Session) -> None:
    """Run the tests on the oldest and the newest Python; arguments after ``--`` go to pytest."""
    session.install(".[test]")
    session.run("pytest", *_TWO, *_LOCAL, *session.posargs)


@nox.session(python="3.12")
def engines(session: nox.Session) -> None:
    """Run the conformance suite on Dask, Ray, joblib, MPI and ipyparallel, and whole programs.

    And the suite on the plan that depends on the interpreter most, for this Python is the one
    between.
    """
    session.install(".[test,engines]")
    suites = ["tests/engines", "tests/test_processes.py", "docs/howto/test_futures_plan.py"]
    what = session.posargs or [*suites, *_PROGRAMS]
    # A test that kills many workers waits for as many new ones, here beside other engines.
    with tempfile.TemporaryDirectory() as folder:
        env = {} if session.posargs else {"PARMAP_MPI4PY": _mpi4py(session, folder)}
        session.run("pytest", *_TWO, "--timeout", "300", *what, env=env)


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


# What depends on the interpreter most.
_CORE = [
    f"tests/test_{name}.py"
    for name in (
        *("adopted", "async", "callbacks", "culprit", "executors", "family", "forks", "identity"),
        *("inherited", "plans", "processes", "random", "sequential", "threads"),
    )
]


@nox.session(venv_backend="none")
@nox.parametrize(
    "version,what",
    [
        nox.param("3.15", ["tests", *_LOCAL], id="3.15"),
        nox.param("3.15", ["tests/engines"], id="3.15-engines"),
        nox.param("3.15", _CORE, id="3.15-core"),
        nox.param("3.14", _CORE, id="3.14-core"),
    ],
)
def newest(session: nox.Session, version: str, what: list[str]) -> None:
    """Run the tests on Python 3.15, and their core on 3.14.

    As root, where debootstrap is or can be had: in a Debian that has both, which is kept in
    ``.nox/newest``. Elsewhere on the machine's own. Arguments after ``--`` go to pytest.
    """
    extras = "test,engines"
    arguments = (*_TWO, "--timeout", "300", *(session.posargs or what))
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
    session.run("pytest", *apart, "--timeout", "400", *(session.posargs or ["tests/cluster"]))


@nox.session(python="3.12")
def bench(session: nox.Session) -> None:
    """Measure parmap and its peers side by side, and write docs/benchmarks; for a quiet machine.

    Arguments after ``--`` go to the command: ``nox -s bench -- --quick --only fine``.
    """
    session.install(".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
