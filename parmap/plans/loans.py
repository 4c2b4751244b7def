"""Sessions on loan: to calls that use a session, and are not inside of its ``with`` block.

Such calls are those on the process-wide plan, and those of threads that have no plan of their own
and use the one that is open in the process. A session whose block has ended, or whose plan was
replaced, stays open for the calls that have it on loan. The last of them closes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parmap.plans.spare_threads import SpareThreads

__all__ = ["Loans"]


class Loans:
    """The loans of one session.

    There is no lock: a loan may end in a finalizer, in a callback or in a signal handler.

    Attributes
    ----------
    over : bool
        Whether no more loans are made.
    spare_threads : list of SpareThreads
        The first entry, if any, watches the chunks of other threads than the main one.
    """

    def __init__(self) -> None:
        self.over = False
        self.spare_threads: list[SpareThreads] = []
        self._out: set[object] = set()
        self._back: SimpleQueue[None] = SimpleQueue()

    def __bool__(self) -> bool:
        """Whether somebody has the session on loan."""
        return bool(self._out)

    def take(self, loan: object) -> None:
        """Note a loan, under a name of its own."""
        self._out.add(loan)

    def give_back(self, loan: object) -> None:
        """Note the end of a loan. Again, it does no harm: Ctrl-C may have struck in the middle."""
        self._out.discard(loan)
        if self.over:
            self._back.put(None)

    def end(self, close: Callable[[], object]) -> None:
        """Call a function once nobody has a loan: now, or later in a thread of its own.

        Only the main thread does it now. Another thread may belong to the workers, and those
        would wait for it.
        """
        self.over = True
        if not self._out and threading.current_thread() is threading.main_thread():
            close()
            return
        # A daemon: a loan that never ends, such as an iterator in a global, must not keep the
        # interpreter from its end. Executors end their workers then by themselves.
        threading.Thread(
            target=self._wait, args=(close,), name="parmap-retire", daemon=True
        ).start()

    def end_threads(self) -> None:
        """End the threads that watch chunks of other threads: the session is over."""
        for spare_threads in self.spare_threads:
            spare_threads.end()

    def _wait(self, close: Callable[[], object]) -> None:
        while self._out:
            self._back.get()
        close()
