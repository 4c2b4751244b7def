"""Targets, and whether the figures of runs hold them."""

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

HELD, MISSED, UNKNOWN = "held", "missed", "not measured"

# Looks up the median of a case's contender in one run; KeyError where there is none.
Lookup = Callable[[str, str], float]


@dataclass(frozen=True)
class Target:
    """A bound on a number that is computed from the medians of one run."""

    text: str
    limit: float
    value: Callable[[Lookup], float]
    least: bool = False

    def bound(self) -> str:
        """Write the bound."""
        return f"{'≥' if self.least else '≤'} {self.limit:g}"

    def holds(self, value: float) -> bool:
        """Judge a number; one that is none, of a case that failed, is missed."""
        shown = rounded(value)
        return shown >= self.limit if self.least else shown <= self.limit


@dataclass(frozen=True)
class Verdict:
    """A target, with its number in each run that measured it."""

    target: Target
    values: tuple[float, ...]

    @property
    def value(self) -> float | None:
        """The median of the runs."""
        return statistics.median(self.values) if self.values else None

    @property
    def word(self) -> str:
        """Held, missed or not measured."""
        if self.value is None or any(map(math.isnan, self.values)):
            return MISSED if self.values else UNKNOWN
        return HELD if self.target.holds(self.value) else MISSED


class Contest(Protocol):
    """The part of a case that a target needs."""

    key: str
    label: str
    at_most: float | None
    ours: str

    def peers(self) -> tuple[str, ...]:
        """List the other libraries."""


def rounded(value: float) -> float:
    """Round to the digits that pages show: so that no page says that 1 is more than 1."""
    return float(f"{value:.3g}")


def judged(targets: Iterable[Target], runs: Iterable[Lookup]) -> list[Verdict]:
    """Judge each target by the median of its numbers in the runs."""
    runs = list(runs)
    return [Verdict(target, tuple(values_of(target, runs))) for target in targets]


def values_of(target: Target, runs: Iterable[Lookup]) -> Iterable[float]:
    """Compute a target's number in each run that measured it."""
    for run in runs:
        try:
            yield target.value(run)
        except KeyError:
            continue


def by_best_peer(case: Contest) -> Target:
    """Bound a case's time by the fastest peer's."""
    limit = 1.0 if case.at_most is None else case.at_most
    return Target(f"{case.label}: by the fastest peer", limit, lambda run: over_best(case, run))


def over_best(case: Contest, run: Lookup) -> float:
    """Divide the time of parmap by that of the fastest peer in the same run."""
    return run(case.key, case.ours) / run(case.key, best_peer(case, run))


def best_peer(case: Contest, run: Lookup) -> str:
    """Name the fastest peer; KeyError where none has a time."""
    times = {}
    for peer in case.peers():
        try:
            times[peer] = run(case.key, peer)
        except KeyError:
            continue
    times = {peer: time for peer, time in times.items() if not math.isnan(time)}
    if not times:
        raise KeyError(case.key)
    return min(times, key=times.__getitem__)
