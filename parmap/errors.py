"""The errors of parmap, and how one failed element is described.

::

    ParmapError
    ├── PlanError            (ValueError)      a plan or an option of one is wrong
    ├── BackendUnavailable   (ImportError)     a plan needs a package that is not installed
    ├── SessionClosed        (RuntimeError)    a session or executor is used after its end
    ├── SerializationError   (PicklingError)   an object cannot travel to or from a worker
    ├── PoolBroken           (BrokenExecutor)  no worker can be started that works
    ├── WorkerDied                             a worker process ended in the middle of a task
    ├── DependencyFailed                       a delayed call needed one that failed
    ├── TaskTimeout          (TimeoutError)    an element ran longer than ``timeout=`` allows
    └── TaskExited                             an element called ``sys.exit``; only in groups

Errors that a task raises are not wrapped: they come through as they are.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pickle import PicklingError
from typing import Any, NoReturn, Self

__all__ = [
    "BackendUnavailable",
    "DependencyFailed",
    "Failure",
    "FailureGroup",
    "ParmapError",
    "PlanError",
    "PoolBroken",
    "RemoteTraceback",
    "SerializationError",
    "SessionClosed",
    "TaskExited",
    "TaskTimeout",
    "UnseededRandomWarning",
    "WorkerDied",
    "add_note",
]


class ParmapError(Exception):
    """The root of all errors that parmap itself raises."""


class PlanError(ParmapError, ValueError):
    """A plan, or an option of a plan, is wrong; the message names the valid ones."""


class BackendUnavailable(ParmapError, ImportError):  # noqa: N818 - the design's public name
    """A plan needs a package that is not installed; the message says what to install."""


class SessionClosed(ParmapError, RuntimeError):  # noqa: N818 - a state, like BrokenExecutor
    """A session, or its executor, was used after its end."""


class PoolBroken(ParmapError, BrokenExecutor):  # noqa: N818 - a state, like BrokenExecutor
    """No worker can be started that works: ``setup=`` failed, or the interpreter does not start."""


class SerializationError(ParmapError, PicklingError):
    """An object cannot travel to or from a worker; the message names the path to it."""


class UnseededRandomWarning(UserWarning):
    """A task drew from a global random generator, without ``rng=``."""


class WorkerDied(ParmapError):  # noqa: N818 - the design's public name
    """A worker process ended in the middle of a task.

    Parameters
    ----------
    pid : int
        The process that ended; 0 where the engine does not tell.
    exitcode : int or None, default None
        As in :mod:`subprocess`: the exit status, or minus the signal that ended the
        process; None when nobody could learn it.
    peak_memory : int or None, default None
        The most memory the process ever had resident, in bytes.
    position : int or None, default None
        Which element of the chunk was running, when the worker had noted it.
    last_words : str, default ""
        What the interpreter wrote as it died: the Python stack at the fault.
    host : str, default ""
        The machine, where it is another than the caller's.
    times : int, default 1
        How many workers died in a row while they had the task: some engines try again by
        themselves.
    """

    def __init__(  # noqa: PLR0917 - pickle gives them by their places
        self,
        pid: int,
        exitcode: int | None = None,
        peak_memory: int | None = None,
        position: int | None = None,
        last_words: str = "",
        host: str = "",
        times: int = 1,
    ) -> None:
        # All of them stand in args, so that pickle and copy rebuild the error without help.
        super().__init__(pid, exitcode, peak_memory, position, last_words, host, times)
        self.pid = pid
        self.exitcode = exitcode
        self.peak_memory = peak_memory
        self.position = position
        self.last_words = last_words
        self.host = host
        self.times = times

    @property
    def signal(self) -> str | None:
        """Name of the signal that ended the process, such as ``"SIGSEGV"``, or None."""
        if self.exitcode is None or self.exitcode >= 0:
            return None
        try:
            return signals.Signals(-self.exitcode).name
        except ValueError:
            return f"signal {-self.exitcode}"

    @property
    def timed_out(self) -> bool:
        """Whether the worker ended itself because an element ran too long."""
        # faulthandler.dump_traceback_later begins its report with this word.
        return self.last_words.startswith("Timeout (")

    @property
    def from_outside(self) -> bool:
        """Whether somebody else ended it: an administrator, the out-of-memory killer."""
        # Where nobody could learn how it ended, its zygote was killed, and it with it.
        return self.exitcode is None or self.signal in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")

    def __str__(self) -> str:
        """Say how it died, with how much memory, and where."""
        if self.signal == "SIGKILL":
            how = "was killed (SIGKILL: by somebody, or by the system when memory ran out)"
        elif self.signal:
            how = f"was ended by {self.signal}"
        elif self.exitcode is not None:
            how = f"exited with status {self.exitcode}"
        else:
            how = "is gone"
        peak = (
            f"; its peak memory was {self.peak_memory / 2**20:,.0f} MiB" if self.peak_memory else ""
        )
        words = f"\n{self.last_words}" if self.last_words else ""
        where = f" on {self.host}" if self.host else ""
        again = f", the last of {self.times} that had this task," if self.times > 1 else ""
        who = f"the worker process {self.pid}" if self.pid else "a worker process"
        return f"{who}{where}{again} {how}{peak}{words}"


class TaskTimeout(ParmapError, TimeoutError):  # noqa: N818 - the design's public name
    """An element ran longer than ``timeout=`` allows."""


class TaskExited(ParmapError):  # noqa: N818 - a state, like WorkerDied
    """An element called ``sys.exit``; stands for the SystemExit in a `FailureGroup`."""


class DependencyFailed(ParmapError):  # noqa: N818 - a state, like WorkerDied
    """A delayed call was not run, for it needs the result of one that failed."""


class RemoteTraceback(Exception):  # noqa: N818 - not an error of its own: a cause
    """The worker's traceback, as text: the ``__cause__`` of an error from another process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        """Show the text on lines of its own, set off as in concurrent.futures."""
        return f'\n"""\n{self.text}"""'


