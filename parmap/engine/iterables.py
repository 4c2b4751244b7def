"""The user's iterables: which are at hand, how many elements they say to have.

The built-in ``map`` asks each iterable for one iterator, and never for its length. So a length is
no more than a hint here, and may lie, or raise: only what is at hand is counted.
"""

from __future__ import annotations

import itertools
import math
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from parmap.transport.shared import is_large
from parmap.untouched import has

__all__ = [
    "at_hand",
    "in_both",
    "is_light",
    "one_large",
    "rows_at_hand",
    "shortest",
    "unchanging",
]

# Slices of these hold what iterating them gives, cost nothing per element, and travel as
# small as they are: a range as a range. Exact types only: a subclass may iterate otherwise.
_SLICEABLE = (list, tuple, range, str, bytes)


def at_hand(iterable: Iterable[Any]) -> bool:
    """Return whether all elements are there, and slices of them can be taken."""
    if type(iterable) in _SLICEABLE:
        return True
    # An array can only be here if NumPy was imported.
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(iterable) is numpy.ndarray and iterable.ndim > 0  # type: ignore[attr-defined]


def unchanging(iterable: Any) -> Any:
    """Return the elements of a list as they are now; all else as it is."""
    return iterable[:] if type(iterable) is list else iterable


def shortest(iterables: Sequence[Iterable[Any]]) -> int | None:
    """Return how many elements the shortest has, or says to have; None if that is not known."""
    least = sys.maxsize  # of an endless repetition, and what no list can hold
    for iterable in iterables:
        size = _length(iterable)
        if size is None:
            return None
        least = min(least, size)
    return None if least == sys.maxsize else least


def _length(iterable: Any) -> int | None:
    if type(iterable) is range:  # len() refuses a long one
        return max(0, -((iterable.start - iterable.stop) // iterable.step))
    if at_hand(iterable):
        return len(iterable)
    if has(iterable, "__next__"):  # somebody else may pull from it, too
        return None
    try:
        size = operator.length_hint(iterable, -1)
    except Exception:  # noqa: BLE001 - whatever a user's __len__ may raise: map() would not ask
        return None
    return None if size < 0 else size


_ATOMS = frozenset({int, float, complex, bool, str, bytes})
_LIGHT = 256  # bytes


def is_light(column: Sequence[Any]) -> bool:
    """Return whether the elements of a column at hand are small, by its first one."""
    if type(column) in (list, tuple):
        return bool(column) and _weight(column[0]) <= _LIGHT
    if type(column) in _SLICEABLE:
        return True
    array: Any = column
    return not array.dtype.hasobject and array.nbytes <= _LIGHT * len(array)


def _weight(element: Any) -> float:
    if type(element) is tuple:
        return sys.getsizeof(element) + sum(map(_weight, element))
    return sys.getsizeof(element) if type(element) in _ATOMS else math.inf


def in_both(column: Sequence[Any]) -> list[Any]:
    """List the large objects that are in the first element and in the second one."""
    if type(column) not in (list, tuple):
        return []
    pairs: Any = [column[:2]]
    if set(map(type, column[:2])) <= {tuple, list}:
        pairs = zip(*column[:2], strict=False)
    return [one for one, *others in pairs if others and others[0] is one and is_large(one)]


def one_large(elements: Sequence[Any]) -> bool:
    """Tell whether all elements are one object, an array of some size."""
    if len(elements) < 2 or elements[0] is not elements[-1]:  # noqa: PLR2004
        return False
    same = map(operator.is_, elements, itertools.repeat(elements[0]))
    return is_large(elements[0]) and all(same)


def rows_at_hand(rows: Sequence[Any]) -> Sequence[Any]:
    """Return rows of arguments, iterators among them as tuples: these can be read only once."""
    if _PLAIN.issuperset(map(type, rows)):
        return rows
    return [_read(row) if has(row, "__next__") else row for row in rows]


_PLAIN = frozenset({tuple, list})


def _read(row: Any) -> Any:
    try:
        return tuple(row)
    except Exception as error:  # noqa: BLE001 - it belongs to that row's element
        return Unreadable(error)


class Unreadable:
    """A row of arguments that could not be read: who reads it meets the same error.

    Parameters
    ----------
    error : Exception
        What the row raised.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __iter__(self) -> NoReturn:
        """Raise the error."""
        raise self._error
