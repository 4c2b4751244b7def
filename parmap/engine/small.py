"""Small calls: one message to each worker, and no loop where nothing goes wrong.

A map of ten tiny elements takes as long as its preparations, and most of what the loop prepares is
for what such a map rarely has: failures, deaths, slow elements. So the chunks that the loop would
send first are sent before there is a loop. If all of them come back soon, and whole, the map is
done. Else the loop is made after all, and finds its chunks in flight.

A second worker costs more than it gives where all elements take less than to wake it. So a map of
a function whose elements were quick the last time goes to as many workers as there is work for.
"""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from types import CodeType, FunctionType
from typing import Any

from parmap.engine.callspec import spec_for
from parmap.engine.chunks import ChunkPlan, InFlight, Sent, next_number
from parmap.engine.hints import look
from parmap.engine.iterables import shortest
from parmap.engine.protocols import OpenSession
from parmap.engine.settings import Settings
from parmap.engine.source import Source
from parmap.errors import SerializationError
from parmap.transport.generators import Noticing
from parmap.transport.messages import CallSpec, Chunk
from parmap.transport.payload import ATOMS, PROTOCOL, pack_within, packed_name
from parmap.transport.shared import handles_exist
from parmap.worker import forks

__all__ = ["SmallMap", "of_atoms", "packed_small", "small_map"]

# A small map has so many elements at most: each is looked at.
_MOST = 4096
# So many bytes may its function have, and so many characters its elements together.
_SIZE = 1 << 14
# Seconds that the results of all may take. Then something may be slow, and the loop takes over,
# which takes elements back from a slow worker.
_SOON = 0.001
# Seconds after which a worker begins no other element, as in a trial of the loop's.
_TRIAL = 0.001
# Seconds of work that are worth another worker: to send it a chunk, and to hear of it, takes the
# caller and the worker 0.1 ms each.
_WORTH = 0.0002
# The seconds for each element in the last small map of a function, by its code, which is the same
# where a function is defined anew for each call. A wrong guess costs the time of a map's beginning.
_paces: dict[CodeType | None, float] = {}
_MOST_PACES = 256
_SEQUENCES = frozenset({list, tuple, range})
_NUMBERS = frozenset({int, float, complex, bool, type(None)})


class SmallMap:
    """The chunks of a small map, in flight.

    Made before any is sent, so that Ctrl-C between any two steps finds those that are.

    Parameters
    ----------
    session : OpenSession
        Where they are.

    Attributes
    ----------
    code : CodeType or None
        By what the function's pace is kept, if it is.
    sent : dict of Future to ChunkPlan
        The chunks, in the input's order.
    """

    def __init__(self, session: OpenSession) -> None:
        self.session = session
        self.code: CodeType | None = None
        self.sent: Sent = {}

    def values(self) -> list[Any] | None:
        """Wait a moment for the results; None if the loop has to see to some of them."""
        self.session.drive(self.sent, seconds=_SOON)
        values: list[Any] = []
        seconds = 0.0
        for future, chunk_plan in self.sent.items():
            whole = _whole(future, chunk_plan)
            if whole is None:
                _paces.pop(self.code, None)
                return None
            values.extend(whole[0])
            seconds += whole[1]
        self.session.drop(None)
        if self.code is not None:
            if len(_paces) >= _MOST_PACES:
                _paces.clear()
            _paces[self.code] = seconds / len(values)
        return values

    def abandon(self) -> None:
        """Stop all chunks; again, it does no harm."""
        in_flight = InFlight(self.session)
        in_flight.take_over(self.sent)
        in_flight.abandon()
        self.session.drop(None)

    def source(self) -> Source:
        """Make the source for the loop that takes over: all of it has been cut."""
        count = sum(chunk_plan.size for chunk_plan in self.sent.values())
        source = Source((range(count),))
        source.cut(count)
        return source


