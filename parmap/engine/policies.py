"""How the input is cut: policies, pure. Sizes in, sizes out; no pool, no clock.

A policy is a value that a user writes down. `begin` makes its running half, a chunker,
for one call: the engine asks it for the next chunk's size, and tells it what chunks took.
Policies change when and with whom an element runs, never the result or its order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from parmap.engine.chunkers import Chunker, Fixed, Learning, Listed, Shrinking

__all__ = ["Auto", "Dynamic", "Guided", "Policy", "Static", "policy_named"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What all policies share.

    Parameters
    ----------
    cost : callable or sequence of float, optional
        The relative cost of each element: a function of the element's arguments, or one
        number per element. Costly elements start first.
    shuffle : bool or int, default False
        Whether to run the elements in random order, so that costly neighbours are spread;
        an int is the seed, True means 0: the order is the same each time.
    """

    cost: Callable[..., float] | Sequence[float] | None = None
    shuffle: bool | int = False

    def __post_init__(self) -> None:
        if self.cost is not None and self.shuffle is not False:
            raise ValueError(
                "give cost= or shuffle=, not both: each sets the order of the elements"
            )

    @property
    def reorders(self) -> bool:
        """Whether elements run in another order than the input's, so that all must be at hand."""
        return self.cost is not None or self.shuffle is not False

    @property
    def counts(self) -> bool:
        """Whether the number of elements must be known at the start."""
        return self.reorders

    def order(self, rows: Sequence[tuple[Any, ...]], workers: int) -> list[int]:  # noqa: ARG002
        """Give the order in which to run the elements: their indices.

        Parameters
        ----------
        rows : sequence of tuple
            The arguments of each element.
        workers : int
            How many workers there are.
        """
        if self.cost is not None:
            costs = self._costs(rows)
            # Longest first is within 4/3 of the best makespan (Graham 1969); ties keep order.
            return sorted(range(len(rows)), key=lambda i: -costs[i])
        if self.shuffle is not False:
            import random  # 2 ms, where somebody asks for it

            order = list(range(len(rows)))
            seed = 0 if self.shuffle is True else self.shuffle
            random.Random(seed).shuffle(order)  # noqa: S311 - its own generator
            return order
        return list(range(len(rows)))

    def _costs(self, rows: Sequence[tuple[Any, ...]]) -> list[float]:
        if callable(self.cost):
            return [float(self.cost(*row)) for row in rows]
        assert self.cost is not None
        # One more is enough to see that there are too many: it may be endless.
        costs = [float(cost) for cost in itertools.islice(self.cost, len(rows) + 1)]
        if len(costs) != len(rows):
            many = len(self.cost) if type(self.cost) in (list, tuple) else len(costs)
            raise ValueError(f"cost= has {many} numbers for {len(rows)} elements: give one each")
        return costs

    def paced(self, round_trip: float) -> Policy:  # noqa: ARG002
        """Give the policy for a place where a task takes so many seconds there and back."""
        return self

    def begin(self, total: int | None, workers: int) -> Chunker:
        """Make the chunker for a call of `total` elements, None where that is not known."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Static(Policy):
    """One chunk per worker, all cut at the start (prescheduling).

    Least overhead; right when all elements cost the same.

    Parameters
    ----------
    cyclic : bool, default False
        Deal the elements like cards: with 3 workers 0, 3, … / 1, 4, … / 2, 5, …; costs
        that rise or fall along the input are then shared out.
    cost : callable or sequence of float, optional
        See `Policy`: the relative cost of each element.
    shuffle : bool or int, default False
        See `Policy`: run the elements in random order.

    Examples
    --------
    >>> import parmap
    >>> parmap.pmap(abs, range(-3, 3), chunks=parmap.Static(cyclic=True))
    [3, 2, 1, 0, 1, 2]
    """

    cyclic: bool = False

    @property
    def reorders(self) -> bool:
        """Dealing is an order, too."""
        return self.cyclic or super().reorders

    @property
    def counts(self) -> bool:
        """Always: the number of elements sets the size."""
        return True

    def order(self, rows: Sequence[tuple[Any, ...]], workers: int) -> list[int]:
        """Deal the elements round, after what `cost` or `shuffle` ask for."""
        order = super().order(rows, workers)
        if not self.cyclic:
            return order
        return [i for worker in range(workers) for i in order[worker::workers]]

    def begin(self, total: int | None, workers: int) -> Chunker:
        """Share the elements out evenly: sizes differ by one at most, larger ones first."""
        total = total or 0
        share, more = divmod(total, workers)
        return Listed([share + 1] * more + [share] * (workers - more))


@dataclass(frozen=True, kw_only=True)
class Dynamic(Policy):
    """Chunks of one size, each taken by the next worker that is free.

    Parameters
    ----------
    size : int, default 1
        Elements per chunk.
    cost : callable or sequence of float, optional
        See `Policy`: the relative cost of each element.
    shuffle : bool or int, default False
        See `Policy`: run the elements in random order.
    """

    size: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_size("size", self.size)

    def begin(self, total: int | None, workers: int) -> Chunker:  # noqa: ARG002
        """Cut chunks of the one size."""
        return Fixed(self.size)


@dataclass(frozen=True, kw_only=True)
class Guided(Policy):
    """Large chunks first, then ever smaller ones: each takes 1/workers of what is left.

    As ``schedule(guided)`` in OpenMP: little overhead at first, little waiting at the end.

    Parameters
    ----------
    smallest : int, default 1
        The least elements per chunk.
    cost : callable or sequence of float, optional
        See `Policy`: the relative cost of each element.
    shuffle : bool or int, default False
        See `Policy`: run the elements in random order.
    """

    smallest: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_size("smallest", self.smallest)

    @property
    def counts(self) -> bool:
        """Always: what is left sets the size."""
        return True

    def begin(self, total: int | None, workers: int) -> Chunker:  # noqa: ARG002
        """Cut shares of what is left."""
        return Shrinking(workers, self.smallest)


# What a chunk should last, in seconds, and in round trips, so that these cost no more than 2 %.
_TARGET = 0.05
_TRIPS = 50
# The part of a round trip in which the caller's one thread, or Dask's scheduler, is busy with that
# chunk, about. All workers share it, so chunks must be the longer the more workers there are.
_HANDING = 0.2


@dataclass(frozen=True, kw_only=True)
class Auto(Policy):
    """The default: measures the first elements, then cuts chunks of `target` seconds.

    Parameters
    ----------
    target : float, optional
        How long a chunk should run, in seconds: long against the cost of handing it out,
        short against the whole. Default: 0.05, or fifty times what a task takes there and
        back, where that is more; from 125 workers on it grows with their number, since one
        caller hands out all chunks.
    cost : callable or sequence of float, optional
        See `Policy`: the relative cost of each element.
    shuffle : bool or int, default False
        See `Policy`: run the elements in random order.
    """

    target: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and not 0 < self.target < math.inf:
            raise ValueError(f"target={self.target!r}: give seconds, more than 0")

    def paced(self, round_trip: float) -> Policy:
        """Cut chunks that are long against a round trip, and against handing out one to each."""
        if self.target:
            return self
        return _Paced(cost=self.cost, shuffle=self.shuffle, round_trip=round_trip)

    def begin(self, total: int | None, workers: int) -> Chunker:
        """Cut chunks from what is learnt."""
        return Learning(total, workers, self.target or _TARGET)


@dataclass(frozen=True, kw_only=True)
class _Paced(Auto):
    """Automatic chunks where it is known what a task takes there and back."""

    round_trip: float

    def begin(self, total: int | None, workers: int) -> Chunker:
        """Cut chunks so long that handing them out takes half of the time, but for the end."""
        handing = workers * _HANDING * self.round_trip  # one chunk to each worker
        target = max(_TARGET, _TRIPS * self.round_trip, 2 * handing)
        return Learning(total, workers, target, least=handing / 2)


def _check_size(name: str, size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name}={size!r}: give a whole number of elements")
    if size < 1:
        raise ValueError(f"{name}={size!r}: a chunk holds at least 1 element")


_NAMED: dict[str, Policy] = {
    "auto": Auto(),
    "static": Static(),
    "dynamic": Dynamic(),
    "guided": Guided(),
}


def policy_named(chunks: object) -> Policy:
    """Turn a ``chunks=`` option into a policy.

    Raises
    ------
    ValueError
        If it is an unknown word or a number below 1.
    TypeError
        If it is nothing of the kind.
    """
    if isinstance(chunks, Policy):
        return chunks
    if isinstance(chunks, int) and not isinstance(chunks, bool):
        _check_size("chunks", chunks)
        return Dynamic(size=chunks)
    if isinstance(chunks, str) and chunks in _NAMED:
        return _NAMED[chunks]
    kind = ValueError if isinstance(chunks, str) else TypeError
    raise kind(
        f"chunks={chunks!r}: give one of {', '.join(map(repr, _NAMED))}, the number of elements "
        "per chunk, or a policy such as parmap.Guided(smallest=4)"
    )


# Public: pickles and tracebacks name them as users do, wherever they are defined.
for _public in (Auto, Dynamic, Guided, Static):
    _public.__module__ = "parmap"
