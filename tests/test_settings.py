"""What a script has set: what is sent of it, and when; the contract has what tasks see of it."""

import importlib.util
import os
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest

import parmap
from parmap.engine import script_settings


@pytest.mark.parametrize("start", ["fresh", "fork"])
def test_what_workers_inherit_can_be_taken_back(start, monkeypatch):
    limit = sys.getrecursionlimit()
    monkeypatch.setenv("EARLY", "1")
    try:
        sys.setrecursionlimit(limit + 500)
        with np.errstate(divide="raise"), parmap.plan("processes", workers=1, start=start):
            seen = parmap.pmap(lambda _: (os.environ.get("EARLY"), sys.getrecursionlimit()), [0])
            assert seen == [("1", limit + 500)]
            monkeypatch.delenv("EARLY")
            sys.setrecursionlimit(limit)
            with np.errstate(divide="warn"):
                seen = parmap.pmap(
                    lambda _: (
                        os.environ.get("EARLY"),
                        sys.getrecursionlimit(),
                        np.geterr()["divide"],
                    ),
                    [0],
                )
            assert seen == [(None, limit, "warn")]
    finally:
        sys.setrecursionlimit(limit)


def test_where_nothing_is_set_nothing_is_sent(run):
    """Also beside libraries that have filters of their own, and many loggers."""
    assert (
        run(
            """
            import logging
            import numpy, pandas, sklearn.linear_model
            import parmap
            from parmap.engine.callspec import spec_for
            from parmap.engine.settings import Settings

            for number in range(500):
                logging.getLogger(f"some.{number}")
            with parmap.plan("processes", workers=1) as session:
                print(spec_for(session, abs, Settings()).caller)
                with numpy.errstate(all="raise"):
                    print([name for name, _ in spec_for(session, abs, Settings()).caller.settings])
                print(spec_for(session, abs, Settings()).caller)
            """,
            flags=(),
        )
        == "None\n['NumPy error handling']\nNone\n"
    )


@pytest.mark.parametrize("plan", ["sequential", "threads", "processes"])
def test_torch_is_as_in_the_script(run, plan):
    """Its default dtype, and whether it takes gradients."""
    # In a process of its own: here it would be loaded for all tests that follow.
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    out = run(
        """
        import sys
        import torch
        import parmap

        def state(_):
            return str(torch.zeros(1).dtype), torch.is_grad_enabled()

        def same():
            return parmap.pmap(state, [1, 2, 3], chunks=1) == list(map(state, [1, 2, 3]))

        with parmap.plan(sys.argv[1]):
            found = [same()]
            with torch.no_grad():
                found.append(same())
                torch.set_default_dtype(torch.float64)
                found.append(same())
            found.append(same())
            torch.set_default_dtype(torch.float32)
            found.append(same())
        print(found)
        """,
        plan,
        flags=(),
    )
    assert out == f"{[True] * 5}\n"


def test_warnings_are_errors_by_the_command_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import warnings, parmap

            def fn(x):
                warnings.warn("no")
                return x

            with parmap.plan("processes", workers=2):
                try:
                    print(parmap.pmap(fn, range(3)))
                except UserWarning as error:
                    print(error)
            """
        )
    )
    command = [sys.executable, "-W", "error::UserWarning", str(script)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (out.stdout, out.stderr) == ("no\n", "")


def test_what_setup_has_set_stays_where_the_script_has_set_nothing(monkeypatch):
    def setup():
        os.environ["OF_SETUP"] = "setup"
        np.seterr(divide="raise")

    def seen(_):
        return os.environ.get("OF_SETUP"), os.environ.get("OF_SCRIPT"), np.geterr()["divide"]

    with parmap.plan("processes", workers=1, setup=setup):
        monkeypatch.setenv("OF_SCRIPT", "script")
        assert parmap.pmap(seen, [0]) == [("setup", "script", "raise")]
        monkeypatch.setenv("OF_SETUP", "script")
        with np.errstate(divide="ignore"):
            assert parmap.pmap(seen, [0]) == [("script", "script", "ignore")]


def test_a_call_keeps_the_environment_of_its_beginning(monkeypatch):
    with parmap.plan("processes", workers=2):
        monkeypatch.setenv("CHANGES", "before")
        results = parmap.imap(lambda _: os.environ.get("CHANGES"), iter(range(40)), chunks=1)
        first = next(results)
        monkeypatch.setenv("CHANGES", "after")
        assert [first, *results] == ["before"] * 40


def test_a_filter_whose_class_cannot_be_pickled_is_named(monkeypatch):
    monkeypatch.setattr(script_settings, "_said", set())

    class Kind(type):
        def __reduce_ex__(cls, protocol):
            raise TypeError("it stays here")

    class Stuck(UserWarning, metaclass=Kind):
        lock = __import__("threading").Lock()

    with parmap.plan("processes", workers=1):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", Stuck)
            assert parmap.pmap(abs, [-1]) == [1]
            assert parmap.pmap(abs, [-1]) == [1]
        assert len(caught) == 1
        assert "'warning filters': one of them cannot be pickled" in str(caught[0].message)


OFFERED = """
import threading

