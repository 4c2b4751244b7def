"""How to run a call."""

from __future__ import annotations

from typing import Literal, NamedTuple

from parmap.engine.policies import Auto, Policy
from parmap.engine.retry import Retry
from parmap.observe import events
from parmap.transport.root import Root

__all__ = ["Settings"]


class Settings(NamedTuple):
    """How to run a call: the validated map options.

    Parameters
    ----------
    policy : Policy, default Auto()
        How to cut the input.
    errors : {"raise", "return", "group"}, default "raise"
        What to do with an element that fails.
    retries : Retry, default Retry(0)
        When a failing element is run again.
    timeout : float or None, default None
        Seconds per element.
    label : str, default ""
        What to call the call in notes and progress.
    observers : tuple of callable, default ()
        Who is told of events.
    ordered : bool, default True
        Whether results come in the input's order.
    window : int or None, default None
        The most elements that are pulled but not yet consumed.
    root : Root or None, default None
        Where the elements' random streams begin.
    star : bool, default False
        Whether each element is a tuple of the function's arguments, as in ``starmap``.
    """

    policy: Policy = Auto()
    errors: Literal["raise", "return", "group"] = "raise"
    retries: Retry = Retry(0)
    timeout: float | None = None
    label: str = ""
    observers: tuple[events.Observer, ...] = ()
    ordered: bool = True
    window: int | None = None
    root: Root | None = None
    star: bool = False
