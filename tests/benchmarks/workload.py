"""A workload: its cases, the libraries that take part in them, and the targets they have."""

import importlib
import importlib.util
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.contenders import POOLS
from tests.benchmarks.targets import Target, by_best_peer

WORKERS = 2
# Shown for comparison, and no peer: arithmetic, a single core, or no call on a warm pool.
FLOORS = frozenset(
    {
        *("lower bound", "one by one, no overhead", "list comprehension", "bare interpreter"),
        *("bare pipe", "multiprocessing.Pool, forked in the call"),
    }
)


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Attributes
    ----------
    key : str
        The same with ``--quick``, so that targets find it.
    contenders : tuple of str
        All that take part. Peers are those that are neither parmap nor in `FLOORS`.
    reference, floor : str
        The table divides by their times.
    at_most : float, optional
        The target: the time of `ours` divided by that of the fastest peer.
    ours : str
        The contender that the target and the first picture are about.
    peak : bool
        Do not time the call: watch how much memory it takes at most, in units of `size` bytes.
    data
        The workload's own.
    """

    key: str
    label: str
    size: int
    contenders: tuple[str, ...]
    reference: str = ""
    floor: str = ""
    unit: str = "s"
    peak: bool = False
    data: Any = None
    at_most: float | None = None
    ours: str = "parmap"

    def peers(self) -> tuple[str, ...]:
        """List the other libraries."""
        others = (name for name in self.contenders if not name.startswith("parmap"))
        return tuple(name for name in others if name not in FLOORS)


@dataclass(frozen=True)
class Sample:
    """The outcome of one round."""

    value: float | None = None
    note: str = ""
    failed: str = ""


Trial = Generator[Sample | None, None, None]


@dataclass(frozen=True)
class Workload:
    """A family of cases.

    `trial` is a generator: it yields None when all is ready, then a `Sample` for each round.
    A `fresh` workload breaks what it measures, so each round gets a new process.
    """

    name: str
    title: str
    what: str
    cases: Callable[[bool], list[Case]]
    trial: Callable[[Case, str], Trial]
    targets: tuple[Target, ...] = ()  # beyond those of the cases
    packages: Mapping[str, str] = field(default_factory=dict)  # of contenders of its own
    lines: str = ""  # cases with such keys are drawn as lines over their sizes
    fresh: bool = False

    def missing(self, contender: str) -> str:
        """Name the package that a contender needs and that is not installed, or nothing."""
        pool = POOLS.get(contender)
        package = self.packages.get(contender, pool.package if pool else "")
        return package if package and importlib.util.find_spec(package) is None else ""

    def all_targets(self) -> tuple[Target, ...]:
        """List the targets of the cases, then its own."""
        cases = (case for case in self.cases(False) if case.at_most is not None)
        return (*(by_best_peer(case) for case in cases), *self.targets)


def load(name: str) -> Workload:
    """Import a workload: that one alone, for a cold start is part of what is measured."""
    return importlib.import_module(f"tests.benchmarks.workloads.{name}").WORKLOAD


def clocked(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def power(number: int) -> str:
    """Write a power of ten as one."""
    exponent = len(str(number)) - 1
    digits = str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}" if number == 10**exponent else f"{number:,}"
