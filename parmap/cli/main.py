"""The commands: look at this machine and its plans, or run a script on one."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

import parmap
from parmap.cli.doctor import Beginning, findings, offers
from parmap.cli.script import run

__all__ = ["command"]

_HEADINGS = {
    "libraries": "Native libraries, and the threads that each would use here:",
    "plans": "Plans, each tried with calls of one small task:",
}


def command(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0 if all is well.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the command line. Without any, the commands are shown.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    match given.command:
        case "run":
            return run(given.plan, given.script, given.arguments)
        case "plans":
            return _plans()
        case "doctor":
            return _told_as_json(given.plan) if given.json else _told(given.plan)
        case _:
            parser.print_help()
            return 0


def _parser() -> argparse.ArgumentParser:
    # The console script has its own name, and ``python -m parmap`` that of its file.
    name = os.path.basename(sys.argv[0]).removesuffix(".exe")
    prog = "parmap" if name == "parmap" else "python -m parmap"
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Map functions over data in parallel: look at this machine, or run a script.",
        epilog=f"{prog} COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"parmap {parmap.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
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
        description="Run a script with PARMAP_PLAN set: the plan of all calls for which the script "
        "itself sets none. A plan that the script sets wins.",
    )
    run.add_argument("--plan", required=True, help='such as "slurm(jobs=4)"')
    run.add_argument("script", help="the file")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="what it finds in sys.argv")
    return parser


def _told(text: str | None) -> int:
    well, about, begun = True, None, ""
    for finding in findings(text):
        if text is None and finding.about != about:
            if about is not None:
                print()
            if heading := _HEADINGS.get(finding.about):
                print(heading)
        about = finding.about
        indent = "  " if text is None and about in _HEADINGS and not begun else ""
        begins = isinstance(finding, Beginning)
        line = finding.line if begins else finding.line.removeprefix(begun) + "\n"
        print(f"{indent}{line}", end="", flush=True)
        begun = "" if line.endswith("\n") else begun + line
        well = well and finding.fine
    return 0 if well else 1


def _told_as_json(text: str | None) -> int:
    found = [finding for finding in findings(text) if not isinstance(finding, Beginning)]
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
