"""What a session's workers are sent: specs of calls, chunks, and the values of handles."""

from __future__ import annotations

import pickle
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from parmap.engine.protocols import Backend
from parmap.engine.traits import Traits
from parmap.errors import SerializationError
from parmap.plans.start_paths import StartPaths
from parmap.transport.identity import Key
from parmap.transport.messages import (
    CachedPayload,
    CallSpec,
    Chunk,
    Location,
    Outcome,
    cached_payload,
)
from parmap.transport.payload import ATOMS, PROTOCOL, Known, Payload, pack
from parmap.transport.shared import (
    HandleCollector,
    RemoteHandle,
    Shared,
    handles_exist,
    travelling,
)
from parmap.transport.variables import Travelling, Variables
from parmap.transport.worker_globals import Owned, owned, owning
from parmap.worker import native_threads

__all__ = ["BroadcastSpec", "Values", "packed", "placed", "sent"]


class BroadcastSpec(NamedTuple):
    """A call's spec, where the workers reach it.

    Parameters
    ----------
    spec : object
        The spec, or what stands for it among a task's arguments.
    references : tuple, default ()
        What stands for the values of the handles in it.
    handles : tuple of Shared, default ()
        Those handles: their values stay placed as long as the spec.
    hold : Held, optional
        What limits native libraries in this process as long as the call runs.
    star : bool, default False
        Whether a chunk's elements are rows of arguments.
    carried : bool, default False
        Whether the spec itself travels with each chunk: nothing has been put anywhere.
    known : callable, optional
        See `OpenSession.broadcast`.
    variables : Variables, optional
        The context variables that chunks may name, too.
    """

    spec: Any
    references: tuple[Any, ...] = ()
    handles: tuple[Shared[Any], ...] = ()
    hold: native_threads.Held | None = None
    star: bool = False
    carried: bool = False
    known: Known = None
    variables: Variables | None = None


class Values:
    """The values that a session has placed: each is placed once, and dropped in the end.

    Changes in single steps, without a lock: a handle's end takes its value out at any time, in any
    thread, and to place a value runs the user's pickling. A thread that needs a value which another
    is placing waits for it. The thread that is placing it, and comes back to it in its pickling or
    in a finalizer, does not wait for itself: it places the value once more.

    Parameters
    ----------
    backend : Backend
        Where they are placed.
    traits : Traits
        Facts about it. If it places no values, they travel with each chunk that needs them; each
        worker unpickles them once then, too.

    Attributes
    ----------
    closed : bool
        Whether all is forgotten: the session is over.
    owned : mapping or None
        The globals that are the workers' own; see `parmap.transport.worker_globals`.
    """

    owned: Owned | None = None

    def __init__(self, backend: Backend, traits: Traits) -> None:
        self._backend, self._traits, self.closed = backend, traits, False
        # An executor that copies brings the script's paths with each task, by itself.
        self.start = StartPaths() if traits.exclusive and not traits.copies else None
        self._drop: Callable[[Any], object] = backend.drop if traits.places else _nothing
        self._broadcast: dict[Key, _Broadcasting] = {}

    def broadcast(self, handle: Shared[Any]) -> Any:
        """Return the reference to a handle's value, which is placed if it is not yet."""
        fresh = _Broadcasting()
        try:
            # All of it in here: Ctrl-C strikes after any call, and nobody may wait for ever.
            while True:
                placing = self._broadcast.setdefault(handle.key, fresh)
                if placing is fresh or (placing.mine and not placing.done()):
                    break
                if placing.exception() is None:
                    return placing.result()
            with travelling(None):  # a handle inside of the value goes along with it
                fresh.set_result(self.put(handle.value, "share(...)"))
            self._until_gone(handle, fresh)
        except BaseException as error:
            self._leave(handle.key, fresh)
            if not fresh.done():
                fresh.set_exception(error)
            raise
        return fresh.result()

    def put(self, value: Any, what: str = "") -> Any:
        """Place a value; `what` begins the path in an error's message."""
        path = None if self.start is None else self.start.added()
        if not self._traits.places:
            return cached_payload(value, what, path=path)
        if not self._traits.copies:
            if type(value) is not CachedPayload:
                value = CachedPayload(None, pack(value, what, views=True), path)
            return self._backend.put(value)
        try:
            return self._backend.put(value)
        except SerializationError:
            pack(value, what, views=True)  # which names the part by its place
            raise

    def remote(self, reference: Any) -> Outcome:
        """Make the outcome of a task whose result stays with the workers: a handle."""
        handle = RemoteHandle()
        self.add(handle, reference)
        return Outcome([handle], (), 0.0, Location("", 0))

    def add(self, handle: Shared[Any], reference: Any) -> None:
        """Take in a value that is there already."""
        placing = _Broadcasting()
        placing.set_result(reference)
        self._until_gone(handle, placing)
        # Last: who finds it may wait for it, and Ctrl-C strikes after any call.
        self._broadcast[handle.key] = placing

    def close(self) -> None:
        """Forget all: what is placed ends with its executor."""
        self.closed = True
        self._broadcast.clear()

    def forget(self, key: Key, placing: _Broadcasting) -> None:
        """Forget the value of a handle that is gone."""
        self._leave(key, placing)
        if not self.closed:
            self._drop(placing.result())

    def _until_gone(self, handle: Shared[Any], placing: _Broadcasting) -> None:
        forget = weakref.finalize(handle, _forget, weakref.ref(self), handle.key, placing)
        forget.atexit = False

    def _leave(self, key: Key, placing: _Broadcasting) -> None:
        """Take a value out, unless another stands in its place."""
        if self._broadcast.get(key) is placing:
            self._broadcast.pop(key, None)


