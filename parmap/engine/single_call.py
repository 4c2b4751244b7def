"""One call in one worker, as a future."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from parmap.engine.callbacks import Answer
from parmap.engine.callspec import spec_for
from parmap.engine.naming import ByName
from parmap.engine.protocols import OpenSession
from parmap.engine.settings import Settings
from parmap.engine.small import of_atoms, packed_small
from parmap.engine.streams import root_of
from parmap.engine.unseeded import Unseeded
from parmap.engine.users_line import users_line
from parmap.failures import Failure
from parmap.transport.error_payload import unpack_error
from parmap.transport.generators import Noticing
from parmap.transport.messages import Chunk, Outcome, whole_outcome

__all__ = ["single"]

_SETTINGS = Settings(star=True)


def single(
    session: OpenSession, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Future[Any]:
    """Send one call; give a future of its result.

    Parameters
    ----------
    session : OpenSession
        Where it runs.
    fn : callable
        The function.
    args, kwargs
        Its arguments. The keyword ``rng`` is the map option: the call gets the stream of
        element 0.
    """
    given = dict(kwargs)
    seed = given.pop("rng", None)
    root = None if seed is None else root_of(seed)
    unseeded = Unseeded(
        [fn], session.traits, streams=root is not None, alone=False, where=users_line()
    )
    if not kwargs and unseeded.silent and session.traits.recalls and of_atoms(args):
        packed = packed_small(session, fn, star=True)
        if packed is not None:
            chunk = Chunk(([args],))
            session.check()
            return _answer(session, session.send_small(*packed, chunk), chunk, unseeded)
    spec = spec_for(
        session,
        ByName(fn, tuple(given)) if given else fn,
        _SETTINGS if root is None else _SETTINGS._replace(root=root),
        hints=unseeded.hints,
    )
    chunk = Chunk(([(*args, *given.values())],), indices=(0,) if root else ())
    with Noticing() as found:
        broadcast = session.broadcast(spec, 1, waits=False)
        try:
            unseeded.packed(found)
            found.clear()
            inner = session.send(broadcast, chunk)
        except BaseException:
            session.drop(broadcast)
            raise
    outer = _answer(session, inner, chunk, unseeded, broadcast)
    if found:
        _note(session, found, unseeded)
    return outer


def _answer(
    session: OpenSession,
    inner: Future[Any],
    chunk: Chunk,
    unseeded: Unseeded,
    broadcast: Any = None,
) -> Answer:
    """Make the future of a call's result from that of its outcome."""
    outer = Answer()

    def resolve(inner: Future[Any]) -> None:
        # A cancelled future wakes who waits for it only after this call, and a second one
        # is an error: this, the end of the inner future, is the one path to it.
        session.drop(broadcast)
        if inner.cancelled():
            outer.cancel()
        if outer.set_running_or_notify_cancel():
            try:
                outcome = inner.result()
                if type(outcome) is tuple:
                    outcome = whole_outcome(outcome)
                if outcome.moves:
                    unseeded.hear(outcome.moves)
                outer.set_result(_value(outcome))
            except BaseException as error:  # noqa: BLE001 - what the task raised is the future's
                outer.set_exception(error)

    # Weak: each future keeps its callbacks, and two that keep each other, with their results,
    # would stay until the garbage collector comes round. The executor keeps what is not resolved.
    theirs = weakref.ref(inner)

    def pass_back(outer: Future[Any]) -> None:
        inner = theirs()
        if inner is not None and outer.cancelled() and not inner.cancel():
            session.abandon(inner, chunk)  # it runs: stop it, where that can be done

    outer.notify(pass_back)
    inner.add_done_callback(lambda inner: session.callbacks.collect(partial(resolve, inner)))
    return outer


# Generators that the last calls brought as arguments, with the places that they were sent to.
_given: deque[tuple[Callable[[], Any], Callable[[], Any]]] = deque(maxlen=16)


def _note(session: OpenSession, found: list[Any], unseeded: Unseeded) -> None:
    """Warn of a generator that another call has brought before: both draw the same numbers."""
    before = [one() for where, one in list(_given) if where() is session]
    for generator in found:
        if any(one is generator for one in before):
            unseeded.packed([generator])
        else:
            _given.append((weakref.ref(session), _held(generator)))


def _held(thing: Any) -> Callable[[], Any]:
    """Hold an object weakly; NumPy's generators, which are small, cannot be held so."""
    try:
        return weakref.ref(thing)
    except TypeError:
        return lambda: thing


def _value(outcome: Outcome) -> Any:
    values = outcome.unpacked()
    for element_error in outcome.element_errors:
        error, location = unpack_error(element_error.error), outcome.location
        Failure(error, 0, element_error.error.traceback, location.host, location.pid).reraise()
    return values[0]
