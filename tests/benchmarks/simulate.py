"""How near each policy comes to the optimum, on up to 10,000 workers, in virtual time.

    python -m tests.benchmarks.simulate [--quick] [--json FILE] [--picture FILE]

Run from the root of the repository. The engine's loop and the policies are the real ones; workers,
messages and clock are simulated (`tests/benchmarks/simulated.py`). Figures in the table are
makespan / optimum, where the optimum is a lower bound: the work shared out evenly, or the longest
element. The best fixed size is the best of several, each of which was run: nobody knows it
beforehand.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from parmap import Auto, Dynamic, Guided, Static
from tests.benchmarks.simulated import (
    DASK,
    FAR,
    LOCAL,
    SHAPES,
    Costs,
    Place,
    Result,
    constant,
    fixed_sizes,
    lognormal,
    simulate,
)

_MEANS = (1e-7, 1e-5, 1e-3, 1e-1, 1.0)
_LONGEST = 30.0  # seconds of work for each worker: more would take long to simulate
_FEW = 10**4  # elements that are also run one by one: more would take long to simulate


@dataclass(frozen=True)
class Case:
    """A place, a number of workers, and what there is to do."""

    place: Place
    workers: int
    costs: Costs
    mean: float


def sensible(place: Place, workers: int, count: int, mean: float) -> bool:
    """Tell whether so many workers can be of use, and the run is short enough to simulate."""
    share = count * mean / workers
    trips, handing = 100 * place.round_trip, workers * place.dispatch
    shortest = max(0.03, trips, handing)  # less work than that is not worth the messages
    return count >= 10 * workers and shortest <= share <= _LONGEST


def grid(*, quick: bool) -> Iterator[Case]:
    """Give the cases; the quick ones have few workers, and few elements."""
    for place in (LOCAL, DASK) if quick else (LOCAL, DASK, FAR):
        for workers in (10, 100) if quick else (10, 100, 1000, 10_000):
            for count in (10**5,) if quick else (10**4, 10**6, 10**8):
                for mean in _MEANS[:3] if quick else _MEANS:
                    if sensible(place, workers, count, mean):
                        for shape in SHAPES[1::2] if quick else SHAPES:
                            yield Case(place, workers, shape(count, mean), mean)


def run(case: Case) -> dict[str, Result]:
    """Run the policies on a case; `best fixed` is the best of the fixed sizes."""
    place, workers, costs = case.place, case.workers, case.costs
    policies = {"auto": Auto(), "static": Static(), "guided": Guided()}
    if costs.count <= _FEW:
        policies["singles"] = Dynamic()
    results = {name: simulate(policy, place, workers, costs) for name, policy in policies.items()}
    best = None
    for size in fixed_sizes(costs.count, workers):
        # The dispatcher's time alone is a lower bound: what cannot win need not run.
        if best is None or costs.count / size * place.dispatch < best.makespan:
            result = simulate(Dynamic(size=size), place, workers, costs)
            best = result if best is None or result.makespan < best.makespan else best
    return results | {"best fixed": best}


_COLUMNS = ("auto", "best fixed", "static", "guided", "singles")


def row(case: Case, results: dict[str, Result]) -> str:
    auto = results["auto"]
    ratios = [f"{results[name].ratio:.3f}" if name in results else "" for name in _COLUMNS]
    facts = [
        case.place.name,
        f"{case.workers:,}",
        f"{case.costs.count:.0e}".replace("e+0", "e"),
        f"{case.mean:g} s",
        case.costs.name,
        *ratios,
        f"{auto.chunks:,}",
        f"{auto.load:.2f}",
        f"{auto.idle:.2f}",
    ]
    return "| " + " | ".join(facts) + " |"


def record(case: Case, results: dict[str, Result]) -> dict:
    return {
        "place": asdict(case.place),
        "workers": case.workers,
        "elements": case.costs.count,
        "mean": case.mean,
        "costs": case.costs.name,
        "policies": {name: asdict(result) for name, result in results.items()},
    }


_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe and Ito's
_LENGTHS = [10 ** (k / 2 - 3) for k in range(9)]  # seconds: 1 ms to 10 s


def fed(axes) -> None:
    """Draw how much of the workers' time is used, by the length of a chunk."""
    colours = {10: _BLUE, 100: _GREEN, 1000: _ORANGE, 10_000: _PURPLE}
    for workers, colour in colours.items():
        used = [
            1 - simulate(Dynamic(), LOCAL, workers, constant(20 * workers, length)).idle
            for length in _LENGTHS
        ]
        axes.plot(_LENGTHS, used, color=colour, marker="o", markersize=3)
        half = next(k for k, part in enumerate(used) if part > 0.4)
        at = (_LENGTHS[half], used[half])
        axes.annotate(f"{workers:,}", at, (5, 0), textcoords="offset points", color=colour)
    axes.set(xscale="log", xlabel="length of a chunk, s", ylabel="workers' time in use")
    axes.set_title("One dispatcher, 10 to 10,000 workers", fontsize=10)


