"""``python -m parmap``: look at this machine and its plans, or run a script on one."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from collections.abc import Sequence

from parmap.cli.doctor import findings, offers
from parmap.errors import ParmapError
from parmap.plans.plan import plan

__all__ = ["main"]

_HEADINGS = {
    "libraries": "Native libraries, and the threads that each would use here:",
    "plans": "Plans, each tried with calls of one small task:",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; give the exit status: 0 if all is well.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the command line.
    """
    given = _parser().parse_args(arguments)
    match given.command:
        case "run":
            return _run(given.plan, given.script, given.arguments)
        case "plans":
            return _plans()
        case _:
            return _told_as_json(given.plan) if given.json else _told(given.plan)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m parmap", description="parmap's own commands")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    doctor = commands.add_parser(
        "doctor",
        help="show cores, native libraries and plans, and try each plan",
        description="Show what parmap finds on this machine, and try each plan with one call.",
    )
    doctor.add_argument(
        "--plan", help="look at this one only, and at its machines: \"ssh(hosts=['node1'])\""
    )
    doctor.add_argument("--json", action="store_true", help="the same for programs")
    commands.add_parser(
        "plans",
        help="list the plans, and what to install for each; start none",
        description="List the plans, and what is missing here for each. Nothing is started.",
    )
    run = commands.add_parser(
        "run",
        help="run a script on a plan",
        description="Run a script with PARMAP_PLAN set: the plan of calls outside of any other.",
    )
    run.add_argument("--plan", required=True, help='such as "slurm(jobs=4)"')
    run.add_argument("script", help="the file")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="what it finds in sys.argv")
    return parser


def _told(text: str | None) -> int:
    well, about = True, None
    for finding in findings(text):
        if text is None and finding.about != about:
            if about is not None:
                print()
            if heading := _HEADINGS.get(finding.about):
                print(heading)
        about = finding.about
        indent = "  " if text is None and about in _HEADINGS else ""
        print(f"{indent}{finding.line}", flush=True)
        well = well and finding.fine
    return 0 if well else 1


def _told_as_json(text: str | None) -> int:
    found = list(findings(text))
    told: dict[str, object] = {"well": all(finding.fine for finding in found)}
    for about in dict.fromkeys(finding.about for finding in found):
        told[about] = [finding.facts for finding in found if finding.about == about]
    print(json.dumps(told, indent=2, default=str))
    return 0 if told["well"] else 1


def _plans() -> int:
    for name, what, missing in offers():
        print(f"{name:<12} {'' if missing else 'ready':<6} {what}")
        if missing:
            print(f"{'':<19} {missing}")
    return 0


def _run(text: str, script: str, arguments: list[str]) -> int:
    """Run a script as ``python script`` does."""
    try:
        plan(text)
    except ParmapError as error:
        print(f"--plan: {error}", file=sys.stderr)
        return 2
    if not os.path.isfile(script):
        print(f"there is no file {script!r}: give the script's path", file=sys.stderr)
        return 2
    os.environ["PARMAP_PLAN"] = text
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
