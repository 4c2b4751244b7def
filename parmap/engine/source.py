"""The input of a call, cut into chunks as they are asked for."""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from parmap.engine.chunks import ChunkPlan, ReturnedChunks, next_number
from parmap.engine.iterables import (
    at_hand,
    in_both,
    is_light,
    one_large,
    rows_at_hand,
    shortest,
    unchanging,
)
from parmap.engine.memory_load import Load
from parmap.engine.policies import Policy
from parmap.engine.pulled_rows import PulledRows
from parmap.engine.traits import Traits
from parmap.transport.messages import Chunk
from parmap.transport.shared import handles_exist, unwrapped

__all__ = ["Cutter", "Feed", "Source"]


class Feed(Protocol):
    """What a call runs on: a `Source`, or the run of a graph."""

    @property
    def total(self) -> int | None:
        """How many elements there are, where that is known."""

    @property
    def constants(self) -> Mapping[int, Any]:
        """The arguments that are the same for all elements, by their columns."""

    @property
    def load(self) -> Load | None:
        """What bounds the bytes that the call holds, if anything does."""

    def known(self) -> frozenset[int] | None:
        """Give the numbers (`id`) of large objects that are known to recur in the elements.

        None where the elements may change while the call runs.
        """

    def cutter(self, policy: Policy, workers: int, traits: Traits) -> Cutter:
        """Begin to cut it."""


class Cutter(Protocol):
    """What cuts a call's feed, and hands out the chunks one by one."""

    @property
    def taken(self) -> int:
        """How many elements have been handed out."""

    @property
    def broken(self) -> tuple[int, Exception] | None:
        """What the input itself raised, and the index of the element that it could not give."""

    def next(self, at_most: int, below: int | None) -> ChunkPlan | None:
        """Give the next chunk; None when there is none now."""

    def learn(self, size: int, seconds: float) -> bool:
        """Hear what a chunk took; say whether that is far more than those before."""

    def take_back(self, chunk_plan: ChunkPlan, *, slow: bool = False) -> None:
        """Take a chunk that was handed out and did not run, to hand it out again.

        Parameters
        ----------
        chunk_plan : ChunkPlan
            The chunk.
        slow : bool, default False
            Whether the element before it is slow.
        """


