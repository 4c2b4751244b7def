"""Callbacks of futures: they run where they may wait, and where their errors harm nobody.

A pool resolves futures in a thread of its own, and needs that thread to go on. A callback there
that makes a call and waits for its results would wait for itself. So a future of `submit` has its
callbacks run in a thread that nobody waits for, except the end of the session.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context, copy_context
from functools import partial
from types import FunctionType
from typing import Any, TypeAlias

from parmap.worker.single_call import Reply

__all__ = ["Answer", "Callbacks", "resolve"]

# The standard library's: who listens for callbacks that fail listens there.
_log = logging.getLogger("concurrent.futures")

_Due: TypeAlias = "tuple[Context, Callable[[Any], object], Future[Any]]"


class _Here(threading.local):
    """The callbacks that this thread collects while it resolves a future; None: it runs them."""

    due: list[_Due] | None = None


_here = _Here()


class Answer(Future[Any]):
    """The future of one call, whose callbacks may make calls and wait for them.

    Each callback runs in a copy of the context in which it was added, so that it finds the plan
    that was in force there.
    """

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Have a function called with this future once it is done; at once if it is."""
        super().add_done_callback(fn if _never_waits(fn) else partial(_call, copy_context(), fn))

    def notify(self, fn: Callable[[Future[Any]], object]) -> None:
        """Do the same for a function that never waits: it may run in the pool's thread."""
        super().add_done_callback(fn)


def _never_waits(fn: object) -> bool:
    # asyncio wakes its loop by a function that only does that. It need not pay for a thread.
    asyncio = sys.modules.get("asyncio.futures")
    return type(fn) is FunctionType and asyncio is not None and fn.__globals__ is vars(asyncio)


def _call(context: Context, fn: Callable[[Any], object], future: Future[Any]) -> None:
    if _here.due is not None:
        _here.due.append((context, fn, future))
        return
    try:
        context.run(fn, future)
    except KeyboardInterrupt:
        raise  # Ctrl-C: this is the thread of whoever adds the callback
    except BaseException:  # noqa: BLE001 - as where the future is not done yet: see `_run`
        _log.exception("exception calling callback for %r", future)


class Callbacks:
    """Runs the callbacks of a session's futures, those of each future in a thread of their own.

    Has no lock: the set of threads changes in single steps.
    """

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()

    def collect(self, step: Callable[[], None]) -> None:
        """Resolve futures by `step` in the pool's thread, and run their callbacks elsewhere."""
        before, _here.due = _here.due, []
        try:
            step()
        finally:
            due, _here.due = _here.due, before
            if due:
                self._start(due)

    def join(self) -> None:
        """Wait for the callbacks that run; not for those that wait for this very call."""
        for thread in self._threads.copy():
            if thread is not threading.current_thread():
                thread.join()

    def _start(self, due: list[_Due]) -> None:
        # Not a daemon, unlike the pool's thread that starts it: the interpreter waits for it.
        thread = threading.Thread(target=self._run, args=(due,), name="parmap-callbacks")
        thread.daemon = False
        if not threading.main_thread().is_alive():
            self._run(due)  # the interpreter ends: it starts and joins no more threads
            return
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            self._threads.discard(thread)
            self._run(due)

    def _run(self, due: list[_Due]) -> None:
        try:
            for context, fn, future in due:
                try:
                    context.run(fn, future)
                except BaseException:  # noqa: BLE001 - SystemExit, too, ends the callback alone
                    _log.exception("exception calling callback for %r", future)
        finally:
            due.clear()
            self._threads.discard(threading.current_thread())


def resolve(future: Future[Any], value: Any = None, error: BaseException | None = None) -> None:
    """Resolve a future in a pool's own thread, which no callback of the user's may end.

    Parameters
    ----------
    future : concurrent.futures.Future
        Pending or running.
    value, error : object, exception or None
        Its result, or its exception. A `Reply` is unpickled.
    """
    if type(value) is Reply:
        value, error = value.unpickled()
    try:
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
    except Exception:
        raise  # not a callback's: the standard library logs those
    except BaseException:  # noqa: BLE001 - SystemExit, which the standard library lets through
        _log.exception("exception calling callback for %r", future)
