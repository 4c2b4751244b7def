"""Calls that come to their end, though Ctrl-C is pressed: a start, an end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["uninterrupted"]

T = TypeVar("T")


def uninterrupted(call: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """Call a function in a thread of its own, and wait until it returns.

    An interrupt in the middle would leave half of what the function starts, or ends. So it is
    raised when the function has returned; a second one at once, and the function goes on.

    Parameters
    ----------
    call : callable
        The function.
    undo : callable, optional
        Called with the result if there was an interrupt.
    """
    done: Future[T] = Future()
    over = threading.Event()
    try:
        threading.Thread(target=_run, args=(call, done, over), name="parmap-uninterrupted").start()
    except RuntimeError:  # the interpreter ends, and starts no more threads
        return call()
    try:
        # Not for the thread itself: one whose `join` is interrupted counts as ended (bpo-45274).
        over.wait()
    except BaseException:
        if undo is not None:
            # In that thread, or here if it has just ended.
            done.add_done_callback(lambda done: done.exception() or undo(done.result()))
        over.wait()
        raise
    try:
        return done.result()
    finally:
        del done  # an error's traceback holds this frame, and so itself


def _run(call: Callable[[], T], done: Future[T], over: threading.Event) -> None:
    try:
        value = call()
    except BaseException as error:  # noqa: BLE001 - the caller's
        done.set_exception(error)
    else:
        done.set_result(value)
    finally:
        over.set()
