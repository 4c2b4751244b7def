"""Modules of the user's, in workers that start while a call runs, and in its sessions."""

import importlib
import os
import time

import pytest

import parmap
from parmap.testing.code import modules_in
from parmap.transport import modules, payload

USED = "SIZE = {size}\n"
EDITING = """
    import os, signal
    from used_by_editing import SIZE

    def edited(i):
        import used_by_editing

        if i == 0:
            for name, text in {texts!r}.items():
                with open(name, "w") as file:
                    file.write(text)
                os.utime(name, ({later}, {later}))
            os.kill(os.getpid(), signal.SIGKILL)
        return i + SIZE, used_by_editing.SIZE
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Give what writes a module, and imports it."""
    # Files that are written now are older than this interpreter.
    monkeypatch.setattr(modules, "_STARTED", time.time() + 1000)
    yield from modules_in(tmp_path, monkeypatch)
    monkeypatch.setattr(modules, "sources", ())


def test_a_worker_that_replaces_another_runs_the_code_of_the_call(module, tmp_path):
    """The file is edited while the call runs, and the new worker imports it only then."""
    module("used_by_editing", USED.format(size=1))
    texts = {
        os.fspath(tmp_path / "used_by_editing.py"): USED.format(size=1000),
        os.fspath(tmp_path / "editing.py"): "def edited(i):\n    return 'new'\n",
    }
    editing = module("editing", EDITING.format(texts=texts, later=time.time() + 2000))
    with parmap.plan("processes", workers=1):
        results = parmap.pmap(editing.edited, range(4), errors="return", chunks=1)
    assert isinstance(results[0].error, parmap.WorkerDied)
    assert results[1:] == [(i + 1, 1) for i in range(1, 4)]
    assert texts[editing.__file__] in (tmp_path / "editing.py").read_text()


def test_a_module_travels_by_name_until_it_changes(module):
    """Or one that it uses does, which may be known to a function of it alone."""
    used = module("used_here", "def own():\n    return 1\n")
    user = module("user_here", "def late():\n    import used_here\n    return used_here.own()\n")
    assert payload.by_value(user.late).count(b"used_here") == 0
    os.utime(used.__file__, (time.time() + 2000,) * 2)
    assert payload.by_value(user.late).count(b"used_here") > 0


def test_a_module_that_is_gone_or_hidden_travels_by_value(module, tmp_path, monkeypatch):
    own = module("of_mine", "def own():\n    return 1\n")
    size = len(payload.by_value(own.own))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "of_mine.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "first")
    assert len(payload.by_value(own.own)) > 2 * size
    (tmp_path / "first" / "of_mine.py").unlink()
    importlib.invalidate_caches()
    monkeypatch.syspath_prepend(tmp_path)
    assert len(payload.by_value(own.own)) == size
    os.unlink(own.__file__)
    assert len(payload.by_value(own.own)) > 2 * size


def test_what_cannot_travel_in_a_module_that_does(module):
    """It is named; where nobody needs it, it stays here."""
    own = module(
        "has_a_lock",
        "import threading\nlock = threading.Lock()\ndef free(i):\n    return i\n"
        "def locked(i):\n    with lock:\n        return i\n",
    )
    os.utime(own.__file__, (time.time() + 2000,) * 2)
    with parmap.plan("processes", workers=1):
        assert parmap.pmap(own.free, [1]) == parmap.pmap(lambda i: own.free(i), [1]) == [1]
        for fn in (own.locked, lambda i: own.locked(i)):
            with pytest.raises(parmap.SerializationError, match=r"lock'?\]? cannot be sent"):
                parmap.pmap(fn, [1])
