"""The one function that runs remotely."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from parmap.errors import SerializationError, TaskTimeout
from parmap.transport import shared as sharing
from parmap.transport.identity import is_own
from parmap.transport.messages import (
    CachedPayload,
    CallSpec,
    Chunk,
    CoreShare,
    ElementError,
    Location,
    Move,
    Outcome,
    RemoteResult,
    SmallOutcome,
    ready,
    unwrap,
)
from parmap.transport.payload import ATOMS, PackedError, Payload, pack_result, unpack
from parmap.worker import context, forks, native_threads
from parmap.worker.random_state import RngUseDetector, inherited, isolated_rng, load, renew

if TYPE_CHECKING:
    pass

__all__ = [
    "begin",
    "calls_of",
    "end_fork",
    "failed",
    "run_chunk",
    "run_remote",
    "run_small",
    "stopped",
    "too_late",
]


def run_chunk(spec: CallSpec | CachedPayload, chunk: Chunk | Payload, *shared: Any) -> Outcome:
    """Run the elements of a chunk as a call's spec says.

    Never raises for anything that an element is or does: what fails is told in the outcome.

    Parameters
    ----------
    spec : CallSpec or CachedPayload
        How to run them.
    chunk : Chunk or Payload
        The elements.
    *shared
        The values of the handles that are packed in the two.

    Raises
    ------
    SerializationError
        If the spec cannot be unpickled here, so that no chunk of the call can run.
    """
    if shared:
        shared = tuple([unwrap(one, beside=len(shared)) for one in shared])
    return _run(ready(spec, shared), chunk, shared)


def run_remote(
    spec: CallSpec | CachedPayload, chunk: Chunk | Payload, *shared: Any
) -> RemoteResult | Outcome:
    """Run a chunk of one element, whose result stays where it is.

    Returns
    -------
    RemoteResult or Outcome
        The result; or the outcome, if there is more to tell than that the result is there.
    """
    outcome = run_chunk(spec, chunk, *shared)
    if outcome.unreadable or outcome.element_errors or outcome.moves:
        return outcome
    assert isinstance(outcome.values, Payload)
    return RemoteResult(outcome.values)


def run_small(
    packed: bytes, fn: bytes, columns: tuple[Any, ...], seconds: float | None, number: int
) -> SmallOutcome | Outcome:
    """Run a chunk of a small call, which brings its spec and its function.

    Parameters
    ----------
    packed : bytes
        The pickle of a `CallSpec` without its function.
    fn : bytes
        That of the function.
    columns, seconds, number
        See `Chunk`; the elements are of Python's plain types.

    Returns
    -------
    SmallOutcome or Outcome
        The former where there is no more to tell, and results are of plain types, too: C pickle
        makes of them, and of all that is given here, just what cloudpickle does.
    """
    spec = _specs.get(packed)
    if spec is None:
        if len(_specs) >= _MOST_SPECS:
            _specs.clear()
        spec = _specs[packed] = unpack(Payload(packed))
    spec = CallSpec(unpack(Payload(fn)), *spec[1:])
    values, element_errors, took, moves = _inside(spec, Chunk(columns, False, (), seconds, number))
    if not element_errors and not moves and ATOMS.issuperset(map(type, values)):
        return values, took
    return _outcome(spec, values, element_errors, took, moves)


# The specs of small calls, without their functions, by their pickles: a session has few.
_specs: dict[bytes, CallSpec] = {}
_MOST_SPECS = 16


def _run(spec: CallSpec, chunk: Chunk | Payload, shared: tuple[Any, ...]) -> Outcome:
    if isinstance(chunk, Payload):
        try:
            with sharing.arrived(shared) if shared else _UNCHANGED:
                chunk = unpack(chunk)
        except BaseException as error:  # noqa: BLE001 - a user's __setstate__ may even exit
            return Outcome([], (), 0.0, Location.here(), failed(error, crosses=True))
    assert isinstance(chunk, Chunk)
    return _outcome(spec, *_inside(spec, chunk))


_Ran: TypeAlias = "tuple[list[Any], list[ElementError], float, tuple[Move, ...]]"


def _inside(spec: CallSpec, chunk: Chunk) -> _Ran:
    """Run the elements as part of a task of this worker."""
    if spec.crosses and inherited and not is_own(spec.fork):  # some backends fork their workers
        renew()
    if spec.root is not None and "torch" in spec.hints:
        load(("torch",))
    own = isolated_rng(load=spec.root is not None) if spec.isolated else _UNCHANGED
    core_share = spec.core_share
    if core_share is not None and core_share.among is not None:
        core_share = core_share.here()
    cores = None if core_share is None else core_share.cores
    with (
        context.Inside(spec.nested, threaded=spec.threaded, cores=cores),
        own,
        _guarded(core_share),
    ):
        return _watched(spec, chunk)


# One for all: it has no state.
_UNCHANGED = contextlib.nullcontext()


def _guarded(core_share: CoreShare | None) -> AbstractContextManager[None]:
    """Limit native libraries to the worker's threads."""
    if core_share is not None and core_share.threads is not None:
        if not core_share.kept:
            return _restored(core_share.threads, exact=core_share.exact)
        native_threads.keep(core_share.threads, exact=core_share.exact)
    return _UNCHANGED


