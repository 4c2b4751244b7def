"""How often, for which errors, and after what wait a failing element is run again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from parmap.untouched import is_a

__all__ = ["Retry"]


@dataclass(frozen=True, slots=True)
class Retry:
    """When to run an element again that failed; an int as ``retries=`` means ``Retry(times)``.

    Parameters
    ----------
    times : int, default 1
        How often, at most.
    on : type or tuple of type, default Exception
        Which errors are worth it; the others fail the element at once. `WorkerDied` and
        `TaskTimeout` are Exceptions, too. A KeyboardInterrupt always ends the call.
    wait : float, default 0
        Seconds before the first time; each further wait is twice as long. Nothing waits
        with it: the workers go on with other elements.
    longest : float, default 60
        The most seconds of one wait.

    Notes
    -----
    An element that is run again gets the same random stream again.

    Examples
    --------
    >>> import parmap
    >>> patient = parmap.Retry(5, on=(ConnectionError, TimeoutError), wait=0.5)
    >>> [patient.delay(failed) for failed in (1, 2, 3)]
    [0.5, 1.0, 2.0]
    """

    times: int = 1
    on: type[BaseException] | tuple[type[BaseException], ...] = Exception
    wait: float = 0.0
    longest: float = 60.0

    def __post_init__(self) -> None:
        if isinstance(self.times, bool) or not isinstance(self.times, int):
            raise TypeError(f"retries={self.times!r}: give a whole number")
        if self.times < 0:
            raise ValueError(f"retries={self.times!r}: give 0 or more")
        kinds: tuple[object, ...] = self.on if isinstance(self.on, tuple) else (self.on,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise TypeError(f"on={self.on!r}: give an exception class, or a tuple of them")
        for name in ("wait", "longest"):
            seconds = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
                raise TypeError(f"{name}={seconds!r}: give seconds")
            if not 0 <= seconds < math.inf:
                raise ValueError(f"{name}={seconds!r}: give seconds, 0 or more")

    def applies(self, error: BaseException, failed: int) -> bool:
        """Tell whether an element that has failed `failed` times, now by `error`, runs again."""
        return failed <= self.times and is_a(error, self.on)

    def delay(self, failed: int) -> float:
        """Give the seconds to wait after an element has failed `failed` times."""
        # Not 2.0 ** a large number: that overflows, and the longest wait is reached by then. Nor a
        # whole number that no float can hold: nobody waits for the end of either.
        longest = min(self.longest, _AGES)
        return min(longest, min(self.wait, longest) * 2.0 ** min(failed - 1, 60))


_AGES = 1e12  # seconds


# Public: pickles and tracebacks name it as users do, wherever it is defined.
Retry.__module__ = "parmap"
