"""How often do confidence intervals for a mean hold what they promise?

    python examples/simulation.py
    PARMAP_PLAN=threads python examples/simulation.py

Samples are drawn from a skewed distribution, whose mean is known, and each interval is asked
whether it covers that mean. With ``rng=1`` each sample has its own random stream, so the table
is the same on every plan, to the last digit. ``--full`` draws ten times as many samples.
"""

import os
import sys
import time

import numpy as np

import parmap

parmap.set_plan(os.environ.get("PARMAP_PLAN", "processes"))

MEAN = np.exp(0.5)  # of a lognormal distribution with mean 0 and deviation 1 of its logarithm
BOOTSTRAPS = 300


def normal(sample, rng):  # noqa: ARG001 - all intervals are called alike
    """Mean plus and minus 1.96 standard errors."""
    half = 1.96 * sample.std(ddof=1) / np.sqrt(sample.size)
    return sample.mean() - half, sample.mean() + half


def percentile(sample, rng):
    """The middle 95 % of the means of samples drawn from the sample."""
    means = rng.choice(sample, size=(BOOTSTRAPS, sample.size)).mean(axis=1)
    return tuple(np.quantile(means, [0.025, 0.975]))


def covers(size, interval, run, rng):  # noqa: ARG001 - the run's number is its stream
    """Draw a sample; tell whether its interval covers the mean."""
    low, high = interval(rng.lognormal(size=size), rng)
    return low <= MEAN <= high


began = time.perf_counter()
axes = {
    "size": [10, 30, 100],
    "interval": [normal, percentile],
    "run": range(5000 if "--full" in sys.argv else 500),
}
covered = parmap.pgrid(covers, axes, rng=1).to_numpy()

print(f"{'coverage of 95 %':18}" + "".join(f"{f.__name__:>12}" for f in axes["interval"]))
for size, row in zip(axes["size"], covered.mean(axis=2), strict=True):
    print(f"{'n = ' + str(size):18}" + "".join(f"{share:12.4f}" for share in row))
print(f"{time.perf_counter() - began:.1f} s on {parmap.current_plan()}")
