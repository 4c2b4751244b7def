"""parmap: map functions over data in parallel; change the plan, and only the time changes.

>>> import parmap
>>> with parmap.plan("threads", workers=2):
...     parmap.pmap(abs, [-2, -1, 0])
[2, 1, 0]
"""

from os import environ as _environ

# Not that of `typing`, which takes nine times as long to import as all that this file does.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from parmap.calls.graph import Delayed, compute, delayed
    from parmap.calls.grid import Grid, pgrid
    from parmap.calls.map import Results, imap, pmap, starmap
    from parmap.calls.options import MapOptions
    from parmap.calls.submit import submit
    from parmap.cores import available_cores
    from parmap.engine.policies import Auto, Dynamic, Guided, Static
    from parmap.engine.protocols import Backend
    from parmap.engine.retry import Retry
    from parmap.engine.streams import Streams
    from parmap.engine.traits import Traits
    from parmap.errors import (
        BackendUnavailable,
        DependencyFailed,
        ParmapError,
        PlanError,
        SerializationError,
        SessionClosed,
        TaskExited,
        TaskTimeout,
        UnseededRandomWarning,
        WorkerDied,
    )
    from parmap.failures import Failure, FailureGroup, PoolBroken
    from parmap.observe.progress import Counts
    from parmap.plans.current import current_plan, set_plan
    from parmap.plans.plan import Plan, plan
    from parmap.plans.session import Session
    from parmap.transport.shared import Shared, share
    from parmap.worker.ambient import Setting
    from parmap.worker.once import once_per_worker

__all__ = [
    "Auto",
    "Backend",
    "BackendUnavailable",
    "Counts",
    "Delayed",
    "DependencyFailed",
    "Dynamic",
    "Failure",
    "FailureGroup",
    "Grid",
    "Guided",
    "MapOptions",
    "ParmapError",
    "Plan",
    "PlanError",
    "PoolBroken",
    "Results",
    "Retry",
    "SerializationError",
    "Session",
    "SessionClosed",
    "Setting",
    "Shared",
    "Static",
    "Streams",
    "TaskExited",
    "TaskTimeout",
    "Traits",
    "UnseededRandomWarning",
    "WorkerDied",
    "available_cores",
    "compute",
    "current_plan",
    "delayed",
    "imap",
    "once_per_worker",
    "pgrid",
    "plan",
    "pmap",
    "set_plan",
    "share",
    "starmap",
    "submit",
]

__version__ = "0.1.0"

# What the script changes from here on, its tasks see; see `parmap.worker.environment`.
# Past the mapping's own methods, which take twenty times as long.
_environ_at_import = dict(_environ._data)  # type: ignore[attr-defined]  # noqa: SLF001

# Each name is loaded when it is first used. A worker imports this package too, and needs
# none of them: its start would take half as long again.
_HOMES = {
    "cores": ["available_cores"],
    "plans.current": ["current_plan", "set_plan"],
    "engine.policies": ["Auto", "Dynamic", "Guided", "Static"],
    "engine.protocols": ["Backend"],
    "engine.retry": ["Retry"],
    "engine.streams": ["Streams"],
    "engine.traits": ["Traits"],
    "errors": [
        *("BackendUnavailable", "DependencyFailed", "ParmapError", "PlanError"),
        *("SerializationError", "SessionClosed", "TaskExited", "TaskTimeout"),
        *("UnseededRandomWarning", "WorkerDied"),
    ],
    "failures": ["Failure", "FailureGroup", "PoolBroken"],
    "calls.submit": ["submit"],
    "calls.graph": ["Delayed", "compute", "delayed"],
    "calls.grid": ["Grid", "pgrid"],
    "calls.map": ["Results", "imap", "pmap", "starmap"],
    "calls.options": ["MapOptions"],
    "plans.plan": ["Plan", "plan"],
    "observe.progress": ["Counts"],
    "plans.session": ["Session"],
    "transport.shared": ["Shared", "share"],
    "worker.ambient": ["Setting"],
    "worker.once": ["once_per_worker"],
}


def __getattr__(name: str) -> object:
    import sys
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"parmap.{home}"), name)
            globals()[name] = value
            return value
    # With these two, Python itself asks "Did you mean: 'pmap'?".
    here = sys.modules[__name__]
    raise AttributeError(f"module 'parmap' has no attribute {name!r}", name=name, obj=here)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
