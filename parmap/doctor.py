"""What parmap finds on this machine: cores, native libraries, plans and whether they work."""

from __future__ import annotations

import importlib.util
import platform
import statistics
import time
from collections.abc import Iterator
from importlib import import_module, metadata
from typing import TypeAlias

import parmap
from parmap import registry
from parmap.cores import available_cores
from parmap.plans import plan
from parmap.worker import blas

__all__ = ["report"]

Line: TypeAlias = tuple[str, bool]  # what to print, and whether it is fine

# Those that bring a native library with threads; imported only if they are installed.
_NATIVE = ("numpy", "scipy.linalg", "sklearn.utils._openmp_helpers", "torch", "numexpr", "numba")
_PACKAGES = ("numpy", "cloudpickle", "threadpoolctl", "tqdm")
# Answers that a round trip is the median of.
_TRIPS = 20


def report(text: str | None = None) -> Iterator[Line]:
    """Look at everything, or at one plan; give the report line by line, as it becomes known.

    Parameters
    ----------
    text : str, optional
        The plan, as ``str(plan)`` writes it.
    """
    if text is not None:
        yield from _one(text)
        return
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    yield f"parmap {parmap.__version__}, Python {platform.python_version()}; {versions}", True
    yield f"on {platform.platform()}", True
    yield from _cores()
    yield from _libraries()
    yield from _plans()


def _cores() -> Iterator[Line]:
    yield "", True
    yield f"Cores that this process may use: {available_cores()}", True
    grants = available_cores(explain=True)
    least = min(grants.values(), default=1)
    for source, cores in grants.items():
        binding = "  <- the least" if cores == least else ""
        yield f"  {source:<40} {cores:g}{binding}", True


def _libraries() -> Iterator[Line]:
    yield "", True
    yield "Native libraries, and the threads that each would use here:", True
    for name in _NATIVE:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            try:
                import_module(name)
            except Exception as error:  # noqa: BLE001 - a broken installation is what we look for
                yield f"  {name} fails to import: {type(error).__name__}: {error}", False
    for one in blas.loaded():
        kind = one.internal_api + (f" ({one.threading_layer})" if one.threading_layer else "")
        threads = f"{one.num_threads} threads"
        yield f"  {kind:<20} {one.version or '':<14} {threads}  {one.filepath}", True


def _plans() -> Iterator[Line]:
    yield "", True
    yield "Plans, each tried with calls of one small task:", True
    for name in registry.names():
        verdict, fine = _checked(name)
        yield f"  {name:<12} {registry.provider(name):<20} {verdict}", fine


def _one(text: str) -> Iterator[Line]:
    """Look at what a plan needs elsewhere, and try it."""
    try:
        check = getattr(plan(text), "check", None)
        for found in check() if check else ():
            yield str(found), not found.trouble
    except parmap.ParmapError as error:
        yield f"{type(error).__name__}: {error}", False
        return
    verdict, fine = _checked(text)
    yield f"{text} {verdict}", fine


def _checked(name: str) -> Line:
    """Try a plan; tell how long it took to start, and a task there and back."""
    try:
        chosen = plan(name)
    except Exception as error:  # noqa: BLE001 - as below
        return f"fails: {type(error).__name__}: {error}", False
    try:
        began = time.perf_counter()
        with chosen as session:
            session.submit(abs, -1).result()
            started = time.perf_counter() - began
            trips = []
            for _ in range(_TRIPS):
                began = time.perf_counter()
                right = session.submit(abs, -2).result() == 2  # noqa: PLR2004
                trips.append(time.perf_counter() - began)
            workers = session.workers
    except parmap.PlanError as error:  # such as hosts, without which there is nothing to try
        return f"is not tried without options: {error}", True
    except parmap.BackendUnavailable as error:  # nobody has to have all of them
        return f"is not installed: {error}", True
    except Exception as error:  # noqa: BLE001 - whatever is wrong is what the doctor reports
        return f"fails: {type(error).__name__}: {error}", False
    trip = statistics.median(trips) * 1e6
    answer = "works" if right else "gives wrong results"
    times = f"first answer after {started * 1e3:.0f} ms, then a task and back in {trip:,.0f} µs"
    return f"{answer}; workers={workers}, {times}", right
