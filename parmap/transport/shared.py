"""Values that many tasks read: put once where all workers reach them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, Self, TypeVar
from weakref import WeakSet

from parmap.transport.identity import fresh_key

__all__ = [
    "LARGE",
    "HandleCollector",
    "RemoteHandle",
    "Shared",
    "arrived",
    "handles_exist",
    "handles_in",
    "is_large",
    "share",
    "travelling",
    "unwrapped",
    "unwrapped_names",
    "unwrapped_partial",
    "unwrapping",
]

T = TypeVar("T")


class Shared(Generic[T]):
    """A handle to a value that is put once where all workers reach it.

    Made by `share`. Where it is itself an argument of a call, the function gets the value;
    elsewhere (captured by the function, inside of a list) it stays a handle, with `value`.
    What a session has placed for it is freed when the handle is gone.

    Parameters
    ----------
    value : object
        The value. Do not change it afterwards.
    """

    __slots__ = ("__weakref__", "_value", "key")

    def __init__(self, value: T) -> None:
        self._value = value
        self.key = fresh_key()
        _living.add(self)

    @property
    def value(self) -> T:
        """The value; in a worker, a copy that all tasks there share, with read-only arrays."""
        return self._value

    def __reduce_ex__(self, protocol: int, /) -> Any:  # type: ignore[override]
        collector = _packing.get()
        place = None if collector is None else collector.index_of(self)
        # Where nobody places values it travels with what holds it.
        return (_carried, (self._value,)) if place is None else (_handle_at, (place,))

    def __copy__(self) -> Self:
        """Return the handle itself: a copy would place the same value again."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the handle itself: its value is not to be changed, so nobody needs another."""
        return self

    def __repr__(self) -> str:
        """Show the value's type, and its size where it has one."""
        from parmap.untouched import bytes_of

        size = bytes_of(self._value)
        of = "" if size is None else f", {size / 2**20:,.1f} MiB"
        return f"<Shared {type(self._value).__name__}{of}>"


class RemoteHandle(Shared[None]):
    """A result that stays with the workers: a handle here, the value in tasks that need it."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(None)

    def __reduce_ex__(self, protocol: int, /) -> Any:  # type: ignore[override]
        collector = _packing.get()
        assert collector is not None, "only sessions send it"
        return (_value_at, (collector.index_of(self),))


# A set of weak references: as long as it is empty, nobody looks for handles anywhere.
_living: WeakSet[Shared[Any]] = WeakSet()


def share(value: T, /) -> Shared[T]:
    """Put a value once where all workers reach it.

    Parameters
    ----------
    value : object
        Any object that can travel; a large array, mostly. Do not change it afterwards.

    Returns
    -------
    Shared
        A handle. Give it to a call as an argument, and the function gets the value itself,
        on every plan; in workers of other processes its arrays are read-only, and not
        copied for each task. It is placed when a session first needs it, and freed when the
        handle is gone.

    Examples
    --------
    >>> import itertools, parmap
    >>> data = parmap.share(list(range(1000)))
    >>> parmap.pmap(lambda xs, i: sum(xs[:i]), itertools.repeat(data), [2, 3, 4])
    [1, 3, 6]
    >>> parmap.pmap(lambda i: data.value[i], [5, 6])
    [5, 6]
    """
    return Shared(value)


# Below this many bytes, sharing is not worth a message of its own.
LARGE = 1 << 20


def is_large(value: Any) -> bool:
    """Tell whether a value is an array of a mebibyte or more."""
    from parmap.untouched import bytes_of  # workers do not ask

    size = bytes_of(value)
    return size is not None and size >= LARGE


def handles_exist() -> bool:
    """Tell whether this process has any handle at all."""
    return bool(_living)


def handles_in(columns: Iterable[Iterable[Any]]) -> bool:
    """Tell whether any of these arguments is a handle."""
    return any(Shared in set(map(type, column)) for column in columns)


class HandleCollector:
    """The handles inside of what is being packed.

    Parameters
    ----------
    broadcast : callable
        Broadcasts a handle's value; gives the backend's reference to it.
    references : sequence
        Those that go along in any case, first.
    """

    def __init__(
        self, broadcast: Callable[[Shared[Any]], Any], references: Sequence[Any] = ()
    ) -> None:
        self._broadcast = broadcast
        self.references = list(references)
        self.handles: list[Shared[Any]] = []
        # By identity: a backend's references may be slow to compare, and there may be many.
        self._indices = {id(reference): at for at, reference in enumerate(references)}

    def index_of(self, handle: Shared[Any]) -> int:
        """Give the place of a handle's reference among those of the collector."""
        reference = self._broadcast(handle)
        self.handles.append(handle)
        at = self._indices.setdefault(id(reference), len(self.references))
        if at == len(self.references):
            self.references.append(reference)
        return at


# Pickle hands nothing on to those whom it asks, but by `persistent_id`, and that it asks for every
# object, in Python: a list of a million integers then takes 146 ms instead of 37. So these say
# what is being packed, and from what it is unpacked, to the handles alone.
_packing: ContextVar[HandleCollector | None] = ContextVar("parmap.packing", default=None)
_cargo: ContextVar[Sequence[Any]] = ContextVar("parmap.cargo", default=())


@contextmanager
def travelling(collector: HandleCollector | None) -> Iterator[None]:
    """Pack handles in the block as references of the collector; without one, with their values."""
    token = _packing.set(collector)
    try:
        yield
    finally:
        _packing.reset(token)


@contextmanager
def arrived(values: Sequence[Any]) -> Iterator[None]:
    """Unpack, in the block, what was packed by a collector whose references gave these values."""
    token = _cargo.set(values)
    try:
        yield
    finally:
        _cargo.reset(token)


def _handle_at(place: int) -> Shared[Any]:
    return Shared(_cargo.get()[place])


def _value_at(place: int) -> Any:
    return _cargo.get()[place]


def _carried(value: Any) -> Shared[Any]:
    arrays = getattr(sys.modules.get("numpy"), "ndarray", None)
    if arrays is not None and issubclass(type(value), arrays):
        arrays.flags.__get__(value).writeable = False  # as where it was placed
    return Shared(value)


def unwrapping(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make the same function, which finds values where it is given handles."""
    fn = unwrapped_partial(fn)

    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*unwrapped(args), **unwrapped_names(kwargs))

    return call


def unwrapped_partial(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Put values in the places of handles that a partial binds; give other functions as is."""
    if not issubclass(type(fn), functools.partial):
        return fn
    partial: Any = fn
    return functools.partial(
        partial.func, *unwrapped(partial.args), **unwrapped_names(partial.keywords)
    )


def unwrapped(values: Sequence[Any]) -> list[Any]:
    """Put the values of handles in their places."""
    return [value.value if type(value) is Shared else value for value in values]


def unwrapped_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """As `unwrapped`, for keywords."""
    return dict(zip(values, unwrapped(list(values.values())), strict=True))


# Public: pickles and tracebacks name it as users do, wherever it is defined.
Shared.__module__ = share.__module__ = "parmap"
