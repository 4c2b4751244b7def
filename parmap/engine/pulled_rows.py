"""The elements of iterables that are not at hand: pulled from their iterators, row by row."""

from __future__ import annotations

import array
import copy
import itertools
import operator
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from parmap.engine.memory_load import Load

__all__ = ["PulledRows"]


class PulledRows:
    """Rows of arguments, of which there are as many as the shortest iterable gives.

    Parameters
    ----------
    iterables : sequence of iterable
        The arguments; of a single one its elements themselves are the rows. Each is asked for its
        iterator here, once, and in their order, as by ``map``.
    """

    def __init__(self, iterables: Sequence[Iterable[Any]]) -> None:
        self._single = len(iterables) == 1
        # The outer islice asks for nothing more after the end: zip alone would go on pulling
        # from the first iterables each time that it is asked.
        rows = iterables[0] if self._single else zip(*iterables, strict=False)
        self._iterator: Iterator[Any] = itertools.islice(rows, None)

    def pull(self, rows: list[Any], size: int, load: Load | None, *, copies: bool) -> None:
        """Pull rows into a list; what came before an error is kept, as list.extend does.

        Parameters
        ----------
        rows : list
            Where they go.
        size : int
            How many, or fewer at the end.
        load : Load or None
            Bounds their bytes.
        copies : bool
            Whether an element is copied as it comes, if its iterator may fill the same buffer
            again for the next.
        """
        rest: Iterator[Any] = itertools.islice(self._iterator, size)
        if copies:
            for first in rest:
                rows.append(_copy_of(first))
                if not _fixed(first):
                    rest = map(_copy_of, rest)
                break
        if load is None:
            rows.extend(rest)
            return
        load.add(rows)
        while step := load.step(size - len(rows)):
            before = len(rows)
            rows.extend(itertools.islice(rest, step))
            load.add(rows[before:])
            if len(rows) < before + step:
                break

    def columns(self, rows: list[Any]) -> tuple[Sequence[Any], ...]:
        """Return rows as columns, one for each iterable; of no rows there may be none."""
        return (rows,) if self._single else tuple(zip(*rows, strict=True))


# Once made these never change.
_ATOMS = frozenset({int, float, complex, bool, str, bytes})


def _copy_of(element: Any) -> Any:
    """Copy an element, or what is in it, where the input may fill the same again."""
    return element if type(element) in _ATOMS else _copied(element, {})


def _copied(thing: Any, memo: dict[int, Any]) -> Any:
    """Copy arrays, lists, dicts, and what is in them; what is one object stays one."""
    kind = type(thing)
    if kind in _ATOMS:
        return thing
    if id(thing) in memo:
        return memo[id(thing)]
    numpy = sys.modules.get("numpy")
    if issubclass(kind, (bytearray, array.array, getattr(numpy, "ndarray", bytearray))):
        memo[id(thing)] = copy.copy(thing)
    elif kind is list:
        memo[id(thing)] = new = thing.copy()
        if not _ATOMS.issuperset(map(type, thing)):  # a long list of numbers is not walked through
            new[:] = [_copied(item, memo) for item in thing]
    elif kind is dict:
        memo[id(thing)] = new = thing.copy()
        made = ((key, item, _copied(item, memo)) for key, item in thing.items())
        # The others stay, so that their keys, which may be slow, are not hashed again.
        new.update((key, copied) for key, item, copied in made if copied is not item)
    elif kind is tuple:
        # Its items may hold it, but then by way of a list or a dict, which are noted already.
        memo[id(thing)] = thing
        items = [_copied(item, memo) for item in thing]
        if any(map(operator.is_not, items, thing)):
            memo[id(thing)] = tuple(items)
    return memo.get(id(thing), thing)


def _fixed(element: Any) -> bool:
    """Tell whether input that begins with this needs no copies; None tells nothing."""
    if type(element) is tuple:
        return all(map(_fixed, element))
    return element is not None and _copy_of(element) is element
