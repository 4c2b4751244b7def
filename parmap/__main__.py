"""``python -m parmap doctor``: what parmap finds on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from parmap.doctor import report

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
    commands.add_parser(
        "doctor",
        help="show cores, native libraries and plans, and try each plan",
        description="Show what parmap finds on this machine, and try each plan with one call.",
    )
    parser.parse_args(arguments)
    well = True
    for line, fine in report():
        print(line, flush=True)
        well = well and fine
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