class _Broadcasting(Future[Any]):
    """A reference to a handle's value, once that is placed."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    @property
    def mine(self) -> bool:
        """Whether this thread places it."""
        return self._thread == threading.get_ident()


def _forget(values: weakref.ref[Values], key: Key, placing: _Broadcasting) -> None:
    here = values()
    if here is not None:
        here.forget(key, placing)


# Bytes of a function that may travel several times.
_CARRIED = 1 << 14


def placed(spec: CallSpec, values: Values, *, few: bool, known: Known) -> BroadcastSpec:
    """Put a call's spec where every worker reaches it.

    One for `few` chunks travels with each, if it is small and has no handles.
    """
    if values.owned and owned.get() is not values.owned:
        with owning(values.owned):
            return placed(spec, values, few=few, known=known)
    if values.start is not None:
        spec = values.start.followed(spec)
    if spec.caller is not None and spec.caller.variables is not None:
        variables = spec.caller.variables
        with Travelling(variables, spec=True):
            made = _placed_whole(spec, values, known=known)
        return made._replace(variables=variables)
    if handles_exist():
        return _placed_whole(spec, values, known=known)
    if few:
        carried = _carried(spec)
        if carried is not None:
            return BroadcastSpec(carried, star=spec.star, carried=True, known=known)
    return BroadcastSpec(values.put(spec), star=spec.star, known=known)


def _placed_whole(spec: CallSpec, values: Values, *, known: Known) -> BroadcastSpec:
    if handles_exist():
        collector = HandleCollector(values.broadcast)
        with travelling(collector):
            payload = pack(spec, "", views=True)
        path = None if values.start is None else values.start.added()
        reference = values.put(CachedPayload(None, payload, path))
        handles = tuple(collector.handles)
        references = tuple(collector.references)
        return BroadcastSpec(reference, references, handles, star=spec.star, known=known)
    return BroadcastSpec(values.put(spec), star=spec.star, known=known)


def sent(
    submit: Callable[..., Future[Outcome]],
    broadcast: BroadcastSpec,
    chunk: Chunk,
    values: Values,
    *,
    copies: bool,
) -> Future[Outcome]:
    """Pack a chunk of a broadcast spec's call, and submit it with the references that it needs."""
    if values.owned and owned.get() is not values.owned:
        with owning(values.owned):
            return sent(submit, broadcast, chunk, values, copies=copies)
    if broadcast.variables is not None:
        with Travelling(broadcast.variables, spec=False):
            alone = broadcast._replace(variables=None)
            return sent(submit, alone, chunk, values, copies=copies)
    if not handles_exist():
        payload = packed(chunk, star=broadcast.star, copies=copies)
        payload.known = broadcast.known
        return submit(broadcast.spec, payload)
    collector = HandleCollector(values.broadcast, broadcast.references)
    with travelling(collector):
        payload = packed(chunk, star=broadcast.star, copies=copies)
    payload.known = broadcast.known
    future = submit(broadcast.spec, payload, *collector.references)
    # A handle may have been made by packing, and be nobody else's.
    future.add_done_callback(lambda _, handles=collector.handles: handles.clear())  # type: ignore[misc]
    return future


def packed(chunk: Chunk, *, star: bool, copies: bool) -> Payload:
    """Pack a chunk; `star` and `copies` as in `BroadcastSpec` and `Traits`."""
    if _plain(chunk.columns):
        return Payload(pickle.dumps(chunk, PROTOCOL))
    try:
        return pack(chunk, "chunk", views=copies, own=True)
    except SerializationError:
        if chunk.size == 1:  # then name the argument rather than its place in the chunk
            row = tuple(column[0] for column in chunk.columns)
            pack(row[0] if star else row, "args")
        raise


def _plain(columns: Sequence[Any]) -> bool:
    """Whether these are a few arguments of which C pickle makes just what cloudpickle does.

    It does so in 2 µs instead of 9. To look at many would cost more than it saves.
    """
    return all(type(column) is range or _is_plain_column(column) for column in columns)


def _is_plain_column(column: Any) -> bool:
    if type(column) is not list or len(column) > _FEW:
        return False
    if len(column) == 1 and type(column[0]) is tuple and len(column[0]) <= _FEW:
        column = column[0]  # a row of arguments
    return ATOMS.issuperset(map(type, column))


_FEW = 16


def _carried(spec: CallSpec) -> CallSpec | None:
    """Pack the function of a spec; None where that is large, or not all that is the user's."""
    if spec.nested or spec.constants:
        return None
    try:
        fn = pack(spec.fn, "", views=True)
    except SerializationError:
        pack(spec, "")  # which names it by its place in the spec
        raise
    return CallSpec(fn, *spec[1:]) if fn.size <= _CARRIED else None


def _nothing(_: object) -> None:
    """Forget a value that travels with each chunk: there is nothing to do."""
