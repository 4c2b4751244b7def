"""One error, packed: rebuilt without its constructor, and without what cannot travel."""

from __future__ import annotations

import copyreg
import functools
import io
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, MemberDescriptorType
from typing import Any, NamedTuple

from parmap.errors import SerializationError, said
from parmap.transport.functions import hidden
from parmap.transport.payload import PROTOCOL, Payload, by_value
from parmap.transport.weights import ATOMS, Reducer, kind_of

__all__ = ["ARGS", "Placeholder", "cut", "members_of", "packed", "unpacked"]

_LONGEST = 10_000  # characters that stand for an object

# What an error has, past whatever its class makes of attributes.
ARGS: Callable[[BaseException], tuple[Any, ...]] = BaseException.args.__get__  # type: ignore[attr-defined]
_EXCEPTIONS: Callable[[Any], Any] = BaseExceptionGroup.exceptions.__get__
_MESSAGE: Callable[[Any], str] = BaseExceptionGroup.message.__get__
_ON_HEAP = 1 << 9  # of a type's flags: it is not one that is written in C


class Placeholder:
    """Stands for an object that an error held and that could not travel; prints as that did.

    Parameters
    ----------
    shown : str
        The object's repr.
    text : str
        What ``str`` made of it.
    """

    def __init__(self, shown: str, text: str) -> None:
        self._shown, self._text = shown, text

    @classmethod
    def of(cls, value: object) -> Placeholder:
        """Make the one that stands for an object."""
        return cls(_safely(repr, value), _safely(str, value))

    def __repr__(self) -> str:
        """Return the object's own repr."""
        return self._shown

    def __str__(self) -> str:
        """Return the object's own string."""
        return self._text

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{vars(self).get('_shown')} could not travel, so it has no {name!r}")


