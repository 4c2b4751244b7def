"""mpi4py's own tests of executors, run against the executors of parmap's plans.

They come in mpi4py's source distribution, and stay there: PARMAP_MPI4PY names its folder. ::

    pip download --no-binary mpi4py --no-deps mpi4py && tar xzf mpi4py-*.tar.gz
    PARMAP_MPI4PY=$PWD/mpi4py-4.1.2 pytest tests/engines/test_mpi4py_suite.py

Of its classes stand here those that ask for what every executor has. The others are about MPI
(communicators, flags of interpreters, the starting of ranks) and about mpi4py's own futures.
"""

import contextlib
import functools
import importlib.util
import os
import types
import unittest
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

import parmap

pytest.importorskip("mpi4py")
SOURCE = os.environ.get("PARMAP_MPI4PY")
if not SOURCE:
    pytest.skip("PARMAP_MPI4PY does not name mpi4py's sources", allow_module_level=True)

_found = importlib.util.spec_from_file_location(
    "mpi4py_suite", Path(SOURCE, "demo", "futures", "test_futures.py")
)
suite = importlib.util.module_from_spec(_found)
_found.loader.exec_module(suite)


def _start(name, max_workers=None, *, initializer=None, initargs=()):
    """Start a plan with mpi4py's options, and give its executor mpi4py's own names."""
    setup = functools.partial(initializer, *initargs) if initializer else None
    executor = parmap.plan(name, workers=max_workers, setup=setup).start()
    executor.num_workers = executor.workers
    executor.bootup = functools.partial(_boot, executor)
    executor.starmap = functools.partial(_starmap, executor)
    return executor


def _boot(executor, *, wait=True):
    future = executor.submit(int)
    if wait:
        with contextlib.suppress(BrokenExecutor):  # told to the tasks
            future.result()
    return executor


def _starmap(executor, fn, rows, **options):
    return executor.map(fn, *zip(*rows, strict=True), **options)


_processes = functools.partial(_start, "processes")
# The tests that make an executor by its name find ours.
suite.futures = types.SimpleNamespace(
    **{**vars(suite.futures), "MPIPoolExecutor": _processes},
)

_OPTION = "an option of MPIPoolExecutor alone"
_PRIVATE = "asks for private attributes of MPIPoolExecutor"
_OVER = "num_workers is 0 after the end there; here it stays what it was"
_UNORDERED = "map has no unordered=: parmap.imap(ordered=False) gives results as they come"
_SERIALIZATION = "SerializationError, which names the object; the original error is its cause"

# What fails, and why. A test that does not fail any more fails as such.
_FATES = {
    "test_get_comm_workers": "asks for MPI's communicator",
    "test_init_globals": _OPTION,
    "test_init_kwargs": _OPTION,
    "test_init_pyargs": _OPTION,
    "test_init_sys_flags": _OPTION,
    "test_use_pkl5_kwarg": _OPTION,
    "test_use_pkl5_environ": _OPTION,
    "test_run_name": "MPI's workers run the script under another name",
    "test_max_workers": _OVER,
    "test_max_workers_environ": "reads MPI4PY_FUTURES_MAX_WORKERS",
    "test_initializer_error": _OVER,
    "test_shutdown": _PRIVATE,
    "test_shutdown_cancel": _PRIVATE,
    "test_init_bootup_shutdown": _PRIVATE,
    "test_context_manager_shutdown": _PRIVATE,
    "test_del_shutdown": _PRIVATE,
    "test_map_buffersize": _UNORDERED,
    "test_map_unordered": _UNORDERED,
    "test_map_unordered_chunksize": _UNORDERED,
    "test_map_unordered_exception": _UNORDERED,
    "test_map_unordered_timeout": _UNORDERED,
    "test_map_unordered_timeout_one": _UNORDERED,
    "test_bad_pickle": _SERIALIZATION,
    "test_bad_unpickle": _SERIALIZATION,
    "test_exc_pickle": _SERIALIZATION,
    "test_exc_unpickle": _SERIALIZATION,
}


def _fated(cls):
    """Mark the tests of a class that fail with the reasons."""
    for name, reason in _FATES.items():
        if original := getattr(cls, name, None):

            @pytest.mark.xfail(reason=reason, strict=True)
            @functools.wraps(original)
            def test(self, original=original):
                original(self)

            setattr(cls, name, test)
    return cls


class _Processes(suite.ExecutorMixin):
    executor_type = staticmethod(_processes)


class _Threads(suite.ExecutorMixin):
    executor_type = staticmethod(functools.partial(_start, "threads"))


@_fated
class InitTest(_Processes, suite.ProcessPoolInitTest):
    """How an executor is made."""

    def setUp(self):
        pass

    def tearDown(self):
        pass


@_fated
class ShutdownTest(_Processes, suite.ProcessPoolShutdownTest):
    """How it ends."""


@_fated
class ExecutorTest(_Processes, suite.ProcessPoolExecutorTest):
    """`submit`, `map` and `starmap`."""


class WaitTest(_Processes, suite.WaitTestMixin, unittest.TestCase):
    """`wait`."""


class AsCompletedTest(_Processes, suite.AsCompletedTestMixin, unittest.TestCase):
    """`as_completed`."""


@_fated
class PickleTest(suite.ProcessPoolPickleTest):
    """What cannot be pickled."""


class SubmitTest(suite.ProcessPoolSubmitTest):
    """Several executors at once."""


@_fated
class ThreadsTest(
    _Threads,
    suite.ExecutorTestMixin,
    suite.ExecutorShutdownTestMixin,
    suite.WaitTestMixin,
    suite.AsCompletedTestMixin,
    unittest.TestCase,
):
    """All of that on threads."""
