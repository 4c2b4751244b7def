"""Futures and plans under asyncio."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import itertools
import operator
import os
import signal
import threading

import pytest

import parmap

PLANS = ("sequential", "threads(workers=2)", "processes(workers=2)")
# A guard against hangs, never waited for when all is well.
GUARD = 60


def run(main):
    """Run a coroutine; fail, rather than hang, where it does not end."""

    async def guarded():
        async with asyncio.timeout(GUARD):
            return await main()

    return asyncio.run(guarded())


@pytest.mark.parametrize("plan", PLANS)
def test_a_submitted_call_can_be_awaited(plan):
    async def main():
        return await asyncio.wrap_future(parmap.submit(pow, 2, 10))

    with parmap.plan(plan):
        assert run(main) == 1024


@pytest.mark.parametrize("plan", PLANS)
def test_many_are_gathered_in_their_order(plan):
    async def main():
        futures = [asyncio.wrap_future(parmap.submit(operator.neg, i)) for i in range(200)]
        return await asyncio.gather(*futures)

    with parmap.plan(plan):
        assert run(main) == [-i for i in range(200)]


@pytest.mark.parametrize("plan", PLANS)
def test_an_error_comes_out_of_await_as_it_was_raised(plan):
    """With the note of where it was; the others are not disturbed."""

    def fail(i):
        if i == 3:
            raise LookupError(i)
        return i

    async def main():
        futures = [asyncio.wrap_future(parmap.submit(fail, i)) for i in range(6)]
        return await asyncio.gather(*futures, return_exceptions=True)

    with parmap.plan(plan):
        results = run(main)
    error = results.pop(3)
    assert results == [0, 1, 2, 4, 5]
    assert type(error) is LookupError
    assert error.args == (3,)
    assert "parmap: element 0 failed on" in error.__notes__[0]


@pytest.mark.parametrize("plan", PLANS[1:])
def test_the_loop_runs_on_while_a_worker_works(plan, tmp_path):
    """The task waits until the loop has done something, so a loop that is blocked would hang."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    def wait():
        with open(fifo) as file:
            return file.read()

    async def main():
        future = asyncio.wrap_future(parmap.submit(wait))
        with await asyncio.to_thread(open, fifo, "w") as file:
            assert not future.done()
            file.write("done")
        return await future

    with parmap.plan(plan):
        assert run(main) == "done"


