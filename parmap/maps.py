"""What: ``pmap``, ``starmap`` and ``imap``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from parmap.current import current_session
from parmap.untouched import has, shown

if TYPE_CHECKING:
    from parmap.options import MapOptions

__all__ = ["Results", "collected", "imap", "pmap", "starmap"]

R = TypeVar("R")

# Enough for Auto to fill its chunks with fast functions; a few megabytes of small results.
_WINDOW = 1 << 17
_END = object()


class Results(Iterator[R]):
    """The results of `imap`, one by one.

    Parameters
    ----------
    lists : generator of list
        The results as the engine gives them.
    """

    def __init__(self, lists: Generator[list[Any], None, None]) -> None:
        self._lists = lists
        # Not chain.from_iterable(lists): `close` must reach the engine.
        self._values: Iterator[Any] = iter(())

    def __next__(self) -> R:
        """Give the next result; wait for it."""
        while True:
            for value in self._values:
                return value  # type: ignore[no-any-return]
            self._values = iter(next(self._lists))

    def close(self) -> None:
        """Cancel what has not run, and stop what runs."""
        self._values = iter(())
        self._lists.close()

    def __aiter__(self) -> Self:
        """Iterate without holding up the event loop."""
        return self

    async def __anext__(self) -> R:
        """Give the next result; wait for it in a thread."""
        import asyncio

        value: Any = await asyncio.to_thread(next, self, _END)
        if value is _END:
            raise StopAsyncIteration
        return value  # type: ignore[no-any-return]


def pmap(
    fn: Callable[..., R], /, *iterables: Iterable[Any], **options: Unpack[MapOptions]
) -> list[R]:
    """Map a function over data in parallel: ``list(map(fn, *iterables))``.

    Parameters
    ----------
    fn : callable
        Called with one element of each iterable.
    *iterables : iterable
        The arguments; the shortest sets the number of elements.
    **options
        See `MapOptions`.

    Returns
    -------
    list
        ``fn``'s results, in the order of the input, whatever the plan and the chunks.

    Raises
    ------
    Exception
        What ``fn`` raised for the first element, in input order, that failed: the original
        exception, with a note that names the element, the host and the process; if it comes
        from another process, its ``__cause__`` shows the traceback there. See ``errors=``.
    WorkerDied
        If an element ended its worker process.
    TaskTimeout
        If an element ran longer than ``timeout=``.
    SerializationError
        If ``fn``, an element or a result cannot travel to or from the workers.

    Examples
    --------
    >>> import parmap
    >>> parmap.pmap(pow, [2, 3, 4], [5, 2, 1])
    [32, 9, 4]
    """
    _check("pmap", fn, iterables)
    return collected("pmap", fn, iterables, options)


def starmap(
    fn: Callable[..., R], iterable: Iterable[Iterable[Any]], /, **options: Unpack[MapOptions]
) -> list[R]:
    """Map a function over argument tuples: ``list(itertools.starmap(fn, iterable))``.

    Parameters
    ----------
    fn : callable
        Called with the items of each element as its arguments.
    iterable : iterable of iterable
        The argument tuples.
    **options
        See `MapOptions`.

    Returns
    -------
    list
        As for `pmap`; so are the errors.

    Examples
    --------
    >>> import parmap
    >>> parmap.starmap(pow, [(2, 5), (3, 2)])
    [32, 9]
    """
    _check("starmap", fn, (iterable,))
    return collected("starmap", fn, (iterable,), options, star=True)


def imap(
    fn: Callable[..., R],
    /,
    *iterables: Iterable[Any],
    ordered: bool = True,
    window: int | None = None,
    **options: Unpack[MapOptions],
) -> Results[R]:
    """Map lazily both ways: pull input only as results are consumed.

    Parameters
    ----------
    fn : callable
        Called with one element of each iterable.
    *iterables : iterable
        The arguments; may be endless.
    ordered : bool, default True
        Give results in the input's order; False gives each as soon as it is there.
    window : int, optional
        The most elements that may be pulled but not yet consumed: those waiting, running,
        and done before their turn. Default: 131,072, or fewer if they and their results would
        take more than 64 MB together. A number that you give is kept, however large they are.
    **options
        See `MapOptions`; ``errors="group"`` is for calls that end.

    Returns
    -------
    Results
        An iterator, for ``for`` and ``async for``. Nothing runs before the first result is
        asked for; closing it early cancels the rest.

    Raises
    ------
    Exception
        As `pmap`, after the results of all elements before the one that failed.

    Examples
    --------
    >>> import itertools, parmap
    >>> squares = parmap.imap(lambda x: x * x, itertools.count())
    >>> list(itertools.islice(squares, 4))
    [0, 1, 4, 9]
    >>> squares.close()
    """
    _check("imap", fn, iterables)
    from parmap.engine.cutting import Source
    from parmap.engine.load import Load
    from parmap.engine.loop import Call
    from parmap.options import settings

    chosen = settings("imap", options, ordered=ordered, window=_window(window))
    if chosen.errors == "group":
        raise ValueError("errors='group' needs all results at once: use pmap, or errors='return'")
    source = Source(iterables, load=Load() if window is None else None)
    if chosen.policy.counts and source.total is None:
        raise ValueError(
            "these chunks must know how many elements there are, and the input has no length: "
            "use chunks='auto', 'dynamic' or a number, or pmap"
        )
    return Results(Call(current_session(), fn, source, chosen).results())


def _window(window: object) -> int:
    if window is None:
        return _WINDOW
    if isinstance(window, bool) or not isinstance(window, int):
        raise TypeError(f"window={window!r}: give a whole number of elements")
    if window < 1:
        raise ValueError(f"window={window!r}: give 1 or more elements")
    return window


def collected(
    name: str,
    fn: Callable[..., R],
    iterables: Sequence[Iterable[Any]],
    options: MapOptions,
    *,
    star: bool = False,
) -> list[R]:
    """Run the call of that name, and collect its results."""
    # First, if no option may be wrong: the workers of a new session, which are interpreters, start
    # while the engine is loaded here.
    session = None if options else current_session()
    from parmap.engine.cutting import Source
    from parmap.engine.loop import Call
    from parmap.options import settings

    chosen = settings(name, options)
    source = Source(iterables, star=star, settled=True)
    call = Call(session or current_session(), fn, source, chosen, star=star)
    results = list(chain.from_iterable(call.results()))
    if call.failures and chosen.errors == "group":
        from parmap.failures import FailureGroup

        raise FailureGroup(results, sorted(call.failures, key=lambda failure: failure.index))
    return results


def _check(name: str, fn: object, iterables: Sequence[object]) -> None:
    if not callable(fn):
        raise TypeError(f"{name}() needs a function first, not {_shown(fn)}: {name}(fn, data)")
    if not iterables:
        raise TypeError(f"{name}() needs data to map over: {name}(fn, data)")
    for place, iterable in enumerate(iterables, 1):
        # By the type: to ask for an iterator may run a query, and is done once, by the source.
        if not (has(iterable, "__iter__") or has(iterable, "__getitem__")):
            what = f"argument {place} after the function: {_shown(iterable)}"
            raise TypeError(f"{name}() cannot iterate over {what}")


def _shown(value: object) -> str:
    return f"{type(value).__name__} {shown(value)}"
