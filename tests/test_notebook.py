"""In a notebook: what cells show, the bar, and a cell that is interrupted."""

import asyncio
import os
import tempfile
import threading
from pathlib import Path

import nbclient
import nbformat
import pytest
from traitlets.config import Config

import parmap

ROOT = os.fspath(Path(parmap.__file__).parents[1])


class Notebook:
    """Cells, run one by one in a kernel of their own."""

    def __init__(self, folder, sockets):
        """Prepare a kernel that works in `folder` and listens on sockets in the empty `sockets`.

        It uses no TCP ports: the client chooses five free ones, and the kernel binds them only
        once it has started, so another program may take one in between. A kernel that cannot bind
        its iopub port hangs while it exits, and the client waits for it until the timeout.
        """
        connection = os.path.join(sockets, "kernel.json")
        self.client = nbclient.NotebookClient(
            nbformat.v4.new_notebook(),
            timeout=60,
            record_timing=False,  # it asks for the time in a way that Python deprecates
            resources={"metadata": {"path": str(folder)}},
            config=Config(KernelManager={"transport": "ipc", "connection_file": connection}),
        )

    def run(self, code):
        """Run a cell; give what it shows."""
        cell = nbformat.v4.new_code_cell(code)
        self.client.nb.cells.append(cell)
        return self.client.execute_cell(cell, len(self.client.nb.cells) - 1).outputs

    def interrupt(self):
        """Press the button with the square."""
        asyncio.run(self.client.km._async_interrupt_kernel())


@pytest.fixture
def unstarted(tmp_path, monkeypatch):
    """Prepare a notebook that shares no file with the user's notebooks or with other tests."""
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.delenv("PARMAP_PLAN", raising=False)
    own = tmp_path / "own"
    own.mkdir()
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(own / name))
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    # Not in `tmp_path`: a socket's path has at most 107 bytes, on macOS 103.
    with tempfile.TemporaryDirectory(prefix="kernel") as sockets:
        yield Notebook(tmp_path, sockets)


@pytest.fixture
def notebook(unstarted):
    with unstarted.client.setup_kernel():
        yield unstarted


def shown(outputs, kind="text/html"):
    (output,) = outputs
    return output["data"][kind]


def test_a_kernel_is_promised_no_tcp_port(unstarted):
    assert unstarted.client.create_kernel_manager().transport == "ipc"


def test_a_kernel_that_fails_shows_its_error(unstarted, capfd):
    # The kernel writes to the test's own standard error, so pytest reports it if a test fails.
    unstarted.client.extra_arguments = ["--IPKernelApp.kernel_class=missing.Kernel"]
    with pytest.raises(RuntimeError, match="died"), unstarted.client.setup_kernel():
        pass
    assert "'missing.Kernel' could not be imported" in capfd.readouterr().err


def test_values_are_shown_as_tables(notebook):
    notebook.run("import parmap")
    html = shown(notebook.run("plan = parmap.plan(['processes(workers=2)', 'threads'])\nplan"))
    assert "<td" in html
    assert "inside of its tasks" in html
    html = shown(
        notebook.run(
            "grid = parmap.pgrid(lambda n, m: n / m, {'n': [1, 2], 'm': [4, 0]}, errors='return')\n"
            "grid"
        )
    )
    assert "0.25" in html
    assert "ZeroDivisionError" in html
    html = shown(notebook.run("grid[0, 1]"))
    assert html.startswith("<details><summary>Failure of element 1: ZeroDivisionError")
    assert "Traceback" in html
    html = shown(
        notebook.run("with parmap.plan('threads', workers=3) as session:\n    display(session)")
    )
    assert "threads(workers=3)" in html
    assert "open" in html


def test_a_delayed_call_draws_itself(notebook):
    notebook.run(
        "import parmap\nhalve, total = parmap.delayed(lambda x: x / 2), parmap.delayed(sum)"
    )
    svg = shown(notebook.run("total([halve(x) for x in range(4)])"), "image/svg+xml")
    assert "<svg" in svg
    assert "sum" in svg
    # A large graph would take long to draw, and nobody could read it.
    (output,) = notebook.run("total([halve(x) for x in range(1000)])")
    assert output["data"] == {"text/plain": "<Delayed sum>"}


def test_tab_completes_options(notebook):
    notebook.run(
        "import parmap\n"
        "from IPython.core.completer import provisionalcompleter\n"
        "def press_tab(code):\n"
        "    with provisionalcompleter():\n"
        "        found = get_ipython().Completer.completions(code, len(code))\n"
        "        return [one.text for one in found]\n"
    )
    for code in ("parmap.pmap(abs, [1], err", "parmap.pgrid(abs, {'x': [1]}, err"):
        assert "errors=" in shown(notebook.run(f"press_tab({code!r})"), "text/plain")


def test_a_plan_that_a_cell_only_shows(notebook):
    """It says how it comes into force; the call that does not use it warns."""
    html = shown(notebook.run("import parmap\nparmap.plan('threads', workers=2)"))
    assert "parmap.set_plan(plan)" in html
    warning, result = notebook.run("parmap.pmap(abs, [-1])")
    assert "this call runs sequentially" in warning["text"]
    assert result["data"]["text/plain"] == "[1]"
    assert notebook.run("parmap.set_plan('threads', workers=2)") == []


def test_the_bar_is_a_widget(notebook):
    notebook.run("import parmap\nparmap.set_plan('processes', workers=2)")
    (bar,) = notebook.run("_ = parmap.pmap(abs, range(100), progress=True, label='tries')")
    assert "application/vnd.jupyter.widget-view+json" in bar["data"]
    assert "100/100" in str(notebook.client.widget_state)


# Threads let finish what runs; processes are ended, and replaced.
@pytest.mark.parametrize(("plan", "naps"), [("threads", 20), ("processes", 600)])
def test_an_interrupted_cell_leaves_the_session_usable(notebook, plan, naps, tmp_path):
    notebook.run(
        "import pathlib, time, parmap\n"
        f"parmap.set_plan({plan!r}, workers=2)\n"
        "def slow(x):\n"
        "    pathlib.Path('begun').touch()\n"
        f"    for _ in range({naps}):\n"
        "        time.sleep(0.1)\n"
    )
    begun = tmp_path / "begun"
    ended = threading.Event()

    def press():
        while not begun.exists() and not ended.wait(0.02):
            pass
        notebook.interrupt()

    button = threading.Thread(target=press)
    button.start()
    try:
        with pytest.raises(nbclient.exceptions.CellExecutionError, match="KeyboardInterrupt"):
            notebook.run("parmap.pmap(slow, range(8), chunks=1)")
    finally:
        ended.set()
        button.join()
    outputs = notebook.run("parmap.pmap(abs, [-1, -2, -3])")
    assert shown(outputs, "text/plain") == "[1, 2, 3]"
