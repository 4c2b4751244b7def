"""Where results wait for their turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from parmap.failures import Failure

__all__ = ["ResultBuffer", "buffer_for"]


class ResultBuffer(Protocol):
    """Takes results as they come; gives them when their turn is."""

    released: int

    def put(self, indices: Sequence[int], values: list[Any]) -> None:
        """Take the results of some elements; neighbours come as a range."""

    def fail(self, index: int, failure: Failure) -> None:
        """Take what stands for the result of an element that failed."""

    def ready(self) -> Iterator[list[Any]]:
        """Give what may go out now, and count it in `released`."""


def buffer_for(*, ordered: bool) -> ResultBuffer:
    """Make a buffer that gives results in the input's order, or as they come."""
    return _Ordered() if ordered else _Unordered()


class _Ordered:
    def __init__(self) -> None:
        self.released = 0
        self._waiting: dict[int, list[Any]] = {}  # by the first index

    def put(self, indices: Sequence[int], values: list[Any]) -> None:
        if isinstance(indices, range):
            self._waiting[indices.start] = values
        else:
            for index, value in zip(indices, values, strict=True):
                self._waiting[index] = [value]

    def fail(self, index: int, failure: Failure) -> None:
        self._waiting[index] = [failure]

    def ready(self) -> Iterator[list[Any]]:
        while (values := self._waiting.pop(self.released, None)) is not None:
            self.released += len(values)
            yield values


class _Unordered:
    def __init__(self) -> None:
        self.released = 0
        self._waiting: deque[list[Any]] = deque()

    def put(self, indices: Sequence[int], values: list[Any]) -> None:  # noqa: ARG002
        self._waiting.append(values)

    def fail(self, index: int, failure: Failure) -> None:  # noqa: ARG002
        self._waiting.append([failure])

    def ready(self) -> Iterator[list[Any]]:
        while self._waiting:
            values = self._waiting.popleft()
            self.released += len(values)
            yield values
