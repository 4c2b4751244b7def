"""Run workloads and say what came out: ``python -m tests.benchmarks``."""

import argparse
import importlib.util
import sys
from pathlib import Path

from tests.benchmarks import page, runs
from tests.benchmarks.machine import described, machine
from tests.benchmarks.stage import ROOT
from tests.benchmarks.timing import ROUNDS, measured, stamp
from tests.benchmarks.workload import clocked, load
from tests.benchmarks.workloads import NAMES

PAGE = ROOT / "docs" / "benchmarks"


def main() -> None:
    """Measure, print, keep, and write."""
    arguments = parsed()
    out = folder(arguments)
    if not arguments.page:
        run = examined_all(arguments)
        if out is not None:
            runs.keep(run, out / "runs")
    if out is not None:
        write(out, runs.kept(out / "runs"))
        print(f"\nWritten to {out}.")


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all works")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NAMES, default=NAMES)
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, with --quick 2")
    parser.add_argument(
        *("--out", "-o"),
        type=Path,
        help="where the page goes; default: docs/benchmarks, for a run of everything",
    )
    parser.add_argument(
        "--page", action="store_true", help="measure nothing; write the page of the runs there are"
    )
    return parser.parse_args()


def folder(arguments: argparse.Namespace) -> Path | None:
    """Say where to write: half a run must not stand among whole ones unasked."""
    whole = arguments.only is NAMES and not arguments.quick
    return arguments.out or (PAGE if whole else None)


def examined_all(arguments: argparse.Namespace) -> runs.Run:
    """Measure the workloads, and print a table of each, then how the targets fare."""
    rounds = arguments.rounds or (2 if arguments.quick else ROUNDS)
    run = runs.Run(machine(stamp()), rounds, arguments.quick, {})
    print(f"{described(run.facts)} Medians of {rounds} interleaved rounds.", flush=True)
    every = []
    for name in arguments.only:
        finding = run.findings[name] = examined(name, rounds, quick=arguments.quick)
        found = runs.verdicts(name, [run])
        every += found
        print("\n" + page.section(finding, found), flush=True)
    print(f"\n{page.counted(every)}\n\n{page.targets(page.missed(every))}".rstrip())
    return run


def examined(name: str, rounds: int, *, quick: bool) -> runs.Finding:
    """Measure all cases of a workload."""
    workload = load(name)
    cases, seconds = [], 0.0
    for case in workload.cases(quick):
        took, found = clocked(lambda case=case: measured(workload, case, rounds, quick=quick))
        print(f"{name}: {case.label}, {took:.0f} s", file=sys.stderr, flush=True)
        cases.append(found)
        seconds += took
    names = dict.fromkeys(name for one in cases for name in one.case.contenders)
    missing = {name: package for name in names if (package := workload.missing(name))}
    return runs.Finding(workload, tuple(cases), seconds, missing)


def write(out: Path, found: list[runs.Run]) -> None:
    """Write the page and the pictures, and remove pictures of what is no longer there."""
    drawn = set()
    if importlib.util.find_spec("matplotlib"):
        from tests.benchmarks import pictures, standings

        for name, finding in runs.pooled(found).items():
            if pictures.compared(finding):
                pictures.draw(finding, out / f"{name}.png")
                drawn.add(name)
        standings.draw(runs.standings(found), out)
        for path in out.glob("*.png"):
            if path.stem not in drawn:
                path.unlink()
    else:
        print("No pictures: matplotlib is not installed.")
    (out / "index.md").write_text(page.page(found, drawn))


if __name__ == "__main__":
    main()
