"""Progress: the first observer. A tqdm bar, or counts for a callable of the user's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from parmap.observe.events import (
    CallFinished,
    CallStarted,
    ChunkFinished,
    ElementFailed,
    Event,
    Observer,
)

__all__ = ["Counts", "observer"]


@dataclass(frozen=True, slots=True)
class Counts:
    """How far a call is; what a callable given as ``progress=`` gets.

    Parameters
    ----------
    done : int
        Elements that have a result.
    failed : int
        Elements that failed for good.
    total : int or None
        How many there are, when that is known.
    seconds : float
        Since the call began.
    finished : bool
        Whether this is the last time.
    label : str
        The call's label.
    """

    done: int
    failed: int
    total: int | None
    seconds: float
    finished: bool
    label: str


def observer(progress: Literal[True] | Callable[[Counts], Any]) -> Observer:
    """Make the observer that serves a ``progress=`` option other than None and False."""
    counter = _Counter(_Bar() if progress is True else progress)
    return counter.observe


class _Counter:
    """Counts events and shows the counts; lives as long as one call."""

    def __init__(self, show: Callable[[Counts], Any]) -> None:
        self._show = show
        self._done = self._failed = 0
        self._total: int | None = None
        self._label = ""
        self._began = time.perf_counter()

    def observe(self, event: Event) -> None:
        match event:
            case CallStarted():
                self._total, self._label = event.total, event.label
            case ChunkFinished():
                self._done += event.done
            case ElementFailed():
                self._failed += 1
            case CallFinished():
                pass
            case _:
                return
        seconds = time.perf_counter() - self._began
        finished = isinstance(event, CallFinished)
        self._show(Counts(self._done, self._failed, self._total, seconds, finished, self._label))


class _Bar:
    """A tqdm bar: in a terminal or, where the kernel shows widgets, in the notebook."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, counts: Counts) -> None:
        if self._bar is None:
            # Imported at the first use: tqdm costs more than all of parmap.
            from tqdm.auto import tqdm

            self._bar = tqdm(total=counts.total, desc=counts.label or None)
        if counts.failed:
            self._bar.set_postfix(failed=counts.failed, refresh=False)
        self._bar.update(counts.done + counts.failed - self._bar.n)
        if counts.finished:
            self._bar.close()


# Public: pickles and tracebacks name it as users do, wherever it is defined.
Counts.__module__ = "parmap"
