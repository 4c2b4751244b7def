"""The benchmarks run, and say what they found; what the figures are is no test's affair."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import parmap
from tests.benchmarks import report, timing
from tests.benchmarks.workload import Case, Sample, load
from tests.benchmarks.workloads import NAMES, millis, uneven

ROOT = Path(parmap.__file__).parents[1]
RUN = ("buffers", "millis", "floors")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command, with few workloads and small sizes: what it printed, and where it wrote."""
    out = tmp_path_factory.mktemp("out")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks", "--quick", "--rounds", "1"),
            *("--out", out, "--only", *RUN),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, out


def test_tables_are_printed(run):
    printed, _ = run
    assert "## millis" in printed
    row = next(line for line in printed.splitlines() if line.startswith("| **parmap** |"))
    assert " ms (" in row or " s (" in row


def test_figures_are_written(run):
    _, out = run
    found = json.loads((out / "benchmarks.json").read_text())
    assert set(found["workloads"]) == set(RUN)
    assert found["machine"]["python"].startswith(f"{sys.version_info[0]}.")
    (case,) = found["workloads"]["millis"]["cases"]
    for name in ("parmap", "multiprocessing.Pool", "concurrent.futures"):
        assert not case["contenders"][name]["failed"]
        assert case["contenders"][name]["median"] > 0


def test_a_page_is_written_with_a_small_picture_for_each_workload(run):
    _, out = run
    page = (out / "index.md").read_text()
    assert page.startswith("# Benchmarks\n")
    for name in RUN:
        assert f"]({name}.png)" in page
        assert 0 < (out / f"{name}.png").stat().st_size < 100_000


@pytest.mark.parametrize("name", NAMES)
def test_budgets_ask_for_cases_and_contenders_that_there_are(name):
    workload = load(name)
    cases = [
        timing.Measured(case, {name: timing.Figure((1.0, 2.0)) for name in case.contenders})
        for case in workload.cases(False)
    ]
    finding = report.Finding(workload, tuple(cases), 0.0)
    assert len(finding.verdicts()) == len(workload.budgets)
    assert not any(verdict == "not measured" for *_, verdict in finding.verdicts())
    assert report.table(finding).startswith("| ")


def finding_of(**figures):
    case = Case("one", "one", 1, ("parmap", "peer"), reference="peer")
    return report.Finding(millis.WORKLOAD, (timing.Measured(case, figures),), 0.0)


def test_a_contender_that_fails_is_in_the_table_and_has_no_ratio():
    failed = timing.summed_up([Sample(2.0), Sample(failed="OSError: no | here")])
    text = report.table(finding_of(parmap=timing.Figure((1.0,)), peer=failed))
    assert "failed: OSError: no \\| here" in text
    assert "×)" not in text


def test_a_contender_that_raises_or_dies_stops_nobody():
    class Broken:
        def ready(self):
            return True

        def go(self):
            return Sample(failed="died")

        def end(self, **_):
            pass

    class Good(Broken):
        def go(self):
            return Sample(3.0)

    stages = {"bad": Broken(), "good": Good()}
    found = timing.interleaved(stages.__getitem__, stages, 3, fresh=False)
    assert found["good"].values == (3.0, 3.0, 3.0)
    assert found["bad"].failed == "died"


def test_a_budget_that_has_no_result_is_not_reached():
    (budget,) = load("killed").budgets
    assert budget.verdict(lambda *_: float("nan"))[0] == "not reached"
    assert budget.verdict(lambda *_: 0.1)[0] == "reached"


def test_rounds_take_turns():
    assert [timing.turns("abc", i) for i in range(3)] == [list("abc"), list("bca"), list("cab")]


def test_the_best_schedule_is_known():
    for costs in uneven.ORDERS.values():
        assert uneven.optimum(costs) == pytest.approx(0.28)
    assert uneven.in_order([1, 1, 2]) == 3
