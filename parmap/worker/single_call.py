"""One call, packed, for executors on engines that have picklers of their own.

Those would copy a file that is open, or refuse a function that a script defines; and what a call
raises would come back by its constructor. Packed here, a call, its result and its error travel on
every engine as they do on plan ``processes``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from parmap.errors import SerializationError
from parmap.transport.error_payload import pack_error, unpack_error
from parmap.transport.identity import fresh_key, is_own
from parmap.transport.payload import PackedError, Payload, pack, pack_result, unpack
from parmap.worker import forks
from parmap.worker.random_state import inherited, renew

__all__ = ["Reply", "pack_call", "run_call"]


class Reply(NamedTuple):
    """What a call has returned or raised.

    Parameters
    ----------
    value : Payload or None
        The result.
    error : PackedError or None, default None
        The error; then there is no result.
    """

    value: Payload | None
    error: PackedError | None = None

    def unpickled(self) -> tuple[Any, BaseException | None]:
        """Return the result and the error, one of which is None."""
        try:
            if self.error is not None:
                return None, unpack_error(self.error)
            assert self.value is not None
            return unpack(self.value), None
        except BaseException as error:  # noqa: BLE001 - a user's __setstate__ may even exit
            return None, error


def pack_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Payload:
    """Pack a call.

    Raises
    ------
    SerializationError
        If something in it cannot travel.
    """
    fork = fresh_key() if forks.generation else None  # see `CallSpec`
    return pack((fn, args, kwargs, fork), "call")


def run_call(call: Payload) -> Reply:
    """Run a packed call, in a worker; raise nothing."""
    born = forks.generation
    try:
        reply = Reply(_run(call))
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the call
        if forks.generation != born:
            forks.end(error)
        return Reply(None, pack_error(error, crosses=True))
    if forks.generation != born:
        forks.end()
    return reply


def _run(call: Payload) -> Payload:
    try:
        fn, args, kwargs, fork = unpack(call)
    except SystemExit as error:
        why = f"unpickling the call raised SystemExit({error.code})"
        raise SerializationError(why) from None
    if inherited and not is_own(fork):  # some engines fork their workers
        renew()
    return pack_result(fn(*args, **kwargs), views=False)
