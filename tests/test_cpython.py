"""CPython's own tests of executors, run against the executors of parmap's plans.

The tests come from the standard library's package ``test.test_concurrent_futures``. Here
stands only what differs:

* an executor is made by ``plan(…).start()``; contexts of ``multiprocessing`` have no meaning;
* where the original asks for a private attribute of CPython's classes, an override asks for
  the same behaviour through what is public; where nothing is left to ask, it is skipped;
* where the original expects ``BrokenProcessPool``, which ends a pool, parmap fails the one
  task, and the pool lives on: `_FATES` says how each fails, and why.

Where the original runs a script that imports the executor by its class name, an override runs
the same script with a plan.
"""

# The original's way to assert, so that an override reads like what it stands for.
# ruff: noqa: PT009, PT027

from __future__ import annotations

import contextlib
import functools
import gc
import os
import pathlib
import signal
import tempfile
import threading
import time
import traceback
import unittest
from concurrent import futures
from pickle import PicklingError
from unittest import mock

import psutil
import pytest

import parmap
from parmap.errors import RemoteTraceback

pytest.importorskip(
    "test.test_concurrent_futures.executor",
    reason="this interpreter comes without the package test.test_concurrent_futures",
)

from test import support
from test.support.script_helper import assert_python_ok
from test.test_concurrent_futures import (
    test_as_completed,
    test_deadlock,
    test_init,
    test_process_pool,
    test_shutdown,
    test_thread_pool,
    test_wait,
    util,
)

# A hang guard, and no measure of speed.
_GUARD = 60
_CHECKOUT = str(pathlib.Path(parmap.__file__).parents[1])


def _start(name, max_workers=None, *, initializer=None, initargs=(), mp_context=None):
    """Start a plan with the options of a standard executor."""
    setup = functools.partial(initializer, *initargs) if initializer else None
    try:
        plan = parmap.plan(name, workers=max_workers, setup=setup)
    except parmap.PlanError as error:
        # A plan speaks of its own option, workers=; the original waits for the name of theirs.
        raise type(error)(f"max_workers must be greater than 0: {error}") from error
    return plan.start()


_threads = functools.partial(_start, "threads")
_processes = functools.partial(_start, "processes")


def _skipped(reason):
    """Make a test that takes the place of one that cannot apply, and says why."""

    @unittest.skip(reason)
    def test(self):
        raise AssertionError("skipped tests do not run")

    return test


class _Case(util.BaseTestCase):
    """The original's checks for what a test leaves behind, which only warn, as failures."""

    def setUp(self):
        support.reap_children()  # of other modules' tests
        support.environment_altered = False
        super().setUp()

    def tearDown(self):
        super().tearDown()
        self.assertFalse(support.environment_altered, "a thread or a child process was left")


class _Threads(util.ExecutorMixin):
    executor_type = staticmethod(_threads)
    plan = "threads"


class _Processes(util.ExecutorMixin):
    executor_type = staticmethod(_processes)
    plan = "processes"

    def get_context(self):
        """Answer the tests that pass a context on: it is ignored."""

    def pids(self, executor):
        """Give the process numbers of all workers, once each has been born."""
        deadline = time.monotonic() + _GUARD
        while len(executor.pids) < executor.workers:
            self.assertLess(time.monotonic(), deadline, "not all workers came")
            executor.submit(int).result(_GUARD)
        return executor.pids

    def assert_gone(self, processes):
        """Check that processes end."""
        _, alive = psutil.wait_procs(processes, timeout=_GUARD)
        self.assertEqual(alive, [])

    def assert_only(self, threads):
        """Check that other threads end; the original gives them a second, loaded or not."""
        for thread in set(threading.enumerate()).difference(threads):
            thread.join(_GUARD)
            self.assertFalse(thread.is_alive(), thread)


# -- wait, as_completed, initializers -------------------------------------------------------


class ThreadsAsCompletedTest(test_as_completed.AsCompletedTests, _Threads, _Case):
    """``as_completed`` on threads."""


class ProcessesAsCompletedTest(test_as_completed.AsCompletedTests, _Processes, _Case):
    """``as_completed`` on processes."""


class ThreadsWaitTest(_Threads, test_wait.ThreadPoolWaitTests, _Case):
    """``wait`` on threads."""


class ProcessesWaitTest(test_wait.WaitTests, _Processes, _Case):
    """``wait`` on processes."""


