"""The map options: one typed definition, validated once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypedDict

from parmap.engine.loop import Settings
from parmap.engine.policies import Policy, policy_named
from parmap.engine.retry import Retry
from parmap.engine.streams import root_of
from parmap.observe import progress as progress_
from parmap.plans.registry import suggest

__all__ = ["MapOptions", "settings"]


class MapOptions(TypedDict, total=False):
    """Options of `pmap`, `starmap` and `imap`.

    Attributes
    ----------
    chunks : {"auto", "static", "dynamic", "guided"}, int or Policy, default "auto"
        How the input is cut; a number is the elements per chunk.
    rng : int, SeedSequence, Generator, BitGenerator or Streams, optional
        Random streams: element i gets ``SeedSequence(rng).spawn(n)[i]`` as the keyword
        ``rng``, a `numpy.random.Generator`; a function without that parameter finds NumPy's
        and Python's global generators seeded from it, and torch's where that is loaded. See
        `Streams`.
    errors : {"raise", "return", "group"}, default "raise"
        What to do with elements that fail: raise the first failure, in input order; put a
        `Failure` in the place of each; or run all, then raise one `FailureGroup`.
    retries : int or Retry, default 0
        How often an element that failed is run again; a `Retry` says for which errors, and
        after what wait.
    timeout : float, optional
        Seconds that one element may take, measured in the worker. Where the worker can be
        replaced (plan ``processes``) it is stopped; elsewhere the element fails when it
        returns.
    progress : bool or callable, optional
        True shows a bar; a callable gets `Counts` as they change.
    label : str, optional
        What to call this call in progress, errors and notes.
    """

    chunks: str | int | Policy
    rng: Any
    errors: Literal["raise", "return", "group"]
    retries: int | Retry
    timeout: float | None
    progress: bool | Callable[[progress_.Counts], Any] | None
    label: str | None


_NAMES = tuple(MapOptions.__annotations__)
_ERRORS = ("raise", "return", "group")
_NO_RETRIES = Retry(0)  # made once: it is checked whenever it is made
_AGES = 1e12  # seconds: no float holds every whole number


def settings(
    call: str,
    options: MapOptions,
    *,
    ordered: bool = True,
    window: int | None = None,
    star: bool = False,
) -> Settings:
    """Validate the options of a call.

    Parameters
    ----------
    call : str
        The public function's name, for messages.
    options : MapOptions
        What the user wrote.
    ordered, window, star
        See `Settings`.

    Raises
    ------
    TypeError
        If an option is unknown, or of a wrong type.
    ValueError
        If a value is out of range.
    """
    if not options:
        return Settings(ordered=ordered, window=window, star=star)  # those of most calls
    for name in options:
        if name not in _NAMES:
            raise TypeError(
                f"{call}() has no option {name!r}{suggest(name, _NAMES)}. "
                f"Options: {', '.join(_NAMES)}"
            )
    errors = options.get("errors", "raise")
    if type(errors) is not str or errors not in _ERRORS:
        raise ValueError(f"errors={errors!r}: give one of {', '.join(map(repr, _ERRORS))}")
    progress = options.get("progress")
    # Nothing else is asked whether it is true: a callable may have a length, and that be 0.
    progress = None if progress is False else progress
    if not (progress is None or progress is True or callable(progress)):
        raise TypeError(f"progress={progress!r}: give True, or a function that takes the counts")
    return Settings(
        policy=policy_named(options.get("chunks", "auto")),
        errors=errors,
        retries=_retry(options.get("retries", _NO_RETRIES)),
        timeout=_timeout(options.get("timeout")),
        label=_label(options.get("label")),
        observers=(progress_.observer(progress),) if progress is not None else (),
        ordered=ordered,
        window=window,
        root=None if options.get("rng") is None else root_of(options["rng"]),
        star=star,
    )


def _label(label: object) -> str:
    if label is not None and not isinstance(label, str):
        raise TypeError(f"label={label!r}: give a text")
    return label or ""


def _retry(retries: int | Retry) -> Retry:
    return retries if isinstance(retries, Retry) else Retry(retries)


def _timeout(timeout: object) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout={timeout!r}: give seconds, or None")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout={timeout!r}: give seconds, more than 0; None means no limit")
    return float(min(timeout, _AGES))


# Public: pickles and tracebacks name it as users do, wherever it is defined.
MapOptions.__module__ = "parmap"
