"""Names to plans: the built-in ones, and those of other packages.

The only place that asks what kind of thing it was given.
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from functools import cache
from operator import index
from typing import Any, cast

from parmap.engine.protocols import Backend
from parmap.engine.traits import Traits
from parmap.errors import BackendUnavailable, PlanError

__all__ = ["adopter", "backend", "is_ours", "named", "names", "provider", "require"]

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
    from parmap.plans.guesses import of_name

    raise PlanError(
        f"there is no plan named {name!r}{of_name(name, names())}. Plans: {', '.join(names())}"
    )


def is_ours(name: str) -> bool:
    """Tell whether parmap brings the plan of that name."""
    return name in _BUILTIN


def provider(name: str) -> str:
    """Name the installed package that a plan comes from, with its version."""
    from parmap import __version__

    if name in _BUILTIN:  # its package may be a checkout that is not installed
        return f"parmap-plans {__version__}"
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


_EXTRAS = ("traits", "workers", "per_node", "resolver", "dashboard")
# What an executor must have that says so in its traits.
_METHODS = {
    "places": ("put", "drop"),
    "keeps": ("run_remote",),
    "abandons": ("abandon",),
    "recalls": ("recall",),
}


class _Completed:
    """An executor that lacks extras, with their defaults.

    It asks the executor for all else at each use, because the number of workers may change.
    """

    def __init__(self, executor: Any, lacks: list[str]) -> None:
        self._executor, self.submit = executor, executor.submit
        self.__dict__.update({name: getattr(Backend, name) for name in lacks})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)


def backend(executor: object, plan: Any) -> Backend:
    """Give an executor all extras of `Backend`: the defaults of those that it lacks.

    Raises
    ------
    PlanError
        If it has an extra that is wrong, or lacks one that its traits promise.
    """
    found: Any = executor
    if Backend not in type(executor).__mro__:
        lacks = [name for name in _EXTRAS if not hasattr(executor, name)]
        found = _Completed(executor, lacks) if lacks else executor
    if not isinstance(found.traits, Traits | None):
        raise PlanError(
            f"the executor of {plan} has traits={found.traits!r}: give it parmap.Traits(...)"
        )
    _check_methods(found, found.traits or plan.traits, plan)
    for name in ("workers", "per_node", "resolver"):
        _check_number(getattr(found, name), name, plan)
    return cast("Backend", found)


def _check_methods(found: Any, traits: Traits, plan: object) -> None:
    for trait, names in _METHODS.items():
        for name in names if getattr(traits, trait) else ():
            method = getattr(found, name, None)
            if not callable(method) or getattr(method, "__func__", None) is getattr(Backend, name):
                raise PlanError(
                    f"the executor of {plan} has {trait}=True in its traits, and no method {name}"
                )
    if traits.keeps and not traits.places:
        raise PlanError(f"the executor of {plan} has keeps=True in its traits without places=True")


def _check_number(value: Any, name: str, plan: object) -> None:
    try:
        right = value is None or index(value) >= 1
    except TypeError:
        right = False
    if not right:
        raise PlanError(
            f"the executor of {plan} has {name}={value!r}: give a whole number of at least 1, or "
            "None"
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
        if sys.modules.get(module) is not None:
            return importlib.import_module(module)  # waits if another thread has only begun
        return _import(module)
    except ImportError as error:
        raise BackendUnavailable(
            f"the plan {plan!r} needs the package {module!r}, which cannot be imported ({error}). "
            f"Install it: pip install 'parmap-plans[{extra or plan}]'"
        ) from error


# Whoever has it may replace `signal.signal`. Again by the same thread: a finalizer, or a signal's
# handler, may enter a plan, and so import.
_importing = threading.RLock()


def _import(module: str) -> Any:
    """Import a package, which cannot set a handler for a signal meanwhile, in whatever thread.

    dask_jobqueue does: from then on Ctrl-C exits, with status 0. And in any other thread than
    the main one it cannot be imported, for there Python refuses to set a handler.
    """
    thread = threading.get_ident()
    with _importing:
        setter = signal.signal

        def set_elsewhere(number: int, handler: Any, /) -> Any:
            if threading.get_ident() == thread:
                return signal.getsignal(number)
            return setter(number, handler)

        try:
            signal.signal = set_elsewhere  # type: ignore[assignment]
            return importlib.import_module(module)
        finally:
            signal.signal = setter


@cache
def _offered() -> dict[str, Any]:
    # Asked only for names that are not ours: this import costs more than all of parmap's.
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="parmap.plans")}


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
