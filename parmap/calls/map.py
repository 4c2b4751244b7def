"""What: ``pmap``, ``starmap`` and ``imap``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

from parmap.calls.signature import shows_options
from parmap.plans.current import current_session
from parmap.untouched import has, shown

if TYPE_CHECKING:
    from parmap.calls.options import MapOptions, OtherOptions
    from parmap.engine.small import SmallMap
    from parmap.engine.waiting import Drive
    from parmap.failures import Failure

__all__ = ["Results", "collected", "imap", "pmap", "starmap"]

R = TypeVar("R")

# Enough for Auto to fill its chunks with fast functions; a few megabytes of small results.
_WINDOW = 1 << 17
# How many seconds ``async for`` may take results that are there, before other tasks get a turn.
_TURN = 0.001


class Results(Iterator[R]):
    """The results of `imap`, one by one.

    Parameters
    ----------
    drive : Drive
        Runs the call.
    """

    def __init__(self, drive: Drive) -> None:
        self._drive = drive
        self._yields = 0.0  # when the event loop's other tasks get a turn

    def __next__(self) -> R:
        """Return the next result; wait for it."""
        drive = self._drive
        while True:
            for value in drive.values:
                return value  # type: ignore[no-any-return]
            drive.refill()

    def close(self) -> None:
        """Cancel the elements that have not begun, and stop those that run.

        Any thread may call it. A thread that waits for a result then finds the end of the
        results; a thread that runs elements itself ends its element first.
        """
        self._drive.close()

    def __aiter__(self) -> Self:
        """Iterate without blocking the event loop; close if the task is cancelled."""
        import asyncio

        from parmap.engine.waiting import close_if_cancelled

        try:
            task = asyncio.current_task()
        except RuntimeError:  # no event loop runs here
            task = None
        if task is not None:
            close_if_cancelled(self._drive, task)
        return self

    async def __anext__(self) -> R:
        """Return the next result; wait for it. If it is cancelled, the next one returns it."""
        import asyncio

        drive = self._drive
        if time.monotonic() >= self._yields:
            await asyncio.sleep(0)
            self._yields = time.monotonic() + _TURN
        while True:
            for value in drive.values:
                return value  # type: ignore[no-any-return]
            await drive.refilled()

    async def aclose(self) -> None:
        """Do as `close`; for `contextlib.aclosing`."""
        self._drive.close()


@overload
def pmap(
    fn: Callable[..., R],
    /,
    *iterables: Iterable[Any],
    errors: Literal["raise", "group"] = ...,
    **options: Unpack[OtherOptions],
) -> list[R]: ...
@overload
def pmap(
    fn: Callable[..., R], /, *iterables: Iterable[Any], **options: Unpack[MapOptions]
) -> list[R | Failure]: ...
@shows_options
def pmap(
    fn: Callable[..., R], /, *iterables: Iterable[Any], **options: Unpack[MapOptions]
) -> list[R] | list[R | Failure]:
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
        from another process, its ``__cause__``, or that of its innermost cause, shows the
        traceback there. See ``errors=``.
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


@overload
def starmap(
    fn: Callable[..., R],
    iterable: Iterable[Iterable[Any]],
    /,
    *,
    errors: Literal["raise", "group"] = ...,
    **options: Unpack[OtherOptions],
) -> list[R]: ...
@overload
def starmap(
    fn: Callable[..., R], iterable: Iterable[Iterable[Any]], /, **options: Unpack[MapOptions]
) -> list[R | Failure]: ...
@shows_options
def starmap(
    fn: Callable[..., R], iterable: Iterable[Iterable[Any]], /, **options: Unpack[MapOptions]
) -> list[R] | list[R | Failure]:
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


@overload
def imap(
    fn: Callable[..., R],
    /,
    *iterables: Iterable[Any],
    ordered: bool = ...,
    window: int | None = ...,
    errors: Literal["raise"] = ...,
    **options: Unpack[OtherOptions],
) -> Results[R]: ...
@overload
def imap(
    fn: Callable[..., R],
    /,
    *iterables: Iterable[Any],
    ordered: bool = ...,
    window: int | None = ...,
    **options: Unpack[MapOptions],
) -> Results[R | Failure]: ...
@shows_options
def imap(
    fn: Callable[..., R],
    /,
    *iterables: Iterable[Any],
    ordered: bool = True,
    window: int | None = None,
    **options: Unpack[MapOptions],
) -> Results[R] | Results[R | Failure]:
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
        asked for; closing it early cancels the rest. In an event loop, no thread waits for
        results. An ``anext`` that is cancelled loses nothing. If the task that runs ``async
        for`` is cancelled, the map is closed. The input is read in the event loop's thread.

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
    from parmap.calls.options import settings
    from parmap.engine.loop import Call
    from parmap.engine.memory_load import Load
    from parmap.engine.source import Source
    from parmap.engine.waiting import Drive

    chosen = settings("imap", options, ordered=ordered, window=_window(window), fn=fn)
    if chosen.errors == "group":
        raise ValueError("errors='group' needs all results at once: use pmap, or errors='return'")
    source = Source(iterables, load=Load() if window is None else None)
    if chosen.policy.counts and source.total is None:
        raise ValueError(
            "these chunks must know how many elements there are, and the input has no length: "
            "use chunks='auto', 'dynamic' or a number, or pmap"
        )
    return Results(Drive(Call(current_session(), fn, source, chosen)))


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
    from parmap.calls.options import settings
    from parmap.engine.loop import Call
    from parmap.engine.source import Source

    small: SmallMap | None = None
    try:
        if session is not None and session.traits.recalls:
            from parmap.engine.small import SmallMap, small_map

            small = SmallMap(session)
            values = small.values() if small_map(small, fn, iterables, star=star) else None
            if values is not None:
                return values
        chosen = settings(name, options, star=star, fn=fn)
        sent = small.sent if small else None
        source = small.source() if small and sent else Source(iterables, star=star, stable=True)
        call = Call(session or current_session(), fn, source, chosen)
        results = list(chain.from_iterable(call.results(sent)))
    except BaseException:
        if small is not None:
            small.abandon()
        raise
    if chosen.errors == "group" and call.failures:
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


# Public: pickles and tracebacks name them as users do, wherever they are defined.
for _public in (Results, imap, pmap, starmap):
    _public.__module__ = "parmap"
