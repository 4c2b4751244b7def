"""What a call brings along from its caller, where that is not the usual; few calls do."""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, Any, NamedTuple

from parmap.transport.identity import Key

if TYPE_CHECKING:
    from parmap.transport.variables import Variables

__all__ = ["Caller", "Unapplied"]


class Caller(NamedTuple):
    """What a call brings along from its caller: context and settings that are not the usual ones.

    Parameters
    ----------
    fork : tuple or None, default None
        A key of the caller's process, if that is itself a fork. A worker that runs in it is not
        to be prepared as one that a backend has forked.
    context : contextvars.Context or None, default None
        The caller's context when the call began, where chunks stay in the caller's memory.
    settings : tuple of (str, object), default ()
        What the script has set, by the settings' names; see `parmap.worker.ambient`.
    exclusive : bool, default False
        Whether process-wide settings may be applied; see `Traits`.
    variables : Variables or None, default None
        The context variables that the function names, with their values.
    """

    fork: Key | None = None
    context: Context | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    exclusive: bool = False
    variables: Variables | None = None


class Unapplied(NamedTuple):
    """A setting of the script's that a task did not see, and why."""

    setting: str
    why: str
