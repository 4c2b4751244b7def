"""What options cost: many tiny elements, with each option and without any."""

import contextlib
import io

import parmap
from parmap.calls.options import MapOptions
from tests.benchmarks.targets import Target
from tests.benchmarks.workload import WORKERS, Case, Sample, Workload, clocked, power

OPTIONS = {
    "plain": {},
    "timeout": {"timeout": 60},
    "errors": {"errors": "return"},
    "retries": {"retries": 2},
    "progress": {"progress": True},
    "capture": {"capture": "replay"},  # nothing is said
    "rng": {"rng": 1},
}
OPTIONS = {name: some for name, some in OPTIONS.items() if {*some} <= {*MapOptions.__annotations__}}


def add_one(x, rng=None):
    return x + 1


def cases(quick):
    size = 10**4 if quick else 10**5
    return [
        Case(
            name,
            " ".join(f"{key}={value!r}" for key, value in options.items()) or "no option",
            size,
            ("parmap",),
            data=options,
        )
        for name, options in OPTIONS.items()
    ]


def trial(case, name):
    assert name == "parmap"
    numbers = list(range(case.size))
    expected = [x + 1 for x in numbers]
    with parmap.plan("processes", workers=WORKERS), contextlib.redirect_stderr(io.StringIO()):
        for _ in range(3):
            assert parmap.pmap(add_one, numbers, **case.data) == expected
        yield None
        while True:
            took, results = clocked(lambda: parmap.pmap(add_one, numbers, **case.data))
            assert results == expected
            yield Sample(took)


def by_plain(name):
    return lambda m: m(name, "parmap") / m("plain", "parmap")


WORKLOAD = Workload(
    name="options",
    title="what options cost",
    what=f"x + 1 for {power(10**5)} elements on processes, with one option after the other: what "
    "each adds to the call without any. An element with `rng=` gets a generator of its own.",
    cases=cases,
    trial=trial,
    targets=(
        *(
            Target(f"{name}=: by the call without options", 1.5, by_plain(name))
            for name in OPTIONS
            if name not in ("plain", "rng")
        ),
        Target(
            "rng=, µs for each of 10⁵ elements",
            4,
            lambda m: (m("rng", "parmap") - m("plain", "parmap")) / 10**5 * 1e6,
        ),
    ),
)
