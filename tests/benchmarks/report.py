"""What a run found: tables, the page, and the figures as JSON."""

import json
import math
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from tests.benchmarks.contenders import POOLS
from tests.benchmarks.timing import Figure, Measured
from tests.benchmarks.workload import Workload

PACKAGES = ("numpy", "joblib", "loky", "mpire", "dask", "distributed", "ray")


@dataclass(frozen=True)
class Finding:
    """A workload, and what was measured of it."""

    workload: Workload
    cases: tuple[Measured, ...]
    seconds: float  # that it took to measure

    def median(self, key: str, contender: str) -> float:
        """Look a median up, for budgets."""
        case = next((one for one in self.cases if one.case.key == key), None)
        if case is None:
            raise KeyError(key)
        return case.figures[contender].median

    def contenders(self) -> list[str]:
        """Name all that took part, parmap first, then in the order of the cases."""
        names = dict.fromkeys(name for one in self.cases for name in one.figures)
        return sorted(names, key=lambda name: not name.startswith("parmap"))

    def missing(self) -> dict[str, str]:
        """Name those that took no part, with the package that is not installed."""
        names = dict.fromkeys(name for one in self.cases for name in one.case.contenders)
        found = {name: self.workload.missing(name) for name in names}
        return {name: package for name, package in found.items() if package}

    def verdicts(self) -> list[tuple[str, str, str, str]]:
        """Hold the figures against the budgets: text, bound, number, verdict."""
        rows = []
        for budget in self.workload.budgets:
            verdict, value = budget.verdict(self.median)
            bound = f"{'at least' if budget.least else 'at most'} {budget.limit:g}"
            # One more digit than in tables: it may be near the bound.
            number = "" if value is None else short(value) if value >= 100 else f"{value:.3g}"
            rows.append((budget.text, bound, number, verdict))
        return rows


def short(value: float) -> str:
    """Write a number with three digits at most, or all before the point."""
    if math.isnan(value):
        return "no result"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 0.005:  # rounds to nothing at two places
        return f"{value:.2g}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def quantity(value: float, unit: str) -> str:
    """Write a number with its unit."""
    if unit != "s":
        return f"{value:.2f}" if unit == "of the optimum" else f"{short(value)} {unit}"
    for scale, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= scale:
            return f"{short(value / scale)} {name}"
    return f"{short(value * 1e9)} ns" if value else "0 s"


def cell(measured: Measured, name: str) -> str:
    """Write what one contender did in one case."""
    figure = measured.figures.get(name, Figure())
    if figure.failed:
        return f"failed: {figure.failed}".replace("|", "\\|").replace("<", "&lt;")
    if not figure.values:
        return figure.note
    text = quantity(figure.median, measured.case.unit)
    about = measured.case
    ratios = [measured.ratio(name, to) for to in (about.reference, about.floor) if to]
    if None not in ratios and name != about.reference and ratios:
        text += f" ({', '.join(f'{short(ratio)} ×' for ratio in ratios)})"
    return f"{text}, {figure.note}" if figure.note else text


def rows(lines: Iterable[Iterable[str]], head: Iterable[str]) -> str:
    """Write a Markdown table."""
    head = list(head)
    table = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def table(finding: Finding) -> str:
    """Write the table of a workload, and what has to be known to read it."""
    names = finding.contenders()
    heads = [f"**{name}**" if name.startswith("parmap") else name for name in names]
    labels = [one.case.label for one in finding.cases]
    cells = [[cell(one, name) for one in finding.cases] for name in names]
    if len(labels) > len(heads):  # rather long than wide
        heads, labels, cells = labels, heads, list(zip(*cells, strict=True))
    lines = [[head, *line] for head, line in zip(heads, cells, strict=True)]
    text = rows(lines, ["", *labels])
    references = dict.fromkeys(one.case.reference for one in finding.cases if one.case.reference)
    if references:
        floors = dict.fromkeys(one.case.floor for one in finding.cases if one.case.floor)
        by = ", then by that of ".join([" or ".join(references), *floors])
        text += f"\n\n× is by the time of {by}, in the same case."
    if missing := finding.missing():
        names = ", ".join(f"{name} ({package})" for name, package in missing.items())
        text += f"\n\nLeft out, for the package is not installed: {names}."
    if verdicts := finding.verdicts():
        text += "\n\n" + rows(verdicts, ["budget", "bound", "measured", ""])
    return text


# -- the machine -------------------------------------------------------------------------------


