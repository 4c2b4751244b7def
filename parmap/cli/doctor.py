"""What parmap finds on this machine: cores, native libraries, plans and whether they work."""

from __future__ import annotations

import importlib.util
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module, metadata
from typing import Any

import parmap
from parmap.cli.installation import neighbour
from parmap.cores import available_cores
from parmap.plans import registry
from parmap.plans.plan import plan
from parmap.worker import native_threads

__all__ = ["Beginning", "Finding", "findings", "offers"]

# Those that bring a native library with threads; imported only if they are installed.
_NATIVE = ("numpy", "scipy.linalg", "sklearn.utils._openmp_helpers", "torch", "numexpr", "numba")
_PACKAGES = ("numpy", "cloudpickle", "threadpoolctl", "tqdm")
# Answers that a round trip is the median of.
_TRIPS = 20


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Parameters
    ----------
    about : {"versions", "cores", "libraries", "machines", "plans"}
        What kind of thing.
    line : str
        It, in a line for people.
    facts : dict, default {}
        It, for programs: all of it can be written as JSON.
    fine : bool, default True
        Whether it is as it should be.
    """

    about: str
    line: str
    facts: dict[str, Any] = field(default_factory=dict)
    fine: bool = True


class Beginning(Finding):
    """Says what is looked at next, before that takes its time: the beginning of a line."""


def findings(text: str | None = None) -> Iterator[Finding]:
    """Look at everything, or at one plan; give each finding as it becomes known.

    Parameters
    ----------
    text : str, optional
        The plan, as ``str(plan)`` writes it.
    """
    if text is not None:
        yield from _one(text)
        return
    yield from _versions()
    yield from _cores()
    yield from _libraries()
    for name in registry.names():
        provider = registry.provider(name)
        # Ours have the version that is in the first line.
        line = f"{name:<12} " if registry.is_ours(name) else f"{name:<12} of {provider}: "
        yield Beginning("plans", line)
        facts, fine = _tried(name)
        line += _verdict(facts).replace("\n", "\n" + " " * 15)
        yield Finding("plans", line, {"plan": name, "provider": provider, **facts}, fine)


def offers() -> Iterator[tuple[str, str, str]]:
    """Give each plan's name, what it is in a line, and what it lacks here; start nothing."""
    for name in registry.names():
        try:
            kind = registry.named(name)
        except parmap.BackendUnavailable as error:
            yield name, "", str(error)
            continue
        line = (kind.__doc__ or "").partition("\n")[0]
        yield name, line.partition(";")[0].rstrip("."), kind.missing()


def _versions() -> Iterator[Finding]:
    versions = {name: metadata.version(name) for name in _PACKAGES}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    python, system = platform.python_version(), platform.platform()
    line = f"parmap {parmap.__version__}, Python {python}; {told}"
    versions |= {"parmap": parmap.__version__, "python": python}
    yield Finding("versions", line, versions)
    yield Finding("versions", f"on {system}", {"platform": system})
    if beside := neighbour():
        yield Finding("versions", beside, {"neighbour": beside})


def _cores() -> Iterator[Finding]:
    cores = available_cores()
    line = f"cores that this process may use: {cores}"
    yield Finding("cores", line, {"source": "available_cores()", "cores": cores})
    grants = available_cores(explain=True)
    least = min(grants.values(), default=1)
    for source, granted in grants.items():
        binding = "  <- the least" if granted == least else ""
        line = f"  {source:<40} {granted:g}{binding}"
        yield Finding("cores", line, {"source": source, "cores": granted})


def _libraries() -> Iterator[Finding]:
    broken = []
    yield Beginning("libraries", "importing")
    for name in _NATIVE:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            yield Beginning("libraries", f" {name}")
            try:
                import_module(name)
            except Exception as error:  # noqa: BLE001 - a broken installation is what we look for
                why = f"{type(error).__name__}: {error}"
                facts = {"module": name, "error": why}
                broken.append(
                    Finding("libraries", f"{name} fails to import: {why}", facts, fine=False)
                )
    yield Beginning("libraries", "\n")
    yield from broken
    for one in native_threads.loaded():
        kind = one.internal_api + (f" ({one.threading_layer})" if one.threading_layer else "")
        threads = f"{one.num_threads} threads"
        line = f"{kind:<20} {one.version or '':<14} {threads}  {one.filepath}"
        names = ("internal_api", "threading_layer", "version", "num_threads", "filepath")
        yield Finding("libraries", line, {name: getattr(one, name) for name in names})


def _one(text: str) -> Iterator[Finding]:
    """Look at what a plan needs elsewhere, and try it."""
    try:
        check = getattr(plan(text), "check", None)
        if check:
            yield Beginning("machines", "looking at the machines, then trying the plan\n")
        for found in check() if check else ():
            facts = {"machine": found.command.name, "trouble": found.trouble, "facts": found.facts}
            yield Finding("machines", str(found), facts, not found.trouble)
    except parmap.ParmapError as error:
        why = f"{type(error).__name__}: {error}"
        yield Finding("plans", why, {"plan": text, "state": "fails", "why": why}, fine=False)
        return
    yield Beginning("plans", f"{text} ")
    facts, fine = _tried(text)
    yield Finding("plans", f"{text} {_verdict(facts)}", {"plan": text, **facts}, fine)


def _tried(text: str) -> tuple[dict[str, Any], bool]:
    """Try a plan; tell how long it took to start, and a task there and back."""
    try:
        return _answers(text)
    except parmap.PlanError as error:  # such as hosts, without which there is nothing to try
        return {"state": "is not tried without options", "why": str(error)}, True
    except parmap.BackendUnavailable as error:  # nobody has to have all of them
        return {"state": "is not available", "why": str(error)}, True
    except Exception as error:  # noqa: BLE001 - whatever is wrong is what the doctor reports
        return {"state": "fails", "why": f"{type(error).__name__}: {error}"}, False


def _answers(text: str) -> tuple[dict[str, Any], bool]:
    chosen = plan(text)
    began = time.perf_counter()
    with chosen as session:
        session.submit(abs, -1).result()
        started = time.perf_counter() - began
        trips = []
        for _ in range(_TRIPS):
            began = time.perf_counter()
            right = session.submit(abs, -2).result() == 2  # noqa: PLR2004
            trips.append(time.perf_counter() - began)
        times = {"first_answer_s": started, "round_trip_s": statistics.median(trips)}
        state = "works" if right else "gives wrong results"
        return {"state": state, "workers": session.workers, **times}, right


def _verdict(facts: dict[str, Any]) -> str:
    if "why" in facts:
        return f"{facts['state']}: {facts['why']}"
    return (
        f"{facts['state']}; workers={facts['workers']}, first answer after "
        f"{facts['first_answer_s'] * 1e3:.0f} ms, then a task and back in "
        f"{facts['round_trip_s'] * 1e6:,.0f} µs"
    )