def scaled(axes) -> None:
    """Draw how near the policies come to the optimum, by the number of workers."""
    numbers = [10, 30, 100, 300, 1000, 3000, 10_000]
    policies = [
        ("auto", Auto(), _BLUE, (10_000, 6)),
        ("static", Static(), _ORANGE, (100, -13)),
        ("guided", Guided(), _GREEN, (3000, -13)),
        ("50 ms", Dynamic(size=50), _PURPLE, (1000, 0)),
    ]
    for name, policy, colour, (place, up) in policies:
        within = numbers[:5] if name == "50 ms" else numbers
        near = [
            1 / simulate(policy, LOCAL, workers, lognormal(10_000 * workers, 1e-3)).ratio
            for workers in within
        ]
        axes.plot(within, near, color=colour, marker="o", markersize=3)
        at = (place, near[within.index(place)])
        axes.annotate(name, at, (-4, up), textcoords="offset points", color=colour, ha="right")
    axes.set(xscale="log", xlabel="workers", ylabel="optimum / makespan")
    axes.set_title("10 s of 1 ms calls, lognormal, for each", fontsize=10)


def shaped(axes) -> None:
    """Draw how near the policies come to the optimum, by how costs are spread."""
    cases = [shape(10**6, 1e-3) for shape in SHAPES]
    policies = [("auto", Auto(), _BLUE, "o"), ("static", Static(), _ORANGE, "s")]
    for name, policy, colour, marker in policies:
        near = [1 / simulate(policy, LOCAL, 100, costs).ratio for costs in cases]
        axes.plot(near, range(len(cases)), marker, color=colour)
        axes.annotate(
            name, (near[3], 3), (0, -16), textcoords="offset points", color=colour, ha="center"
        )
    axes.set_yticks(range(len(cases)), [costs.name for costs in cases])
    axes.invert_yaxis()
    axes.set(xlabel="optimum / makespan")
    axes.set_title("100 workers, by costs", fontsize=10)


def picture(path: str) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for draw, axes in zip((fed, scaled, shaped), panels, strict=True):
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        (axes.set_xlim if draw is shaped else axes.set_ylim)(0, 1.05)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, facecolor="white", transparent=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small grid: some seconds")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--picture", metavar="FILE", help="draw the limits there")
    options = parser.parse_args()

    names = ["place", "workers", "elements", "mean", "costs", *_COLUMNS]
    print("| " + " | ".join([*names, "chunks", "load", "idle"]) + " |")
    print("|---" * (len(names) + 3) + "|")
    records = []
    for case in grid(quick=options.quick):
        results = run(case)
        print(row(case, results), flush=True)
        records.append(record(case, results))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(records, file, indent=1)
    if options.picture:
        picture(options.picture)


if __name__ == "__main__":
    main()