def machine(date: str) -> dict[str, str]:
    """Describe the machine, the versions, and the day."""
    import parmap

    facts = {
        "date": date,
        "system": platform.system(),
        "cpu": first_value("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": gigabytes(first_value("/proc/meminfo", "MemTotal")),
        "python": platform.python_version(),
        "parmap": parmap.__version__,
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def first_value(path: str, key: str) -> str:
    """Look up a line ``key: value`` of a file; nothing if it has none."""
    if not Path(path).exists():
        return ""
    lines = (line.partition(":") for line in Path(path).read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def gigabytes(text: str) -> str:
    """Write kilobytes as gigabytes."""
    return f"{int(text.removesuffix(' kB')) / 1024**2:.0f} GiB" if text else "unknown"


def described(facts: dict[str, str]) -> str:
    """Write the machine as a sentence or two."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("parmap", *PACKAGES))
    return (
        f"{facts['system']}, {facts['cpu']}, {facts['cores']} cores, {facts['memory']}; "
        f"Python {facts['python']}, {versions}; {facts['date']}."
    )


# -- what is written ---------------------------------------------------------------------------

HEAD = """# Benchmarks

This page is written by the command that measures:

```sh
pip install nox
nox -s bench
```

or, where everything is installed (`pip install '.[bench]'`), `python -m tests.benchmarks`. After
`--` nox takes the same arguments: `--only fine latency` runs two workloads, `--rounds 9` more
rounds, `--quick` runs small sizes, to see that all works. A run with `--only` or `--quick` prints
its tables, and writes them only where `--out FOLDER` says.
"""
WHY = """\
[Why some are not reached](../explanation/decisions/budgets.md), with the measured floors."""

HOW = """There are two workers where nothing else is said. All contenders of a case are open at the
same time, each in an interpreter of its own. In each round every one has one turn, in rotating
order: what else the machine does hits all alike. Figures are medians of rounds after one that
warms up, here {rounds}; what takes many seconds has fewer. Every result is checked. parmap has its
defaults; its peers are set as their documentation recommends. Compare within one table only. All
rounds and the quartiles are in `benchmarks.json` beside this page; lines on the bars span the
quartiles.
"""
QUICK = "**This run was made with `--quick`: sizes are small, and the figures say nothing.**"


@dataclass(frozen=True)
class Run:
    """All that a run found."""

    findings: tuple[Finding, ...]
    facts: dict[str, str]
    rounds: int
    quick: bool


def page(run: Run, drawn: set[str]) -> str:
    """Write the page of all workloads."""
    parts = [HEAD, *([QUICK] if run.quick else []), described(run.facts)]
    parts += [HOW.format(rounds=run.rounds), "## Budgets"]
    verdicts = [(f.workload.name, *row) for f in run.findings for row in f.verdicts()]
    parts.append(rows(verdicts, ["workload", "budget", "bound", "measured", ""]))
    parts.append(WHY)
    for finding in run.findings:
        name = finding.workload.name
        parts += [f"## {name}", finding.workload.what, table(finding)]
        if name in drawn:
            parts.append(f"![The table of {name}, as a picture]({name}.png)")
    settings = [(name, pool.setting) for name, pool in POOLS.items()]
    parts += ["## How each was set", rows(settings, ["contender", "setting"])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def figures(run: Run) -> str:
    """Write all figures as JSON."""
    return json.dumps(
        {
            "machine": run.facts,
            "rounds": run.rounds,
            "quick": run.quick,
            "workloads": {
                finding.workload.name: {
                    "seconds": round(finding.seconds, 1),
                    "missing": finding.missing(),
                    "budgets": [
                        dict(zip(("budget", "bound", "measured", "verdict"), row, strict=True))
                        for row in finding.verdicts()
                    ],
                    "cases": [case(one) for one in finding.cases],
                }
                for finding in run.findings
            },
        },
        indent=1,
        ensure_ascii=False,
    )


def case(measured: Measured) -> dict[str, object]:
    """Give a case as plain values."""
    contenders = {}
    for name, figure in measured.figures.items():
        contenders[name] = asdict(figure)
        if figure.values:  # a number that is none is not JSON
            ratio = measured.ratio(name)
            contenders[name] |= {
                "median": figure.median,
                "quartiles": figure.quartiles,
                "ratio": ratio,
            }
    about = measured.case
    return {
        "key": about.key,
        "label": about.label,
        "size": about.size,
        "unit": about.unit,
        "reference": about.reference,
        "contenders": contenders,
    }
