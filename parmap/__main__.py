"""``python -m parmap``: ``doctor`` tells what works here, ``run`` runs a script on a plan."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence

from parmap.doctor import report
from parmap.errors import ParmapError
from parmap.plans import plan

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; give the exit status: 0 if all is well.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the command line.
    """
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
    run = commands.add_parser(
        "run",
        help="run a script on a plan",
        description="Run a script with PARMAP_PLAN set: the plan of calls outside of any other.",
    )
    run.add_argument("--plan", required=True, help='such as "slurm(jobs=4)"')
    run.add_argument("script", help="the file")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="what it finds in sys.argv")
    given = parser.parse_args(arguments)
    if given.command == "run":
        return _run(given.plan, given.script, given.arguments)
    well = True
    for line, fine in report(given.plan):
        print(line, flush=True)
        well = well and fine
    return 0 if well else 1


def _run(text: str, script: str, arguments: list[str]) -> int:
    """Run a script as ``python script`` does."""
    try:
        plan(text)
    except ParmapError as error:
        print(f"--plan: {error}", file=sys.stderr)
        return 2
    os.environ["PARMAP_PLAN"] = text
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
