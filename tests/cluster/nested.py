"""The example of nested loops."""

import os
import subprocess
import sys
from pathlib import Path

GUARD = 100


def table(plan):
    """Run it on a plan; give its table, and the hosts that it tells of."""
    done = subprocess.run(
        [sys.executable, "examples/nested_loops.py"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": ".", "PARMAP_PLAN": str(plan)},
        capture_output=True,
        text=True,
        timeout=GUARD,
    )
    assert done.returncode == 0, done.stderr
    hosts = {line.split()[0] for line in done.stderr.splitlines() if " ran " in line}
    return done.stdout.splitlines()[:-1], hosts
