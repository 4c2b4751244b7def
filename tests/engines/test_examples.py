"""The examples print the same on every engine, to the last digit."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_long = functools.partial(pytest.param, marks=pytest.mark.long)
EXAMPLES = [_long("cross_validation.py"), "nested_loops.py", _long("simulation.py")]
PLANS = [
    "dask(workers=2)",
    "dask(workers=2, processes=False)",
    "ray(workers=2)",
    "joblib(workers=2)",
    "joblib(workers=2, backend='multiprocessing')",
]
# The plan of a `with` block goes before the one that the example sets for its process.
ADOPTED = """
import runpy, parmap
if __name__ == "__main__":  # these pools import the main script in their workers
    {make}
    with parmap.plan(it):
        runpy.run_path({example!r}, run_name="__main__")
    {end}
"""
EXECUTORS = {
    "ProcessPoolExecutor": (
        # Forked: else workers, which start one by one, load the example as their main script.
        """import concurrent.futures as cf, multiprocessing as mp
    it = cf.ProcessPoolExecutor(2, mp.get_context('fork'))""",
        "it.shutdown()",
    ),
    "multiprocessing.Pool": (
        "import multiprocessing as mp; it = mp.get_context('spawn').Pool(2)",
        "it.terminate(); it.join()",
    ),
    "MPIPoolExecutor": (
        "from mpi4py.futures import MPIPoolExecutor; it = MPIPoolExecutor()",
        "it.shutdown()",
    ),
    "ipyparallel": (
        """import ipyparallel; cluster = ipyparallel.Cluster(n=2, log_level=40)
    it = cluster.start_and_connect_sync(activate=False).executor()""",
        "cluster.stop_cluster_sync()",
    ),
}


def table(*words: str, **environ: str) -> list[str]:
    done = subprocess.run(
        [*words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    *lines, time = done.stdout.splitlines()
    assert " s on " in time
    return lines


@functools.cache
def wanted(example: str) -> list[str]:
    return table(sys.executable, str(ROOT / "examples" / example), PARMAP_PLAN="sequential")


def test_the_example_of_the_readme_on_dask():
    test_on_a_plan("dask(workers=2)", "cross_validation.py")


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("plan", PLANS)
def test_on_a_plan(plan, example):
    pytest.importorskip({"dask": "distributed"}.get(name := plan.partition("(")[0], name))
    path = str(ROOT / "examples" / example)
    assert table(sys.executable, path, PARMAP_PLAN=plan) == wanted(example)


@pytest.mark.long  # these executors have the whole contract in other files
@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("kind", EXECUTORS)
def test_on_an_adopted_executor(kind, example, tmp_path):
    make, end = EXECUTORS[kind]
    path = str(ROOT / "examples" / example)
    script = tmp_path / "adopted.py"
    script.write_text(ADOPTED.format(make=make, end=end, example=path))
    launch = [sys.executable]
    if kind == "MPIPoolExecutor":
        pytest.importorskip("mpi4py")
        if shutil.which("mpiexec") is None:
            pytest.skip("mpiexec is missing: apt install openmpi-bin")
        ranks = ["mpiexec", "-n", "3", "--oversubscribe", "--bind-to", "none"]
        launch = [*ranks, sys.executable, "-m", "mpi4py.futures"]
    if kind == "ipyparallel":
        pytest.importorskip("ipyparallel")
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    assert table(*launch, str(script), PARMAP_PLAN="sequential", **as_root) == wanted(example)
