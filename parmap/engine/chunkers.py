"""The running halves of policies: the sizes of one call's chunks, one after the other."""

from __future__ import annotations

import math

__all__ = ["Chunker", "Fixed", "Learning", "Listed", "Shrinking"]


class Chunker:
    """A policy at work on one call.

    Attributes
    ----------
    recalls : bool
        Whether what a worker has not begun of a chunk may be taken back, and cut again.
    """

    recalls = False

    def size(self, left: int | None) -> int:
        """Say how many elements the next chunk takes; `left` are not cut yet, if known."""
        raise NotImplementedError

    def trial(self, left: int, *, recalls: bool) -> tuple[int, float] | None:  # noqa: ARG002
        """Say how a chunk may be cut that ends itself, where elements' cost is to be found.

        Parameters
        ----------
        left : int
            How many elements are not cut yet.
        recalls : bool
            Whether what a worker has not begun of it can be taken back.

        Returns
        -------
        tuple of (int, float) or None
            The most elements that it takes, and after how many seconds it begins no other
            element. None where the cost is known, or of no interest.
        """
        return None

    def learn(self, size: int, seconds: float) -> bool:  # noqa: ARG002
        """Hear that a chunk of `size` elements took `seconds` in its worker.

        Returns
        -------
        bool
            Whether they were far slower than those before.
        """
        return False


class Listed(Chunker):
    """Sizes known beforehand; then singles, for an input that was longer than it said."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = iter(sizes)

    def size(self, left: int | None) -> int:  # noqa: ARG002
        """Give the next of the sizes."""
        return max(1, next(self._sizes, 1))


class Fixed(Chunker):
    """Always the same size."""

    def __init__(self, size: int) -> None:
        self._size = size

    def size(self, left: int | None) -> int:  # noqa: ARG002
        """Give that size."""
        return self._size


class Shrinking(Chunker):
    """A worker's share of what is left, down to a smallest size."""

    def __init__(self, workers: int, smallest: int) -> None:
        self._workers, self._smallest = workers, smallest

    def size(self, left: int | None) -> int:
        """Give the share."""
        return max(self._smallest, math.ceil((left or 0) / self._workers))


class Learning(Chunker):
    """Sizes from the time that recent elements took.

    The first chunks are trials, or else single elements; the first answer sets the size in
    one jump. A trial costs as much as a single element where elements are slow. Where they
    are fast it tells their cost, of which the time of a single one says little, and may
    already be all that there is to do. So where single ones were so fast that a worker's share
    is next to nothing, the share follows as a trial. The estimate then follows the newest
    chunks, because costs drift along an input, but a single chunk may at most double it: one
    element that waited for a disk says little. Towards the end a chunk takes at most a third of one
    worker's share of what is left, so that workers finish together, but no less than would
    cost more to hand out than to run. This least is a time, and the estimate may be far off
    where costs rise from next to nothing: so it is never more than a third of a worker's share.
    """

    recalls = True
    _FLOOR = 0.02  # of the target: a chunk shorter than 1 ms is not worth a message
    _TAIL = 3
    # Elements for each worker from which on there are trials that cannot be taken back. Where the
    # first is slow the others of its trial wait for it, though another worker may be idle: few may
    # be all that there is.
    _MANY = 1000
    # So many times a share must fit in the shortest chunk. With 1 instead, slow elements at the end
    # that stood in one trial waited for each other: twice the time, in the simulation.
    _SHORT = 10
    # From so many seconds on an element is slow, and from so many times the estimate on surprising.
    _SLOW, _SURPRISE = 0.003, 4
    _FASTEST = 5e-8  # seconds per element: no call of a Python function takes less

    def __init__(self, total: int | None, workers: int, target: float, least: float = 0.0) -> None:
        self._workers, self._target = workers, target
        self._least = max(least, target * self._FLOOR)  # seconds
        self._share = 0 if total is None else math.ceil(total / workers)
        self._each: float | None = None  # seconds per element
        self._first = workers  # trials that are still to be made at first

    def trial(self, left: int, *, recalls: bool) -> tuple[int, float] | None:
        """Say how the next chunk is tried, as long as the cost is not known."""
        if self._each is not None:
            short = 0 < self._each * self._share * self._SHORT < self._least
            return (self._share, self._least) if short else None
        if self._share < (1 if recalls else self._MANY):
            return None
        share = math.ceil(left / max(1, self._first))
        self._first -= 1
        seconds = self._target * self._FLOOR
        return min(share, int(seconds / self._FASTEST) + 1), seconds

    def size(self, left: int | None) -> int:
        """Give as many elements as fill the target, at the cost that the last ones had."""
        if self._each is None:
            return 1
        wanted = self._target / self._each
        if left is not None:
            share = left / (self._workers * self._TAIL)
            least = min(self._least / self._each, self._share / self._TAIL)
            wanted = min(wanted, max(share, least))
        return max(1, int(wanted))

    def learn(self, size: int, seconds: float) -> bool:
        """Take in what a chunk cost."""
        each = max(seconds / size, 1e-9)
        surprise = each > max(self._SLOW, self._SURPRISE * (self._each or each))
        if self._each is None or each < self._each:
            self._each = each
        else:
            self._each = min(2 * self._each, (self._each + each) / 2)
        return surprise
