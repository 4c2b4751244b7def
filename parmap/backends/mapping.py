"""``Executor.map`` as Python 3.14 has it, on every Python; chunks where memory is not shared."""

from __future__ import annotations

import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, Protocol

from parmap.engine.protocols import Backend
from parmap.errors import SerializationError
from parmap.transport.error_payload import unpack_error
from parmap.transport.messages import CachedPayload, CallSpec, Chunk, Outcome, cached_payload
from parmap.transport.payload import pack
from parmap.worker.run import run_chunk

__all__ = ["MappingExecutor", "mapped"]


class MappingExecutor(Executor, Backend):
    """An executor whose `map` sends chunks, and which says how many workers it has.

    Attributes
    ----------
    chunks : bool
        Whether elements that travel together save messages: not where memory is shared.
    """

    chunks = True

    @property
    def _max_workers(self) -> int:
        """How many workers there are, by the name that other libraries know."""
        return int(self.workers)

    def map(
        self,
        fn: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Map as `concurrent.futures.Executor.map` of Python 3.14 does.

        Parameters
        ----------
        fn : callable
            The function.
        *iterables
            Its arguments.
        timeout : float, optional
            Seconds from now on after which a result that is not there raises TimeoutError.
        chunksize : int, default 1
            How many elements travel together; without effect where memory is shared.
        buffersize : int, optional
            How many chunks may be out or waiting to be taken. Default: all are sent at once.
        """
        size = chunksize if self.chunks else min(chunksize, 1)  # less is refused
        return mapped(self, fn, iterables, timeout=timeout, chunksize=size, buffersize=buffersize)


class _Submits(Protocol):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a call."""


def mapped(
    executor: _Submits,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    *,
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
) -> Iterator[Any]:
    """Do what `MappingExecutor.map` does, on any executor."""
    if chunksize < 1:
        raise ValueError(f"chunksize={chunksize}: give a number of elements, 1 or more")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError(f"buffersize must be an integer or None, not {type(buffersize).__name__}")
    if buffersize is not None and buffersize < 1:
        raise ValueError(f"buffersize={buffersize}: give None, or a number of 1 or more")
    end = None if timeout is None else timeout + time.monotonic()
    rows = zip(*iterables, strict=False)
    send: _Send = _Single(fn) if chunksize == 1 else _Several(fn, chunksize)
    out = deque(itertools.islice(send.sent(executor, rows), buffersize))
    return _results(weakref.ref(executor), send, rows, out, end, refills=buffersize is not None)


Taken = tuple["Future[Any]", bool]


class _Send(Protocol):
    def sent(self, executor: _Submits, rows: Iterator[Any]) -> Iterator[Taken]:
        """Submit rows, as this is iterated; say of each future whether an outcome comes of it."""


class _Single:
    """Sends row by row."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn

    def sent(self, executor: _Submits, rows: Iterator[Any]) -> Iterator[Taken]:
        for row in rows:
            yield executor.submit(self._fn, *row), False


class _Several:
    """Sends rows together, with the function, which is packed once."""

    def __init__(self, fn: Callable[..., Any], size: int) -> None:
        self._fn, self._size = fn, size
        self._spec: CachedPayload | None = None

    def sent(self, executor: _Submits, rows: Iterator[Any]) -> Iterator[Taken]:
        while some := list(itertools.islice(rows, self._size)):
            try:
                yield self._submitted(executor, some), True
            except SerializationError:
                yield from (self._alone(executor, row) for row in some)

    def _submitted(self, executor: _Submits, some: list[Any]) -> Future[Outcome]:
        if self._spec is None:
            self._spec = cached_payload(CallSpec(self._fn, star=True))
        return executor.submit(run_chunk, self._spec, pack(Chunk((some,)), "chunk"))

    def _alone(self, executor: _Submits, row: Any) -> Taken:
        """Send one row of a chunk in which some argument cannot be sent: this one, perhaps."""
        try:
            return self._submitted(executor, [row]), True
        except SerializationError as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed, False


def _results(
    executor: weakref.ref[Any],
    send: _Send,
    rows: Iterator[Any],
    out: deque[Taken],
    end: float | None,
    *,
    refills: bool,
) -> Iterator[Any]:
    """Give the results in order; cancel the rest when it ends early."""
    try:
        while out:
            if refills and (here := executor()) is not None:
                out.extend(itertools.islice(send.sent(here, rows), 1))
                del here
            if out[0][1]:
                yield from _results_in(_first(out, end))
            else:
                yield _first(out, end)
    finally:
        for future, _ in out:
            future.cancel()


def _first(out: deque[Taken], end: float | None) -> Any:
    """Wait for the first result; cancel it if it does not come in time."""
    future, _ = out.popleft()
    try:
        return future.result(None if end is None else end - time.monotonic())
    finally:
        future.cancel()
        del future  # its error's traceback holds this frame


def _results_in(outcome: Outcome) -> Iterator[Any]:
    """Give the results of a chunk up to the first that failed, and raise what that raised."""
    values = outcome.unpacked()
    failed = outcome.element_errors[:1]
    yield from values[: failed[0].offset] if failed else values
    for element_error in failed:
        raise unpack_error(element_error.error)