@pytest.mark.parametrize("plan", PLANS[1:])
def test_cancelling_the_awaited_future_cancels_a_call_that_has_not_begun(plan, tmp_path):
    """It never runs; those that run go on to their end."""
    log, fifo = str(tmp_path / "log"), str(tmp_path / "fifo")
    os.mkfifo(fifo)

    def hold():
        with open(fifo) as file:
            return file.read()

    def note(i):
        with open(log, "a") as file:
            file.write(f"{i}\n")
        return i

    async def main():
        holding = asyncio.wrap_future(parmap.submit(hold))
        with await asyncio.to_thread(open, fifo, "w") as file:  # it runs: it has opened its end
            waiting = [parmap.submit(note, i) for i in range(3)]
            wrapped = [asyncio.wrap_future(future) for future in waiting]
            assert wrapped[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await wrapped[1]
            await asyncio.sleep(0)  # asyncio passes a cancellation on in the loop's next turn
            file.write("end")
        assert await holding == "end"
        assert await wrapped[0] == 0
        assert await wrapped[2] == 2
        assert waiting[1].cancelled()

    with parmap.plan(plan, workers=1):
        run(main)
    with open(log) as file:
        assert file.read() == "0\n2\n"


@pytest.mark.parametrize("plan", PLANS[1:])
def test_cancelling_a_call_that_runs_leaves_the_session_usable(plan, tmp_path):
    """Whoever awaited it is cancelled at once; the worker takes the next call when it is free."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    def hold():
        with open(fifo) as file:
            return file.read()

    async def main():
        running = asyncio.wrap_future(parmap.submit(hold))
        with await asyncio.to_thread(open, fifo, "w") as file:  # it runs: it has opened its end
            assert running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            with contextlib.suppress(BrokenPipeError):  # where the call could be stopped
                file.write("end")
                file.flush()
        return await asyncio.wrap_future(parmap.submit(abs, -5))

    with parmap.plan(plan, workers=1):
        assert run(main) == 5
        assert parmap.pmap(abs, range(-3, 0)) == [3, 2, 1]


@pytest.mark.parametrize("plan", PLANS)
def test_a_timeout_of_asyncio_ends_the_wait_only(plan):
    """A call that is done already gives its result; the session stays as it was."""

    async def main():
        return await asyncio.wait_for(asyncio.wrap_future(parmap.submit(abs, -1)), GUARD)

    with parmap.plan(plan):
        assert run(main) == 1
        assert parmap.submit(abs, -2).result(GUARD) == 2


@pytest.mark.parametrize("plan", PLANS[1:])
def test_an_expired_wait_cancels_what_has_not_begun(plan, tmp_path):
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    def hold():
        with open(fifo) as file:
            return file.read()

    async def main():
        holding = asyncio.wrap_future(parmap.submit(hold))
        with await asyncio.to_thread(open, fifo, "w") as file:
            waiting = parmap.submit(abs, -1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(waiting), 0)
            assert waiting.cancelled()
            file.write("end")
        return await holding

    with parmap.plan(plan, workers=1):
        assert run(main) == "end"


@pytest.mark.parametrize("plan", PLANS)
def test_submitting_from_a_callback_of_the_loop(plan):
    """Each result submits the next call."""

    async def main():
        value = 0
        for _ in range(20):
            value = await asyncio.wrap_future(parmap.submit(operator.add, value, 1))
        return value

    with parmap.plan(plan):
        assert run(main) == 20


@pytest.mark.parametrize("plan", PLANS)
def test_calls_that_block_run_beside_one_another_in_threads(plan):
    """asyncio.to_thread carries the context over, and so the plan in force."""

    async def main():
        square = lambda x: x * x
        calls = [asyncio.to_thread(parmap.pmap, square, range(i, i + 50)) for i in range(6)]
        return await asyncio.gather(*calls)

    with parmap.plan(plan):
        assert run(main) == [[x * x for x in range(i, i + 50)] for i in range(6)]


def test_plans_entered_in_two_tasks_do_not_disturb_one_another():
    """Each task sees its own, at every moment, in whatever order they enter and leave."""
    seen = {"one": [], "two": []}

    async def one(entered, go_on):
        with parmap.plan("threads", workers=1) as session:
            entered.set()
            await go_on.wait()
            seen["one"].append(str(parmap.current_plan()))
            seen["one"] += parmap.pmap(abs, [-1])
            assert session.submit(abs, -3).result(GUARD) == 3
        seen["one"].append(str(parmap.current_plan()))

    async def two(entered, go_on):
        await entered.wait()
        seen["two"].append(str(parmap.current_plan()))
        with parmap.plan("processes", workers=1):
            seen["two"].append(str(parmap.current_plan()))
            seen["two"] += await asyncio.gather(asyncio.wrap_future(parmap.submit(abs, -2)))
            go_on.set()  # the first leaves while this one is still inside
            await first
            seen["two"].append(str(parmap.current_plan()))
            assert parmap.pmap(abs, [-4]) == [4]

    async def main():
        nonlocal first
        events = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(one(*events))
        await two(*events)
        assert str(parmap.current_plan()) == "sequential"

    first = None
    run(main)
    assert seen == {
        "one": ["threads(workers=1)", 1, "sequential"],
        "two": ["sequential", "processes(workers=1)", 2, "processes(workers=1)"],
    }


def test_a_task_begins_with_the_plan_of_who_made_it():
    """And keeps it, whatever its maker enters afterwards."""

    async def plan_here(wait_for):
        await wait_for.wait()
        return str(parmap.current_plan())

    async def main():
        event = asyncio.Event()
        with parmap.plan("threads", workers=1):
            inner = asyncio.create_task(plan_here(event))
            with parmap.plan("threads", workers=2):
                event.set()
                assert await inner == "threads(workers=1)"
                assert str(parmap.current_plan()) == "threads(workers=2)"
        assert str(parmap.current_plan()) == "sequential"

    run(main)


def test_a_plan_left_in_another_task_than_it_was_entered_in_is_refused():
    """Its session would be current where nobody entered it."""
    plan = parmap.plan("threads", workers=1)

    async def leave():
        with pytest.raises(parmap.PlanError, match="another context"):
            plan.__exit__(None, None, None)

    async def main():
        with plan:
            pass
        await asyncio.create_task(leave())

    run(main)


def test_a_session_that_ended_is_told_to_a_task_that_still_has_it():
    """The task was made inside the block, and runs on after its end."""

    async def late(ended):
        await ended.wait()
        with pytest.raises(parmap.SessionClosed, match="Enter the plan again"):
            parmap.pmap(abs, [-1])
        with pytest.raises(parmap.SessionClosed):
            parmap.submit(abs, -1)
        with parmap.plan("threads", workers=1):
            return parmap.pmap(abs, [-1])

    async def main():
        ended = asyncio.Event()
        with parmap.plan("threads", workers=1):
            task = asyncio.create_task(late(ended))
        ended.set()
        return await task

    assert run(main) == [1]


@pytest.mark.parametrize("plan", PLANS)
def test_results_stream_out_of_imap_between_other_tasks(plan):
    """An iterator lives across awaits; each task's own."""

    async def consume(offset):
        got = []
        for value in parmap.imap(operator.neg, range(offset, offset + 20), chunks=3, window=6):
            got.append(value)
            await asyncio.sleep(0)  # lets the other run
        return got

    async def main():
        return await asyncio.gather(consume(0), consume(100))

    with parmap.plan(plan):
        assert run(main) == [[-x for x in range(20)], [-x for x in range(100, 120)]]


@pytest.mark.parametrize("plan", PLANS)
def test_the_session_as_the_loops_default_executor(plan):
    """What plan.start gives is an executor of the standard library."""

    async def main():
        loop = asyncio.get_running_loop()
        with parmap.plan(plan).start() as executor:
            calls = [loop.run_in_executor(executor, operator.neg, i) for i in range(20)]
            return await asyncio.gather(*calls)

    assert run(main) == [-i for i in range(20)]


def test_futures_are_of_the_standard_library():
    with parmap.plan("processes", workers=1):
        future = parmap.submit(abs, -1)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(GUARD) == 1


def test_a_callers_context_variables_are_its_own():
    """Two contexts in one thread: a plan entered in one is not in force in the other."""
    plans, here, there = [], contextvars.copy_context(), contextvars.copy_context()

    def enter():
        with parmap.plan("threads", workers=1):
            plans.append(str(parmap.current_plan()))
            there.run(lambda: plans.append(str(parmap.current_plan())))

    here.run(enter)
    assert plans == ["threads(workers=1)", "sequential"]
    assert str(parmap.current_plan()) == "sequential"


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=2)", "processes(workers=2)"])
def test_imap_is_iterated_without_holding_up_the_event_loop(plan):
    """While a result is awaited, the loop runs: here it opens what the task waits for."""

    async def main():
        with parmap.plan(plan):
            seen = [x async for x in parmap.imap(lambda x: x * x, range(20))]
            assert seen == [x * x for x in range(20)]
            with pytest.raises(ZeroDivisionError):
                async for _ in parmap.imap(lambda x: 1 / x, [1, 0]):
                    pass
            endless = parmap.imap(abs, itertools.count())
            async for x in endless:
                if x == 5:
                    break
            endless.close()
            assert parmap.pmap(abs, [-1]) == [1]

    run(main)


