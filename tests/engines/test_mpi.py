"""An adopted `MPIPoolExecutor`: the conformance suite, run by the master of three MPI ranks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mpi4py")
if shutil.which("mpiexec") is None:
    pytest.skip("mpiexec is missing: apt install openmpi-bin", allow_module_level=True)

HERE = Path(__file__).parent


def test_the_contract_holds_on_mpi():
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    # Two workers, which only serve; and no cores bound to them, for parmap shares those out.
    mpiexec = ["mpiexec", "-n", "3", "--oversubscribe", "--bind-to", "none"]
    master = ["-m", "mpi4py.futures", "-m", "pytest", "-q", HERE / "mpi_contract.py"]
    done = subprocess.run(
        [*mpiexec, sys.executable, *master],
        env={**os.environ, **as_root, "PYTHONPATH": os.fspath(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " passed" in done.stdout