value, raises = "usual", False


def read():
    if raises:
        raise ValueError("unreadable")
    return value


def apply(one):
    global value
    if one == "bad":
        raise ValueError("inapplicable")
    value = one
"""


@pytest.fixture
def offered(tmp_path):
    """Install a package that offers a setting; give the folder."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    module = "import parmap\nimport offering\n"
    module += 'SETTING = parmap.Setting("offering", offering.read, offering.apply, usual="usual")\n'
    (folder / "offering.py").write_text(OFFERED)
    (folder / "offering_parmap.py").write_text(module)
    info = folder / "offering-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[parmap.settings]\noffer = offering_parmap:SETTING\n")
    return os.fspath(folder)


def test_packages_offer_settings(run, offered):
    out = run(
        """
        import offering, parmap, warnings

        def seen(_):
            import offering
            return offering.value

        with parmap.plan("processes", workers=1):
            print(parmap.pmap(seen, [0]))
            offering.value = "set"
            print(parmap.pmap(seen, [0]), parmap.submit(seen, 0).result())
            offering.value = "usual"
            print(parmap.pmap(seen, [0]))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                offering.value = "bad"
                print(parmap.pmap(seen, [0]), parmap.pmap(seen, [0]))
                offering.raises = True
                print(parmap.pmap(seen, [0]))
            print(*(one.message for one in caught))
        """,
        PYTHONPATH=offered,
    )
    lines = out.splitlines()
    assert lines[:3] == ["['usual']", "['set'] set", "['usual']"]
    assert lines[3:5] == ["['usual'] ['usual']", "['usual']"]
    (told,) = lines[5:]
    assert told.startswith("tasks do not see the script's setting 'offer': in a worker, ValueErr")


def test_settings_reach_calls_inside_of_tasks(run):
    out = run(
        """
        import contextvars, decimal, os, sys
        import parmap

        variable = contextvars.ContextVar("variable", default=0)

        def inner(_):
            return os.environ["INNER"], decimal.getcontext().prec, variable.get()

        def outer(x):
            return parmap.pmap(inner, [x])

        os.environ["INNER"] = "1"
        decimal.getcontext().prec = 7
        variable.set(5)
        for first in ("processes", "threads"):
            for second in ("processes", "threads"):
                with parmap.plan([first, second]):
                    print(parmap.pmap(outer, [1]))
        """
    )
    assert out == "[[('1', 7, 5)]]\n" * 4


def test_what_cannot_be_read_is_named_and_the_call_goes_on(start):
    """And a module that the script has barred is not read."""
    script = start(
        """
        import logging, sys
        import parmap

        class Odd(logging.Logger):
            level = property(lambda self: 1 / 0, lambda self, level: None)

        sys.modules["torch"] = None
        logging.setLoggerClass(Odd)
        logging.getLogger("odd")
        with parmap.plan("processes", workers=1):
            print(parmap.pmap(abs, [-1]), parmap.pmap(abs, [-1]))
        """,
        flags=(),
    )
    out, errors = script.end()
    assert out == "[1] [1]\n"
    assert errors.count("RuntimeWarning") == 1
    assert "'levels of loggers': reading it raised ZeroDivisionError" in errors
