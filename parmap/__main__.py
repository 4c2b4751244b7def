"""``python -m parmap``, and the command ``parmap``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0 if all is well.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the command line.
    """
    # First, and by itself: nothing else can be imported where parmap is not whole.
    from parmap.cli.installation import damage

    if damaged := damage():
        print(damaged, file=sys.stderr)
        return 1
    from parmap.cli.main import command

    return command(arguments)


if __name__ == "__main__":
    sys.exit(main())
