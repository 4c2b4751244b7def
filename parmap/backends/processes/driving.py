"""A caller that waits for its own tasks hears their workers itself.

The pool's thread would have to wake up for the answer, and then wake the caller: that takes longer
than a small task.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import time
from collections.abc import Collection
from concurrent.futures import Future, wait
from typing import Any

from parmap.backends.processes.handles import Worker
from parmap.backends.processes.task_queue import TaskQueue
from parmap.transport.sockets import above_standard

__all__ = ["Driving"]


class Driving:
    """Takes workers' channels out of what the pool's thread hears, for as long as a caller drives.

    A channel has one reader at a time, which `Worker.reader` names: it changes under the task
    queue's lock. Only the reader closes the channel. Where the selector is no epoll, nobody drives.

    Parameters
    ----------
    queue : TaskQueue
        Who has which task.
    selector : selectors.BaseSelector
        What the pool's thread waits on.
    """

    def __init__(self, queue: TaskQueue, selector: selectors.BaseSelector) -> None:
        self._queue = queue
        self._epoll: Any = None
        if hasattr(select, "epoll") and isinstance(selector, selectors.EpollSelector):
            # Another descriptor of the same one: the selector knows nothing of what it does.
            fileno = selector.fileno
            self._epoll = above_standard(lambda: select.epoll.fromfd(os.dup(fileno())))

    def drive(self, futures: Collection[Future[Any]], seconds: float) -> None:
        """Hear the workers that have these tasks, until all have answered, or time is over."""
        end = time.monotonic() + seconds
        heard = 0 if self._epoll is None else self._drive(futures, end)
        if heard < len(futures) and not all(map(Future.done, futures)):
            # Some wait in the queue, or the pool's thread was quicker, and is at it.
            wait(futures, max(0.0, end - time.monotonic()))

    def _drive(self, futures: Collection[Future[Any]], end: float) -> int:
        """Do so for those whom the pool's thread does not hear; count those that have answered."""
        mine: list[Worker] = []
        me = object()
        # Ctrl-C may strike in any line, so in the first clean-up, too.
        try:
            try:
                self._take_over(mine, me, futures)
                return self._hear(mine, me, end)
            except BaseException:
                for worker in mine:
                    if worker.reader is me:  # what was read of an answer may be lost
                        worker.leaving = True  # first: it gets no other task
                        worker.channel.hang_up()
                raise
            finally:
                self._release(mine, me)
        finally:
            self._release(mine, me)

    def _take_over(self, mine: list[Worker], me: object, futures: Collection[Future[Any]]) -> None:
        for worker, _ in self._queue.with_tasks(futures):
            mine.append(worker)
            if self._queue.begin_reading(worker, me, futures):
                self._epoll.unregister(worker.channel.socket)

    def _hear(self, mine: list[Worker], me: object, end: float) -> int:
        poll, heard = select.poll(), 0
        out = {one.channel.socket.fileno(): one for one in mine if one.reader is me}
        for descriptor in out:
            poll.register(descriptor, select.POLLIN)
        while out:
            events = poll.poll(max(0.0, 1000 * (end - time.monotonic())))
            if not events:
                break
            for descriptor, _ in events:
                try:
                    message = out[descriptor].channel.inbox.read()
                except EOFError:  # the pool's thread sees to that
                    del out[descriptor]
                    poll.unregister(descriptor)
                    continue
                if message is not None:
                    poll.unregister(descriptor)
                    self._answered(out.pop(descriptor), message)
                    heard += 1
        return heard

    def _answered(self, worker: Worker, message: Any) -> None:
        kind, _, frames = message
        task = worker.task
        self._epoll.register(worker.channel.socket, select.EPOLLIN)
        self._queue.answered(worker)
        if task is not None:  # else the pool has given up
            task.resolve(kind, frames)

    def _release(self, mine: list[Worker], me: object) -> None:
        """Have the pool's thread hear the workers that have not answered."""
        for worker in mine:
            if worker.reader is me:
                with contextlib.suppress(FileExistsError):  # it was not taken out yet
                    self._epoll.register(worker.channel.socket, select.EPOLLIN)
                worker.reader = None

    def close(self) -> None:
        """Close the descriptor."""
        if self._epoll is not None:
            self._epoll.close()