class Source:
    """The elements of a call: as many columns as the function has arguments.

    Asks each iterable for one iterator, and pulls from it only what the next chunk takes. An
    iterable that raises ends the source there: what was pulled before it is still cut, and
    `error` keeps what it raised, as if the element that it could not give had failed.

    Parameters
    ----------
    iterables : sequence of iterable
        The arguments, as given to ``map``; the shortest ends the source.
    star : bool, default False
        Whether the one iterable holds argument tuples.
    stable : bool, default False
        Whether the input stays as it is while the call runs, so that one large object that
        is every element of a list needs to travel only once. Else lists are copied: the
        elements of a call are those that a list has when the call begins.
    load : Load, optional
        Bounds the bytes of what is pulled. Default: nothing does.

    Attributes
    ----------
    total : int or None
        How many elements there are. If not `certain`, the iterables only say so.
    certain : bool
        Whether all elements are at hand, and counted.
    constants : dict of int to object
        Arguments that are the same for all elements, by their columns: those given by
        `itertools.repeat`. In `cut` a range stands for each.
    pulled : int
        How many elements have been cut.
    error : Exception or None
        What an iterable raised.
    """

    def __init__(
        self,
        iterables: Sequence[Iterable[Any]],
        *,
        star: bool = False,
        stable: bool = False,
        load: Load | None = None,
    ) -> None:
        self.star, self.load, self.stable = star, load, stable
        self.error: Exception | None = None
        self.pulled = 0
        self.constants: dict[int, Any] = {}
        if not star:
            # An iterator that is given twice gives each of its items to one of the two.
            once = [id(it) for it in iterables].count
            iterables = [
                self._varying(place, it, stable) if once(id(it)) == 1 else it
                for place, it in enumerate(iterables)
            ]
        self.certain = all(map(at_hand, iterables))
        self.total = shortest(iterables)
        self._columns: tuple[Any, ...] | None = None
        if self.certain:
            self._columns = tuple(it if stable else unchanging(it) for it in iterables)
        else:
            self._rows = PulledRows(iterables)

    def _varying(self, place: int, iterable: Iterable[Any], stable: bool) -> Iterable[Any]:  # noqa: FBT001
        """Note a constant, and give a range as long as it; give all else as it is."""
        if type(iterable) is itertools.repeat:
            count = operator.length_hint(iterable, sys.maxsize)  # an endless one gives no hint
            if count:
                self.constants[place] = next(iterable)
        elif stable and type(iterable) in (list, tuple) and one_large(iterable):  # type: ignore[arg-type]
            count = len(iterable)  # type: ignore[arg-type]
            self.constants[place] = iterable[0]  # type: ignore[index]
        else:
            return iterable
        return range(count)

    def known(self) -> frozenset[int] | None:
        """Give what the first two elements share; see `Feed`."""
        if not self.stable or self._columns is None:
            return None
        return frozenset(id(one) for column in self._columns for one in in_both(column))

    @property
    def light(self) -> bool:
        """Whether more elements than may run can be sent: they are at hand, and small."""
        return self._columns is not None and all(map(is_light, self._columns))

    def with_constants(self, columns: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """Put the constants themselves where ranges stand for them."""
        return [
            [self.constants[place]] * len(column) if place in self.constants else column
            for place, column in enumerate(columns)
        ]

    def cutter(self, policy: Policy, workers: int, traits: Traits) -> SourceCutter:
        """Make the cutter of this source."""
        return SourceCutter(self, policy, workers, traits)

    @property
    def left(self) -> int | None:
        """How many elements are not cut yet; None where that is not known."""
        if self.total is None or (self.pulled >= self.total and not self.certain):
            return None  # there are more than the iterables said, or none: nobody knows
        return max(0, self.total - self.pulled)

    def freeze(self) -> None:
        """Copy lists, where tasks could change them in the middle of the call."""
        if self._columns is not None and self.stable:
            self._columns = tuple(map(unchanging, self._columns))

    def take_all(self, *, crosses: bool) -> list[tuple[Any, ...]]:
        """Pull everything and give it as rows; `cut` then has nothing left.

        An iterable's error is kept in `error`, and the rows before it are given.
        """
        self.load = None
        columns = self.cut(sys.maxsize, crosses=crosses)
        self.total, self.certain = self.pulled, True
        return list(zip(*self.with_constants(columns), strict=True)) if columns else []

    def cut(self, size: int, *, crosses: bool = False) -> tuple[Sequence[Any], ...] | None:
        """Cut the next `size` elements, fewer at the end; None when there are none.

        Parameters
        ----------
        size : int
            How many.
        crosses : bool, default False
            Whether they leave this process's memory. Then what `load` bounds includes elements at
            hand, and those that an iterator gives are copied, if it may fill the same again.
        """
        size = min(size, sys.maxsize)
        if self._columns is not None:
            columns = self._sliced(size, crosses=crosses)
        else:
            columns = self._iterated(size, crosses=crosses)
        count = len(columns[0]) if columns else 0
        self.pulled += count
        if self.load is not None:
            self.load.close(self.pulled)
        if count and self.star:
            columns = (rows_at_hand(columns[0]),)
        return columns if count else None

    def _sliced(self, size: int, *, crosses: bool) -> tuple[Sequence[Any], ...]:
        assert self._columns is not None
        start, stop = self.pulled, self.pulled + size
        if self.total is not None:
            stop = min(stop, self.total)
        if self.load is not None and crosses:
            stop = start + self._fitting(self.load, start, stop)
        columns = [column[start:stop] for column in self._columns]
        count = min(map(len, columns))  # another thread may have shortened a list
        return tuple(columns if count == stop - start else [column[:count] for column in columns])

    def _fitting(self, load: Load, start: int, stop: int) -> int:
        """Count the elements at hand that may be on their way to the workers, by their weight."""
        assert self._columns is not None
        at = start
        heavy = [column for column in self._columns if not is_light(column)]
        if not heavy:
            return stop - start
        while step := load.step(stop - at):
            load.add([part for column in heavy for part in column[at : at + step]], step)
            at += step
        return at - start

    def _iterated(self, size: int, *, crosses: bool) -> tuple[Sequence[Any], ...]:
        rows: list[Any] = []
        if self.error is None:
            try:
                self._rows.pull(rows, size, self.load, copies=crosses)
            except Exception as error:  # noqa: BLE001 - kept, and raised by the engine in its turn
                self.error = error
        columns = self._rows.columns(rows)
        if not self.constants:
            return columns
        return tuple(
            range(len(column)) if place in self.constants else column
            for place, column in enumerate(columns)
        )


# So many elements after a slow one go singly.
_SINGLY = 8


class SourceCutter:
    """Cuts a source by a policy, in the policy's order.

    Parameters
    ----------
    source : Source
        The input.
    policy : Policy
        How to cut it.
    workers : int
        How many workers there are.
    traits : Traits
        Facts about the place. In the caller's memory the first column of a chunk is a list, which
        the engine can empty to stop it.
    """

    def __init__(self, source: Source, policy: Policy, workers: int, traits: Traits) -> None:
        self._source, self._lists = source, (lists := traits.shares_memory)
        if lists:
            source.freeze()
        self._order: list[int] | None = None
        self._rows: list[tuple[Any, ...]] = []
        # What a lazy call's iterables say of their number is all that can be known.
        counted = source.certain if source.stable else source.total is not None
        if policy.reorders or (policy.counts and not counted):
            self._rows = source.take_all(crosses=not lists)
            self._order = policy.order(self._arguments(policy), workers)
        self._chunker, self._workers = policy.begin(source.total, workers), workers
        self._recalls = traits.recalls and self._chunker.recalls
        self._cut = 0
        self._returned = ReturnedChunks()
        # Trials, which may come back, are for elements that leave no copy, in no order of theirs.
        self._tries = self._order is None and not lists and source.light

    def _arguments(self, policy: Policy) -> list[tuple[Any, ...]]:
        """Give the arguments of each element, as its cost may ask for them."""
        if policy.cost is None:
            return self._rows
        rows = [tuple(row[0]) for row in self._rows] if self._source.star else self._rows
        return [tuple(unwrapped(row)) for row in rows] if handles_exist() else rows

    def learn(self, size: int, seconds: float) -> bool:
        """Hear what a chunk took; say whether that is far more than those before."""
        return self._chunker.learn(size, seconds)

    @property
    def broken(self) -> tuple[int, Exception] | None:
        """What the source raised, if it did."""
        error = self._source.error
        return None if error is None else (self._source.pulled, error)

    @property
    def taken(self) -> int:
        """How many elements have been cut, or passed over."""
        return self._source.pulled if self._order is None else self._cut

    def take_back(self, chunk_plan: ChunkPlan, *, slow: bool = False) -> None:
        """Take a chunk that did not run; it is cut again, and goes before what is not cut yet."""
        chunk = chunk_plan.chunk._replace(seconds=None, number=0)
        chunk_plan = chunk_plan._replace(chunk=chunk)
        # Beside a slow element there may be others: the next ones go singly.
        count = min(_SINGLY, self._workers, chunk_plan.size - 1) if slow and self._recalls else 0
        for part in chunk_plan.parts(*range(1, count + 1)):
            self._returned.put(part)

    def next(self, at_most: int, below: int | None) -> ChunkPlan | None:
        """Cut the next chunk; None when there is nothing more to run.

        Parameters
        ----------
        at_most : int
            The most elements it may hold, if they are not cut yet.
        below : int or None
            Pass over elements from this index on: the call has failed there.
        """
        if self._returned.size:
            left = self._source.left
            ahead = left if left is None else left + self._returned.size
            chunk_plan = self._returned.next(self._chunker.size(ahead), below)
            if chunk_plan is not None:
                return self._numbered(chunk_plan) if self._recalls else chunk_plan
        if at_most < 1:
            return None
        if self._order is not None:
            return self._next_ordered(self._order, at_most, below)
        left, start = self._source.left, self._source.pulled
        if left == 0 or (below is not None and start >= below):
            return None
        trial = self._chunker.trial(left or 0, recalls=self._recalls) if self._tries else None
        size, seconds = trial or (self._chunker.size(left), None)
        columns = self._source.cut(min(at_most, size), crosses=not self._lists)
        if columns is None:
            return None
        if self._lists:
            if self._source.constants:
                columns = tuple(self._source.with_constants(columns))
            if type(columns[0]) is not list:
                columns = (list(columns[0]), *columns[1:])
        chunk_plan = ChunkPlan(range(start, self._source.pulled), Chunk(columns, seconds=seconds))
        return self._numbered(chunk_plan) if self._recalls and size > 1 else chunk_plan

    def _numbered(self, chunk_plan: ChunkPlan) -> ChunkPlan:
        """Give a chunk a number, so that parts of it can be recalled."""
        if chunk_plan.size == 1:
            return chunk_plan
        return chunk_plan._replace(chunk=chunk_plan.chunk._replace(number=next_number()))

    def _next_ordered(self, order: list[int], at_most: int, below: int | None) -> ChunkPlan | None:
        while self._cut < len(order):
            size = min(at_most, self._chunker.size(len(order) - self._cut))
            indices = order[self._cut : self._cut + size]
            self._cut += size
            if below is not None:
                indices = [i for i in indices if i < below]
            if indices:
                columns = zip(*(self._rows[i] for i in indices), strict=True)
                constants = () if self._lists else self._source.constants
                chunk = Chunk(
                    tuple(
                        range(len(indices)) if place in constants else list(column)
                        for place, column in enumerate(columns)
                    )
                )
                chunk_plan = ChunkPlan(indices, chunk)
                return self._numbered(chunk_plan) if self._recalls else chunk_plan
        return None
