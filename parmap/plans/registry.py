"""Names to plans: the built-in ones, and those of other packages.

The only place that asks what kind of thing it was given.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

from parmap.errors import BackendUnavailable, PlanError

__all__ = ["adopter", "named", "names", "provider", "require", "suggest"]

# A plan is loaded when it is first named: a backend's file may import much.
_BUILTIN = {
    "sequential": "parmap.backends.sequential:Sequential",
    "threads": "parmap.backends.threads:Threads",
    "processes": "parmap.backends.processes.plan:Processes",
    "dask": "parmap.backends.dask.plan:Dask",
    "ray": "parmap.backends.ray.plan:Ray",
    "joblib": "parmap.backends.joblib.plan:Joblib",
    "ssh": "parmap.backends.remote.ssh:SSH",
    "slurm": "parmap.backends.remote.slurm:Slurm",
    "pbs": "parmap.backends.remote.jobqueue:PBS",
    "sge": "parmap.backends.remote.jobqueue:SGE",
    "lsf": "parmap.backends.remote.jobqueue:LSF",
    "htcondor": "parmap.backends.remote.jobqueue:HTCondor",
    "oar": "parmap.backends.remote.jobqueue:OAR",
}
# What users of Dask call the same.
_ALIASES = {"synchronous": "sequential", "distributed": "dask"}
_ADOPTED = "parmap.backends.adopted.plan:Adopted"


def names() -> list[str]:
    """List the plans' names: ours, then those of installed packages."""
    return [*_BUILTIN, *sorted(set(_offered()) - set(_BUILTIN))]


def named(name: str) -> Any:
    """Give the plan class of that name.

    Raises
    ------
    PlanError
        If there is none; the message names those that there are.
    BackendUnavailable
        If the package that offers it cannot be imported.
    """
    name = _ALIASES.get(name, name)
    if name in _BUILTIN:
        return _load(_BUILTIN[name])
    if name in _offered():
        try:
            return _offered()[name].load()
        except ImportError as error:
            point = _offered()[name]
            raise BackendUnavailable(
                f"the plan {name!r} is offered by {point.value!r}, which fails to import: {error}"
            ) from error
    raise PlanError(
        f"there is no plan named {name!r}{suggest(name, names())}. Plans: {', '.join(names())}"
    )


def provider(name: str) -> str:
    """Name the installed package that a plan comes from, with its version."""
    from importlib.metadata import version

    if name in _BUILTIN:
        return f"parmap-plans {version('parmap-plans')}"
    package = _offered()[name].dist
    return f"{package.name} {package.version}" if package else "of no package"


def adopter(thing: object) -> tuple[Any, str]:
    """Give the plan class that can use a running thing of this kind, and the option for it.

    Raises
    ------
    PlanError
        If nobody can.
    """
    from concurrent.futures import Executor  # a plan that is text needs it later

    # A client can only be here if its package was imported.
    distributed = sys.modules.get("distributed")
    if distributed is not None and isinstance(thing, distributed.Client):
        return _load(_BUILTIN["dask"]), "client"
    if isinstance(thing, Executor) or callable(getattr(thing, "apply_async", None)):
        return _load(_ADOPTED), "adopted"
    raise PlanError(
        f"{thing!r} is no plan: give a name ({', '.join(names())}), a text such as "
        "'processes(workers=4)', a Plan, a running concurrent.futures.Executor, "
        "distributed.Client, or pool with apply_async, or a list of these"
    )


def require(module: str, plan: str, extra: str | None = None) -> Any:
    """Import what a plan needs.

    Parameters
    ----------
    module : str
        The module.
    plan : str
        The plan.
    extra : str, optional
        The extra that brings the module's package. Default: that of the plan's name.

    Raises
    ------
    BackendUnavailable
        If it cannot be imported; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendUnavailable(
            f"the plan {plan!r} needs the package {module!r}, which cannot be imported ({error}). "
            f"Install it: pip install 'parmap-plans[{extra or plan}]'"
        ) from error


def suggest(word: str, valid: Iterable[str]) -> str:
    """Word the question "did you mean …?" for a mistyped name; empty when nothing is close."""
    import difflib  # only where something is wrong

    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


@cache
def _offered() -> dict[str, Any]:
    # Asked only for names that are not ours: this import costs more than all of parmap's.
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="parmap.plans")}


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