class ThreadsInitializerTest(test_init.InitializerMixin, _Threads, _Case):
    """``setup=`` in threads."""


class ProcessesInitializerTest(test_init.InitializerMixin, _Processes, _Case):
    """``setup=`` in processes."""


class _FailingInitializer(test_init.FailingInitializerMixin):
    def test_initializer(self):
        """The pool breaks, as the original; the error is its cause, and not in a log."""
        with contextlib.suppress(futures.BrokenExecutor):  # perhaps it is broken already
            future = self.executor.submit(test_init.get_init_status)
            with self.assertRaises(futures.BrokenExecutor):
                future.result(_GUARD)
        with self.assertRaises(futures.BrokenExecutor) as broken:
            self.executor.submit(test_init.get_init_status)
        self.assertIs(type(broken.exception.__cause__), ValueError)
        self.assertIn("ValueError: error in initializer", str(broken.exception))


class ThreadsFailingInitializerTest(_FailingInitializer, _Threads, _Case):
    """A ``setup=`` that fails, in threads."""


class ProcessesFailingInitializerTest(_FailingInitializer, _Processes, _Case):
    """A ``setup=`` that fails, in processes."""


# -- shutdown -------------------------------------------------------------------------------


class _Shutdown:
    """The tests of `ExecutorShutdownTest` that run a script, with parmap's plans in it."""

    def script(self, body):
        """Run a script that has an executor ``t``; give what it writes."""
        code = f"""if 1:
            import atexit
            @atexit.register
            def run_last():
                if last_submit:
                    try:
                        t.submit(id, None)
                    except RuntimeError:
                        print("runtime-error")
                        raise
            last_submit = False
            import parmap
            from test.test_concurrent_futures.test_shutdown import sleep_and_print
            t = parmap.plan({self.plan!r}, workers=5).start()
            {body}
            """
        _, out, err = assert_python_ok("-c", code, PYTHONPATH=_CHECKOUT)
        return out.strip(), err.decode()

    def test_interpreter_shutdown(self):
        """The interpreter's end waits for a task."""
        self.assertEqual(self.script("t.submit(sleep_and_print, 1.0, 'apple')"), (b"apple", ""))

    def test_submit_after_interpreter_shutdown(self):
        """A task that comes at the interpreter's end is refused by a RuntimeError."""
        out, err = self.script("t.submit(id, 42).result(); last_submit = True")
        self.assertEqual(out, b"runtime-error")
        # The original looks for RuntimeError's own name: SessionClosed is a subclass of it.
        self.assertRegex(err, r"(RuntimeError|SessionClosed): cannot schedule new futures")

    def test_hang_gh83386(self):
        """The interpreter ends after ``shutdown(wait=False)`` with a task that runs."""
        body = "t.submit(sleep_and_print, 1.0, 'apple'); t.shutdown(wait=False)"
        self.assertEqual(self.script(body), (b"apple", ""))

    def test_cancel_futures_wait_false(self):
        """The interpreter ends when all that waits is cancelled without waiting."""
        body = "t.submit(sleep_and_print, .1, 'apple')\n"
        body += " " * 12 + "t.shutdown(wait=False, cancel_futures=True)"
        out, err = self.script(body)
        self.assertEqual(err, "")
        self.assertIn(out, [b"apple", b""])  # it may not have begun


class ThreadsShutdownTest(_Shutdown, _Threads, test_shutdown.ThreadPoolShutdownTest, _Case):
    """The end of a thread pool."""

    def setUp(self):
        # Some of these tests make their executor by its class, of these options. The plan's own
        # derives from the original: it is loaded before.
        parmap.plan("threads")
        patch = mock.patch.object(futures, "ThreadPoolExecutor", _threads)
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()

    def test_thread_names_default(self):
        """The threads' names say whose they are."""
        with self.executor_type(max_workers=5) as executor:
            executor.map(abs, range(-5, 5))
            for thread in executor._threads:
                self.assertRegex(thread.name, r"^parmap_[0-4]$")

    test_thread_names_assigned = _skipped("the plan has no option to name threads")


