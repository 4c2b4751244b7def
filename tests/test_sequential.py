import threading

import pytest

import parmap
from parmap.testing import PlanContract


class TestSequential(PlanContract):
    plan = parmap.plan("sequential")


class TestNested(PlanContract):
    plan = parmap.plan(["sequential", "threads(workers=2)"])


def test_tasks_run_in_this_very_thread():
    with parmap.plan("sequential") as session:
        assert set(parmap.pmap(lambda _: threading.get_ident(), range(3))) == {
            threading.get_ident()
        }
        assert session.workers == 1
        assert session.dashboard is None


def test_elements_run_one_after_the_other_in_order():
    seen = []
    with parmap.plan("sequential"):
        parmap.pmap(seen.append, range(100))
    assert seen == list(range(100))


def test_a_submitted_call_is_done_at_once():
    with parmap.plan("sequential"):
        future = parmap.submit(pow, 2, 3)
        assert future.done()
        assert not future.cancel()


def test_one_worker_is_all_there_is():
    with parmap.plan("sequential", workers=1) as session:
        assert session.workers == 1


def test_an_interrupt_leaves_through_submit():
    def interrupted():
        raise KeyboardInterrupt

    executor = parmap.plan("sequential").start()
    with pytest.raises(KeyboardInterrupt):
        executor.submit(interrupted)
    executor.shutdown()


def test_setup_may_use_parmap(run):
    # The process-wide session is made under a lock, which setup must not meet again.
    assert run("""
        import parmap
        parmap.set_plan("sequential", setup=lambda: print(parmap.pmap(abs, [-1])))
        print(parmap.pmap(abs, [-2]))
    """).split("\n")[:2] == ["[1]", "[2]"]
