"""Every check, each in its own environment: ``nox``, or one of them: ``nox -s lint``."""

import nox

RUFF = "ruff==0.17.6"
MYPY = "mypy==2.4.1"

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "docs", "doctests", "tests"]


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
    session.install("-e", ".[test]")
    session.run("pytest", "--doctest-modules", "parmap")


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after ``--`` go to pytest.

    The oldest and the newest Python run all of them; those between run the conformance suite
    on the plan that depends on the interpreter most.
    """
    session.install(".[test]")
    between = session.python not in ("3.11", "3.13") and not session.posargs
    session.run("pytest", *(["tests/test_processes.py"] if between else session.posargs))
