"""Rounds that take turns, and what is made of them."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.benchmarks.stage import Stage
from tests.benchmarks.workload import Case, Sample, Workload, clocked

ROUNDS = 9
# A contender whose rounds take a second or more sits out once it has taken so many seconds.
ENOUGH = 2.0
FEW = 3


@dataclass(frozen=True)
class Figure:
    """The rounds of one contender in one case."""

    values: tuple[float, ...] = ()
    note: str = ""
    failed: str = ""

    @property
    def median(self) -> float:
        """The middle; not a number if there is none."""
        return statistics.median(self.values) if self.values else float("nan")

    @property
    def quartiles(self) -> tuple[float, float]:
        """The bounds of the middle half."""
        if len(self.values) < 2:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third


@dataclass(frozen=True)
class Measured:
    """A case with the figures of all that took part."""

    case: Case
    figures: dict[str, Figure]

    def ratio(self, contender: str, to: str = "") -> float | None:
        """Divide a median by the reference's, or by another one's."""
        reference = self.figures.get(to or self.case.reference)
        if reference is None or not reference.values or not self.figures[contender].values:
            return None
        return self.figures[contender].median / reference.median


def repeated(call: Callable[[], object], least: float = 0.02) -> float:
    """Time a call, again and again until some time is over; give the median."""
    times = []
    while not times or sum(times) < least:
        times.append(clocked(call)[0])
    return statistics.median(times)


def turns(names: Iterable[str], number: int) -> list[str]:
    """Give the order of a round: each begins with the next one."""
    names = list(names)
    first = number % len(names) if names else 0
    return names[first:] + names[:first]


def summed_up(samples: list[Sample]) -> Figure:
    """Make a figure of rounds, of which any may have failed."""
    failed = next((sample.failed for sample in samples if sample.failed), "")
    note = samples[-1].note if samples else ""
    values = [sample.value for sample in samples if sample.value is not None]
    return Figure(() if failed else tuple(values), note, failed)


def interleaved(
    start: Callable[[str], Stage], names: Iterable[str], rounds: int, *, fresh: bool
) -> dict[str, Figure]:
    """Run rounds in which each contender has one turn; the first only warms up."""
    names = list(names)
    stages = {} if fresh else {name: start(name) for name in names}
    try:
        for stage in stages.values():
            stage.ready()
        samples = played(
            lambda name: turn(start, stages, name), names, rounds + (not fresh), fresh=fresh
        )
    finally:
        for stage in stages.values():
            stage.end()
    return {
        # The trials have warmed up, too: of a contender too slow for more rounds, all count.
        name: summed_up(done if fresh or len(done) <= min(rounds, FEW) else done[1:])
        for name, done in samples.items()
    }


def played(
    play: Callable[[str], Sample], names: list[str], rounds: int, *, fresh: bool
) -> dict[str, list[Sample]]:
    """Run rounds; a contender that fails, or takes too long, sits out the rest."""
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    spent, out = dict.fromkeys(names, 0.0), set()
    for number in range(rounds):
        for name in (name for name in turns(names, number) if name not in out):
            took, sample = clocked(lambda name=name: play(name))
            samples[name].append(sample)
            spent[name] += took
            if sample.failed or (spent[name] > ENOUGH and is_long(sample, took, fresh=fresh)):
                out.add(name)
    return samples


def is_long(sample: Sample, took: float, *, fresh: bool) -> bool:
    """Tell whether a round takes a second or more, without the start of a fresh process."""
    value = sample.value
    return (value or 0) >= 1 or (took >= 1 and not (fresh and value is not None))


def turn(start: Callable[[str], Stage], stages: dict[str, Stage], name: str) -> Sample:
    """Run one round of one contender: on its stage, or on one for this round only."""
    if name in stages:
        return stages[name].go()
    stage = start(name)
    try:
        return stage.go()
    finally:
        stage.end(patience=0)


def peaks(start: Callable[[str], Stage], names: Iterable[str], size: int) -> dict[str, Figure]:
    """Watch the memory of one call of each contender: the first one, in a new interpreter."""
    found = {}
    for name in names:
        stage = start(name)
        try:
            most = stage.watched()
            found[name] = Figure(() if stage.failed else (most / size,), failed=stage.failed)
        finally:
            stage.end()
    return found


def measured(workload: Workload, case: Case, rounds: int, *, quick: bool) -> Measured:
    """Measure a case: all contenders that are installed."""
    names = [name for name in case.contenders if not workload.missing(name)]

    def start(name: str) -> Stage:
        return Stage(workload, case, name, quick=quick)

    if case.peak:
        return Measured(case, peaks(start, names, case.size))
    return Measured(case, interleaved(start, names, rounds, fresh=workload.fresh))


def stamp() -> str:
    """Return the time, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime())
