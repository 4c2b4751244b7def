"""Workers and BLAS threads, the default against the rest: ``python benchmarks/blas.py``.

Prints a Markdown table: for each number of workers and size of matrices the seconds that a
map of matrix products takes, with each ``threads_per_worker``, and the default's time by the
best one's.
"""

import argparse
import os
import platform
import statistics
import time

import numpy as np

import parmap

# Sizes of matrices, and so many products that a map takes some tenths of a second.
WORK = {200: 1200, 1000: 24, 2000: 6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plan", default="processes")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    manual = sorted({1, 2, 4, cores})
    print(
        f"{platform.system()}, {cores} cores; Python {platform.python_version()}, numpy "
        f"{np.__version__}. Plan {arguments.plan}; medians of {arguments.rounds} interleaved "
        "rounds, in ms.\n"
    )
    choices = ["auto", *manual, None]
    print(f"| workers | matrices | {' | '.join(map(str, choices))} | default / best |")
    print(f"|---|---|{'---|' * len(choices)}---|")
    for workers in (1, 2, 4):
        for size, count in WORK.items():
            times = measured(arguments, workers, size, count, choices)
            best = min(times[choice] for choice in choices if choice != "auto")
            cells = " | ".join(f"{times[choice] * 1e3:.0f}" for choice in choices)
            print(f"| {workers} | {size} | {cells} | {times['auto'] / best:.2f} |", flush=True)


def measured(arguments, workers, size, count, choices):
    """Give the median time of each choice; rounds are interleaved: all have the same luck."""
    matrix = np.random.default_rng(1).standard_normal((size, size))
    plans = {
        choice: parmap.plan(arguments.plan, workers=workers, threads_per_worker=choice)
        for choice in choices
    }
    times = {choice: [] for choice in choices}
    for _ in range(arguments.rounds):
        for choice, plan in plans.items():
            # One pool at a time: those that wait would spin, and take cores from the others.
            with plan:
                parmap.pmap(lambda _: float((matrix @ matrix)[0, 0]), range(2 * workers), chunks=1)
                began = time.perf_counter()
                parmap.pmap(lambda _: float((matrix @ matrix)[0, 0]), range(count))
                times[choice].append(time.perf_counter() - began)
    return {choice: statistics.median(all_) for choice, all_ in times.items()}


if __name__ == "__main__":
    main()
