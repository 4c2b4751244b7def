"""Callbacks of futures: in which thread they run, in which order, and where their errors go."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from queue import SimpleQueue

import pytest

import parmap
from parmap.engine.callbacks import Answer, Callbacks

GUARD = 60.0


def test_callbacks_of_one_future_run_in_their_order_and_in_one_other_thread():
    answer, callbacks, seen = Answer(), Callbacks(), []
    for x in range(5):
        answer.add_done_callback(lambda _, x=x: seen.append((x, threading.get_ident())))
    callbacks.collect(lambda: answer.set_result(None))
    callbacks.join()
    assert [x for x, _ in seen] == list(range(5))
    assert len({thread for _, thread in seen} - {threading.get_ident()}) == 1


def test_a_callback_that_exits_costs_the_next_one_nothing(caplog):
    answer, callbacks, seen = Answer(), Callbacks(), []
    answer.add_done_callback(lambda _: sys.exit("in a callback"))
    answer.add_done_callback(seen.append)
    callbacks.collect(lambda: answer.set_result(None))
    callbacks.join()
    assert seen == [answer]
    assert "in a callback" in caplog.text


def test_a_callback_may_end_the_session_that_waits_for_callbacks():
    answer, callbacks, seen = Answer(), Callbacks(), []
    answer.add_done_callback(lambda _: seen.append(callbacks.join()))
    callbacks.collect(lambda: answer.set_result(None))
    callbacks.join()
    assert seen == [None]


def test_a_cancelled_future_calls_its_callbacks_in_the_thread_that_cancels():
    answer, seen = Answer(), []
    answer.add_done_callback(lambda _: seen.append(threading.get_ident()))
    assert answer.cancel()
    assert seen == [threading.get_ident()]


def test_asyncio_is_woken_without_a_thread():
    async def main():
        answer, callbacks = Answer(), Callbacks()
        wrapped = asyncio.wrap_future(answer)
        callbacks.collect(lambda: answer.set_result(3))
        assert not callbacks._threads
        return await wrapped

    assert asyncio.run(main()) == 3


def opened(path):
    with open(path):
        pass


def held(submit, path, callback):
    """Give a future that is not done before its callback is added."""
    os.mkfifo(path)
    future = submit(opened, os.fspath(path))
    future.add_done_callback(callback)
    path.write_text("")
    return future


@pytest.mark.parametrize("plan", ["processes", "threads"])
def test_the_end_of_a_session_waits_for_callbacks(plan, tmp_path):
    go, seen = threading.Event(), []

    def follow(_):
        assert go.wait(GUARD)
        seen.append(1)

    with parmap.plan(plan, workers=2) as session:
        held(session.submit, tmp_path / "fifo", follow)
        go.set()
    assert seen == [1]


def test_a_call_in_the_thread_that_resolves_futures_is_refused_at_once(tmp_path):
    came = SimpleQueue()

    def follow(_):
        with pytest.raises(parmap.ParmapError, match="its callbacks may wait for other calls"):
            session.map(abs, [-1])
        came.put(session.submit(abs, -2))  # which does not wait

    with parmap.plan("processes", workers=2) as session:
        held(session.executor.submit, tmp_path / "fifo", follow)
        assert came.get(timeout=GUARD).result(GUARD) == 2
        assert session.map(abs, [-3]) == [3]


def test_so_it_is_on_executors_of_others(tmp_path):
    came = SimpleQueue()

    def follow(_):
        with pytest.raises(parmap.ParmapError, match="would wait forever"):
            session.map(abs, [-1])
        came.put(True)

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as host, parmap.plan(host) as session:
        held(host.submit, tmp_path / "one", follow)
        assert came.get(timeout=GUARD)
        assert session.map(abs, [-3]) == [3]
    with context.Pool(2) as host, parmap.plan(host) as session:
        held(session.executor.submit, tmp_path / "two", follow)
        assert came.get(timeout=GUARD)
        assert session.map(abs, [-3]) == [3]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_callback_of_the_executor_itself_cannot_end_the_pool(error, tmp_path, caplog):
    def fail(_):
        raise error("in a callback")

    with parmap.plan("processes", workers=2).start() as executor:
        future = held(executor.submit, tmp_path / "fifo", fail)
        assert future.result(GUARD) is None
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
    assert "in a callback" in caplog.text
