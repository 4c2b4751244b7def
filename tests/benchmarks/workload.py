"""What a workload is: cases, who takes part in them, and the budgets it is held against."""

import importlib
import importlib.util
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.contenders import POOLS

WORKERS = 2


@dataclass(frozen=True)
class Case:
    """One column of a table.

    `peak` cases are not timed: it is watched how much memory their call takes at most, which is
    given in units of `size` bytes. `data` is the workload's own.
    """

    key: str  # the same with --quick, so that budgets find it
    label: str
    size: int
    contenders: tuple[str, ...]
    reference: str = ""
    floor: str = ""  # a second reference
    unit: str = "s"
    peak: bool = False
    data: Any = None


@dataclass(frozen=True)
class Sample:
    """What one round gave."""

    value: float | None = None
    note: str = ""
    failed: str = ""


Lookup = Callable[[str, str], float]
Trial = Generator[Sample | None, None, None]


@dataclass(frozen=True)
class Budget:
    """A bound on a number that is made of medians: at most, or at least, so much."""

    text: str
    limit: float
    value: Callable[[Lookup], float]
    least: bool = False

    def verdict(self, lookup: Lookup) -> tuple[str, float | None]:
        """Say whether it is reached, and the number; a case that did not run is no failure."""
        try:
            value = self.value(lookup)
        except KeyError:
            return "not measured", None
        good = value >= self.limit if self.least else value <= self.limit
        return ("reached" if good else "not reached"), value


@dataclass(frozen=True)
class Workload:
    """A family of cases.

    `trial` is a generator: it yields None when all is ready, then a `Sample` for each round.
    A `fresh` workload breaks what it measures, so each round gets a new process.
    """

    name: str
    what: str
    cases: Callable[[bool], list[Case]]
    trial: Callable[[Case, str], Trial]
    budgets: tuple[Budget, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)  # of contenders of its own
    lines: str = ""  # cases of this unit are drawn as lines over their sizes
    fresh: bool = False

    def missing(self, contender: str) -> str:
        """Give the package that a contender needs and that is not there, or nothing."""
        pool = POOLS.get(contender)
        package = self.packages.get(contender, pool.package if pool else "")
        return package if package and importlib.util.find_spec(package) is None else ""


def load(name: str) -> Workload:
    """Import a workload: that one alone, for a cold start is part of what is measured."""
    return importlib.import_module(f"tests.benchmarks.workloads.{name}").WORKLOAD


def clocked(call: Callable[[], Any]) -> tuple[float, Any]:
    """Give the seconds that a call takes, and its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def power(number: int) -> str:
    """Write a power of ten as one."""
    exponent = len(str(number)) - 1
    digits = str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}" if number == 10**exponent else f"{number:,}"
