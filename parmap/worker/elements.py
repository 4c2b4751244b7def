"""Runs the elements of a chunk: all in C, in parts, with a time limit, or one by one."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from parmap.errors import TaskTimeout
from parmap.transport import shared as sharing
from parmap.transport.messages import CallSpec, Chunk, ElementError
from parmap.transport.payload import PackedError
from parmap.worker import context, forks

if TYPE_CHECKING:
    from parmap.worker.watchdog import Blocks

__all__ = ["calls_of", "failed", "run_each", "run_limited", "run_part", "run_parts"]


def calls_of(spec: CallSpec, chunk: Chunk) -> Iterator[Any]:
    """Give an iterator whose each step calls the function on the next element."""
    columns: list[Any] = list(chunk.columns)
    for place, value in spec.constants:
        columns[place] = itertools.repeat(sharing.unwrapped([value])[0], chunk.size)
    fn = cast("Callable[..., Any]", spec.fn)
    if sharing.handles_exist():
        # Rows are not looked into: one may be an iterator.
        given = spec.star or sharing.handles_in(chunk.columns)
        fn = sharing.unwrapping(fn) if given else sharing.unwrapped_partial(fn)
    if spec.root is not None:
        rows = columns[0] if spec.star else zip(*columns, strict=False)
        from parmap.worker.rng import streamed  # most calls need none

        return streamed(fn, spec.root, rows, chunk.indices, keyword=spec.takes_rng)
    if spec.star:
        return itertools.starmap(fn, columns[0])
    return map(fn, *columns)


_Results: TypeAlias = "tuple[list[Any], list[ElementError]]"


def run_part(spec: CallSpec, chunk: Chunk, calls: Iterator[Any], stop: int, ran: _Results) -> bool:
    """Run elements in C, up to before `stop`: one costs its call and one append.

    Adds what comes of them; says whether others may follow.
    """
    values, element_errors = ran
    born = forks.generation
    while len(values) < stop:
        try:
            values.extend(itertools.islice(calls, stop - len(values)))
            if len(values) < stop and len(values) < chunk.size:
                # map() takes a StopIteration from the function for its own end. Read anew:
                # a chunk whose call is over may have been emptied meanwhile.
                raise _stopped()  # noqa: TRY301 - the failure of an element like any other
            if forks.generation != born:
                _end_fork(spec)
            break
        except BaseException as error:  # noqa: BLE001 - even SystemExit is that element's failure
            if forks.generation != born:
                _end_fork(spec, error)
            # An interrupt may come just after the last one: it is that one's then.
            offset = min(len(values), stop - 1)
            del values[offset:]
            element_errors.append(ElementError(offset, failed(error, crosses=spec.crosses)))
            if spec.stop or isinstance(error, KeyboardInterrupt):
                return False
            values.append(None)
    return True


# How long a part of a chunk should run, in seconds: what is begun cannot be recalled.
_PART = 0.002


def run_parts(spec: CallSpec, chunk: Chunk) -> tuple[list[Any], list[ElementError]]:
    """Run parts of a chunk, until its time is over, or the rest is recalled.

    The size of a part follows the time of the one before: an element that took long, as the first
    one often does, makes the next part small. Quick ones make the next twice as large; or more, as
    long as it would be short even if its elements took a hundred times as long.
    """
    ran: _Results = ([], [])
    calls, whole = calls_of(spec, chunk), chunk.size
    now = time.perf_counter()
    end = math.inf if chunk.seconds is None else now + chunk.seconds
    size = 1
    while (start := len(ran[0])) < whole and (not start or now < end):
        size = _begin(chunk, start, size)
        began = time.perf_counter()  # after the lock, which takes as long as ten quick elements
        if not size or not run_part(spec, chunk, calls, start + size, ran):
            break
        now = time.perf_counter()
        times = _PART / max(now - began, 1e-9)
        size = max(1, int(size * max(min(2.0, times), min(16.0, times / 100))))
    return ran


def _begin(chunk: Chunk, start: int, size: int) -> int:
    """Begin the next part of a chunk; say how many elements it has: none if they were recalled."""
    if not chunk.number:
        return size
    return int(context.worker.begun.begin(chunk.number, chunk.size, start + size)) - start


def run_limited(spec: CallSpec, chunk: Chunk) -> tuple[list[Any], list[ElementError]]:
    """Run blocks of elements in C, each element timed; the time limit ends one that hangs."""
    from parmap.worker.watchdog import Blocks  # no other call needs it

    values: list[Any] = []
    element_errors: list[ElementError] = []
    assert spec.timeout is not None
    end = math.inf if chunk.seconds is None else time.perf_counter() + chunk.seconds
    blocks = Blocks(calls_of(spec, chunk), spec.timeout, ends=spec.expendable)
    try:
        while (start := len(values)) < chunk.size and (not start or time.perf_counter() < end):
            size = _begin(chunk, start, min(blocks.size, chunk.size - start))
            if not size:
                break
            error = _block_error(spec, blocks, values, size)
            for offset, took in blocks.late(start, len(values) - start):
                late = failed(_too_late(took, spec.timeout), crosses=True)
                element_errors.append(ElementError(offset, late))
                values[offset] = None
                if spec.stop:
                    return values[:offset], element_errors
            if error is not None:
                offset = min(len(values), chunk.size - 1)  # as above
                element_errors.append(ElementError(offset, failed(error, crosses=True)))
                if spec.stop or isinstance(error, KeyboardInterrupt):
                    break
                values.append(None)
    finally:
        blocks.close()
    return values, element_errors


def _block_error(
    spec: CallSpec, blocks: Blocks, values: list[Any], size: int
) -> BaseException | None:
    """Run a block of elements, add their values, and give the error that has ended it."""
    error: BaseException | None = None
    start, born = len(values), forks.generation
    try:
        blocks.run(start, size, values)
        if len(values) - start < size:
            error = _stopped()
    except BaseException as caught:  # noqa: BLE001 - as above
        error = caught
    if forks.generation != born:
        _end_fork(spec, error)
    return error


def run_each(spec: CallSpec, chunk: Chunk) -> tuple[list[Any], list[ElementError]]:
    """Run element by element, noting each before it runs and timing it."""
    values: list[Any] = []
    element_errors: list[ElementError] = []
    calls, born = calls_of(spec, chunk), forks.generation
    end = math.inf if chunk.seconds is None else time.perf_counter() + chunk.seconds
    for offset in range(chunk.size):
        if offset and time.perf_counter() >= end:
            break
        try:
            values.append(_one(spec, calls, offset))
            if forks.generation != born:
                _end_fork(spec)
        except BaseException as error:  # noqa: BLE001 - as above
            if forks.generation != born:
                _end_fork(spec, error)
            element_errors.append(ElementError(offset, failed(error, crosses=spec.crosses)))
            if spec.stop or isinstance(error, KeyboardInterrupt):
                break
            values.append(None)
    if spec.expendable:
        context.worker.note(-1)
    return values, element_errors


def _one(spec: CallSpec, calls: Iterator[Any], offset: int) -> Any:
    if spec.expendable:  # a call inside of an element leaves the notes of that element alone
        context.worker.note(offset)
    limit = spec.timeout
    if watched := limit is not None and spec.expendable:
        assert limit is not None
        from parmap.worker import watchdog  # no other call needs it

        watchdog.start(limit, context.worker.words)
    began = time.perf_counter()
    try:
        value = next(calls, _NOTHING)
    finally:
        if watched:
            watchdog.stop()
    if value is _NOTHING:
        raise _stopped()
    if limit is not None and (took := time.perf_counter() - began) > limit:
        raise _too_late(took, limit)
    return value


def _too_late(took: float, limit: float) -> TaskTimeout:
    """Make the error of an element that took too long, and came to its end."""
    return TaskTimeout(f"it took {took:.3g} s; timeout={limit:g} allows no more")


_NOTHING = object()


def _end_fork(spec: CallSpec, error: BaseException | None = None) -> None:
    """End a fork that has come back from the function, but where it is in the caller's loop."""
    if spec.crosses or spec.threaded:
        forks.end(error)


def _stopped() -> RuntimeError:
    """Make the error of an element for which the function raised StopIteration."""
    return RuntimeError(
        "the function raised StopIteration, which would end the map early; raise another error"
    )


def failed(error: BaseException, *, crosses: bool) -> PackedError:
    """Pack the error of an element."""
    from parmap.transport.error_payload import pack_error  # which most workers never need

    return pack_error(error, crosses=crosses)
