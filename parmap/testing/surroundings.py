"""What is the caller's process's own: calls leave it as it was, wherever their tasks run."""

from __future__ import annotations

import faulthandler
import gc
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import parmap
from parmap.testing.material import LONG, Contract
from parmap.worker import native_threads

__all__ = ["SurroundingsContract", "surroundings"]


def surroundings() -> dict[str, Any]:
    """Read what a task could set, and the caller would find set: in its thread, and its process."""
    environ = {**os.environ}
    environ.pop("PYTEST_CURRENT_TEST", None)  # it tells a test's steps
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(_numbers).result()
    return {
        "libraries' threads": _numbers(),
        "libraries' threads in another thread": elsewhere,
        "environment": environ,
        "directory": os.getcwd(),
        "path": list(sys.path),
        "arguments": list(sys.argv),
        "signal handlers": {one: signal.getsignal(one) for one in signal.valid_signals()},
        "warnings": (list(warnings.filters), warnings.showwarning),
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "collector": (gc.isenabled(), gc.get_threshold(), list(gc.callbacks)),
        "faulthandler": faulthandler.is_enabled(),
        "standard files": (sys.stdin, sys.stdout, sys.stderr),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook),
        "tracing": (sys.gettrace(), sys.getprofile()),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "locale": locale.setlocale(locale.LC_ALL),
        "NumPy's errors": np.geterr(),
        "Python's generator": random.getstate(),
        "NumPy's generator": repr(np.random.get_state()),  # noqa: NPY002 - the global one
        "available cores": parmap.available_cores(explain=True),
    }


def _numbers() -> dict[str, int | None]:
    return {one.filepath: one.num_threads for one in native_threads.loaded()}


def _product(size: int) -> int:
    """Use a library that has threads."""
    a = np.ones((size, size))
    return int((a @ a)[0, 0])


def _raises(x: int) -> int:
    if x == 2:  # noqa: PLR2004 - the second
        raise KeyError(x)
    return _product(x)


def _calls_inside(x: int) -> list[int]:
    with parmap.plan("threads", workers=2):
        return parmap.pmap(_product, [x, x + 1])


def _maps() -> None:
    assert parmap.pmap(_product, range(1, 9), chunks=1) == list(range(1, 9))


def _fails() -> None:
    with pytest.raises(KeyError):
        parmap.pmap(_raises, range(1, 9), chunks=2)


def _ends_early() -> None:
    results = parmap.imap(_product, range(1, 99), chunks=1)
    assert next(results) == 1
    results.close()


def _submits() -> None:
    futures = [parmap.submit(_product, x) for x in range(1, 9)]
    assert [future.result(LONG) for future in futures] == list(range(1, 9))


def _nests() -> None:
    assert parmap.pmap(_calls_inside, [1, 2, 3], chunks=1) == [[1, 2], [2, 3], [3, 4]]


def _limits_time() -> None:
    assert parmap.pmap(_product, range(1, 9), timeout=LONG) == list(range(1, 9))


def _draws() -> None:
    streams = [parmap.pmap(_drawn, range(8), rng=1) for _ in range(2)]
    assert streams[0] == streams[1]


def _drawn(x: int, rng: np.random.Generator) -> float:
    return x + rng.random()


_CALLS = (_maps, _fails, _ends_early, _submits, _nests, _limits_time, _draws)


class SurroundingsContract(Contract):
    """Calls leave the caller's thread and process as they were."""

    def test_calls_leave_the_process_as_it_was(self) -> None:
        """The threads of native libraries, the environment, and all else that a task could set."""
        # More threads than any worker's share: a limit that stays is seen.
        with threadpoolctl.threadpool_limits(parmap.available_cores() + 4):
            self.session.map(_product, [1])  # loads what a first call loads
            before = surroundings()
            for call in _CALLS:
                call()
                self.settle()
                after = surroundings()
                pairs = {name: (before[name], after[name]) for name in before}
                changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
                assert changed == {}, call.__name__
        # A limit that stays, and was there before this test, would change nothing.
        kept = native_threads._limits._worker, native_threads._mine.before  # noqa: SLF001
        assert kept == (None, {})

    def settle(self) -> None:
        """Wait for tasks of this process that an early end has left running."""
        while native_threads._limits._holds:  # noqa: SLF001
            self.session.map(abs, [-1])
