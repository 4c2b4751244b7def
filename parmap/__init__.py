"""parmap: map functions over data in parallel; change the plan, and only the time changes.

>>> import parmap
>>> with parmap.plan("threads", workers=2):
...     parmap.pmap(abs, [-2, -1, 0])
[2, 1, 0]
"""

from parmap.cores import available_cores
from parmap.engine.chunking import Auto, Dynamic, Guided, Static
from parmap.errors import (
    BackendUnavailable,
    Failure,
    FailureGroup,
    ParmapError,
    PlanError,
    PoolBroken,
    SerializationError,
    SessionClosed,
    TaskExited,
    TaskTimeout,
    WorkerDied,
)
from parmap.futures import submit
from parmap.maps import imap, pmap, starmap
from parmap.options import MapOptions
from parmap.plans import Plan, current_plan, plan, set_plan
from parmap.progress import Counts
from parmap.session import Session

__all__ = [
    "Auto",
    "BackendUnavailable",
    "Counts",
    "Dynamic",
    "Failure",
    "FailureGroup",
    "Guided",
    "MapOptions",
    "ParmapError",
    "Plan",
    "PlanError",
    "PoolBroken",
    "SerializationError",
    "Session",
    "SessionClosed",
    "Static",
    "TaskExited",
    "TaskTimeout",
    "WorkerDied",
    "available_cores",
    "current_plan",
    "imap",
    "plan",
    "pmap",
    "set_plan",
    "starmap",
    "submit",
]

__version__ = "0.1.0"
