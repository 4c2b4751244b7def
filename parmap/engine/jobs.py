"""The job of a call: what its function is, and what the place makes of it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import parmap
from parmap.engine.hints import hints_of
from parmap.engine.site import Site
from parmap.engine.streams import takes_rng
from parmap.engine.traits import Traits
from parmap.errors import UnseededRandomWarning
from parmap.untouched import name_of
from parmap.worker import context
from parmap.worker.rng import Root
from parmap.worker.values import Job

__all__ = ["job_for", "refuse_shared_globals", "users_line", "warn_unseeded"]


def job_for(
    site: Site,
    fn: Callable[..., Any],
    *,
    star: bool,
    stop: bool = True,
    timeout: float | None = None,
    root: Root | None = None,
    functions: Sequence[Callable[..., Any]] = (),
    constants: Mapping[int, Any] | None = None,
) -> Job:
    """Make the job of a call.

    Parameters
    ----------
    site : Site
        Where it runs.
    fn, star, stop, timeout, root
        See `Job`.
    functions : sequence of callable, optional
        The user's functions that `fn` stands for. Default: `fn` itself.
    constants : mapping of int to object, optional
        The arguments that are the same for all elements, by their columns.

    Raises
    ------
    TypeError
        If random streams are asked for that this function cannot have at this place.
    """
    traits = site.traits
    # A task that runs in its caller's thread still shares what is global with the others, if
    # that thread is itself a worker.
    threaded = traits.threaded or (
        traits.shares_memory and (not traits.same_thread or context.threaded.get())
    )
    keyword = root is not None and takes_rng(fn)
    seeds_globals = root is not None and not keyword
    if seeds_globals:
        refuse_shared_globals(fn, traits)
    return Job(
        fn,
        star=star,
        stop=stop,
        timeout=timeout,
        crosses=not traits.shares_memory,
        expendable=traits.replaces_workers and traits.sees_deaths,
        nested=site.nested,
        root=root,
        takes_rng=keyword,
        apart=not threaded and (traits.same_thread or seeds_globals),
        threaded=threaded,
        hints=hints_of(functions or (fn,)) if root is None else (),
        # In the caller's memory a constant costs nothing, and is in the chunks' columns.
        constants=() if traits.shares_memory else tuple((constants or {}).items()),
        budget=site.budget,
        sent_at_once=traits.copies,
    )


def refuse_shared_globals(fn: Callable[..., Any], traits: Traits) -> None:
    """Refuse to seed generators that several threads would draw from at once."""
    alone = traits.same_thread and not context.threaded.get()
    if traits.threaded or (traits.shares_memory and not alone):
        name = name_of(fn)
        raise TypeError(
            f"{name} has no parameter rng, so rng= would seed the global generators, which all "
            f"threads of a process share. Take the stream in {name} instead: "
            f"def {name}(..., rng): rng.normal()"
        )


def warn_unseeded(
    functions: Sequence[Callable[..., Any]], touched: tuple[str, ...], where: tuple[str, int]
) -> None:
    """Warn that a function drew random numbers that nobody can draw again.

    Parameters
    ----------
    functions : sequence of callable
        One of these did; those that speak of random numbers are named, else all.
    touched : tuple of str
        The global generators that were drawn from.
    where : (str, int)
        The file and line to point at.
    """
    suspects = [fn for fn in functions if hints_of([fn])] or functions
    name = " or ".join(dict.fromkeys(map(name_of, suspects)))
    message = (
        f"{name} draws from the global generator of {' and of '.join(touched)} without a seed: its "
        "results cannot be reproduced. Give the call rng=1 (any whole number), and take the "
        f"stream as a parameter: def {name_of(suspects[0])}(..., rng): rng.normal()"
    )
    warnings.warn_explicit(message, UnseededRandomWarning, *where, registry=_warned)


# Python shows a warning once per place and text; where, it keeps in a registry.
_warned: dict[Any, Any] = {}
_HOME = os.path.dirname(parmap.__file__) + os.sep


def users_line() -> tuple[str, int]:
    """Give the file and line of the innermost call that is not parmap's own."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as inspect.currentframe does
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_HOME):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return "parmap", 0
