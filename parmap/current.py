"""Where: which plan is in force.

The session that a call uses is found in this order:

1. the session entered last in this context (``with plan: …``);
2. inside a task: the next of the plans that were nested for it, else ``sequential``;
3. the process-wide plan: that of `set_plan`, else of the environment variable
   ``PARMAP_PLAN``, else ``sequential``.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, cast

from parmap.errors import PlanError
from parmap.plans import Plan, opened, plan
from parmap.worker import context

if TYPE_CHECKING:
    from parmap.session import Session

__all__ = ["current_plan", "current_session", "set_plan"]

_ENVIRONMENT = "PARMAP_PLAN"


class _ProcessWide:
    """The process-wide plan and the sessions opened for it.

    Invariant, under `_lock`: at most one session per plan is open here, and it stays open
    until the interpreter ends: a call in another thread may be using it.
    """

    def __init__(self) -> None:
        # Reentrant: opening a session may run setup= in this thread, which may make a call.
        self._lock = threading.RLock()
        self._plan: Plan | None = None
        self._sessions: dict[Plan, Session] = {}

    def get(self) -> Plan:
        with self._lock:
            if self._plan is None:
                # A worker must not open what the environment chose for its parent.
                text = None if context.worker.is_worker else os.environ.get(_ENVIRONMENT)
                self._plan = _from_environment(text) if text else plan("sequential")
            return self._plan

    def set(self, new: Plan) -> Plan:
        old = self.get()
        with self._lock:
            self._plan = new
        return old

    def session(self, wanted: Plan) -> Session:
        with self._lock:
            if wanted not in self._sessions:
                self._sessions[wanted] = opened(wanted)
            return self._sessions[wanted]


def _from_environment(text: str) -> Plan:
    try:
        return plan(text)
    except PlanError as error:
        raise PlanError(f"in the environment variable {_ENVIRONMENT}: {error}") from None


_process = _ProcessWide()


def _forget() -> None:
    global _process  # noqa: PLW0603 - the forked child's own
    chosen = _process._plan  # noqa: SLF001
    _process = _ProcessWide()
    _process._plan = chosen  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    # A fork inherits neither the lock's owner nor the workers: it opens sessions of its own.
    os.register_at_fork(after_in_child=_forget)


def set_plan(spec: object, /, **options: Any) -> Plan:
    """Set the process-wide plan, for scripts and notebooks.

    Parameters
    ----------
    spec, **options
        As for `plan`.

    Returns
    -------
    Plan
        The plan that was process-wide before.

    Examples
    --------
    >>> import parmap
    >>> before = parmap.set_plan("threads", workers=2)
    >>> parmap.pmap(abs, [-1, -2])
    [1, 2]
    >>> _ = parmap.set_plan(before)
    """
    return _process.set(plan(spec, **options))


def current_plan() -> Plan:
    """Give the plan in force here.

    Returns
    -------
    Plan
        That of the innermost ``with`` block; inside a task the next nested plan; else the
        process-wide plan: of `set_plan`, of the environment variable ``PARMAP_PLAN`` (read
        at the first use, never in a worker), or ``sequential``.

    Examples
    --------
    >>> import parmap
    >>> with parmap.plan("threads", workers=2):
    ...     print(parmap.current_plan())
    threads(workers=2)
    """
    frame = context.frame.get()
    if frame is None:
        return _process.get()
    if isinstance(frame, context.Task):
        return plan(list(frame.nested)) if frame.nested else plan("sequential")
    return cast("Plan", frame.plan)  # it is a session


def current_session() -> Session:
    """Give the session that a call made here uses; open it if it is the process-wide one."""
    frame = context.frame.get()
    if frame is None or isinstance(frame, context.Task):
        return _process.session(current_plan())
    session: Session = frame
    session.check()
    return session