@dataclass(frozen=True, slots=True)
class Failure:
    """What stands in the place of a result when an element failed (``errors="return"``).

    Parameters
    ----------
    error : BaseException
        What the element raised; or `WorkerDied`, `TaskTimeout`, `SerializationError`.
    index : int
        Which element: its position in the input, from 0.
    traceback : str
        The worker's traceback, as text.
    host : str
        The machine it ran on.
    pid : int
        The process it ran in.
    label : str, default ""
        The call's label.

    Examples
    --------
    >>> import parmap
    >>> good, bad = parmap.pmap(lambda x: 1 / x, [2, 0], errors="return")
    >>> good
    0.5
    >>> bad
    <Failure of element 1: ZeroDivisionError: division by zero>
    """

    error: BaseException
    index: int
    traceback: str
    host: str
    pid: int
    label: str = ""

    def reraise(self) -> NoReturn:
        """Raise the error, with a note that says which element it was, and where."""
        add_note(self.error, self.note)
        raise self.error

    @property
    def note(self) -> str:
        """One line: the element, the call, the machine and the process."""
        of = f" of {self.label}" if self.label else ""
        return f"parmap: element {self.index}{of} failed on {self.host}, process {self.pid}"

    def __repr__(self) -> str:
        """Show the index and the error's last line; the traceback has its own attribute."""
        head = str(self.error).partition("\n")[0]
        what = type(self.error).__name__ + (f": {head}" if head else "")
        return f"<Failure of element {self.index}: {what}>"

    def _repr_html_(self) -> str:
        """Show the same in a notebook, with the place and the traceback to unfold."""
        from parmap.html import details

        return details(repr(self).strip("<>"), f"{self.note}\n\n{self.traceback}")


def add_note(error: BaseException, note: str) -> None:
    """Add a note once, also to an error that refuses new attributes (a frozen dataclass)."""
    notes = getattr(error, "__notes__", [])
    if note not in notes:
        BaseException.__setattr__(error, "__notes__", [*notes, note])


class FailureGroup(ExceptionGroup[Exception]):
    """The errors of all failed elements (``errors="group"``), with the results of the others.

    Attributes
    ----------
    results : list
        One entry per element, in order; a `Failure` stands where an element failed. From
        ``compute`` of one structure, that structure.
    """

    results: Any

    def __new__(
        cls, results: Sequence[Any], failures: Sequence[Failure], *, of: int | None = None
    ) -> Self:
        """Make the group's message and members from the failures, of so many elements."""
        message = f"{len(failures)} of {len(results) if of is None else of} elements failed"
        return super().__new__(cls, message, [_as_exception(failure) for failure in failures])

    def __init__(
        self,
        results: Sequence[Any],
        failures: Sequence[Failure],
        *,
        of: int | None = None,  # noqa: ARG002 - for the message
    ) -> None:
        # Not the parent's: __new__ has made the message and the members from both.
        Exception.__init__(self, results, failures)
        self.results = results

    def derive(self, excs: Sequence[Exception], /) -> ExceptionGroup[Exception]:  # type: ignore[override]
        """Make a plain group of some of the members, for ``split`` and ``except*``."""
        return ExceptionGroup(self.message, excs)


def _as_exception(failure: Failure) -> Exception:
    error = failure.error
    if not isinstance(error, Exception):
        # An ExceptionGroup, which `except Exception` must catch, cannot hold SystemExit.
        exited = TaskExited(
            f"element {failure.index} called sys.exit({error.args[0] if error.args else ''})"
        )
        exited.__cause__ = error
        error = exited
    add_note(error, failure.note)
    return error
