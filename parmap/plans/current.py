"""Where: which plan is in force.

The session that a call uses is found in this order:

1. the session entered last in this context (``with plan: …``);
2. inside a task: the next of the plans that were nested for it, else ``sequential``;
3. the process-wide plan of `set_plan`, else of the environment variable ``PARMAP_PLAN``;
4. in a thread that never had a plan of its own: the one that is open in the process, if exactly
   one is (before Python 3.14, threads do not inherit the context that they are started in);
5. ``sequential``.

A call has a session of 3 or 4 on loan: if the plan is replaced, or the block is left, the session
stays open until the call is over.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from parmap.errors import PlanError
from parmap.plans import unentered
from parmap.plans.plan import Plan, plan, started
from parmap.worker import context

if TYPE_CHECKING:
    from parmap.plans.plan import PlanSpec
    from parmap.plans.session import Session

__all__ = ["current_plan", "current_session", "on_set", "set_plan"]

_ENVIRONMENT = "PARMAP_PLAN"
# Called with each plan that `set_plan` is about to set.
on_set: list[Callable[[Plan], object]] = []


class _ProcessWide:
    """The process-wide plan and the sessions opened for it.

    Invariant, under `_lock`: at most one session per plan is open here, and none of a plan that
    was replaced. Calls that use it have it on loan; it is closed when the last of them is over.

    A session is opened without the lock: that may take minutes, and runs setup=. Meanwhile other
    threads may ask for the plan, or replace it; only those that need this session wait for it.
    """

    def __init__(self) -> None:
        # Reentrant: a finalizer or a signal handler that comes in between may make a call.
        self._lock = threading.RLock()
        self._plan: Plan | None = None
        self._default: Plan | None = None  # what is in force as long as nobody chooses
        self._sessions: dict[Plan, Session] = {}
        self._openings: dict[Plan, _Opening] = {}

    def get(self) -> Plan:
        if self._plan is None:
            # A worker must not open what the environment chose for its parent.
            text = None if context.worker.is_worker else os.environ.get(_ENVIRONMENT)
            # Without the lock: to find it may import a package of somebody else's.
            found = _from_environment(text) if text else plan("sequential")
            with self._lock:
                if self._plan is None:
                    self._default, self._plan = None if text else found, found
        return self._plan

    @property
    def chosen(self) -> bool:
        """Whether somebody has chosen the plan."""
        return self.get() is not self._default

    def set(self, new: Plan) -> None:
        old = self.get()
        with self._lock:
            self._plan = new
        if new != old:
            self.retire(_levels(old))

    def retire(self, plans: list[Plan]) -> None:
        """Close the sessions of plans, as far as nobody needs them, once nobody uses them."""
        with self._lock:
            needed = {*_levels(self.get())}
            for block in context.blocks.copy():
                needed |= {*_levels(block.plan)[1:]}
            gone = {*plans} - needed
            stale = [self._sessions.pop(one, None) for one in gone]
            for one in gone:
                self._openings.pop(one, None)  # who opens it finds that it is not wanted
        for session in filter(None, stale):
            session.loans.end(session.close)

    def session(self, wanted: Plan | None = None) -> Session:
        """Give the session of a plan, on loan. Default: that of the process-wide plan."""
        return self._lent(wanted) or self._started(wanted)

    def _lent(self, wanted: Plan | None, opening: _Opening | None = None) -> Session | None:
        """Lend the session if it is open; if not, note that `opening` opens it, unless one does."""
        with self._lock:
            chosen = self.get() if wanted is None else wanted
            session = self._sessions.get(chosen)
            if session is not None:
                return _on_loan(session)
            if opening is not None:
                opening.plan, opening.first = chosen, self._openings.setdefault(chosen, opening)
            return None

    def _started(self, wanted: Plan | None) -> Session:
        """Open the session, or wait for the thread that does."""
        mine = _Opening()
        try:
            while (lent := self._lent(wanted, mine)) is None:
                # This thread may come back here, by a finalizer, in the middle of an opening. It
                # cannot wait for itself, and opens another session.
                if mine.first.thread == mine.thread:
                    return self._begun(mine)
                mine.first.over.result()
            return lent
        finally:
            if mine.plan is not None and self._openings.get(mine.plan) is mine:
                del self._openings[mine.plan]
            mine.over.set_result(None)

    def _begun(self, opening: _Opening) -> Session:
        """Open the session; if it is not to stay, this call has it alone."""
        assert opening.plan is not None
        session = started(opening.plan)
        with self._lock:
            lent = _on_loan(session)
            stays = self._openings.get(opening.plan) is opening
            if stays:
                self._sessions[opening.plan] = session
        if not stays:
            session.loans.end(session.close)
        return lent


class _Opening:
    """A thread's wish to open a session.

    Attributes
    ----------
    plan : Plan
        Whose.
    first : _Opening
        That of the thread which opens it.
    over : concurrent.futures.Future
        Done when it is open, or could not be opened.
    """

    def __init__(self) -> None:
        from concurrent.futures import Future  # loaded by whatever is opened

        self.plan: Plan | None = None
        self.first = self
        self.thread = threading.get_ident()
        self.over: Future[None] = Future()


def _on_loan(session: Session) -> Session:
    from parmap.plans.lent import Lent

    return Lent(session)


def _levels(of: Plan) -> list[Plan]:
    """List the plans of a plan's own calls, of calls in its tasks, and so on."""
    return [of, *(plan(list(of.nested[depth:])) for depth in range(len(of.nested)))]


def _from_environment(text: str) -> Plan:
    try:
        return plan(text)
    except PlanError as error:
        raise PlanError(f"in the environment variable {_ENVIRONMENT}: {error}") from None


_process = _ProcessWide()