def _whole(future: Future[Any], chunk_plan: ChunkPlan) -> tuple[list[Any], float] | None:
    """Give the results of a chunk, and its seconds; None if there is more to say of it."""
    try:
        error = future.exception(0)
    except (TimeoutError, CancelledError):  # and never Ctrl-C, which may strike here
        return None
    if error is not None:
        return None
    outcome = future.result()
    if type(outcome) is tuple:
        return outcome if len(outcome[0]) == chunk_plan.size else None
    if outcome.element_errors or outcome.moves:
        return None
    try:
        values = outcome.unpacked()
    except SerializationError:
        return None
    return (values, outcome.seconds) if len(values) == chunk_plan.size else None


def small_map(
    small: SmallMap, fn: Callable[..., Any], iterables: Sequence[Iterable[Any]], *, star: bool
) -> bool:
    """Send the chunks of a small map; False for a call that is not one.

    One that is has few elements, at hand and of Python's plain types, and a small function; and
    elements can be recalled from the workers.

    Parameters
    ----------
    small : SmallMap
        Gets the chunks. Whoever made it abandons them if an error comes.
    fn : callable
        The user's function.
    iterables : sequence of iterable
        Its arguments.
    star : bool
        Whether the one iterable holds argument tuples.
    """
    if not _SEQUENCES.issuperset(map(type, iterables)):
        return False
    columns: Sequence[Sequence[Any]] = iterables  # type: ignore[assignment]
    count = shortest(columns) or 0
    if not 0 < count <= _MOST or not all(map(_are_rows if star else of_atoms, columns)):
        return False
    session = small.session
    packed = None if any(look((fn,))) else packed_small(session, fn, star=star)
    if packed is None:
        return False
    session.check(waits=True)
    small.code = code = fn.__code__ if type(fn) is FunctionType else None
    workers = min(count, session.workers)
    pace = _paces.get(code)
    if pace is not None:
        workers = min(workers, 1 + int(count * pace / _WORTH))
    for place in range(workers):
        start, stop = count * place // workers, count * (place + 1) // workers
        parts = tuple([column[start:stop] for column in columns])
        trial = (_TRIAL, next_number()) if stop - start > 1 else (None, 0)
        chunk = Chunk(parts, False, (), *trial)
        future = session.send_small(*packed, chunk)
        small.sent[future] = ChunkPlan(range(start, stop), chunk)
    return True


def packed_small(
    session: OpenSession, fn: Callable[..., Any], *, star: bool
) -> tuple[bytes, bytes] | None:
    """Pack the function of a small call; None where there is more to say of it.

    Parameters
    ----------
    session : OpenSession
        Where it runs.
    fn : callable
        The user's function, whose code speaks of no random generator.
    star : bool
        Whether a chunk's elements are rows of arguments.

    Returns
    -------
    tuple of (bytes, bytes) or None
        The pickles of the spec, without the function, and of the function.
    """
    if session.nested or session.block.owned or handles_exist() or forks.generation:
        return None
    packed = packed_name(fn)
    if packed is None:
        try:
            with Noticing() as found:
                packed = pack_within(fn, _SIZE)
        except SerializationError:
            return None  # the loop says what is wrong
        if packed is None or found:
            return None
    # A built-in stands for the function: a worker loads nothing for it.
    spec = spec_for(session, callable, _OF_ROWS if star else _OF_ELEMENTS, functions=(fn,))
    if spec.caller is not None and spec.caller.variables is not None:
        return None
    # What the script has set is not the same at each call.
    bare = _packed_spec(spec) if spec.caller is None else pack_within(spec, _SIZE)
    return None if bare is None else (bare, packed)


_OF_ELEMENTS, _OF_ROWS = Settings(), Settings(star=True)


@functools.lru_cache(maxsize=8)
def _packed_spec(spec: CallSpec) -> bytes:
    return pickle.dumps(spec, PROTOCOL)


def of_atoms(column: Sequence[Any]) -> bool:
    """Whether these are few bytes, of which C pickle makes just what cloudpickle does."""
    if type(column) is range or _NUMBERS.issuperset(map(type, column)):
        return True
    return ATOMS.issuperset(map(type, column)) and _size(column) <= _SIZE


def _size(column: Sequence[Any]) -> int:
    return sum(len(one) for one in column if type(one) not in _NUMBERS)


def _are_rows(rows: Sequence[Any]) -> bool:
    if not {tuple}.issuperset(map(type, rows)):
        return False
    return of_atoms(list(itertools.chain.from_iterable(rows)))
