"""Runs: what they measured, on which machine, kept as files; the last three count."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.targets import (
    Verdict,
    best_peer,
    by_best_peer,
    judged,
    rounded,
    values_of,
)
from tests.benchmarks.timing import Figure, Measured
from tests.benchmarks.workload import Workload, load
from tests.benchmarks.workloads import NAMES

KEPT = 3


@dataclass(frozen=True)
class Finding:
    """A workload, and what was measured of it."""

    workload: Workload
    cases: tuple[Measured, ...]
    seconds: float  # that it took to measure
    missing: dict[str, str]  # contenders that took no part, with the package that they need

    def __call__(self, key: str, contender: str) -> float:
        """Look up a median, for targets."""
        case = next((one for one in self.cases if one.case.key == key), None)
        if case is None:
            raise KeyError(key)
        return case.figures[contender].median

    def contenders(self) -> list[str]:
        """Name all that took part, parmap first, then in the order of the cases."""
        names = dict.fromkeys(name for one in self.cases for name in one.figures)
        return sorted(names, key=lambda name: not name.startswith("parmap"))


@dataclass(frozen=True)
class Run:
    """All that one run measured."""

    facts: dict[str, str]  # about the machine
    rounds: int
    quick: bool
    findings: dict[str, Finding]  # by the workload's name


# -- several runs as one -----------------------------------------------------------------------


def pooled(runs: list[Run]) -> dict[str, Finding]:
    """Put the rounds of all runs together."""
    names = [name for name in NAMES if any(name in run.findings for run in runs)]
    return {name: joined([r.findings[name] for r in runs if name in r.findings]) for name in names}


def joined(findings: list[Finding]) -> Finding:
    """Put the rounds of one workload together; notes and failures are those of the last run."""
    last = findings[-1]
    parts: dict[str, list[Measured]] = {}
    for one in (one for finding in findings for one in finding.cases):
        parts.setdefault(one.case.key, []).append(one)
    order = dict.fromkeys(one.case.key for finding in (last, *findings) for one in finding.cases)
    cases = tuple(together(parts[key]) for key in order)
    return Finding(last.workload, cases, last.seconds, last.missing)


def together(parts: list[Measured]) -> Measured:
    """Put the rounds of one case together."""
    figures: dict[str, Figure] = {}
    for name, figure in (item for part in parts for item in part.figures.items()):
        before = figures.get(name, Figure())
        values = () if figure.failed else (*before.values, *figure.values)
        figures[name] = Figure(values, figure.note, figure.failed)
    return Measured(parts[-1].case, figures)


def verdicts(name: str, runs: list[Run]) -> list[Verdict]:
    """Judge the targets of a workload, by the median of the runs."""
    seen = [run.findings[name] for run in runs if name in run.findings]
    return judged(load(name).all_targets(), seen)


# -- parmap beside the fastest peer ------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """The time of parmap in one case, divided by the fastest peer's; not a number if it failed."""

    workload: Workload
    label: str
    peer: str
    ratio: float
    low: float  # by the quartiles of both
    high: float

    @property
    def behind(self) -> bool:
        """Tell whether parmap is slower, or failed."""
        return not rounded(self.ratio) <= 1


def standings(runs: list[Run]) -> list[Standing]:
    """Compare parmap with the fastest peer in each case where that can be done."""
    found = []
    for name, finding in pooled(runs).items():
        seen = [run.findings[name] for run in runs if name in run.findings]
        found += [
            standing(one, finding, seen)
            for one in finding.cases
            if one.case.unit == "s" and [*values_of(by_best_peer(one.case), [finding])]
        ]
    return found


def standing(measured: Measured, finding: Finding, seen: list[Finding]) -> Standing:
    """Compare parmap with the fastest peer in one case: in each run, then the runs' median."""
    case = measured.case
    peer = best_peer(case, finding)
    ours, theirs = measured.figures[case.ours], measured.figures[peer]
    ratios = values_of(by_best_peer(case), seen) if ours.values else [float("nan")]
    low, high = ours.quartiles[0] / theirs.quartiles[1], ours.quartiles[1] / theirs.quartiles[0]
    return Standing(finding.workload, case.label, peer, statistics.median(ratios), low, high)


# -- files -------------------------------------------------------------------------------------


def keep(run: Run, folder: Path) -> None:
    """Write a run into a folder; of the runs there, leave the last ones."""
    folder.mkdir(parents=True, exist_ok=True)
    name = run.facts["date"].replace(" ", "T").replace(":", "")
    (folder / f"{name}.json").write_text(as_text(run) + "\n")
    for path in sorted(folder.glob("*.json"))[:-KEPT]:
        path.unlink()


def kept(folder: Path) -> list[Run]:
    """Read the runs of a folder that can be compared with the last one, which comes last."""
    found = [read(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    return [run for run in found if like(run) == like(found[-1])]


def like(run: Run) -> tuple[object, ...]:
    """Give what runs must have in common to be compared."""
    return (run.quick, *(run.facts[name] for name in ("system", "cpu", "cores", "memory")))


def as_text(run: Run) -> str:
    """Write a run as JSON."""
    workloads = {
        name: {
            "seconds": round(finding.seconds, 1),
            "missing": finding.missing,
            "cases": {one.case.key: figures(one) for one in finding.cases},
        }
        for name, finding in run.findings.items()
    }
    about = {"machine": run.facts, "rounds": run.rounds, "quick": run.quick}
    return json.dumps(about | {"workloads": workloads}, indent=1, ensure_ascii=False)


def figures(measured: Measured) -> dict[str, dict[str, Any]]:
    """Give the figures of a case as plain values; what is empty is left out."""
    return {
        name: {
            **({"failed": figure.failed} if figure.failed else {}),
            **({"note": figure.note} if figure.note else {}),
            **({"median": digits(figure.median)} if figure.values else {}),
            **({"quartiles": [*map(digits, figure.quartiles)]} if figure.values else {}),
            "rounds": [*map(digits, figure.values)],
        }
        for name, figure in measured.figures.items()
    }


def digits(value: float) -> float:
    """Keep as many digits as any figure deserves."""
    return float(f"{value:.6g}")


def read(text: dict[str, Any]) -> Run:
    """Make a run of plain values; cases that the workload no longer has are left out."""
    found = {}
    for name in NAMES:
        if (about := text["workloads"].get(name)) is None:
            continue
        workload = load(name)
        cases = tuple(
            Measured(case, dict(contenders(about["cases"][case.key])))
            for case in workload.cases(text["quick"])
            if case.key in about["cases"]
        )
        found[name] = Finding(workload, cases, about["seconds"], about["missing"])
    return Run(text["machine"], text["rounds"], text["quick"], found)


def contenders(plain: dict[str, dict[str, Any]]) -> Iterable[tuple[str, Figure]]:
    """Make figures of plain values."""
    for name, one in plain.items():
        yield name, Figure(tuple(one["rounds"]), one.get("note", ""), one.get("failed", ""))
