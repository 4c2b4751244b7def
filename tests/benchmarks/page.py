"""The page: tables, verdicts, and the words around them."""

import math
from collections.abc import Iterable

from tests.benchmarks.contenders import POOLS
from tests.benchmarks.machine import described
from tests.benchmarks.runs import Finding, Run, Standing, pooled, standings, verdicts
from tests.benchmarks.targets import HELD, MISSED, UNKNOWN, Verdict
from tests.benchmarks.timing import Figure, Measured
from tests.benchmarks.workloads import NAMES


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
        return f"{short(value)} {unit}"
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
    if finding.missing:
        names = ", ".join(f"{name} ({package})" for name, package in finding.missing.items())
        text += f"\n\nLeft out, for the package is not installed: {names}."
    return text


def section(finding: Finding, found: list[Verdict]) -> str:
    """Write what there is to read about a workload."""
    about = finding.workload
    parts = (f"## {about.name}: {about.title}", about.what, table(finding), targets(found))
    return "\n\n".join(part for part in parts if part)


# -- targets -----------------------------------------------------------------------------------


def number(value: float) -> str:
    """Write a number as it is judged: with three digits."""
    return short(value) if abs(value) >= 100 or math.isnan(value) else f"{value:.3g}"


def judged_line(verdict: Verdict) -> list[str]:
    """Write a verdict as a line of a table."""
    values = sorted(verdict.values)
    span = f"{number(values[0])} to {number(values[-1])}" if len(values) > 1 else ""
    word = f"**{verdict.word}**" if verdict.word == MISSED else verdict.word
    return [verdict.target.text, verdict.target.bound(), number(verdict.value), span, word]


def targets(found: Iterable[Verdict]) -> str:
    """Write the table of the targets that were measured; nothing where none was."""
    found = sorted(found, key=lambda verdict: verdict.word != MISSED)  # these first
    lines = [judged_line(verdict) for verdict in found if verdict.word != UNKNOWN]
    return rows(lines, ["target", "bound", "measured", "in the runs", ""]) if lines else ""


def missed(found: Iterable[Verdict]) -> list[Verdict]:
    """Select the verdicts on targets that are missed."""
    return [verdict for verdict in found if verdict.word == MISSED]


def counted(found: list[Verdict]) -> str:
    """Count the verdicts."""
    words = [verdict.word for verdict in found]
    text = f"**Targets: {words.count(HELD)} held, {words.count(MISSED)} missed"
    text += f", {words.count(UNKNOWN)} not measured yet.**" if UNKNOWN in words else ".**"
    return text


# -- the page ----------------------------------------------------------------------------------

PICTURE = """![The time of parmap by that of the fastest other library](standings-{}.svg)\
{{.only-{}}}"""
CAPTION = """\
The time of parmap, divided by the time of the fastest other library in the same row: to the left \
of the line parmap is faster. Rows in which it is slower have orange diamonds: {behind} of {all}. \
Thin lines span the quartiles of both."""
WHY = """\
[Why some are missed](../explanation/decisions/budgets.md), with the measured floors."""
HOW = """\
There are two workers where nothing else is said. All contenders of a case are open at the
same time, each in an interpreter of its own. In each round every one has one turn, in rotating
order: other load on the machine affects all alike. Figures are medians of {rounds} rounds after
one that warms up, in each of the runs; what takes a second or more has fewer. A target's number is
computed in each run, from that run alone, and judged by its median. Every result is checked. parmap
has its defaults; its peers are set as their documentation recommends. Compare within one table
only. All rounds and the quartiles are in `runs` beside this page; lines on the bars span the
quartiles.
"""
AGAIN = """\
## Measure it yourself

This page is written by the command that measures:

```sh
pip install nox
nox -s bench
```

or, where everything is installed (`pip install '.[bench]'`), `python -m tests.benchmarks`. It keeps
the last three runs, and the page shows all three together. After `--` nox takes the same arguments:
`--only fine latency` runs two workloads, `--rounds 15` more rounds, `--quick` runs small sizes, to
see that all works, and `--page` measures nothing, and writes the page of the runs that there are. A
run with `--only` or `--quick` prints its tables, and writes them only where `--out FOLDER` says.
"""
QUICK = "**This run was made with `--quick`: sizes are small, and the figures say nothing.**"


def lead(found: list[Standing]) -> list[str]:
    """Write the first picture and its caption."""
    if not found:
        return []
    behind = sum(one.behind for one in found)
    pictures = "\n".join(PICTURE.format(mode, mode) for mode in ("light", "dark"))
    return [pictures, CAPTION.format(behind=behind, all=len(found))]


def page(runs: list[Run], drawn: set[str]) -> str:
    """Write the page of some runs."""
    last = runs[-1]
    all_verdicts = {name: verdicts(name, runs) for name in NAMES}
    every = [verdict for found in all_verdicts.values() for verdict in found]
    parts = ["# Benchmarks", *(lead(standings(runs)) if drawn else []), counted(every)]
    parts += [QUICK] if last.quick else []
    parts += [*dict.fromkeys(described(run.facts) for run in runs), HOW.format(rounds=last.rounds)]
    parts += ["## Targets", targets(every), WHY]
    for name, finding in pooled(runs).items():
        parts.append(section(finding, all_verdicts[name]))
        if name in drawn:
            parts.append(f"![The table of {name}, as a picture]({name}.png)")
    settings = [(name, pool.setting) for name, pool in POOLS.items()]
    parts += ["## How each was set", rows(settings, ["contender", "setting"]), AGAIN]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"
