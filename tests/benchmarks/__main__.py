"""Run workloads and say what came out: ``python -m tests.benchmarks``."""

import argparse
import importlib.util
import sys
from pathlib import Path

from tests.benchmarks import report
from tests.benchmarks.stage import ROOT
from tests.benchmarks.timing import measured, stamp
from tests.benchmarks.workload import clocked, load
from tests.benchmarks.workloads import NAMES

PAGE = ROOT / "docs" / "benchmarks"


def main() -> None:
    arguments = parsed()
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    facts = report.machine(stamp())
    print(f"{report.described(facts)} Medians of {rounds} interleaved rounds.", flush=True)
    findings = []
    for name in arguments.only:
        finding = examined(name, rounds, quick=arguments.quick)
        findings.append(finding)
        print(f"\n## {name}\n\n{finding.workload.what}\n\n{report.table(finding)}", flush=True)
    if (out := folder(arguments)) is not None:
        write(out, report.Run(tuple(findings), facts, rounds, arguments.quick))
        print(f"\nWritten to {out}.")


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all works")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NAMES, default=NAMES)
    parser.add_argument("--rounds", type=int, help="default: 5, with --quick 2")
    parser.add_argument(
        *("--out", "-o"),
        type=Path,
        help="where the page goes; default: docs/benchmarks, for a run of everything",
    )
    return parser.parse_args()


def folder(arguments: argparse.Namespace) -> Path | None:
    """Say where to write: half a run must not replace the page of a whole one unasked."""
    whole = arguments.only is NAMES and not arguments.quick
    return arguments.out or (PAGE if whole else None)


def examined(name: str, rounds: int, *, quick: bool) -> report.Finding:
    """Measure all cases of a workload."""
    workload = load(name)
    cases = []
    for case in workload.cases(quick):
        took, found = clocked(lambda case=case: measured(workload, case, rounds, quick=quick))
        print(f"{name}: {case.label}, {took:.0f} s", file=sys.stderr, flush=True)
        cases.append((took, found))
    return report.Finding(workload, tuple(one for _, one in cases), sum(took for took, _ in cases))


def write(out: Path, run: report.Run) -> None:
    """Write the page, the figures and the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = set()
    if importlib.util.find_spec("matplotlib"):
        from tests.benchmarks.pictures import draw

        for finding in run.findings:
            draw(finding, out / f"{finding.workload.name}.png")
            drawn.add(finding.workload.name)
    else:
        print("No pictures: matplotlib is not installed.")
    (out / "index.md").write_text(report.page(run, drawn))
    (out / "benchmarks.json").write_text(report.figures(run) + "\n")


if __name__ == "__main__":
    main()