def _forget() -> None:
    global _process
    before, _process = _process, _ProcessWide()
    _process._plan, _process._default = before._plan, before._default  # noqa: SLF001


def _left(of: Plan) -> None:
    _process.retire(_levels(of)[1:])


def _forget_plan() -> None:
    """Forget the parent's plan: a forked worker has no process-wide plan, as no other has."""
    global _process  # noqa: PLW0603 - the process has one
    _process = _ProcessWide()
    context.blocks.clear()


context.left.append(_left)
context.begin_forked_worker.append(_forget_plan)

if hasattr(os, "register_at_fork"):
    # A fork inherits neither the lock's owner nor the workers: it opens sessions of its own.
    os.register_at_fork(after_in_child=_forget)


def set_plan(spec: PlanSpec, /, **options: Any) -> None:
    """Set the process-wide plan, for scripts and notebooks, and for all threads.

    The workers of the previous plan are closed as soon as no call uses them.

    Parameters
    ----------
    spec, **options
        As for `plan`.

    Raises
    ------
    PlanError
        As `plan`; also if `spec` is None.

    Examples
    --------
    >>> import parmap
    >>> before = parmap.current_plan()
    >>> parmap.set_plan("threads", workers=2)
    >>> parmap.pmap(abs, [-1, -2])
    [1, 2]
    >>> parmap.set_plan(before)
    """
    if spec is None:
        raise PlanError(
            "set_plan(None): name a plan, such as set_plan('sequential'). set_plan returns None; "
            "to restore a plan later, keep current_plan() before you call set_plan"
        )
    chosen = plan(spec, **options)
    for hear in on_set:
        hear(chosen)
    unentered.dropped.clear()
    _process.set(chosen)


def current_plan() -> Plan:
    """Give the plan in force here.

    Returns
    -------
    Plan
        That of the innermost ``with`` block; inside a task the next nested plan; else the
        process-wide plan: of `set_plan`, or of the environment variable ``PARMAP_PLAN`` (read
        at the first use, never in a worker). Without any of them, a thread that never had a
        plan of its own uses the one that is open in the process, if exactly one is. Else it is
        ``sequential``.

    Examples
    --------
    >>> import parmap
    >>> with parmap.plan("threads", workers=2):
    ...     print(parmap.current_plan())
    threads(workers=2)
    """
    frame = _frame()
    if frame is None:
        candidates = _candidates()
        return cast("Plan", candidates[0].plan) if len(candidates) == 1 else _process.get()
    if isinstance(frame, context.Task):
        return plan(list(frame.nested)) if frame.nested else plan("sequential")
    return cast("Plan", frame.plan)  # it is a session


def current_session() -> Session:
    """Give the session that a call made here uses; open it if it is the process-wide one."""
    frame = _frame()
    if frame is None:
        return _borrowed() or _default_session()
    if isinstance(frame, context.Task):
        return _process.session(current_plan())
    session: Session = frame
    session.check(begins=True)
    return session


def _default_session() -> Session:
    if unentered.dropped and not _process.chosen:
        _warn_of_dropped()
    return _process.session()


def _frame() -> Any:
    """Give what this context is in, but for blocks that were left elsewhere."""
    frame = context.frame.get()
    while frame is not None and not isinstance(frame, context.Task) and frame.block.strayed:
        frame = frame.block.outer
    return frame


def _candidates() -> list[Session]:
    """List the open sessions that a thread without a plan may use: of each nest the innermost."""
    if not context.blocks or context.here.plan or _process.chosen:
        return []
    if threading.current_thread() is threading.main_thread():
        return []
    blocks = [one for one in context.blocks.copy() if not one.foreign]
    around = {id(one.block.outer) for one in blocks}
    return [one for one in blocks if id(one) not in around]


def _borrowed() -> Session | None:
    """Give the one session that is open in the process, on loan."""
    from parmap.plans.lent import Lent

    while len(candidates := _candidates()) == 1:
        session = Lent(candidates[0])
        if candidates[0] in context.blocks:  # else its block was left before the loan
            _warn(_BORROWED.format(candidates[0].plan))
            return session
    if candidates:
        _warn(_AMBIGUOUS.format(" and ".join(sorted({str(one.plan) for one in candidates}))))
    return None


_CURE = (
    "To choose, start the thread with contextvars.copy_context().run(function, ...), or set a plan "
    "for all threads with parmap.set_plan(...)"
)
_BORROWED = (
    "this thread has no plan of its own, so this call uses {}, whose `with` block is open in "
    "another thread. Calls after the end of that block run sequentially. " + _CURE
)
_AMBIGUOUS = (
    "this thread has no plan of its own, and the `with` blocks of several are open in other "
    "threads ({}), so this call runs sequentially. " + _CURE
)
_warned: set[str] = set()


_DROPPED = (
    "parmap.plan({!r}, ...) in line {} of {} made a plan that no call uses, so this call runs "
    "sequentially. To set the plan of the script, write parmap.set_plan(...) with the same "
    "arguments; for a block of calls, write `with parmap.plan(...):`"
)


def _warn_of_dropped() -> None:
    if taken := unentered.taken():
        name, file, line = taken
        _warn(_DROPPED.format(name, line, os.path.basename(file)), once=False)


def _warn(message: str, *, once: bool = True) -> None:
    """Warn at the user's line; of `_BORROWED` and `_AMBIGUOUS` once in a process."""
    from parmap.engine.users_line import users_line

    if not (once and _warned):
        warnings.warn_explicit(message, UserWarning, *users_line())
        _warned.update([message] if once else [])


# Public: pickles and tracebacks name it as users do, wherever it is defined.
current_plan.__module__ = set_plan.__module__ = "parmap"
