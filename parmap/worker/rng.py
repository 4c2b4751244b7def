"""Calls of a function on rows of arguments, each with its element's random stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from parmap.worker.random_state import seed_globals

if TYPE_CHECKING:
    import numpy as np

    from parmap.transport.root import Root

__all__ = ["streamed"]


# From so many elements on it pays to make their streams together.
_FEW = 3


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
    # What makes the streams, and what tells it which.
    stream: Callable[[int], np.random.Generator] = root.stream
    places = indices
    if len(indices) >= _FEW and root.advance == "spawn":
        from parmap.worker.spawned import spawned  # it loads NumPy

        if (together := spawned(root, indices)) is not None:
            stream, places = together.stream, range(len(indices))
    if keyword:

        def call(place: int, row: Any) -> Any:
            return function(*row, rng=stream(place))

    else:

        def call(place: int, row: Any) -> Any:
            seed_globals(stream(place))
            return function(*row)

    # Whatever is raised, the next element gets its own stream: its place alone says which.
    return map(call, places, rows)
