"""Wait for a call from outside of it: in a thread, or in an event loop.

`Call.steps` never waits, so nobody is inside the call while it waits for a worker. That is why
any thread can close it then, and why a cancelled ``anext`` loses nothing.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import time
import weakref
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from parmap.engine.loop import TURN
from parmap.errors import SessionClosed

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from parmap.engine.loop import Call
    from parmap.transport.messages import Outcome

__all__ = ["Drive", "close_if_cancelled"]

# The shortest wait for a retry that is due, in seconds, while another thread is inside a step; and
# the longest, for the system refuses to wait for centuries. After it, the waiter looks again.
_PAUSE, _LONGEST = 0.001, 3600.0


class Landed(SimpleQueue["Future[Outcome]"]):
    """The futures that are resolved; a put calls the wakers of those who wait.

    Attributes
    ----------
    wakers : set of callable
        Called without arguments, in any thread.
    """

    def __init__(self) -> None:
        self.wakers: set[Callable[[], object]] = set()

    def put(  # type: ignore[override]
        self, item: Future[Outcome]
    ) -> None:
        """Add a future that is resolved."""
        super().put(item)
        self.wake()

    def wake(self) -> None:
        """Wake all who wait."""
        for waker in tuple(self.wakers):
            waker()


class Drive:
    """Runs a call step by step, for consumers in any threads and event loops.

    There is no lock, so that a finalizer, a callback or a signal handler can close the call at
    any moment. The first entry of `_turns` may step the call, and nobody else. Whoever finds
    somebody else there, or nothing to do, adds a waker and waits. All wakers are called when a
    future lands, and at the end of each step.

    A step runs in the consumer's thread, in an event loop, too. There it reads input, and on plans
    that have no other thread it runs elements: as a plain ``for`` loop in a coroutine would. In
    a thread beside the loop, the user's iterators would meet the wrong thread, and the global
    random generators two threads at once.

    Parameters
    ----------
    call : Call
        The call. It has not begun.

    Attributes
    ----------
    values : iterator
        The results that are there. Only whoever steps the call replaces it, when it is empty.
    """

    def __init__(self, call: Call) -> None:
        self.values: Iterator[Any] = iter(())
        self._call: Call | None = call
        self._landed = Landed()
        self._steps = call.steps(self._landed)
        self._turns: list[object] = []
        self._still = False  # the last step had nothing to do
        self._due: float | None = None
        self._closing = self._over = False
        self._error: BaseException | None = None

    def refill(self) -> None:
        """Wait until there are values.

        Raises
        ------
        StopIteration
            If the call is over, or was closed.
        Exception
            As `Call.results`.
        """
        try:
            self._advance()
            if not self._ready():
                self._block()
        except BaseException:  # Ctrl-C, mostly: the call ends
            self.close()
            raise
        self._end(StopIteration)

    async def refilled(self) -> None:
        """As `refill`, without holding up the event loop; raise StopAsyncIteration at the end."""
        import asyncio

        loop, event = asyncio.get_running_loop(), asyncio.Event()
        waker = functools.partial(_call_soon, loop, event.set)
        self._landed.wakers.add(waker)
        try:
            self._advance()
            while not self._ready():
                left = self._left()
                alarm = None if left is None else loop.call_later(left, event.set)
                try:
                    await event.wait()
                finally:
                    if alarm is not None:
                        alarm.cancel()
                event.clear()  # a waker that is called from here on is heard
                self._advance()
        finally:
            self._landed.wakers.discard(waker)
        self._end(StopAsyncIteration)

    def close(self, why: BaseException | None = None) -> None:
        """End the call, or have it ended by the thread that is inside a step now.

        Parameters
        ----------
        why : BaseException, optional
            The next consumer gets it. Default: the next consumer finds the end of the results.
        """
        if not self._over:
            self._error = self._error or why
        self._closing = True
        self.values = iter(())
        self._advance()

    # -- steps -----------------------------------------------------------------------------

    def _advance(self) -> None:
        """Step the call, unless somebody else does, or there is nothing to do."""
        me, stepped = object(), False
        try:
            # Ctrl-C may come between any two calls: what was added here is removed below.
            self._turns.append(me)
            if self._turns[0] is me and self._moves():
                stepped = True
                self._step()
        finally:
            if me in self._turns:
                self._turns.remove(me)
        if stepped:
            self._landed.wake()
        if self._closing and not self._over and not self._turns:
            self._advance()  # it was closed during the step

    def _moves(self) -> bool:
        if self._over or self._closing:
            return not self._over
        if operator.length_hint(self.values):
            return False
        late = self._due is not None and self._due <= time.monotonic()
        return late or not self._still or not self._landed.empty()

    def _step(self) -> None:
        try:
            if self._closing:
                self._over, self.values = True, iter(())
                self._steps.close()
            else:
                values = next(self._steps)
                self._still, self.values = not values, iter(values)
                self._due = None if self._call is None else self._call.due
        except StopIteration:
            self._over = True
        except BaseException as error:  # noqa: BLE001 - a consumer raises it, in its own thread
            self._over = True
            self._error = error
        if self._over:
            self._call = None

    # -- consumers -------------------------------------------------------------------------

    def _ready(self) -> bool:
        return self._over or self._closing or operator.length_hint(self.values) > 0

    def _left(self) -> float | None:
        if self._due is None:
            return None
        return min(max(_PAUSE, self._due - time.monotonic()), _LONGEST)

    def _block(self) -> None:
        """Wait in this thread, until the call is ready."""
        box: SimpleQueue[None] = SimpleQueue()
        waker = functools.partial(box.put, None)
        self._landed.wakers.add(waker)
        try:
            self._advance()
            while not self._ready():
                left = self._left()
                with contextlib.suppress(Empty):  # then a retry may be due
                    box.get(timeout=TURN if left is None else min(left, TURN))
                self._advance()
        finally:
            self._landed.wakers.discard(waker)

    def _end(self, end: type[Exception]) -> None:
        """Raise what ended the call, if nothing is left to give."""
        if operator.length_hint(self.values) or not (self._over or self._closing):
            return
        error, self._error = self._error, None
        try:
            if isinstance(error, StopAsyncIteration) and end is StopAsyncIteration:
                raise RuntimeError("the function raised StopAsyncIteration") from error
            raise error or end
        finally:
            del error  # the error's traceback has this frame: break the circle


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return  # the loop is closed: nobody waits in it any more


# What each task iterates over. The task has one callback, however many maps it reads.
_reads: weakref.WeakKeyDictionary[asyncio.Task[Any], weakref.WeakSet[Drive]] = (
    weakref.WeakKeyDictionary()
)
# The task that was the last to begin to iterate over each map.
_readers: weakref.WeakKeyDictionary[Drive, weakref.ref[asyncio.Task[Any]]] = (
    weakref.WeakKeyDictionary()
)


def close_if_cancelled(drive: Drive, task: asyncio.Task[Any]) -> None:
    """Close a call if this task is cancelled while nobody else iterates over it."""
    if task not in _reads:
        task.add_done_callback(_ended)
        _reads[task] = weakref.WeakSet()
    _reads[task].add(drive)
    _readers[drive] = weakref.ref(task)


def _ended(task: asyncio.Task[Any]) -> None:
    for drive in list(_reads.pop(task, ())):
        reader = _readers.get(drive)
        if task.cancelled() and reader is not None and reader() is task:
            drive.close(
                SessionClosed(
                    "this map is closed, because the task that iterated over it was cancelled: "
                    "start a new one"
                )
            )
