"""What has failed: an element, several of them, or the pool that was to run them.

Apart from the other errors for what it takes to load: a fresh worker needs none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from parmap.errors import ParmapError, TaskExited, add_note, said
from parmap.untouched import is_a

__all__ = ["Failure", "FailureGroup", "PoolBroken"]


class PoolBroken(ParmapError, BrokenExecutor):  # noqa: N818 - a state, like BrokenExecutor
    """No worker can be started that works: ``setup=`` failed, or the interpreter does not start."""


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
        context = self.error.__context__
        try:
            raise self.error
        finally:
            # Inside an ``except`` block of the caller's, Python puts that block's error there.
            if context is not None:
                BaseException.__setattr__(self.error, "__context__", context)

    @property
    def note(self) -> str:
        """One line: the element, the call, the machine and the process."""
        of = f" of {self.label}" if self.label else ""
        return f"parmap: element {self.index}{of} failed on {self.host}, process {self.pid}"

    def __repr__(self) -> str:
        """Show the index and the error's last line; the traceback has its own attribute."""
        head = said(self.error).partition("\n")[0]
        what = type(self.error).__name__ + (f": {head}" if head else "")
        return f"<Failure of element {self.index}: {what}>"

    def _repr_html_(self) -> str:
        """Show the same in a notebook, with the place and the traceback to unfold."""
        from parmap.html import details

        return details(repr(self).strip("<>"), f"{self.note}\n\n{self.traceback}")


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
    if not is_a(error, Exception):
        # An ExceptionGroup, which `except Exception` must catch, cannot hold SystemExit.
        exited = TaskExited(f"element {failure.index} called sys.exit({said(error)})")
        exited.__cause__ = error
        error = exited
    add_note(error, failure.note)
    return error


# Public: pickles and tracebacks name it as users do, wherever it is defined.
Failure.__module__ = FailureGroup.__module__ = PoolBroken.__module__ = "parmap"
