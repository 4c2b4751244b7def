"""Executors on engines that have picklers of their own: parmap's packs each call before."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from types import FunctionType
from typing import Any

from parmap.backends.mapping import MappingExecutor
from parmap.errors import SerializationError
from parmap.transport.payload import Payload
from parmap.worker.single_call import pack_call, run_call

__all__ = ["PackingExecutor"]

# What these modules define is parmap's own, and its arguments are packed already.
_OURS = ("parmap.worker.", "parmap.transport.", "parmap.plans.spare_threads")


class PackingExecutor(MappingExecutor):
    """An executor that packs calls, and gives them to an engine.

    What derives from it says how, by `send`. It resolves its futures by
    `parmap.engine.callbacks.resolve`, which unpacks the reply; or overrides `send_packed`.

    Attributes
    ----------
    references : tuple of type
        Which arguments stand for a value that the engine has. It looks for them where it packs a
        call itself.
    """

    references: tuple[type, ...] = ()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call ``fn(*args, **kwargs)``.

        A call that cannot be packed is the future's exception.
        """
        if not self.chunks or (type(fn) is FunctionType and _is_ours(fn)):
            return self.send(fn, *args, **kwargs)
        if self.references and any(issubclass(type(one), self.references) for one in args):
            return self.send(fn, *args, **kwargs)
        try:
            call = pack_call(fn, args, kwargs)
        except SerializationError as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed
        return self.send_packed(call)

    def send_packed(self, call: Payload) -> Future[Any]:
        """Have a worker run a packed call."""
        return self.send(run_call, call)

    @abstractmethod
    def send(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call a function that the engine can pickle, or that stays in memory."""


def _is_ours(fn: FunctionType) -> bool:
    return type(fn.__module__) is str and fn.__module__.startswith(_OURS)
