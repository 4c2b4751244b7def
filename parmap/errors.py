"""The errors of parmap.

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

Errors that a task raises are not wrapped: they come through as they are. How they are told of, and
`PoolBroken`, which a worker need not know, stand in failures.py.
"""

from __future__ import annotations

import signal as signals
from _pickle import PicklingError  # pickle's own; to name a plan needs no more of pickle

__all__ = [
    "WATCHDOG_REPORT",
    "BackendUnavailable",
    "DependencyFailed",
    "ParmapError",
    "PlanError",
    "RemoteTraceback",
    "SerializationError",
    "SessionClosed",
    "TaskExited",
    "TaskTimeout",
    "UnseededRandomWarning",
    "WorkerDied",
    "add_note",
    "said",
]


# With this `faulthandler.dump_traceback_later` begins its report.
WATCHDOG_REPORT = "Timeout ("


class ParmapError(Exception):
    """The root of all errors that parmap itself raises."""


class PlanError(ParmapError, ValueError):
    """A plan, or an option of a plan, is wrong; the message names the valid ones."""


class BackendUnavailable(ParmapError, ImportError):  # noqa: N818 - the design's public name
    """A plan needs a package that is not installed; the message says what to install."""


class SessionClosed(ParmapError, RuntimeError):  # noqa: N818 - a state, like BrokenExecutor
    """A session, or its executor, was used after its end."""


class SerializationError(ParmapError, PicklingError):
    """An object cannot travel to or from a worker; the message names the path to it."""


class UnseededRandomWarning(UserWarning):
    """Random numbers of a task repeat, or nobody can draw them again.

    A generator is copied to the workers, or a task draws from a global one that has no seed.
    """


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
        return self.last_words.startswith(WATCHDOG_REPORT)

    @property
    def from_outside(self) -> bool:
        """Whether somebody else ended it: an administrator, the out-of-memory killer."""
        # Where nobody could learn how it ended, its fork server was killed, and it with it.
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
    """The worker's traceback, as text: the innermost cause of an error from another process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        """Show the text on lines of its own, set off as in concurrent.futures."""
        return f'\n"""\n{self.text}"""'


def add_note(error: BaseException, note: str) -> None:
    """Add a note once, also to an error that refuses new attributes (a frozen dataclass)."""
    from parmap.untouched import own

    # Not getattr: an error's class may answer for any name, or raise.
    notes = own(error).get("__notes__", [])
    if type(notes) in (list, tuple) and not any(type(n) is str and n == note for n in notes):
        BaseException.__setattr__(error, "__notes__", [*notes, note])


def said(error: BaseException) -> str:
    """Return what an error says, also where its class cannot."""
    try:
        return str(error)
    except (Exception, SystemExit):  # noqa: BLE001 - a user's __str__ may raise anything
        return "<exception str() failed>"  # as Python prints it


# Public: pickles and tracebacks name them as users do, wherever they are defined.
for _public in (
    BackendUnavailable,
    DependencyFailed,
    ParmapError,
    PlanError,
    SerializationError,
    SessionClosed,
    TaskExited,
    TaskTimeout,
    UnseededRandomWarning,
    WorkerDied,
):
    _public.__module__ = "parmap"
