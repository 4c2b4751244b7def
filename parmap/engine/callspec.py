"""The spec of a call: what its function is, and what the place makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Any

from parmap.engine.context_variables import known, variables_of
from parmap.engine.protocols import OpenSession
from parmap.engine.script_settings import taken
from parmap.engine.settings import Settings
from parmap.engine.streams import takes_rng
from parmap.engine.traits import Traits
from parmap.transport.caller import Caller
from parmap.transport.identity import fresh_key
from parmap.transport.messages import CallSpec
from parmap.untouched import name_of
from parmap.worker import context, forks

__all__ = ["refuse_shared_globals", "spec_for"]


def spec_for(
    session: OpenSession,
    fn: Callable[..., Any],
    settings: Settings,
    *,
    hints: tuple[str, ...] = (),
    constants: Mapping[int, Any] | None = None,
    functions: Sequence[Callable[..., Any]] = (),
) -> CallSpec:
    """Make the spec of a call.

    Parameters
    ----------
    session : OpenSession
        Where it runs.
    fn : callable
        See `CallSpec`.
    settings : Settings
        How to run the call.
    hints : tuple of str, default ()
        See `CallSpec`.
    constants : mapping of int to object, optional
        The arguments that are the same for all elements, by their columns.
    functions : sequence of callable, default ()
        The user's functions that `fn` stands for. Default: `fn` itself.

    Raises
    ------
    TypeError
        If random streams are asked for that this function cannot have at this place.
    """
    traits = session.traits
    # A task that runs in its caller's thread still shares what is global with the others, if
    # that thread is itself a worker.
    threaded = traits.threaded or (
        traits.shares_memory and (not traits.same_thread or context.threaded.get())
    )
    root = settings.root
    keyword = root is not None and takes_rng(fn)
    seeds_globals = root is not None and not keyword
    if seeds_globals:
        refuse_shared_globals(fn, traits)
    return CallSpec(
        fn,
        star=settings.star,
        stop=settings.errors == "raise" and not settings.retries.times,
        timeout=settings.timeout,
        crosses=not traits.shares_memory,
        expendable=traits.replaces_workers and traits.sees_deaths,
        nested=session.nested,
        root=root,
        takes_rng=keyword,
        isolated=not threaded and (traits.same_thread or seeds_globals),
        threaded=threaded,
        hints=hints,
        # In the caller's memory a constant costs nothing, and is in the chunks' columns.
        constants=() if traits.shares_memory else tuple((constants or {}).items()),
        core_share=session.core_share,
        sent_at_once=traits.copies,
        session=session.block.key,
        # A task in the caller's thread runs in this very context.
        caller=None if traits.same_thread else _caller_of(traits, functions or (fn,)),
    )


def _caller_of(traits: Traits, functions: Sequence[Callable[..., Any]]) -> Caller | None:
    """Make what a call brings along from here; None where that is nothing."""
    context = copy_context()
    if traits.shares_memory:
        return Caller(context=context, settings=taken(traits))
    settings, fork = taken(traits), fresh_key() if forks.generation else None
    variables = None if known.issuperset(context) else variables_of(context, functions)
    if not settings and fork is None and variables is None:
        return None
    return Caller(fork, None, settings, traits.exclusive, variables)


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
    if traits.noisy:
        name = name_of(fn)
        raise TypeError(
            f"{name} has no parameter rng, so rng= would seed the global generators, and in these "
            "workers others draw from Python's, too: they are not parmap's own. Take the stream "
            f"in {name} instead: def {name}(..., rng): rng.normal()"
        )