class ProcessesShutdownTest(_Shutdown, test_shutdown.ExecutorShutdownTest, _Processes, _Case):
    """The end of a process pool: the tests of `ProcessPoolShutdownTest`, by process numbers."""

    def test_cancel_futures(self):
        """Tasks begin when a worker is ready; before that, all of them would be cancelled."""
        self.executor.submit(abs, -1).result()
        super().test_cancel_futures()

    def test_processes_terminate(self):
        """No worker outlives a shutdown."""
        workers = [psutil.Process(pid) for pid in self.pids(self.executor)]
        self.executor.shutdown()
        self.assertEqual([worker for worker in workers if worker.is_running()], [])

    def test_context_manager_shutdown(self):
        """No worker outlives the ``with`` block."""
        with self.executor_type(max_workers=5) as executor:
            workers = [psutil.Process(pid) for pid in self.pids(executor)]
            self.assertEqual(list(executor.map(abs, range(-5, 5))), [*range(5, 0, -1), *range(5)])
        self.assertEqual([worker for worker in workers if worker.is_running()], [])

    def test_del_shutdown(self):
        """An executor that is forgotten does its work, and its workers leave."""
        before = threading.enumerate()
        executor = self.executor_type(max_workers=5)
        workers = [psutil.Process(pid) for pid in self.pids(executor)]
        results = executor.map(abs, range(-5, 5))
        del executor
        gc.collect()
        self.assert_gone(workers)
        self.assert_only(before)
        self.assertEqual(list(results), list(map(abs, range(-5, 5))))

    def test_shutdown_no_wait(self):
        """Work that was taken is done after ``shutdown(wait=False)``; the workers leave."""
        before = threading.enumerate()
        executor = self.executor_type(max_workers=5)
        workers = [psutil.Process(pid) for pid in self.pids(executor)]
        results = executor.map(abs, range(-5, 5))
        executor.shutdown(wait=False)
        self.assert_gone(workers)
        self.assert_only(before)
        self.assertEqual(list(results), list(map(abs, range(-5, 5))))


# -- the executors --------------------------------------------------------------------------


class ThreadsExecutorTest(_Threads, test_thread_pool.ThreadPoolExecutorTest, _Case):
    """What a thread pool does."""

    def test_default_workers(self):
        """Without a number, there are as many workers as cores to use: another default."""
        with self.executor_type() as executor:
            self.assertEqual(executor._max_workers, parmap.available_cores())

    # Threads that fork, and pools that are born and die between them: the original's way to
    # meet a lock that is held at a fork, with parmap's own pools.
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_hang_global_shutdown_lock(self):
        """A pool of forks beside a busy thread pool does not hang."""

        def submit(pool):
            with contextlib.suppress(RuntimeError):  # the pool's end
                pool.submit(submit, pool)

        with self.executor_type(1) as pool:
            pool.submit(submit, pool)
            for _ in range(50):
                with parmap.plan("processes", workers=1, start="fork").start() as workers:
                    workers.submit(tuple)


class _Tombstone:
    """Writes a file where it is collected."""

    def __init__(self, path):
        self.path = path

    def __del__(self):
        with open(self.path, "w") as file:
            file.write(str(os.getpid()))


def _opened(path):
    """Wait until somebody opens a named pipe for writing."""
    os.close(os.open(path, os.O_RDONLY))