@contextlib.contextmanager
def _restored(threads: int, *, exact: bool) -> Iterator[None]:
    token = native_threads.hold(threads, exact=exact, later=True)
    try:
        with native_threads.borrowed(threads, exact=exact):
            yield
    finally:
        native_threads.release(token)


def _watched(spec: CallSpec, chunk: Chunk) -> _Ran:
    """Run the elements, and watch what the function does to the generators of the process."""
    work = None if chunk.seconds is None and not chunk.number else _run_parts
    if spec.timeout is not None:
        # In the caller's process nothing runs after the element that took too long.
        work = _run_each
        if spec.crosses:
            from parmap.worker.limited import run_limited as work  # no other call needs it
    if chunk.careful:
        work = _run_each
    # What is seeded for each element needs no watch; what takes a stream of its own does.
    seeded = spec.root is not None and not spec.takes_rng
    detector = None if seeded else RngUseDetector(spec.hints if spec.root is None else _ALL)
    began = time.perf_counter()
    values, element_errors = ran = ([], []) if work is None else work(spec, chunk)
    if work is None:
        _run_part(spec, chunk, calls_of(spec, chunk), chunk.size, ran)
    seconds = time.perf_counter() - began
    moves = detector.moves(max(1, len(values))) if detector else ()
    return values, element_errors, seconds, moves


def _outcome(
    spec: CallSpec,
    values: list[Any],
    element_errors: list[ElementError],
    seconds: float,
    moves: tuple[Move, ...],
) -> Outcome:
    packed = _packed(spec, values, element_errors) if spec.crosses else values
    return Outcome(packed, tuple(element_errors), seconds, Location.here(), moves=moves)


_ALL = ("random",)  # and NumPy's and torch's, which are always watched


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


def _run_part(spec: CallSpec, chunk: Chunk, calls: Iterator[Any], stop: int, ran: _Results) -> bool:
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
                raise stopped()  # noqa: TRY301 - the failure of an element like any other
            if forks.generation != born:
                end_fork(spec)
            break
        except BaseException as error:  # noqa: BLE001 - even SystemExit is that element's failure
            if forks.generation != born:
                end_fork(spec, error)
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


def _run_parts(spec: CallSpec, chunk: Chunk) -> tuple[list[Any], list[ElementError]]:
    """Run parts of a chunk, until its time is over, or the rest is recalled.

    The size of a part follows the time of the one before: an element that took long, as the first
    one often does, makes the next part small. Quick ones make the next twice as large; or more, as
    long as it would be short even if its elements took a hundred times as long.
    """
    ran: _Results = ([], [])
    calls, whole = calls_of(spec, chunk), chunk.size
    began = time.perf_counter()
    end = math.inf if chunk.seconds is None else began + chunk.seconds
    size = 1
    while (start := len(ran[0])) < whole and (not start or began < end):
        size = begin(chunk, start, size)
        if not size or not _run_part(spec, chunk, calls, start + size, ran):
            break
        before, began = began, time.perf_counter()
        times = _PART / max(began - before, 1e-9)
        size = max(1, int(size * max(min(2.0, times), min(16.0, times / 100))))
    return ran


def begin(chunk: Chunk, start: int, size: int) -> int:
    """Begin the next part of a chunk; say how many elements it has: none if they were recalled."""
    if not chunk.number:
        return size
    return int(context.worker.begun.begin(chunk.number, chunk.size, start + size)) - start


def _run_each(spec: CallSpec, chunk: Chunk) -> tuple[list[Any], list[ElementError]]:
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
                end_fork(spec)
        except BaseException as error:  # noqa: BLE001 - as above
            if forks.generation != born:
                end_fork(spec, error)
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
        raise stopped()
    if limit is not None and (took := time.perf_counter() - began) > limit:
        raise too_late(took, limit)
    return value


def too_late(took: float, limit: float) -> TaskTimeout:
    """Make the error of an element that took too long, and came to its end."""
    return TaskTimeout(f"it took {took:.3g} s; timeout={limit:g} allows no more")


_NOTHING = object()


def end_fork(spec: CallSpec, error: BaseException | None = None) -> None:
    """End a fork that has come back from the function, but where it is in the caller's loop."""
    if spec.crosses or spec.threaded:
        forks.end(error)


def stopped() -> RuntimeError:
    """Make the error of an element for which the function raised StopIteration."""
    return RuntimeError(
        "the function raised StopIteration, which would end the map early; raise another error"
    )


def failed(error: BaseException, *, crosses: bool) -> PackedError:
    """Pack the error of an element."""
    from parmap.transport.error_payload import pack_error  # which most workers never need

    return pack_error(error, crosses=crosses)


def _packed(spec: CallSpec, values: list[Any], element_errors: list[ElementError]) -> Payload:
    """Pack the results; what cannot travel joins those that failed."""
    try:
        return pack_result(values, views=spec.sent_at_once)
    except SerializationError:
        # Some result cannot travel: find out which, and let only that one fail.
        for offset, value in enumerate(values):
            try:
                pack_result(value, views=True)
            except SerializationError as error:
                element_errors.append(ElementError(offset, failed(error, crosses=True)))
                values[offset] = None
        element_errors.sort(key=lambda element_error: element_error.offset)
        if spec.stop:
            del element_errors[1:]
            del values[element_errors[0].offset :]
        return pack_result(values, views=spec.sent_at_once)
