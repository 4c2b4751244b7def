"""Two nested loops, folds times methods, as one flat pool of tasks; and which host ran what.

    python examples/nested_loops.py
    PARMAP_PLAN="ssh(hosts=['node1', 'node2'])" python examples/nested_loops.py
    PARMAP_PLAN="slurm(jobs=4)" python examples/nested_loops.py

Each task estimates the mean of a contaminated normal sample in its own way, from its own
stream of random numbers, so the table is the same on every plan, to the last digit. Which host
ran what goes to standard error, for it is not. ``--full`` draws a million numbers each time.
"""

import collections
import os
import socket
import sys
import time

import numpy as np

import parmap

parmap.set_plan(os.environ.get("PARMAP_PLAN", "processes"))

SIZE = 1_000_000 if "--full" in sys.argv else 20_000


def trimmed(sample):
    """Mean of the middle 80 %."""
    low, high = np.quantile(sample, [0.1, 0.9])
    return sample[(sample >= low) & (sample <= high)].mean()


METHODS = {"mean": np.mean, "median": np.median, "trimmed mean": trimmed}


def estimate(fold, method, rng):  # noqa: ARG001 - the fold is in the stream
    """Estimate a mean that is zero; one number in twenty is an outlier."""
    sample = rng.normal(size=SIZE)
    sample[: SIZE // 20] *= 100
    return METHODS[method](sample), socket.gethostname()


began = time.perf_counter()
# for fold in range(40): for method in METHODS: ...
results = parmap.pgrid(estimate, {"fold": range(40), "method": list(METHODS)}, rng=1)
errors, hosts = collections.defaultdict(list), collections.Counter()
for point, (error, host) in results:
    errors[point["method"]].append(error)
    hosts[host, point["method"]] += 1

print(f"{'error of the':14} {'root mean square':>16}")
for method, of_method in errors.items():
    print(f"{method:14} {np.sqrt(np.mean(np.square(of_method))):16.5f}")
for (host, method), count in sorted(hosts.items()):
    print(f"{host} ran {method} {count} times", file=sys.stderr)
print(f"{time.perf_counter() - began:.1f} s on {parmap.current_plan()}")
