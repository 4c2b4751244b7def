"""Every check, each in its own environment: ``nox``, or one of them: ``nox -s lint``."""

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
    elsewhere = ("tests/engines", "tests/cluster", *_PROGRAMS)
    session.run("pytest", *_TWO, *(f"--ignore={path}" for path in elsewhere), *session.posargs)


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
