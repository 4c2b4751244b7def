"""The ``with`` blocks of plans: in which context they are entered, and in which they are left."""

from __future__ import annotations

import contextvars
from typing import Any

from parmap.transport.identity import fresh_key
from parmap.worker import context

__all__ = ["Block", "entered", "left"]


class Block:
    """A session's block.

    Parameters
    ----------
    outer : Session, Task or None
        What was in force around it.

    Attributes
    ----------
    strayed : bool
        Whether it was left in another context than it was entered in. Then what was around it is
        in force again wherever it still seems to be.
    key : tuple
        Says, in the workers, which session it is.
    owned : mapping or None
        The globals that `setup=` assigns in the workers.
    """

    owned: Any = None

    def __init__(self, outer: Any) -> None:
        self.outer, self.strayed, self.key = outer, False, fresh_key()
        self._token: contextvars.Token[Any] | None = None

    def begin(self, session: Any) -> None:
        """Make the session current."""
        self._token = context.frame.set(session)

    def end(self) -> None:
        """Make current what was around it."""
        token, self._token = self._token, None  # it holds the context, and that the session
        assert token is not None
        try:
            context.frame.reset(token)
        except ValueError:
            self.strayed = True


def entered(session: Any) -> None:
    """Make a session current in this context."""
    context.here.plan = True
    context.blocks.append(session)
    session.block.begin(session)


def left(plan: object) -> Any:
    """End the block of a plan; give its session, or None if it cannot be told which it is."""
    session = context.frame.get()
    if session not in context.blocks or session.plan is not plan:
        session = _elsewhere(plan, session)
    else:
        session.block.end()
        if session.block.strayed:  # this context is a copy of the one that it was entered in
            context.frame.set(session.block.outer)
    if session is not None:
        context.blocks.remove(session)
    return session


def _elsewhere(plan: object, frame: Any) -> Any:
    """End a block that was entered in another context, as in an async fixture."""
    around = set()
    while frame is not None and not isinstance(frame, context.Task):
        around.add(frame)
        frame = frame.block.outer
    found = [one for one in context.blocks if one.plan is plan and one not in around]
    if len(found) != 1:
        return None
    found[0].block.end()
    return found[0]
