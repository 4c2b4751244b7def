"""All that crosses the border between the caller and a worker: frozen, picklable values.

Named tuples, and not dataclasses: these are made, pickled and read for each chunk, three times as
fast; and a fork server waits 0.1 ms for each to be defined, for a dataclass 0.7.
"""

from __future__ import annotations

import _socket
import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from parmap.cores import available_cores
from parmap.transport import shared
from parmap.transport.identity import Key, fresh_key
from parmap.transport.payload import PackedError, Payload, pack, unpack

if TYPE_CHECKING:
    from parmap.transport.caller import Caller, Unapplied
    from parmap.transport.import_path import Added
    from parmap.transport.root import Root

__all__ = [
    "CachedPayload",
    "CallSpec",
    "Chunk",
    "CoreShare",
    "ElementError",
    "Location",
    "Move",
    "Outcome",
    "RemoteResult",
    "SmallOutcome",
    "cached_payload",
    "ready",
    "unwrap",
    "whole_outcome",
]


class Location(NamedTuple):
    """Where something ran."""

    host: str
    pid: int

    @classmethod
    def here(cls) -> Location:
        """Give this process."""
        return cls(_socket.gethostname(), os.getpid())


class CoreShare(NamedTuple):
    """What one worker may use of its node.

    Parameters
    ----------
    cores : int
        What `available_cores` says inside of its tasks.
    threads : int or None
        How many threads native libraries may use; None leaves them as they are.
    exact : bool, default False
        Whether to use just that many, also if a smaller number was set.
    kept : bool, default False
        Whether the limit stays after a chunk: the plan has started the worker for its own tasks
        alone. Otherwise the end of each chunk restores the numbers that the libraries had. The
        worker may be the caller's own thread, or may serve others.
    among : int or None, default None
        How many workers share the cores of a node, where their number is not known here: then
        the worker divides, and `cores`, and `threads` if not exact, say nothing yet.
    """

    cores: int
    threads: int | None
    exact: bool = False
    kept: bool = False
    among: int | None = None

    def here(self) -> CoreShare:
        """Resolve it on the worker's own node."""
        return self if self.among is None else _divided(self, self.among)

    @classmethod
    def share(cls, cores: int, workers: int, threads: int | str | None) -> CoreShare:
        """Share cores out among workers; `threads` is the option ``threads_per_worker``."""
        if isinstance(threads, int):
            return cls(threads, threads, exact=True)
        share = max(1, cores // workers)
        return cls(share, None if threads is None else share)


@functools.cache
def _divided(core_share: CoreShare, among: int) -> CoreShare:
    threads = (
        core_share.threads if core_share.exact else None if core_share.threads is None else "auto"
    )
    return CoreShare.share(available_cores(), among, threads)._replace(kept=core_share.kept)


class CallSpec(NamedTuple):
    """What all chunks of a call share; put once where every worker reaches it.

    Parameters
    ----------
    fn : callable or Payload
        The user's function; a `Payload` of it where the spec travels with its chunks.
    star : bool, default False
        Whether a chunk's one column holds argument tuples, as in ``starmap``.
    stop : bool, default True
        Whether the first failure ends the chunk.
    timeout : float or None, default None
        Seconds that one element may take.
    crosses : bool, default True
        Whether chunks and outcomes leave the caller's memory, so that they travel packed.
    expendable : bool, default False
        Whether the worker may end itself when an element runs too long: it is replaced.
    nested : tuple, default ()
        The plans for calls made inside the function, outermost first.
    root : Root or None, default None
        Where the elements' random streams begin.
    takes_rng : bool, default False
        Whether the function gets its stream as the keyword ``rng``.
    isolated : bool, default False
        Whether chunks run with global generators of their own: where those would be the
        caller's, or are seeded for each element.
    threaded : bool, default False
        Whether other threads of the same process run tasks at the same time.
    hints : tuple of str, default ()
        The global generators that the function's code speaks of.
    constants : tuple of (int, object), default ()
        Arguments that are the same for all elements, by their columns; the chunks have
        only a range there.
    core_share : CoreShare or None, default None
        What the worker may use of its node; None: as much as the caller.
    sent_at_once : bool, default False
        Whether an outcome is sent before anything else runs, so that it need not be a copy.
    session : tuple or None, default None
        The key of the session: what is computed once in each worker is kept for it.
    caller : Caller or None, default None
        What comes along from the caller; None for most calls.
    """

    fn: Callable[..., Any] | Payload
    star: bool = False
    stop: bool = True
    timeout: float | None = None
    crosses: bool = True
    expendable: bool = False
    nested: tuple[Any, ...] = ()
    root: Root | None = None
    takes_rng: bool = False
    isolated: bool = False
    threaded: bool = False
    hints: tuple[str, ...] = ()
    constants: tuple[tuple[int, Any], ...] = ()
    core_share: CoreShare | None = None
    sent_at_once: bool = False
    session: Key | None = None
    caller: Caller | None = None  # the last, for its variables are found as the function is packed


class Chunk(NamedTuple):
    """Some elements: one column per argument of the function, all of one length.

    Parameters
    ----------
    columns : tuple of sequence
        The arguments; ``columns[j][i]`` is argument j of element i.
    careful : bool, default False
        Whether to note each element before it runs, so that a death can be laid to it.
    indices : sequence of int, default ()
        The elements' places in the input, where they have random streams.
    seconds : float or None, default None
        After so long no other element is begun; the outcome then is that of the first ones.
    number : int, default 0
        By it the caller recalls elements that have not begun; 0 if it does not.
    """

    columns: tuple[Sequence[Any], ...]
    careful: bool = False
    indices: Sequence[int] = ()
    seconds: float | None = None
    number: int = 0

    @property
    def size(self) -> int:
        """How many elements it has."""
        return len(self.columns[0])

    def part(self, start: int, stop: int) -> Chunk:
        """Cut out the elements from `start` to before `stop`."""
        columns = tuple(column[start:stop] for column in self.columns)
        return self._replace(columns=columns, indices=self.indices[start:stop])


class ElementError(NamedTuple):
    """One element of a chunk that failed: its place in the chunk, and its error."""

    offset: int
    error: PackedError


class Move(NamedTuple):
    """A global generator that moved while a chunk ran.

    Parameters
    ----------
    generator : str
        Its module.
    few : bool
        Whether it moved by no more for each element than to draw a seed, or two.
    loading : bool
        Whether modules were loaded meanwhile, which may have drawn.
    """

    generator: str
    few: bool
    loading: bool


class Outcome(NamedTuple):
    """What came of a chunk.

    Parameters
    ----------
    values : list or Payload
        One result per element that ran, None where it failed; a `Payload` of that list
        where the outcome crosses the border.
    element_errors : tuple of ElementError
        The failures, in order.
    seconds : float
        The time the function took for all of them, measured in the worker.
    location : Location
        Where it ran.
    unreadable : PackedError or None, default None
        Why the chunk could not be unpickled, so that nothing ran.
    moves : tuple of Move or Unapplied, default ()
        The global generators that were drawn from, without a seed of the element's; and the
        settings that were not applied.
    """

    values: list[Any] | Payload
    element_errors: tuple[ElementError, ...]
    seconds: float
    location: Location
    unreadable: PackedError | None = None
    moves: tuple[Move | Unapplied, ...] = ()

    def unpacked(self) -> list[Any]:
        """Give the results.

        Raises
        ------
        SerializationError
            If the chunk could not be unpickled there, or its results here.
        """
        if self.unreadable is not None:
            from parmap.transport.error_payload import unpack_error  # which most workers never need

            raise unpack_error(self.unreadable)
        return unpack(self.values) if isinstance(self.values, Payload) else self.values


# What came of a small chunk, where there is no more to tell: results of Python's plain types, and
# the time that the function took. No class: an `Outcome` takes as long to travel as both of them.
SmallOutcome: TypeAlias = "tuple[list[Any], float]"


def whole_outcome(small: SmallOutcome) -> Outcome:
    """Make the outcome of a small chunk."""
    values, seconds = small
    return Outcome(values, (), seconds, _NOWHERE)


# Only failures are told with their place.
_NOWHERE = Location("", 0)


class CachedPayload:
    """A packed `CallSpec`, or shared value, that an executor moves or keeps as it likes.

    Parameters
    ----------
    key : tuple or None
        Says which it is, where each chunk brings another payload of the same; None where the
        backend keeps the one that it was given.
    payload : Payload
        What it is; its arrays are read-only when it is unpacked.
    path : Added or None, default None
        What the import path needs for it.
    """

    __slots__ = ("_value", "key", "path", "payload")

    def __init__(self, key: Key | None, payload: Payload, path: Added | None = None) -> None:
        self.key, self.payload, self.path = key, payload, path
        self._value: Any = None

    def open(self, values: Sequence[Any] = (), *, beside: int = 0) -> Any:
        """Give the spec or value.

        Parameters
        ----------
        values : sequence
            Those of the handles in it.
        beside : int, default 0
            How many values the chunk has that is to run: the next chunk may need them all.
        """
        if self._value is None:
            self._value = _recent.pop(self.key, None) if self.key else None
        if self._value is None:
            if self.path is not None:
                self.path.extend()
            with shared.arrived(values):
                self._value = unpack(self.payload, readonly=True)
        if self.key:
            _recent.pop(self.key, None)
            _recent[self.key] = self._value  # the last one now
            # A worker sees a few calls at a time: an outer one and what nests in it.
            # The list is made in one step: tasks in other threads open specs at the same time.
            for key in list(_recent)[: -(_MOST + beside)]:
                _recent.pop(key, None)
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel packed."""
        more = () if self.path is None else (self.path,)
        return CachedPayload, (self.key, self.payload, *more)


# Each spec comes in many chunks; unpickling the function for each would cost more than most. What
# was used last stands last.
_recent: dict[Key | None, Any] = {}
_MOST = 4


def cached_payload(
    value: Any, what: str = "", *, small: int | None = None, path: Added | None = None
) -> CachedPayload:
    """Pack a spec or a value.

    Parameters
    ----------
    value : object
        What to pack, once: what is packed is given back as it is.
    what : str, default ""
        What the path in an error's message begins with.
    small : int, optional
        From this many bytes on the backend keeps it, and it refers to the memory of the
        arrays in it. Below, many copies of it travel, of which a worker opens only one.
        Default: it is never kept.
    path : Added, optional
        See `CachedPayload`.
    """
    made = (
        value
        if isinstance(value, CachedPayload)
        else CachedPayload(None, pack(value, what, views=True), path)
    )
    if made.key or (small is not None and made.payload.size >= small):
        return made
    return CachedPayload(fresh_key(), made.payload.copy(), made.path)


class RemoteResult(NamedTuple):
    """A result that stays with the workers; each task that needs it gets one of its own.

    Parameters
    ----------
    values : Payload
        A list of the one result.
    """

    values: Payload


def unwrap(thing: Any, values: Sequence[Any] = (), *, beside: int = 0) -> Any:
    """Give what is a `CachedPayload`, or has stayed; give all else as it is."""
    if type(thing) is RemoteResult:
        return unpack(thing.values)[0]
    return thing.open(values, beside=beside) if type(thing) is CachedPayload else thing


def ready(spec: CallSpec | CachedPayload, values: Sequence[Any]) -> CallSpec:
    """Give a spec as it can be run; `values` are those of the handles in it."""
    if type(spec) is not CallSpec:
        spec = unwrap(spec, values, beside=len(values))
    assert isinstance(spec, CallSpec)
    return CallSpec(unpack(spec.fn, readonly=True), *spec[1:]) if type(spec.fn) is Payload else spec
