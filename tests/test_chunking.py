"""The policies: sizes in, sizes out."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmap import Auto, Dynamic, Guided, Static
from parmap.engine.policies import policy_named


def sizes(policy, total: int, workers: int, seconds=lambda size: 0.0) -> list[int]:
    chunker = policy.begin(total, workers)
    out, left = [], total
    while left:
        size = min(left, chunker.size(left))
        assert size >= 1
        chunker.learn(size, seconds(size))
        out.append(size)
        left -= size
    return out


@given(total=st.integers(0, 500), workers=st.integers(1, 20))
def test_every_policy_cuts_everything_in_chunks_of_at_least_one(total, workers):
    for policy in (Static(), Static(cyclic=True), Dynamic(), Dynamic(size=7), Guided(), Auto()):
        assert sum(sizes(policy, total, workers)) == total


@given(total=st.integers(1, 500), workers=st.integers(1, 20))
def test_static_gives_each_worker_one_chunk_and_sizes_differ_by_one_at_most(total, workers):
    cut = sizes(Static(), total, workers)
    assert len(cut) == min(total, workers)
    assert max(cut) - min(cut) <= 1


def test_cyclic_deals_like_cards():
    rows = [(i,) for i in range(7)]
    assert Static(cyclic=True).order(rows, 3) == [0, 3, 6, 1, 4, 2, 5]


def test_dynamic_cuts_one_size():
    assert sizes(Dynamic(size=3), 10, 4) == [3, 3, 3, 1]


def test_guided_takes_a_worker_s_share_of_what_is_left():
    assert sizes(Guided(), 100, 4)[:4] == [25, 19, 14, 11]
    assert min(sizes(Guided(smallest=5), 100, 4)[:-1]) >= 5


def tried(chunker, left, *, recalls=False):
    return chunker.trial(left, recalls=recalls)


def test_auto_tries_no_more_than_can_run_and_only_once():
    chunker = Auto(target=0.05).begin(2000, 2)
    assert tried(chunker, 2000) == (1000, 0.001)
    chunker.learn(1000, 0.001)
    assert tried(chunker, 1000) is None
    # What no function can be faster than, 50 ns a call, fills the time.
    assert tried(Auto(target=0.05).begin(10**9, 2), 10**9) == (20_001, 0.001)
    assert tried(Auto().begin(None, 2), 0) is None
    assert tried(Auto().begin(1998, 2), 1998) is None  # few, so that none waits for another


def test_where_they_can_be_recalled_few_are_shared_out_as_trials():
    chunker, left, shares = Auto().begin(11, 4), 11, []
    for _ in range(4):
        shares.append(tried(chunker, left, recalls=True)[0])
        left -= shares[-1]
    assert shares == [3, 3, 3, 2]
    assert tried(Auto().begin(None, 2), 0, recalls=True) is None


@pytest.mark.parametrize(
    ("each", "tries"), [(1e-7, True), (9e-7, True), (1.1e-6, False), (1, False)]
)
def test_few_that_are_next_to_nothing_follow_as_a_trial(each, tries):
    """Of 100 elements for each worker, which may take a tenth of the shortest chunk, 1 ms."""
    chunker = Auto(target=0.05).begin(200, 2)
    chunker.learn(1, each)
    assert tried(chunker, 200) == ((100, 0.001) if tries else None)
    unknown = Auto(target=0.05).begin(None, 2)
    unknown.learn(1, each)
    assert tried(unknown, 0) is None


def test_named_policies_make_no_trials():
    for policy in (Static(), Dynamic(size=7), Guided()):
        assert tried(policy.begin(100, 2), 100, recalls=True) is None


def test_auto_jumps_from_one_element_to_the_target_and_shrinks_at_the_end():
    cut = sizes(Auto(target=0.05), 100_000, 2, lambda size: size * 1e-5)
    assert cut[0] == 1
    assert cut[1] == 5000
    assert cut[-1] < cut[1]


def test_auto_keeps_expensive_elements_single():
    assert set(sizes(Auto(), 50, 2, lambda size: size * 1.0)) == {1}


def test_auto_recovers_from_a_first_element_that_is_slow():
    chunker = Auto().begin(None, 2)
    chunker.learn(1, 10.0)  # it imported something
    assert chunker.size(None) == 1
    chunker.learn(1, 1e-6)
    assert chunker.size(None) > 10_000


def test_costly_elements_start_first_and_ties_keep_their_order():
    rows = [(x,) for x in (3, 1, 4, 1, 5)]
    assert Dynamic(cost=lambda x: x).order(rows, 2) == [4, 2, 0, 1, 3]
    assert Dynamic(cost=[1, 1, 9, 1, 1]).order(rows, 2) == [2, 0, 1, 3, 4]


def test_shuffle_is_a_permutation_and_the_same_each_time():
    rows = [(i,) for i in range(50)]
    order = Dynamic(shuffle=True).order(rows, 2)
    assert sorted(order) == list(range(50)) != order
    assert order == Dynamic(shuffle=0).order(rows, 2) != Dynamic(shuffle=1).order(rows, 2)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Dynamic(size=0), ValueError, "size=0"),
        (lambda: Dynamic(size=2.5), TypeError, "size=2.5"),
        (lambda: Guided(smallest=-1), ValueError, "smallest=-1"),
        (lambda: Auto(target=0), ValueError, "target=0"),
        (lambda: Auto(target=float("nan")), ValueError, "target=nan"),
        (lambda: Dynamic(cost=len, shuffle=True), ValueError, "not both"),
        (lambda: Dynamic(cost=[1, 2]).order([(1,)], 1), ValueError, "2 numbers for 1"),
        (lambda: policy_named("fast"), ValueError, "'guided'"),
        (lambda: policy_named(0), ValueError, "chunks=0"),
        (lambda: policy_named(1.5), TypeError, "chunks=1.5"),
        (lambda: policy_named(True), TypeError, "chunks=True"),
    ],
)
def test_a_wrong_policy_says_what_is_wrong(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_policies_are_values():
    for policy in (Static(cyclic=True), Dynamic(size=3), Guided(), Auto(shuffle=4)):
        assert pickle.loads(pickle.dumps(policy)) == policy
        assert hash(policy) == hash(pickle.loads(pickle.dumps(policy)))
