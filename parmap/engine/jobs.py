"""The job of a call: what its function is, and what the place makes of it."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any

import parmap
from parmap.engine.site import Site, Traits
from parmap.errors import UnseededRandomWarning
from parmap.worker.rng import Root, mentions_random, takes_rng
from parmap.worker.values import Job

__all__ = ["job_for", "refuse_shared_globals", "warn_unseeded"]


def job_for(
    site: Site,
    fn: Callable[..., Any],
    *,
    star: bool,
    stop: bool = True,
    timeout: float | None = None,
    root: Root | None = None,
) -> Job:
    """Make the job of a call.

    Parameters
    ----------
    site : Site
        Where it runs.
    fn, star, stop, timeout, root
        See `Job`.

    Raises
    ------
    TypeError
        If random streams are asked for that this function cannot have at this place.
    """
    traits = site.traits
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
        expendable=traits.replaces_workers,
        nested=site.nested,
        root=root,
        takes_rng=keyword,
        apart=traits.same_thread or seeds_globals,
        hints_random=root is None and mentions_random(fn),
    )


def refuse_shared_globals(fn: Callable[..., Any], traits: Traits) -> None:
    """Refuse to seed generators that several threads would draw from at once."""
    if traits.shares_memory and not traits.same_thread:
        name = _name(fn)
        raise TypeError(
            f"{name} has no parameter rng, so rng= would seed the global generators, which all "
            f"threads of this process share. Take the stream in {name} instead: "
            f"def {name}(..., rng): rng.normal()"
        )


def warn_unseeded(fn: Callable[..., Any], touched: tuple[str, ...]) -> None:
    """Warn that a function drew random numbers that nobody can draw again."""
    name = _name(fn)
    message = (
        f"{name} draws from the global generator of {' and of '.join(touched)} without a seed: its "
        f"results cannot be reproduced. Give the call rng=1 (any whole number), and take the "
        f"stream as a parameter: def {name}(..., rng): rng.normal()"
    )
    # Point at the user's line, which is the first outside of this package.
    home = parmap.__file__.removesuffix("__init__.py")
    if sys.version_info >= (3, 12):
        warnings.warn(message, UnseededRandomWarning, skip_file_prefixes=(home,))
        return
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(home):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UnseededRandomWarning, stacklevel=level)


def _name(fn: Callable[..., Any]) -> str:
    return str(getattr(fn, "__name__", None) or getattr(fn, "func", fn))
