"""The environment's variables that the script has changed since it imported parmap."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import parmap
from parmap.worker.thread_variables import NAMES

__all__ = ["PER_THREAD", "Changes", "apply", "changes", "differs", "raw", "reset", "saved"]

# The variables and their texts; None for one that the script has deleted.
Changes = dict[str, str | None]

PER_THREAD = False

# What says which threads, GPUs and cores a worker has, or which job it is in: each worker's own.
_WORKERS_OWN = frozenset(
    {
        *NAMES,
        "NUMEXPR_MAX_THREADS",
        *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        *("NVIDIA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"),
        *("NSLOTS", "JOB_ID", "NHOSTS", "PE_HOSTFILE", "NCPUS", "TMPDIR_JOB", "PYTHON_CPU_COUNT"),
        # An interpreter reads it as it starts.
        "PYTHONHASHSEED",
        # pytest writes each step of a test there, for whoever looks at a test that hangs.
        "PYTEST_CURRENT_TEST",
    }
)
_WORKERS_OWN_PREFIXES = (
    *("SLURM_", "SLURMD_", "PBS_", "LSB_", "LSF_", "SGE_", "PJM_", "_CONDOR_", "OAR_", "COBALT_"),
    *("PMI_", "PMIX_", "OMPI_", "MPI_LOCAL", "RAY_", "LOKY_", "DASK_", "PARMAP_"),
)


def raw() -> dict[Any, Any]:
    """Give the environment's own dictionary: ten times as quick to compare as the mapping."""
    return os.environ._data  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001


# All that have been found changed. One that is again as it was is told of, too: workers that began
# in between have inherited the change.
_changed: set[Any] = set()


def changes(now: Mapping[Any, Any]) -> Changes:
    """Compare an environment, as `raw` has it, with that of the import of parmap."""
    before = parmap._environ_at_import  # noqa: SLF001 - of this package
    _changed.update(key for key, _ in now.items() ^ before.items())
    found: Changes = {}
    for key in list(_changed):
        name = os.environ.decodekey(key)
        if name not in _WORKERS_OWN and not name.startswith(_WORKERS_OWN_PREFIXES):
            text = now.get(key)
            found[name] = None if text is None else os.environ.decodevalue(text)
    return found


def differs(value: Changes) -> bool:
    """Tell whether these variables are otherwise here."""
    return any(os.environ.get(name) != text for name, text in value.items())


def saved(value: Changes) -> Callable[[], None]:
    """Return a function that gives these variables the texts that they have now."""
    return partial(apply, {name: os.environ.get(name) for name in value})


def reset() -> None:
    """Set all variables as they were when parmap was imported."""
    before = parmap._environ_at_import  # noqa: SLF001 - as above
    texts = {os.environ.decodekey(key): os.environ.decodevalue(before[key]) for key in before}
    apply({name: texts.get(name) for name in changes(raw())})


def apply(value: Changes) -> None:
    """Set the variables, and the time zone if that is among them."""
    for name, text in value.items():
        if text is None:
            os.environ.pop(name, None)
        elif os.environ.get(name) != text:
            os.environ[name] = text
    if "TZ" in value and hasattr(time, "tzset"):
        time.tzset()