def cut(text: str, longest: int) -> str:
    """Leave out the middle of a long text."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"


def _safely(show: Callable[[object], str], value: object) -> str:
    try:
        return cut(show(value), _LONGEST)
    except Exception:  # noqa: BLE001 - a user's __repr__
        return f"<{kind_of(value)}>"


class _Parts(NamedTuple):
    """What an error is made of, but for what it refers to."""

    args: tuple[Any, ...]
    own: dict[str, Any]
    slots: dict[str, Any]

    @classmethod
    def of(cls, error: BaseException) -> _Parts:
        """Look at an error, past all code of its class."""
        slots: dict[str, Any] = {}
        for name, member, builtin in _slots(type(error)):
            try:
                value = member.__get__(error)
            except AttributeError:
                continue  # not set
            if value is not None or not builtin:  # else it is not set, either
                slots[name] = value
        return cls(ARGS(error), dict(object.__getattribute__(error, "__dict__")), slots)

    def alone(self) -> _Parts:
        """Replace each part that does not travel by itself."""
        parts = [{k: _alone(v) for k, v in one.items()} for one in (self.own, self.slots)]
        return _Parts(tuple(map(_alone, self.args)), *parts)


def _slots(kind: type) -> Iterator[tuple[str, Any, bool]]:
    """Give what a class keeps outside of its ``__dict__``, and whether it is written in C."""
    for base in kind.__mro__[:-1]:
        if not base.__flags__ & _ON_HEAP:
            yield from _builtin_slots(base)
        elif "__slots__" in vars(base):
            for name, member in vars(base).items():
                if type(member) is MemberDescriptorType:
                    yield name, member, False


@functools.cache  # for each failing element, these are most of its work
def _builtin_slots(base: type) -> tuple[tuple[str, Any, bool], ...]:
    return tuple(
        (name, member, True)
        for name, member in vars(base).items()
        if type(member) is MemberDescriptorType and name not in _LEFT
    )


# AttributeError's object is not sent by Python, either: it is the user's, and may be large.
_LEFT = {"__suppress_context__", "obj", "exceptions", "message"}


def packed(error: BaseException) -> Payload:
    """Pack an error so that it can be read again, with as much of it as can travel.

    Pickle rebuilds an exception by calling its class with `args`, which fails at the far
    end when ``__init__`` takes something else, and changes the error when ``__init__``
    changes its argument. So the pickle is read back here; if it gives another error, this
    one is rebuilt without calling ``__init__``, from its parts.
    """
    ways = [_by_parts, _by_parts_alone, _by_parts_said]
    for pack in ways if members_of(error) is not None else [_by_pickle, *ways]:
        try:
            payload = pack(error)
            same = unpacked(payload, members_of(error) or ())
            if pack is _by_pickle and not _alike(same, error):
                continue
            if isinstance(same, type(error)) and _prints_as(same, error):
                return payload
        except BaseException:  # noqa: BLE001, S112 - a user's class may raise anything; the next way asks for less
            continue
    stand_in = SerializationError(
        f"an element raised {kind_of(error)}, and that error cannot travel from the worker: "
        f"{_safely(repr, error)}. Its traceback is the cause of this error."
    )
    return _by_pickle(stand_in)


def unpacked(payload: Payload, members: Sequence[BaseException] = ()) -> Any:
    """Read a packed error again; one that is a group gets its members back."""
    error = pickle.loads(payload.data, buffers=payload.buffers)
    return error.filled(members) if type(error) is _Group else error


def _by_pickle(error: BaseException) -> Payload:
    buffers: list[pickle.PickleBuffer] = []
    data = _plain(error, buffers)
    return Payload(data, *buffers).copy()


def _by_parts(error: BaseException) -> Payload:
    return _rebuilt(error, _Parts.of(error))


def _by_parts_alone(error: BaseException) -> Payload:
    return _rebuilt(error, _Parts.of(error).alone())


def _by_parts_said(error: BaseException) -> Payload:
    """Pack it with its texts, where its class cannot print what has travelled."""
    texts = {"__str__": said(error), "__repr__": _safely(repr, error)}
    return _rebuilt(error, _Parts.of(error).alone(), {name: texts[name] for name in _own(error)})


def _rebuilt(error: BaseException, parts: _Parts, texts: dict[str, str] | None = None) -> Payload:
    buffers: list[pickle.PickleBuffer] = []
    with io.BytesIO() as file:
        pickler = _Salvager(file, buffers)
        if members_of(error) is None:
            pickler.known[id(error)] = (parts, texts)
            pickler.dump(error)
        else:
            message = _MESSAGE(error)
            if len(parts.args) == 2 and parts.args[0] is message:  # noqa: PLR2004 - and the members
                parts = parts._replace(args=())
            pickler.dump(_Group(type(error), message, parts, texts))
        return Payload(file.getvalue(), *buffers).copy()


class _Group(NamedTuple):
    """A group of errors, but for its members."""

    kind: type[BaseException]
    message: str
    parts: _Parts
    texts: dict[str, str] | None

    def filled(self, members: Sequence[BaseException]) -> BaseException:
        """Give the group."""
        error = _empty(self.kind, self.texts, self.message, list(members))
        parts = self.parts if self.parts.args else self.parts._replace(args=ARGS(error))
        _fill(error, parts)
        return error


def members_of(error: BaseException) -> Sequence[BaseException] | None:
    """Return the members of a group; None of any other error."""
    return _EXCEPTIONS(error) if isinstance(error, BaseExceptionGroup) else None


class _Salvager(pickle.Pickler):
    """Pickles errors by their parts, and something else in the place of what cannot travel.

    Attributes
    ----------
    known : dict
        By their ids, errors whose parts are given, and what they say, if their class cannot.
    """

    def __init__(self, file: Any, buffers: list[pickle.PickleBuffer]) -> None:
        super().__init__(file, PROTOCOL, buffer_callback=buffers.append)
        self.known: dict[int, tuple[_Parts, dict[str, str] | None]] = {}
        self._reducer = Reducer()

    def reducer_override(self, value: Any, /) -> Any:
        kind = type(value)
        if issubclass(kind, BaseException):
            parts, texts = self.known.get(id(value)) or (_Parts.of(value), None)
            members = members_of(value)
            given = () if members is None else (_MESSAGE(value), list(members))
            return _empty, (kind, texts, *given), parts, None, None, _fill
        made = self._reduction(value)
        return (Placeholder, (_safely(repr, value), _safely(str, value))) if made is None else made

    def _reduction(self, value: Any) -> Any:
        """Return what pickling makes of an object; None where it must not travel, or cannot."""
        # What cleans up after itself is not copied in part: it would do so twice.
        if any("__del__" in vars(base) for base in type(value).__mro__) and not _travels(value):
            return None
        try:
            return self._reducer.reduce(value) or NotImplemented
        except Exception:  # noqa: BLE001 - whatever a user's __reduce__ may raise
            return None


def _empty(kind: type[BaseException], texts: dict[str, str] | None, *given: Any) -> BaseException:
    """Make an error of a class without calling its constructors."""
    # Of the innermost class that is written in C: it knows what it has in memory.
    base = next(one for one in kind.__mro__ if not one.__flags__ & _ON_HEAP)
    if texts is not None:
        says = {name: (lambda _, text=text: text) for name, text in texts.items()}
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        meta: Any = type(kind)
        kind = meta(kind.__name__, (kind,), {**names, **says})
    error: BaseException = base.__new__(kind, *given)
    return error


def _fill(error: BaseException, parts: _Parts) -> None:
    """Give an error its parts, past its class's own __setattr__: a frozen dataclass refuses."""
    BaseException.__setattr__(error, "args", parts.args)
    object.__getattribute__(error, "__dict__").update(parts.own)
    for name, value in parts.slots.items():
        BaseException.__setattr__(error, name, value)


