"""The policies on many workers, in virtual time: the figures are the same each time."""

from __future__ import annotations

import pytest

from parmap import Auto, Dynamic, Static
from tests.benchmarks.simulated import (
    DASK,
    LOCAL,
    constant,
    decreasing,
    fixed_sizes,
    heavy_tailed,
    increasing,
    lognormal,
    simulate,
    slow_first,
    slow_last,
    slow_mixed,
)

SHAPES = [lognormal, heavy_tailed, increasing, decreasing, slow_first, slow_mixed, slow_last]


def best_fixed(place, workers, costs) -> float:
    sizes = fixed_sizes(costs.count, workers)[:5]
    return min(simulate(Dynamic(size=size), place, workers, costs).makespan for size in sizes)


def test_the_model_adds_up_where_that_can_be_done_by_hand():
    result = simulate(Static(), LOCAL, 2, constant(10, 1.0))
    # The second is sent, and goes; it runs; it comes, and is taken in.
    by_hand = 2 * LOCAL.dispatch / 2 + LOCAL.round_trip / 2 + 5 + LOCAL.round_trip / 2
    assert result.makespan == pytest.approx(by_hand + LOCAL.dispatch / 2)
    assert (result.chunks, result.optimum) == (2, 5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("place", "workers"), [(LOCAL, 10), (DASK, 10)])
def test_auto_is_near_the_optimum_and_near_the_best_fixed_size(place, workers, shape):
    costs = shape(10**6 if place is DASK else 10**5, 1e-3)
    auto = simulate(Auto(), place, workers, costs)
    assert 1 / auto.ratio >= 0.97
    assert auto.makespan <= 1.05 * best_fixed(place, workers, costs)


@pytest.mark.parametrize("shape", [lognormal, increasing, decreasing])
def test_auto_leaves_its_one_dispatcher_time_with_many_workers(shape):
    auto = simulate(Auto(), LOCAL, 1000, shape(10**7, 1e-3))
    assert auto.load <= 0.6
    assert 1 / auto.ratio >= 0.93


def test_costs_that_rise_from_next_to_nothing_do_not_go_to_one_worker():
    assert simulate(Auto(), LOCAL, 100, increasing(10**4, 1e-3)).ratio < 2


@pytest.mark.parametrize(("shape", "ratio"), [(slow_first, 1.1), (slow_last, 1.2)])
def test_few_elements_of_which_some_are_slow_go_to_who_is_idle(shape, ratio):
    """Without recall it was 1.08 where the slow ones come first, and 3.45 where they come last."""
    assert simulate(Auto(), LOCAL, 4, shape(105, 1e-3)).ratio < ratio


def test_what_a_trial_gives_back_is_not_cut_as_if_it_were_the_end():
    # 100 s of work in chunks of 50 ms are 2,000, and some at the end.
    assert simulate(Auto(), LOCAL, 10, constant(10**5, 1e-3)).chunks < 2500
