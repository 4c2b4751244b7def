"""How many bytes a lazy call holds: elements that are pulled, results that wait.

A window of so many elements says nothing of memory: an element may be a number or an image. So
`imap` weighs what it pulls and what comes back, and stops pulling in time. It looks at types, and
at what objects refer to; it never asks an object of the user's for its size.
"""

from __future__ import annotations

import gc
import itertools
import operator
import sys
from collections import deque
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from parmap.untouched import bytes_of

__all__ = ["Load", "weight"]

_LIMIT = 64_000_000  # bytes
# Elements that are pulled before they are weighed. Each step costs a few Python calls; a source
# whose elements suddenly become large is noticed after one step.
_STEP = 64

# Elements that are on their way before the first result has told what results weigh.
_FIRST = 32

_NUMBERS = frozenset({int, float, complex, bool, type(None)})
_TEXTS = frozenset({str, bytes, bytearray})
_ROWS = frozenset({tuple, list})
_SETS = frozenset({set, frozenset})
# What elements refer to and do not bring along.
_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, CodeType)
_NUMBER = 32  # bytes of a small object, about
_FEW = 4096  # parts of rows that are all looked at
_LOOKS = 64  # objects that are looked at to weigh one
_SAMPLE = 8  # items of a long container that stand for all


class Load:
    """What one lazy call holds, in bytes; touched by the call's own thread alone.

    Parameters
    ----------
    limit : int, default 64 MB
        The most bytes of elements that are pulled and not consumed, and of their results.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        # For each cut: how many elements had been pulled then, and the bytes of those it took.
        self._cuts: deque[tuple[int, int]] = deque()
        self._held = 0
        self._result = 0.0  # bytes of a result, of late
        self._free = limit  # what the next cut may take
        self._each = 0.0  # bytes of an element, of late
        self._taken = self._count = 0  # what this cut has taken: bytes, elements

    def room(self, taken: int, released: int, *, chunks: int, least: int) -> int:
        """Say how many elements may be cut now, by the weight of results.

        Parameters
        ----------
        taken, released : int
            How many elements have been cut, and how many results are given.
        chunks : int
            How many chunks may be on their way at once: one takes no more than its share.
        least : int
            How many elements may be on their way in any case, however large they are.
        """
        while self._cuts and self._cuts[0][0] <= released:
            self._held -= self._cuts.popleft()[1]
        ahead = taken - released
        spare = self._limit - self._held - ahead * self._result
        # A share of what is there, and not of what is left: else each would be smaller.
        self._free = int(min(spare, self._limit / chunks))
        first = min(self._free, max(1, _FIRST // chunks))
        room = int(self._free / self._result) if self._result else first
        return max(room, int(ahead < least))

    def step(self, left: int) -> int:
        """Say how many of `left` elements to pull before they are weighed; 0 ends the cut."""
        # One at first: nothing is known of them. And one in each cut, however large.
        spare = self._free - self._taken - self._count * self._result
        most = int(spare / (self._each + self._result)) if self._each else 1
        return min(left, _STEP, max(most, int(not self._count)))

    def add(self, elements: Sequence[Any], count: int | None = None) -> None:
        """Weigh the elements of a step; `count` of them, where each has several parts here."""
        if elements:
            heavy, count = weight(elements), count or len(elements)
            self._taken += heavy
            self._count += count
            self._each = heavy / count

    def close(self, pulled: int) -> None:
        """Note the end of a cut: so many elements have been pulled in all."""
        self._cuts.append((pulled, self._taken))
        self._held += self._taken
        self._taken = self._count = 0

    def came(self, count: int, heavy: int) -> None:
        """Hear that so many results weigh so much."""
        # Half of the way down only: one small result among large ones says little.
        each = max(1.0, heavy / count)
        self._result = max(each, (self._result + each) / 2)


def weight(elements: Sequence[Any]) -> int:
    """Estimate how many bytes some elements have, in a few microseconds."""
    kinds = set(map(type, elements))
    if kinds <= _NUMBERS:
        return _NUMBER * len(elements)
    if kinds <= _TEXTS:
        return _NUMBER * len(elements) + sum(map(len, elements))
    if len(kinds) == 1 and kinds == {_array_type()}:
        sizes: list[int] = list(map(operator.attrgetter("nbytes"), elements))
        return _NUMBER * len(elements) + sum(sizes)
    if kinds <= _ROWS and sum(map(len, elements)) <= _FEW:
        parts = list(itertools.chain.from_iterable(elements))
        # Once for each: what stands in several rows is one object.
        parts = list({id(part): part for part in parts}.values())
        return _NUMBER * len(elements) + (weight(parts) if parts else 0)
    return len(elements) * max(_weighed(elements[0]), _weighed(elements[-1]))


def _array_type() -> Any:
    return getattr(sys.modules.get("numpy"), "ndarray", None)


def _weighed(element: Any) -> int:
    """Weigh one object and what it refers to, as far as a few looks go."""
    total = 0
    seen: set[int] = set()
    # With each: how many like it there are.
    todo: list[tuple[Any, float]] = [(element, 1.0)]
    while todo and len(seen) < _LOOKS:
        one, times = todo.pop()
        if id(one) in seen or issubclass(type(one), _SHARED):
            continue
        seen.add(id(one))
        size, parts, all_ = _looked(one)
        total += int(times * size)
        scale = times * all_ / len(parts) if parts else times
        todo += [(part, scale) for part in parts]
    return total


def _looked(one: Any) -> tuple[int, list[Any], int]:
    """Give an object's own bytes, some of its parts, and how many there are."""
    kind = type(one)
    if kind in _NUMBERS:
        return _NUMBER, [], 0
    if kind in _TEXTS:
        return _NUMBER + len(one), [], 0
    size = bytes_of(one)
    if size is not None:
        return size, [], 0
    count: Callable[[Any], int] = len
    if kind in _ROWS or kind in _SETS:
        some = list(itertools.islice(one, _SAMPLE))
        return _NUMBER + 8 * count(one), some, count(one)
    if kind is dict:
        some = [part for pair in itertools.islice(one.items(), _SAMPLE) for part in pair]
        return _NUMBER + 16 * count(one), some, 2 * count(one)
    parts = gc.get_referents(one)
    return kind.__basicsize__, parts, len(parts)
