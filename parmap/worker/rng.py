"""Calls of a function on rows of arguments, each with its element's random stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from parmap.worker.random_state import seed_globals

if TYPE_CHECKING:
    from parmap.transport.root import Root

__all__ = ["streamed"]


def streamed(
    function: Callable[..., Any],
    root: Root,
    rows: Iterable[Any],
    indices: Sequence[int],
    *,
    keyword: bool,
) -> Iterator[Any]:
    """Call a function on rows of arguments, each with its element's stream.

    Parameters
    ----------
    function : callable
        What to call.
    root : Root
        Where the streams begin.
    rows : iterable of tuple
        The arguments of each element.
    indices : sequence of int
        The elements' places in the input.
    keyword : bool
        Whether the function gets the stream as the keyword ``rng``; else NumPy's and
        Python's global generators are seeded from it.
    """
    if keyword:

        def call(index: int, row: Any) -> Any:
            return function(*row, rng=root.stream(index))

    else:

        def call(index: int, row: Any) -> Any:
            seed_globals(root.stream(index))
            return function(*row)

    return map(call, indices, rows)
