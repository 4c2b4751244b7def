"""Errors, packed for the border: with their causes, and with as much of each as can travel.

An error refers to others: its cause, its context, and, if it is a group, its members. Each of
them is packed alone, as a `Link`, so that one that cannot travel costs no other its way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from parmap.errors import RemoteTraceback, SerializationError, add_note, said
from parmap.transport.payload import PackedError, Payload
from parmap.transport.salvage import ARGS, cut, members_of, packed, unpacked
from parmap.transport.weights import kind_of

__all__ = ["Link", "pack_error", "unpack_error"]

_LONGEST = 1 << 20  # characters of a traceback
_READONLY = (
    "parmap: arrays that all tasks share (those that the function captures, repeated arguments, "
    "what parmap.share gave) are read-only in the workers. Work on a copy: x = x.copy(); or "
    "give the array as an element"
)
_NAMES = (
    "parmap: of a script's globals, only the names that stand in a function's code, or as a "
    "constant in what it gives to eval, query and the like, are sent to the workers. If this name "
    "is put together from strings, name it in the function (a line with the name alone will do), "
    "or pass its value as an argument"
)


class Link(NamedTuple):
    """One error of those that refer to each other; the numbers are places among them.

    Parameters
    ----------
    payload : Payload
        As from `parmap.transport.salvage.packed`.
    members : tuple of int or None
        Those of a group.
    cause, context : int or None
        What it refers to.
    suppresses : bool
        Whether its context is not shown.
    """

    payload: Payload
    members: tuple[int, ...] | None
    cause: int | None
    context: int | None
    suppresses: bool


def pack_error(error: BaseException, *, crosses: bool) -> PackedError:
    """Make an error ready to travel, whatever its class does in its constructor."""
    trace = _TRACEBACK(error)
    if not crosses:
        return PackedError(error, _told(error, trace))
    if type(error) in (ValueError, TypeError):
        words = [word for word in ARGS(error) if type(word) is str]
        if words and "read-only" in words[0]:
            add_note(error, _READONLY)
    if issubclass(type(error), NameError) and not _in_code(error, trace):
        add_note(error, _NAMES)
    text = _told(error, _trimmed(trace))
    return PackedError(_links(error), text)


def unpack_error(packed: PackedError) -> BaseException:
    """Give the error; one that travelled has the worker's traceback beneath its causes."""
    if isinstance(packed.error, BaseException):
        return packed.error
    error = _linked(packed.error)
    last = error
    seen = {id(error)}
    while (below := _shown_below(last)) is not None and id(below) not in seen:
        seen.add(id(below))
        last = below
    _refer(last, RemoteTraceback(packed.traceback), _CONTEXT(last), _SUPPRESSES(last))
    return error


# What every error has, past whatever its class makes of attributes.
_CAUSE: Callable[[Any], Any] = BaseException.__cause__.__get__  # type: ignore[union-attr]
_CONTEXT: Callable[[Any], Any] = BaseException.__context__.__get__  # type: ignore[union-attr]
_SUPPRESSES: Callable[[Any], bool] = BaseException.__suppress_context__.__get__  # type: ignore[attr-defined]
_TRACEBACK: Callable[[Any], Any] = BaseException.__traceback__.__get__  # type: ignore[union-attr]


def _shown_below(error: BaseException) -> BaseException | None:
    """Return the error that Python prints before this one."""
    cause: BaseException | None = _CAUSE(error)
    return cause if cause is not None or _SUPPRESSES(error) else _CONTEXT(error)


def _refer(error: BaseException, cause: Any, context: Any, suppresses: bool) -> None:  # noqa: FBT001
    # A frozen dataclass refuses attributes, even those that Python itself sets.
    for name, value in (
        ("__cause__", cause),
        ("__context__", context),
        ("__suppress_context__", suppresses),  # last: a cause sets it, too
    ):
        BaseException.__setattr__(error, name, value)


def _links(error: BaseException) -> tuple[Link, ...]:
    """Pack an error and all that it refers to."""
    errors, places = [error], {id(error): 0}

    def place(one: BaseException | None) -> int | None:
        if one is None:
            return None
        if id(one) not in places:
            places[id(one)] = len(errors)
            errors.append(one)
        return places[id(one)]

    links = []
    for one in errors:  # which grows on the way
        members = members_of(one)
        numbers = None if members is None else tuple([place(member) or 0 for member in members])
        refers = place(_CAUSE(one)), place(_CONTEXT(one)), _SUPPRESSES(one)
        links.append(Link(packed(one), numbers, *refers))
    return tuple(links)


def _linked(links: Sequence[Link]) -> BaseException:
    """Give the first of some errors, which refer to each other as they did."""
    made: dict[int, BaseException] = {}

    def make(place: int) -> BaseException:
        if place not in made:
            link = links[place]
            try:
                one = unpacked(link.payload, [make(member) for member in link.members or ()])
            except (Exception, SystemExit) as error:  # noqa: BLE001 - its class may be another here
                one = SerializationError(f"an element's error cannot be read here: {said(error)}")
                one.__cause__ = error
            made[place] = one
        return made[place]

    for place, link in enumerate(links):
        one = make(place)
        cause, context = (None if at is None else make(at) for at in (link.cause, link.context))
        _refer(one, _CAUSE(one) if cause is None else cause, context, link.suppresses)
    return made[0]


# -- what Python prints ---------------------------------------------------------------------


def _told(error: BaseException, trace: TracebackType | None) -> str:
    import traceback  # 5 ms, for which no start waits

    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception:  # noqa: BLE001 - a user's class may raise when it is asked for its notes
        text = "".join(traceback.format_tb(trace)) + f"{kind_of(error)}: {said(error)}\n"
    return cut(text, _LONGEST)


def _in_code(error: BaseException, trace: TracebackType | None) -> bool:
    """Tell whether the code that raised a NameError has the name itself, and not in a string."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = _NAME(error)
    code = None if trace is None else trace.tb_frame.f_code
    return code is not None and code.co_name != "<module>" and name in code.co_names


_NAME: Callable[[Any], Any] = vars(NameError)["name"].__get__


def _trimmed(tb: TracebackType | None) -> TracebackType | None:
    """Drop parmap's own frames from the top: a user looks for the user's lines."""
    inner, ours = tb, ("parmap.worker", "parmap.transport")
    while inner and str(inner.tb_frame.f_globals.get("__name__")).startswith(ours):
        inner = inner.tb_next
    return inner or tb
