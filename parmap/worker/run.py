"""The one function that runs remotely."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, cast

from parmap.errors import SerializationError, TaskTimeout
from parmap.transport import shared as sharing
from parmap.transport.messages import (
    Budget,
    Chunk,
    Embedded,
    Job,
    Misfire,
    Origin,
    Outcome,
    Staying,
    opened,
    ready,
)
from parmap.transport.payload import PackedError, Parcel, pack_result, unpack
from parmap.worker import context, forks
from parmap.worker import native_threads as blas
from parmap.worker.random_state import Watch, apart, inherited, load, renew
from parmap.worker.rng import streamed

__all__ = ["keep_chunk", "run_chunk"]


def run_chunk(job: Job | Embedded, chunk: Chunk | Parcel, *shared: Any) -> Outcome:
    """Run a job on the elements of a chunk.

    Never raises for anything that an element is or does: what fails is told in the outcome.

    Parameters
    ----------
    job : Job or Embedded
        What to run.
    chunk : Chunk or Parcel
        On what.
    *shared
        The values of the handles that are packed in the two.

    Raises
    ------
    SerializationError
        If the job cannot be unpickled here, so that no chunk of the call can run.
    """
    if shared:
        shared = tuple([opened(one, beside=len(shared)) for one in shared])
    return _run(ready(job, shared), chunk, shared)


def keep_chunk(job: Job | Embedded, chunk: Chunk | Parcel, *shared: Any) -> Staying | Outcome:
    """Run a job on a chunk of one element, whose result stays where it is.

    Returns
    -------
    Staying or Outcome
        The result; or the outcome, if there is more to tell than that the result is there.
    """
    outcome = run_chunk(job, chunk, *shared)
    if outcome.unreadable or outcome.misfires or outcome.moves:
        return outcome
    assert isinstance(outcome.values, Parcel)
    return Staying(outcome.values)


def _run(job: Job, chunk: Chunk | Parcel, shared: tuple[Any, ...]) -> Outcome:
    if isinstance(chunk, Parcel):
        try:
            with sharing.arrived(shared) if shared else _UNCHANGED:
                chunk = unpack(chunk)
        except BaseException as error:  # noqa: BLE001 - a user's __setstate__ may even exit
            return Outcome([], (), 0.0, Origin.here(), _failed(error, crosses=True))
    assert isinstance(chunk, Chunk)
    if job.crosses and inherited:  # some backends fork their workers
        renew()
    if job.root is not None and "torch" in job.hints:
        load(("torch",))
    own = apart(load=job.root is not None) if job.apart else _UNCHANGED
    budget = None if job.budget is None else job.budget.here()
    cores = None if budget is None else budget.cores
    with context.Inside(job.nested, threaded=job.threaded, cores=cores), own, _guarded(budget):
        return _outcome(job, chunk)


# One for all: it has no state.
_UNCHANGED = contextlib.nullcontext()


def _guarded(budget: Budget | None) -> AbstractContextManager[None]:
    """Limit native libraries to the worker's threads."""
    if budget is not None and budget.threads is not None:
        if budget.lent:
            return _lent(budget.threads, exact=budget.exact)
        blas.keep(budget.threads, exact=budget.exact)
    return _UNCHANGED


@contextlib.contextmanager
def _lent(threads: int, *, exact: bool) -> Iterator[None]:
    token = blas.hold(threads, exact=exact, later=True)
    try:
        with blas.borrowed(threads, exact=exact):
            yield
    finally:
        blas.release(token)


def _outcome(job: Job, chunk: Chunk) -> Outcome:
    """Run the elements, and watch what the function does to the generators of the process."""
    swift = _swift if chunk.seconds is None else _brief
    work = _watched if chunk.careful or job.timeout is not None else swift
    # What is seeded for each element needs no watch; what takes a stream of its own does.
    seeded = job.root is not None and not job.takes_rng
    watch = None if seeded else Watch(job.hints if job.root is None else _ALL)
    began = time.perf_counter()
    values, misfires = work(job, chunk)
    seconds = time.perf_counter() - began
    moves = watch.moves(max(1, len(values))) if watch else ()
    packed = _packed(job, values, misfires) if job.crosses else values
    return Outcome(packed, tuple(misfires), seconds, Origin.here(), moves=moves)


_ALL = ("random",)  # and NumPy's and torch's, which are always watched


def _calls(job: Job, chunk: Chunk) -> Iterator[Any]:
    columns: list[Any] = list(chunk.columns)
    for place, value in job.constants:
        columns[place] = itertools.repeat(sharing.opened([value])[0], chunk.size)
    fn = cast("Callable[..., Any]", job.fn)
    if sharing.handles_exist():
        # Rows are not looked into: one may be an iterator.
        given = job.star or sharing.handles_in(chunk.columns)
        fn = sharing.opening(fn) if given else sharing.opened_partial(fn)
    if job.root is not None:
        rows = columns[0] if job.star else zip(*columns, strict=False)
        return streamed(fn, job.root, rows, chunk.indices, keyword=job.takes_rng)
    if job.star:
        return itertools.starmap(fn, columns[0])
    return map(fn, *columns)