class _Reducers:
    """The process's reducers, but tblib's, which Dask installs for all errors.

    Those also send tracebacks, and lose what an error's class keeps outside of its ``__dict__``:
    the code of a SystemExit.
    """

    def __getitem__(self, kind: type) -> Any:
        reducer = copyreg.dispatch_table[kind]
        if getattr(reducer, "__module__", "") == "tblib.pickling_support":
            raise KeyError(kind)
        return reducer


def _plain(value: Any, buffers: list[pickle.PickleBuffer]) -> bytes:
    token = hidden.set(True)
    try:
        with io.BytesIO() as file:
            pickler = pickle.Pickler(file, PROTOCOL, buffer_callback=buffers.append)
            pickler.dispatch_table = _Reducers()  # type: ignore[assignment]
            pickler.dump(value)
            return file.getvalue()
    except Exception:  # noqa: BLE001 - a local class, say, which must be sent by value
        buffers.clear()
        return by_value(value, buffers.append)
    finally:
        hidden.reset(token)


def _alone(value: Any) -> Any:
    return value if _travels(value) else Placeholder.of(value)


def _travels(value: Any) -> bool:
    if type(value) in ATOMS:
        return True
    buffers: list[pickle.PickleBuffer] = []
    try:
        pickle.loads(_plain(value, buffers), buffers=buffers)
    except BaseException:  # noqa: BLE001 - see packed
        return False
    return True


# -- whether it is the same -----------------------------------------------------------------


def _alike(same: BaseException, error: BaseException) -> bool:
    """Whether an error is another one's copy, as far as can be seen without the user's code."""
    return type(same) is type(error) and _equal(_Parts.of(same), _Parts.of(error))


def _equal(one: Any, other: Any) -> bool:
    kind = type(one)
    if kind is not type(other):
        return False
    if kind in ATOMS:
        return bool(one == other or one != one)  # noqa: PLR0124 - NaN
    if kind is dict:
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    for row in (tuple, list):
        if issubclass(kind, row):  # past what a subclass makes of length and order
            pairs = zip(row.__iter__(one), row.__iter__(other), strict=False)
            same = row.__len__(one) == row.__len__(other)
            return same and all(itertools.starmap(_equal, itertools.islice(pairs, _FEW)))
    return True


_FEW = 100


def _prints_as(same: BaseException, error: BaseException) -> bool:
    """Whether the copy can be printed, if the error can."""
    return all(_prints(name, same) or not _prints(name, error) for name in _own(error))


def _own(error: BaseException) -> list[str]:
    """Return which of the two ways to print an error its class defines in Python."""
    kind = type(error)
    return [n for n in ("__str__", "__repr__") if type(getattr(kind, n)) is FunctionType]


def _prints(name: str, error: BaseException) -> bool:
    try:
        getattr(type(error), name)(error)
    except Exception:  # noqa: BLE001 - a user's class
        return False
    return True