def test_the_event_loop_runs_while_a_result_is_awaited():
    opened = threading.Event()

    async def main():
        with parmap.plan("threads", workers=1):

            async def open_it():
                opened.set()

            task = asyncio.create_task(open_it())
            assert [x async for x in parmap.imap(lambda x: opened.wait(60), [0])] == [True]
            await task

    run(main)


@pytest.mark.parametrize("plan", PLANS)
def test_several_readers_share_the_results_of_one_map(plan):
    """Each result goes to one of them: tasks, event loops, threads, in any mixture."""
    seen = []
    with parmap.plan(plan):
        results = parmap.imap(operator.neg, range(300), chunks=2, window=10)
        seen.append(next(results))

        async def read():
            async for value in results:
                seen.append(value)
                await asyncio.sleep(0)

        async def main():
            await asyncio.gather(read(), read())

        readers = [threading.Thread(target=run, args=(main,)) for _ in range(2)]
        readers += [threading.Thread(target=lambda: seen.extend(results)) for _ in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(GUARD)
    assert sorted(seen) == [-x for x in reversed(range(300))]


@pytest.mark.parametrize("plan", PLANS)
def test_one_map_is_read_in_one_event_loop_after_the_other(plan):
    with parmap.plan(plan):
        results = parmap.imap(operator.neg, range(6), chunks=1)

        async def one():
            return await anext(results)

        assert [run(one) for _ in range(6)] == [-x for x in range(6)]


@pytest.mark.parametrize("plan", PLANS)
def test_a_retry_is_awaited_without_a_thread(plan, tmp_path):
    """Nothing lands until it is due: the event loop's own clock wakes the reader."""

    def fn(x):
        if not (tmp_path / str(x)).exists():
            (tmp_path / str(x)).touch()
            raise OSError(x)
        return x

    async def main():
        retry = parmap.Retry(1, wait=0.01)
        return [x async for x in parmap.imap(fn, range(3), chunks=1, retries=retry)]

    with parmap.plan(plan):
        assert run(main) == [0, 1, 2]


@pytest.mark.parametrize("plan", PLANS)
def test_aclosing_closes_the_map(plan):
    async def main():
        async with contextlib.aclosing(parmap.imap(abs, itertools.count())) as results:
            async for x in results:
                if x == 3:
                    break
        return [x async for x in results]

    with parmap.plan(plan):
        assert run(main) == []
        assert parmap.pmap(abs, [-1]) == [1]


@pytest.mark.parametrize("plan", PLANS)
def test_a_map_that_is_forgotten_is_closed(plan):
    """With the generator that reads it, for one."""
    pulled = []

    def source():
        try:
            for x in itertools.count():
                pulled.append(x)
                yield x
        finally:
            pulled.append("closed")

    async def read():
        async for x in parmap.imap(abs, source(), chunks=1, window=4):
            yield x

    async def main():
        reader = read()
        assert await anext(reader) == 0
        await reader.aclose()

    with parmap.plan(plan):
        run(main)
        assert pulled.pop() == "closed"
        assert len(pulled) <= 5


@pytest.mark.parametrize("plan", PLANS)
def test_other_tasks_have_their_turns_while_results_are_there(plan):
    """An endless map never waits here, and yet the task that ends it runs."""

    async def main():
        over = asyncio.Event()

        async def end():
            over.set()

        task = asyncio.create_task(end())
        async for _ in parmap.imap(abs, itertools.count(), chunks=1000):
            if over.is_set():
                break
        await task

    with parmap.plan(plan):
        run(main)


@pytest.mark.parametrize("plan", PLANS)
def test_a_function_cannot_end_the_iteration_by_its_error(plan):
    def fail(_):
        raise StopAsyncIteration

    async def main():
        return [x async for x in parmap.imap(fail, [1])]

    with parmap.plan(plan), pytest.raises(RuntimeError, match="StopAsyncIteration"):
        run(main)


def test_a_task_that_has_read_a_map_before_does_not_close_it():
    """Only the task that was last to iterate does, when it is cancelled."""

    async def main():
        results = parmap.imap(abs, itertools.count(), chunks=1, window=8)
        has_read, stay = asyncio.Event(), asyncio.Event()

        async def first():
            async for _ in results:
                break
            has_read.set()
            await stay.wait()

        async def second():
            seen = []
            async for x in results:
                seen.append(x)
                if len(seen) == 2:
                    task.cancel()
                    await asyncio.wait([task])
                if len(seen) == 20:
                    return seen

        task = asyncio.create_task(first())
        await has_read.wait()
        seen = await second()
        assert task.cancelled()
        results.close()
        return seen

    with parmap.plan("threads", workers=2):
        assert run(main) == list(range(1, 21))


def test_a_signal_handler_may_close_a_map(tmp_path):
    """Whatever the thread was doing with it."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    with parmap.plan("processes", workers=1):
        results = parmap.imap(lambda x: open(fifo).read(), range(3), chunks=1)
        before = signal.signal(signal.SIGUSR1, lambda *_: results.close())
        main = threading.get_ident()

        def interrupt():
            with open(fifo, "w"):  # the element runs, and the main thread waits for it, or will
                signal.pthread_kill(main, signal.SIGUSR1)
                closed.wait(GUARD)

        closed, thread = threading.Event(), threading.Thread(target=interrupt)
        thread.start()
        assert list(results) == []
        closed.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
        assert parmap.pmap(abs, [-1]) == [1]


@pytest.mark.parametrize("wait", [1e10, 1e300])
def test_a_retry_may_be_due_in_centuries(wait):
    """Nobody waits for it here: the map is closed instead."""
    failed = threading.Event()

    def fail(x):
        failed.set()
        raise OSError(x)

    with parmap.plan("threads", workers=1):
        retry = parmap.Retry(1, wait=wait)
        results = parmap.imap(fail, range(1), retries=retry)
        consumer = threading.Thread(target=lambda: seen.append(list(results)))
        seen = []
        consumer.start()
        assert failed.wait(GUARD)
        results.close()
        consumer.join(GUARD)
        assert seen == [[]]

        async def main():
            later = parmap.imap(fail, range(1), retries=retry)
            waiting = asyncio.ensure_future(anext(later))
            await asyncio.to_thread(failed.wait, GUARD)
            later.close()
            with pytest.raises(StopAsyncIteration):
                await waiting

        failed.clear()
        run(main)