def _swift(job: Job, chunk: Chunk) -> tuple[list[Any], list[Misfire]]:
    """Run all elements in C: an element costs its call and one append."""
    values: list[Any] = []
    misfires: list[Misfire] = []
    calls, born = _calls(job, chunk), forks.generation
    size = chunk.size
    while len(values) < size:
        try:
            values.extend(calls)
            if len(values) < chunk.size:
                # map() takes a StopIteration from the function for its own end. Read anew:
                # a chunk whose call is over may have been emptied meanwhile.
                raise _stopped()  # noqa: TRY301 - the failure of an element like any other
            if forks.generation != born:
                _end_fork(job)
            break
        except BaseException as error:  # noqa: BLE001 - even SystemExit is that element's failure
            if forks.generation != born:
                _end_fork(job, error)
            misfires.append(Misfire(len(values), _failed(error, crosses=job.crosses)))
            if job.stop or isinstance(error, KeyboardInterrupt):
                break
            values.append(None)
    return values, misfires


def _brief(job: Job, chunk: Chunk) -> tuple[list[Any], list[Misfire]]:
    """Run parts of a chunk, each twice as long as the one before, until its time is over."""
    values: list[Any] = []
    misfires: list[Misfire] = []
    end = time.perf_counter() + (chunk.seconds or 0.0)
    size = 1
    while (start := len(values)) < chunk.size and (not start or time.perf_counter() < end):
        some, failed = _swift(job, chunk.part(start, start + size))
        values += some
        misfires += [misfire._replace(offset=start + misfire.offset) for misfire in failed]
        if len(some) < size:  # a failure has ended it, or the chunk
            break
        size *= 2
    return values, misfires


def _watched(job: Job, chunk: Chunk) -> tuple[list[Any], list[Misfire]]:
    """Run element by element, noting each before it runs and timing it."""
    values: list[Any] = []
    misfires: list[Misfire] = []
    calls, born = _calls(job, chunk), forks.generation
    end = math.inf if chunk.seconds is None else time.perf_counter() + chunk.seconds
    for offset in range(chunk.size):
        if offset and time.perf_counter() >= end:
            break
        try:
            values.append(_one(job, calls, offset))
            if forks.generation != born:
                _end_fork(job)
        except BaseException as error:  # noqa: BLE001 - as above
            if forks.generation != born:
                _end_fork(job, error)
            misfires.append(Misfire(offset, _failed(error, crosses=job.crosses)))
            if job.stop or isinstance(error, KeyboardInterrupt):
                break
            values.append(None)
    context.worker.note(-1)
    return values, misfires


def _one(job: Job, calls: Iterator[Any], offset: int) -> Any:
    context.worker.note(offset)
    limit = job.timeout
    if watched := limit is not None and job.expendable:
        assert limit is not None
        from parmap.worker import watchdog  # no other call needs it

        # One that would ring in centuries is refused by the system, and not needed.
        watchdog.start(min(limit, threading.TIMEOUT_MAX), context.worker.words)
    began = time.perf_counter()
    try:
        value = next(calls, _NOTHING)
    finally:
        if watched:
            watchdog.stop()
    if value is _NOTHING:
        raise _stopped()
    if limit is not None and (took := time.perf_counter() - began) > limit:
        # Where the worker cannot be replaced, the element fails once it returns.
        raise TaskTimeout(f"it took {took:.3g} s; timeout={limit:g} allows no more")
    return value


_NOTHING = object()


def _end_fork(job: Job, error: BaseException | None = None) -> None:
    """End a fork that has come back from the function, but where it is in the caller's loop."""
    if job.crosses or job.threaded:
        forks.end(error)


def _stopped() -> RuntimeError:
    return RuntimeError(
        "the function raised StopIteration, which would end the map early; raise another error"
    )


def _failed(error: BaseException, *, crosses: bool) -> PackedError:
    from parmap.transport.error_payload import pack_error  # which most workers never need

    return pack_error(error, crosses=crosses)


def _packed(job: Job, values: list[Any], misfires: list[Misfire]) -> Parcel:
    """Pack the results; what cannot travel joins those that failed."""
    try:
        return pack_result(values, views=job.sent_at_once)
    except SerializationError:
        # Some result cannot travel: find out which, and let only that one fail.
        for offset, value in enumerate(values):
            try:
                pack_result(value, views=True)
            except SerializationError as error:
                misfires.append(Misfire(offset, _failed(error, crosses=True)))
                values[offset] = None
        misfires.sort(key=lambda misfire: misfire.offset)
        if job.stop:
            del misfires[1:]
            del values[misfires[0].offset :]
        return pack_result(values, views=job.sent_at_once)
