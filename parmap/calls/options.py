"""The map options: one typed definition, validated once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import FunctionType, MethodType
from typing import Any, Literal, TypedDict

from parmap.calls.signature import DEFAULTS
from parmap.engine.loop import Settings
from parmap.engine.naming import ByName
from parmap.engine.policies import Policy, policy_named
from parmap.engine.retry import Retry
from parmap.engine.streams import root_of
from parmap.observe import progress as progress_
from parmap.untouched import name_of

__all__ = ["MapOptions", "OtherOptions", "settings"]


class OtherOptions(TypedDict, total=False):
    """All options but ``errors``, which alone changes what a call returns."""

    chunks: Literal["auto", "static", "dynamic", "guided"] | int | Policy
    rng: Any
    retries: int | Retry
    timeout: float | None
    progress: bool | Callable[[progress_.Counts], Any] | None
    label: str | None


class MapOptions(OtherOptions, total=False):
    """Options of `pmap`, `starmap`, `imap`, `pgrid` and `compute`.

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

    errors: Literal["raise", "return", "group"]


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
    fn: object = None,
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
    fn : callable, optional
        The user's function, for messages.

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
        if name not in DEFAULTS:
            raise _unknown(call, name, fn)
    given: dict[str, Any] = {**DEFAULTS, **options}
    errors = given["errors"]
    if type(errors) is not str or errors not in _ERRORS:
        raise ValueError(f"errors={errors!r}: give one of {', '.join(map(repr, _ERRORS))}")
    progress = given["progress"]
    # Nothing else is asked whether it is true: a callable may have a length, and that be 0.
    progress = None if progress is False else progress
    if not (progress is None or progress is True or callable(progress)):
        raise TypeError(f"progress={progress!r}: give True, or a function that takes the counts")
    return Settings(
        policy=policy_named(given["chunks"]),
        errors=given["errors"],
        retries=_retry(given["retries"]),
        timeout=_timeout(given["timeout"]),
        label=_label(given["label"]),
        observers=(progress_.observer(progress),) if progress is not None else (),
        ordered=ordered,
        window=window,
        root=None if given["rng"] is None else root_of(given["rng"]),
        star=star,
    )


def _unknown(call: str, name: str, fn: object) -> TypeError:
    """Make the error for an option that does not exist; it says where the argument belongs."""
    from parmap.plans.guesses import of_call

    valid = [*DEFAULTS, *(("ordered", "window") if call == "imap" else ())]
    hint = "" if name in _parameters(fn) else of_call(name, valid)
    if not hint and call == "compute":
        hint = f": give it to the function, delayed(function)(..., {name}=...)"
    elif not hint:
        hint = ": to pass it to the function, use " + _bound(call, name, fn)
    return TypeError(f"{call}() has no option {name!r}{hint}. Options: {', '.join(valid)}")


def _bound(call: str, name: str, fn: object) -> str:
    """Write how a function gets an argument that is the same for all elements."""
    known = "function" if fn is None else name_of(fn)
    function = known if known.isidentifier() else "function"  # a lambda's name is none
    partial = f"functools.partial({function}, {name}=...)"
    if call == "pgrid":
        return f"{partial}, or an axis: {{{name!r}: [...]}}"
    arguments = "*args" if call == "starmap" else "x"
    return f"{partial}, or lambda {arguments}: {function}({arguments}, {name}=...)"


def _parameters(fn: object) -> Iterable[str]:
    """Give the names of a function's parameters; a callable object is not asked for them."""
    inner = fn.__wrapped__ if type(fn) is ByName else fn
    inner = inner.__func__ if type(inner) is MethodType else inner
    if type(inner) is not FunctionType:
        return ()
    code = inner.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _label(label: object) -> str:
    if label is not None and not isinstance(label, str):
        raise TypeError(f"label={label!r}: give a text")
    return label or ""


def _retry(retries: int | Retry) -> Retry:
    if type(retries) is int and retries == 0:
        return _NO_RETRIES
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
