"""The benchmarks run, and say what they found; what the figures are is no test's affair."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import parmap
from tests.benchmarks import page, pictures, runs, standings, targets, timing
from tests.benchmarks.machine import PACKAGES
from tests.benchmarks.targets import HELD, MISSED, UNKNOWN, Target
from tests.benchmarks.workload import Case, Sample, load
from tests.benchmarks.workloads import NAMES, dispatch, killed, latency, uneven

ROOT = Path(parmap.__file__).parents[1]
RUN = ("dispatch", "buffers", "floors")


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


def test_tables_and_verdicts_are_printed(run):
    printed, _ = run
    assert "## dispatch: " in printed
    row = next(line for line in printed.splitlines() if line.startswith("| **parmap** |"))
    assert " µs (" in row or " ms (" in row
    assert re.search(r"\*\*Targets: \d held, \d missed", printed)


def test_figures_are_written(run):
    _, out = run
    (path,) = (out / "runs").iterdir()
    found = json.loads(path.read_text())
    assert set(found["workloads"]) == set(RUN)
    assert found["machine"]["python"].startswith(f"{sys.version_info[0]}.")
    for case in found["workloads"]["dispatch"]["cases"].values():
        for name in ("parmap", "multiprocessing.Pool", "concurrent.futures"):
            assert "failed" not in case[name]
            assert case[name]["median"] > 0
            assert len(case[name]["quartiles"]) == 2


def test_a_page_is_written_with_a_small_picture_for_each_workload(run):
    _, out = run
    text = (out / "index.md").read_text()
    assert text.startswith("# Benchmarks\n\n![")
    for name in (*(f"{name}.png" for name in RUN), "standings-light.svg", "standings-dark.svg"):
        assert f"]({name})" in text
        assert 0 < (out / name).stat().st_size < 100_000


# -- runs that are made up ---------------------------------------------------------------------


def made_up(seconds=lambda key, name: 1.0, names=NAMES, date="2026-01-01 00:00", quick=False):
    """A run in which each contender took so many seconds; None is a failure."""
    findings = {}
    for name in names:
        workload = load(name)
        cases = []
        for case in workload.cases(quick):
            times = {who: seconds(case.key, who) for who in case.contenders}
            figures = {
                who: timing.Figure(failed="died") if time is None else timing.Figure((time,) * 3)
                for who, time in times.items()
            }
            cases.append(timing.Measured(case, figures))
        findings[name] = runs.Finding(workload, tuple(cases), 1.0, {})
    facts = dict.fromkeys(("system", "cpu", "cores", "memory", "python", "parmap"), "x")
    facts |= dict.fromkeys(PACKAGES, "1") | {"date": date}
    return runs.Run(facts, 3, quick, findings)


@pytest.mark.parametrize("name", NAMES)
def test_targets_ask_for_cases_and_contenders_that_there_are(name):
    run = made_up(names=[name])
    assert not any(verdict.word == UNKNOWN for verdict in runs.verdicts(name, [run]))
    assert page.table(run.findings[name]).startswith("| ")


@pytest.mark.parametrize("name", NAMES)
def test_labels_and_keys_tell_cases_apart(name):
    for quick in (False, True):
        cases = load(name).cases(quick)
        assert len({case.key for case in cases}) == len({c.label for c in cases}) == len(cases)


def test_every_row_of_a_case_with_a_target_has_a_peer():
    for case in (case for name in NAMES for case in load(name).cases(False)):
        assert case.at_most is None or (case.peers() and case.ours in case.contenders), case.key


def section_of(text, name):
    return text.partition(f"\n## {name}: ")[2].partition("\n## ")[0]


def test_a_page_says_which_targets_are_missed_and_leaves_out_what_was_not_measured():
    def seconds(key, name):
        return 0.5 if name == "parmap" and key != "map of one" else 1.0

    text = page.page([made_up(seconds, names=["latency"])], set(NAMES))
    assert "11 held, 1 missed, " in text
    latency_ = section_of(text, "latency")
    assert "| a map of 1: by the fastest peer | ≤ 0.6 | 1 |  | **missed** |" in latency_
    assert "| a map of 2: by the fastest peer | ≤ 0.6 | 0.5 |  | held |" in latency_
    assert "## fine" not in text
    assert "10⁶ ints: by" not in text
    # The first line of the table is the one that is missed.
    table = text.partition("## Targets\n\n")[2].splitlines()
    assert table[2].endswith("**missed** |")


def test_a_target_is_judged_by_the_median_of_its_numbers_in_the_runs():
    def with_time(time):
        def seconds(key, name):
            return time if name == "parmap" else 1.0

        return made_up(seconds, names=["latency"])

    ran = [with_time(0.5), with_time(9.0), with_time(0.55)]
    first = runs.verdicts("latency", ran)[0]
    assert (first.word, first.values) == (HELD, (0.5, 9.0, 0.55))
    assert page.judged_line(first)[1:] == ["≤ 0.6", "0.55", "0.5 to 9", "held"]
    assert runs.verdicts("latency", [*ran, with_time(8.0), with_time(7.0)])[0].word == MISSED


def test_a_target_that_asks_for_at_least_so_much():
    target = Target("", 0.8, lambda m: m("case", "name"), least=True)
    words = [targets.judged([target], [lambda *_, x=x: x])[0].word for x in (0.7, 0.8, 0.9)]
    assert words == [MISSED, HELD, HELD]
    assert target.bound() == "≥ 0.8"


def test_a_number_is_judged_as_it_is_shown():
    target = Target("", 1.0, lambda m: m("case", "name"))
    words = [targets.judged([target], [lambda *_, x=x: x])[0].word for x in (1.004, 1.006)]
    assert words == [HELD, MISSED]


def test_a_failure_of_parmap_is_missed_and_behind():
    def seconds(key, name):
        return None if (key, name) == ("map of 10", "parmap") else 0.5

    run = made_up(seconds, names=["latency"])
    verdict = next(v for v in runs.verdicts("latency", [run]) if "a map of 10:" in v.target.text)
    assert (verdict.word, page.judged_line(verdict)[2]) == (MISSED, "no result")
    (row,) = (one for one in runs.standings([run]) if one.label == "a map of 10")
    assert row.behind
    assert math.isnan(row.ratio)


def test_a_peer_that_fails_is_no_rival():
    def seconds(key, name):
        return {"multiprocessing.Pool": None, "loky": 0.1, "bare pipe": 0.001}.get(name, 0.5)

    rows = runs.standings([made_up(seconds, names=["latency"])])
    assert {row.peer for row in rows} == {"loky"}
    assert {row.ratio for row in rows} == {5.0}


def test_standings_are_of_times_only_and_of_cases_with_peers():
    rows = runs.standings([made_up()])
    labels = {row.label for row in rows}
    assert {"10⁶ ints", "slow first", "16 results of 50 MB", "dask: one task"} <= labels
    assert not any("extra copies" in label or "growth" in label for label in labels)
    assert not any(row.workload.name in ("options", "buffers", "floors") for row in rows)
    assert not any(row.behind for row in rows)  # as fast is not slower


def test_rows_behind_have_a_colour_and_a_shape_of_their_own(tmp_path):
    def drawn(ratio):
        run = made_up(lambda _, name: ratio if name == "parmap" else 1.0, names=["dispatch"])
        standings.draw(runs.standings([run]), tmp_path)
        return [(tmp_path / f"standings-{mode}.svg").read_text() for mode in ("light", "dark")]

    pictures = zip(drawn(0.5), drawn(2.0), standings.COLOURS.values(), strict=True)
    for ahead, behind, (blue, orange) in pictures:
        assert (blue in ahead, orange in ahead) == (True, False)
        assert (blue in behind, orange in behind) == (False, True)
        assert "2.00 × " in behind


# -- files -------------------------------------------------------------------------------------


def test_a_run_is_read_as_it_was_written():
    def seconds(key, name):
        return None if name == "loky" else 0.123

    run = made_up(seconds, names=["latency", "uneven"])
    assert runs.read(json.loads(runs.as_text(run))) == run


def test_of_runs_the_last_three_are_kept(tmp_path):
    for day in (3, 1, 5, 4):
        runs.keep(made_up(names=["latency"], date=f"2026-01-0{day} 12:30"), tmp_path)
    dates = [run.facts["date"] for run in runs.kept(tmp_path)]
    assert dates == [f"2026-01-0{day} 12:30" for day in (3, 4, 5)]


def test_runs_that_cannot_be_compared_are_not_shown_together(tmp_path):
    runs.keep(made_up(names=["dispatch"], date="2026-01-01 12:30", quick=True), tmp_path)
    runs.keep(made_up(names=["dispatch"], date="2026-01-02 12:30"), tmp_path)
    (run,) = runs.kept(tmp_path)
    assert not run.quick


def test_the_rounds_of_all_runs_are_shown_together():
    def run(time, names):
        return made_up(lambda _, name: time, names=names)

    found = runs.pooled([run(1.0, ["latency"]), run(2.0, ["latency", "uneven"])])
    assert list(found) == ["latency", "uneven"]
    figure = found["latency"].cases[0].figures["parmap"]
    assert figure.values == (1.0,) * 3 + (2.0,) * 3
    assert figure.quartiles == (1.0, 2.0)


def test_the_page_that_is_committed_is_that_of_the_runs_that_are_committed():
    folder = ROOT / "docs" / "benchmarks"
    found = runs.kept(folder / "runs")
    drawn = {path.stem for path in folder.glob("*.png")}
    said = "write it again: python -m tests.benchmarks --page"
    pooled = runs.pooled(found)
    assert drawn == {name for name in pooled if pictures.compared(pooled[name])}, said
    assert (folder / "index.md").read_text() == page.page(found, drawn), said


# -- rounds ------------------------------------------------------------------------------------


def test_a_contender_that_fails_is_in_the_table_and_has_no_ratio():
    case = Case("one", "one", 1, ("parmap", "peer"), reference="peer")
    failed = timing.summed_up([Sample(2.0), Sample(failed="OSError: no | here")])
    figures = {"parmap": timing.Figure((1.0,)), "peer": failed}
    text = page.table(runs.Finding(dispatch.WORKLOAD, (timing.Measured(case, figures),), 0.0, {}))
    assert "failed: OSError: no \\| here" in text
    assert "×)" not in text


class Stage:
    """Plays a contender that gives the same sample each time."""

    def __init__(self, sample):
        self.sample, self.rounds = sample, 0

    def ready(self):
        return True

    def go(self):
        self.rounds += 1
        return self.sample

    def end(self, **_):
        pass


def test_a_contender_that_raises_or_dies_stops_nobody():
    stages = {"bad": Stage(Sample(failed="died")), "good": Stage(Sample(0.3))}
    found = timing.interleaved(stages.__getitem__, stages, 9, fresh=False)
    assert found["good"].values == (0.3,) * 9
    assert found["bad"].failed == "died"
    assert stages["bad"].rounds == 1


def test_rounds_of_less_than_a_second_are_all_run_and_long_ones_end_soon(monkeypatch):
    def clocked(call):
        sample = call()
        return sample.value, sample

    monkeypatch.setattr(timing, "clocked", clocked)
    stages = {"short": Stage(Sample(0.9)), "long": Stage(Sample(2.0))}
    found = timing.interleaved(stages.__getitem__, stages, 9, fresh=False)
    assert found["short"].values == (0.9,) * 9
    assert found["long"].values == (2.0, 2.0)  # the first counts, too


def test_the_start_of_a_fresh_process_is_no_part_of_its_round():
    assert not timing.is_long(Sample(0.02), 1.5, fresh=True)
    assert timing.is_long(Sample(note="hangs"), 6.0, fresh=True)
    assert timing.is_long(Sample(27.0, "scaled"), 0.3, fresh=False)


def test_rounds_take_turns():
    assert [timing.turns("abc", i) for i in range(3)] == [list("abc"), list("bca"), list("cab")]


# -- workloads ---------------------------------------------------------------------------------


def test_a_killed_worker_that_costs_results_has_no_time():
    assert killed.outcome(lambda: [0, 1, 2], [0, 1, 2], 0.0).value is not None
    lost = killed.outcome(lambda: [0, None, 2], [0, 1, 2], 0.0)
    assert (lost.value, lost.note) == (None, "2 of 3 results kept")
    word = [v.word for v in runs.verdicts("killed", [made_up(lambda *_: None, names=["killed"])])]
    assert word == [MISSED]


def test_who_cannot_pickle_a_lambda_gets_a_function_and_a_note():
    case = next(case for case in latency.cases(False) if case.data == "lambda")
    made, notes = {}, {}
    for name in case.contenders:
        make, notes[name] = latency.function_of(case, name)
        made[name] = make().__name__
    assert {name for name, kind in made.items() if kind == "<lambda>"} == {"parmap", "loky"}
    assert {name for name, note in notes.items() if note} == {
        "multiprocessing.Pool",
        "concurrent.futures",
    }
    make, _ = latency.function_of(case, "parmap")
    assert make() is not make()
    assert make().__module__ == "__main__"


def test_no_schedule_beats_the_lower_bound():
    for costs in uneven.ORDERS.values():
        assert uneven.optimum(costs) == pytest.approx(0.28)
    assert uneven.in_order([1, 1, 2]) == 3
    assert uneven.optimum([1, 1, 4]) == 4
