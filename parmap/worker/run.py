"""The functions that run remotely: one for chunks, one for those of small calls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

from parmap.errors import SerializationError
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
from parmap.transport.payload import ATOMS, Payload, pack_result, unpack
from parmap.worker import context, native_threads
from parmap.worker.elements import (
    calls_of,
    failed,
    run_each,
    run_limited,
    run_part,
    run_parts,
)
from parmap.worker.random_state import RngUseDetector, inherited, isolated_rng, load, renew

if TYPE_CHECKING:
    from parmap.transport.caller import Unapplied

__all__ = ["run_chunk", "run_remote", "run_small"]


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
    spec = ready(spec, shared)
    if spec.caller is None:
        return _run(spec, chunk, shared)
    from parmap.worker import ambient  # most calls bring nothing along

    return ambient.in_context(spec.caller, _run, spec, chunk, shared)


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


_Ran: TypeAlias = "tuple[list[Any], list[ElementError], float, tuple[Move | Unapplied, ...]]"


def _inside(spec: CallSpec, chunk: Chunk) -> _Ran:
    """Run the elements as part of a task of this worker."""
    fork = None if spec.caller is None else spec.caller.fork
    if spec.crosses and inherited and not is_own(fork):  # some backends fork their workers
        renew()
    if spec.root is not None and "torch" in spec.hints:
        load(("torch",))
    own = isolated_rng(load=spec.root is not None) if spec.isolated else _UNCHANGED
    core_share = spec.core_share
    if core_share is not None and core_share.among is not None:
        core_share = core_share.here()
    cores = None if core_share is None else core_share.cores
    guarded = _guarded(core_share)
    with context.Inside(spec.nested, threaded=spec.threaded, cores=cores, key=spec.session):
        run = _watched if spec.caller is None or not spec.caller.settings else _set_as_there
        if own is guarded:  # neither does anything
            return run(spec, chunk)
        with own, guarded:
            return run(spec, chunk)


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


def _set_as_there(spec: CallSpec, chunk: Chunk) -> _Ran:
    """Run the elements with what the caller's script has set."""
    from parmap.worker.ambient import Applied  # as above

    assert spec.caller is not None
    with Applied(spec.caller) as unapplied:
        values, element_errors, seconds, moves = _watched(spec, chunk)
    return values, element_errors, seconds, (*moves, *unapplied)


def _watched(spec: CallSpec, chunk: Chunk) -> _Ran:
    """Run the elements, and watch what the function does to the generators of the process."""
    work = None if chunk.seconds is None and not chunk.number else run_parts
    if spec.timeout is not None:
        # In the caller's process nothing runs after the element that took too long.
        work = run_limited if spec.crosses else run_each
    if chunk.careful:
        work = run_each
    # What is seeded for each element needs no watch; what takes a stream of its own does.
    seeded = spec.root is not None and not spec.takes_rng
    detector = None if seeded else RngUseDetector(spec.hints if spec.root is None else _ALL)
    began = time.perf_counter()
    values, element_errors = ran = ([], []) if work is None else work(spec, chunk)
    if work is None:
        run_part(spec, chunk, calls_of(spec, chunk), chunk.size, ran)
    seconds = time.perf_counter() - began
    moves = detector.moves(max(1, len(values))) if detector else ()
    return values, element_errors, seconds, moves


def _outcome(
    spec: CallSpec,
    values: list[Any],
    element_errors: list[ElementError],
    seconds: float,
    told: tuple[Move | Unapplied, ...],
) -> Outcome:
    packed = _packed(spec, values, element_errors) if spec.crosses else values
    return Outcome(packed, tuple(element_errors), seconds, Location.here(), moves=told)


_ALL = ("random",)  # and NumPy's and torch's, which are always watched


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