class ProcessesExecutorTest(test_process_pool.ProcessPoolExecutorTest, _Processes, _Case):
    """What a process pool does."""

    def test_killed_child(self):
        """A killed worker fails its task alone: the original breaks the pool."""
        self.executor.shutdown()
        with self.executor_type(max_workers=1) as self.executor:
            pid = self.executor.submit(os.getpid).result(_GUARD)
            doomed = self.executor.submit(time.sleep, _GUARD)
            other = self.executor.submit(os.getpid)
            os.kill(pid, signal.SIGTERM)
            with self.assertRaises(parmap.WorkerDied) as died:
                doomed.result(_GUARD)
            self.assertEqual((died.exception.pid, died.exception.signal), (pid, "SIGTERM"))
            self.assertNotEqual(other.result(_GUARD), pid)

    def test_traceback(self):
        """The worker's traceback is the cause, in parmap's class for it."""
        error = self.executor.submit(self._test_traceback).exception(_GUARD)
        self.assertIs(type(error), RuntimeError)
        self.assertEqual(error.args, (123,))
        self.assertIs(type(error.__cause__), RemoteTraceback)
        for text in (error.__cause__.text, "".join(traceback.format_exception(error))):
            self.assertIn("raise RuntimeError(123) # some comment", text)

    def test_ressources_gced_in_workers(self):
        """A worker forgets a task's arguments when it is done, though no other task comes."""
        # The original passes an event of a multiprocessing manager, whose key no worker has.
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "collected")
            tombstone = _Tombstone(path)
            self.executor.submit(id, tombstone).result(_GUARD)
            deadline = time.monotonic() + _GUARD
            while not path.exists():
                self.assertLess(time.monotonic(), deadline, "the worker keeps the argument")
            del tombstone

    def test_saturation(self):
        """Many tasks that wait bring no more workers than were asked for."""
        # The original's semaphore can only be inherited: a named pipe holds the tasks here.
        with tempfile.TemporaryDirectory() as directory:
            pipe = os.path.join(directory, "pipe")
            os.mkfifo(pipe)
            workers = sorted(self.pids(self.executor))
            tasks = [self.executor.submit(_opened, pipe) for _ in range(15 * len(workers))]
            self.assertEqual(sorted(self.executor.pids), workers)
            writer = os.open(pipe, os.O_RDWR)
            futures.wait(tasks, _GUARD)
            os.close(writer)
            self.assertEqual([task.exception(0) for task in tasks], [None] * len(tasks))
            self.assertEqual(sorted(self.executor.pids), workers)

    test_idle_process_reuse_one = _skipped("parmap starts all workers at once, not on demand")
    test_idle_process_reuse_multiple = test_idle_process_reuse_one
    test_max_tasks_per_child = _skipped("the plan has no option max_tasks_per_child")
    test_max_tasks_per_child_defaults_to_spawn_context = test_max_tasks_per_child
    test_max_tasks_early_shutdown = test_max_tasks_per_child
    test_python_finalization_error = _skipped("replaces CPython's own threads of its pool")


# -- crashes --------------------------------------------------------------------------------

# What takes the place of BrokenProcessPool: test -> error, and its reason.
_FATES = {
    # Reading the task raises: the worker catches that, and nothing has to die.
    "test_exit_at_task_unpickle": parmap.SerializationError,
    "test_error_at_task_unpickle": parmap.SerializationError,
    # Reading the result raises, in the pool's thread, which catches it, an exit included.
    "test_error_during_result_unpickle_in_result_handler": parmap.SerializationError,
    "test_exit_during_result_unpickle_in_result_handler": parmap.SerializationError,
    # A segmentation fault ends the worker, whatever it was doing for its task.
    "test_crash_at_task_unpickle": parmap.WorkerDied,
    "test_crash_during_func_exec_on_worker": parmap.WorkerDied,
    "test_crash_during_result_pickle_on_worker": parmap.WorkerDied,
    "test_shutdown_deadlock": parmap.WorkerDied,
    "test_crash_big_data": parmap.WorkerDied,
}


class ProcessesDeadlockTest(test_deadlock.ExecutorDeadlockTest, _Processes, _Case):
    """Tasks that crash, exit or fail on every part of their way, without a deadlock."""

    TIMEOUT = _GUARD

    def setUp(self):
        fate = _FATES.get(self._testMethodName)
        patch = mock.patch.object(test_deadlock, "BrokenProcessPool", fate)
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()

    def _check_crash(self, error, func, *args, ignore_stderr=False):
        """Run one task that fails; unlike the original, go on with the same pool."""
        with self.executor_type(max_workers=2) as executor:
            with self.assertRaises(error):
                executor.submit(func, *args).result(self.TIMEOUT)
            squares = [executor.submit(pow, i, 2) for i in range(8)]
            self.assertEqual([f.result(self.TIMEOUT) for f in squares], [i * i for i in range(8)])

    def test_shutdown_deadlock_pickle(self):
        """A task that cannot be pickled does not keep the pool from its end."""
        before = threading.active_count()
        with self.executor_type(max_workers=2) as executor:
            workers = [psutil.Process(pid) for pid in self.pids(executor)]
            future = executor.submit(id, test_deadlock.ErrorAtPickle())
            executor.shutdown(wait=False)
            with self.assertRaises(PicklingError):
                future.result(_GUARD)
        self.assert_gone(workers)
        self.assertEqual(threading.active_count(), before)

    test_gh105829_should_not_deadlock_if_wakeup_pipe_full = _skipped(
        "replaces CPython's own wake-up pipe and manager thread"
    )
