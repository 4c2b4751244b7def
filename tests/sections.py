"""Scenarios that run through parmap's critical sections: ``python -m tests.sections NAME KIND``.

Each has the functions whose steps are struck at, and checks in the end that all still works. KIND
is ``collect`` (a finalizer closes a forgotten `imap`, drops a handle, cancels, submits), ``handle``
(a signal handler does) or ``interrupt`` (KeyboardInterrupt).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import gc
import io
import json
import math
import multiprocessing
import os
import random
import select
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from types import FunctionType, SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import numpy as np  # brings a library with threads

import parmap
from parmap import cores
from parmap.backends.once_future import OnceFuture, _Right
from parmap.backends.pending import PendingFutures
from parmap.backends.processes import recall, task_queue
from parmap.backends.processes.deadlines import Deadlines
from parmap.backends.processes.driving import Driving
from parmap.backends.processes.executor import ProcessExecutor
from parmap.backends.processes.handles import BroadcastValues, Channel, Task, Worker
from parmap.backends.processes.notes import Notes
from parmap.backends.processes.task_queue import TaskQueue
from parmap.backends.remote.agent import Agent
from parmap.engine import small as small_calls
from parmap.engine.small import SmallMap, small_map
from parmap.plans import current, registry
from parmap.plans.placement import Values, _Broadcasting
from parmap.transport import functions
from parmap.transport.identity import fresh_key
from parmap.transport.messages import CachedPayload, cached_payload
from parmap.worker import context, native_threads, random_state, run, setup, thread_variables
from parmap.worker.once import OncePerWorker
from tests.sweep import GUARD, Finalizer, Sweep, garbage, guard

_mine, _Mine = native_threads._mine, native_threads._Mine
REENTRANT = ("collect", "handle", "interrupt")


class Section:
    """Functions, a scenario that runs through them, and what must hold afterwards."""

    functions: ClassVar[list[Any]]
    # Those that run in threads of their own, or of a worker, where no signal arrives.
    elsewhere: ClassVar[list[Any]] = []
    kinds: ClassVar[tuple[str, ...]] = REENTRANT

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        yield

    def run(self) -> None:
        raise NotImplementedError

    def strike(self) -> None:
        """What a finalizer, or a handler, does in between."""
        raise NotImplementedError

    def check(self) -> None:
        raise NotImplementedError


def free(lock: Any) -> None:
    """Check that another thread can have a lock."""
    came: Future[bool] = Future()

    def take() -> None:
        with lock:
            came.set_result(True)

    threading.Thread(target=take, daemon=True).start()
    assert came.result(10)


@contextlib.contextmanager
def closed(gate: Any) -> Iterator[None]:
    """Have `_later` wait, in any process, for the end of the block."""
    fcntl.flock(gate, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(gate, fcntl.LOCK_UN)


class InSession(Section):
    """What happens in a session: forgotten iterators and handles, futures, calls."""

    plan: parmap.Plan

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with self.plan as self.session:
            self.array = np.arange(200_000.0)
            self.session.map(abs, range(9))
            self.stock = [self._forgotten() for _ in range(40)]
            yield
            self.stock.clear()

    def _forgotten(self) -> tuple[Any, Any]:
        results = parmap.imap(abs, range(100), chunks=1)
        next(results)
        handle = parmap.share([1, 2, 3])
        if self.session.traits.places:
            self.session._values.broadcast(handle)
        return results, handle

    def strike(self) -> None:
        def call() -> None:
            future = self.session.submit(abs, -1)
            future.add_done_callback(lambda _: None)
            self.session.submit(abs, -2).cancel()

        things = self.stock.pop() if self.stock else ()
        garbage(*things, Finalizer(call))

    def check(self) -> None:
        assert self.session.submit(abs, -5).result(GUARD) == 5
        assert self.session.map(abs, range(-5, 0)) == [5, 4, 3, 2, 1]


class Limits(InSession):
    plan = parmap.plan("threads", workers=2)
    limits = native_threads._Limits
    held = thread_variables._Held
    functions: ClassVar = [
        *(native_threads.hold, limits.hold, limits.release, limits.cover, limits.meet, limits.own),
        *(limits.found, limits._drain, limits._end, limits._look, limits._asked, limits._apply),
        *(held.hold, held.release, held._apply, held._turn),
    ]

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        scanned = native_threads._scan()  # takes milliseconds
        native_threads._scan = lambda: scanned
        self.worker = native_threads._Limits()  # another one: this process is no worker
        native_threads.loaded()
        self.before = self._shown()
        with super().open():
            yield

    def _shown(self) -> object:
        """Read what the process's libraries are told, as Python has it and as C has it."""
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        texts = [(os.environ.get(name), getenv(name.encode())) for name in thread_variables.NAMES]
        return (
            texts,
            [control.get() for control in native_threads._limits._controls if control.shared],
            dict(cores.aside),
        )

    def run(self) -> None:
        native_threads._limits._names = set()  # or it would look for libraries only once
        outer = native_threads.hold(1, later=True)
        inner = native_threads.hold(2)
        native_threads._limits.cover(native_threads.ThreadLimit(3, exact=False))
        native_threads._limits._covered = None
        native_threads._limits.meet(native_threads.ThreadLimit(2, exact=False), worker=True)
        native_threads._limits._covered = native_threads.ThreadLimit(2, exact=False)
        native_threads._limits.meet(native_threads.ThreadLimit(2, exact=False), worker=True)
        native_threads._limits._covered = None
        self._rare()
        native_threads.loaded()
        native_threads.release(inner)
        native_threads.release(outer)
        native_threads.release(outer)

    def _rare(self) -> None:
        """Run through what only a worker comes to, and what only an interrupt does."""
        worker = self.worker
        worker._worker, worker._users, worker._covered = None, False, None
        worker.meet(native_threads.ThreadLimit(2, exact=False), worker=True)
        worker._worker = None
        brings, native_threads._brings_libraries = native_threads._brings_libraries, lambda _: False
        worker.cover(native_threads.ThreadLimit(2, exact=False))
        native_threads._brings_libraries = brings
        worker._over.append(unhashable := [])  # type: ignore[arg-type]
        with contextlib.suppress(TypeError):
            worker._drain()
        worker._over.remove(unhashable)  # type: ignore[arg-type]
        token = native_threads.ThreadLimit(2, exact=False)
        worker.hold(token)
        lock = worker._lock
        try:
            worker._lock = _Late(worker)
            worker.release(token)
            # And one that another thread has, at once or the second time.
            for acquired in ([False], [True, False]):
                worker._lock = _Late(worker, acquired)
                worker.release(native_threads.ThreadLimit(2, exact=False))
        finally:
            worker._lock = lock
        held = thread_variables._held
        with native_threads._limits._lock:  # as always
            held.release(token)  # nobody holds it
            held._due = held._applying = True
            try:
                held.release(token)  # in the middle of a change
            finally:
                held._applying = False
            held.release(token)  # of one that an interrupt has cut short

    def strike(self) -> None:
        super().strike()
        garbage(native_threads.hold(1))

    def check(self) -> None:
        super().check()
        self.stock.clear()  # each has a hold
        never = threading.Event()
        while native_threads._limits._holds:  # of calls that are being ended
            gc.collect()
            never.wait(0.01)
        free(native_threads._limits._lock)
        native_threads.release(native_threads.hold(1))
        assert not native_threads._limits._holds
        assert not native_threads._limits._held
        assert not thread_variables._held._asked
        assert self._shown() == self.before


class Restored(Section):
    """A task in the caller's own thread: the libraries have their numbers back at its end."""

    functions: ClassVar = [run._restored, native_threads.borrowed, _Mine.limit, _Mine.restore]

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        import sklearn.linear_model  # noqa: F401 - brings OpenMP, of which each thread has a number
        import threadpoolctl

        scanned = native_threads._scan()  # takes milliseconds
        native_threads._scan = lambda: scanned
        with threadpoolctl.threadpool_limits(6):
            self.before = self._shown()
            assert len(self.before[0]) > 2  # some of the process's, and one of this thread
            yield

    def _shown(self) -> tuple[list[int | None], dict[str, str], dict[str, Any]]:
        numbers = [one.num_threads for one in native_threads.loaded()]
        return numbers, dict(os.environ), {**vars(_mine), "before": _mine.before.copy()}

    def run(self) -> None:
        with run._restored(3, exact=False), run._restored(1, exact=False):
            _mine.limit(native_threads.ThreadLimit(1, exact=False), worker=False)
        _mine.restore({}, {}, {})  # a block that ends after the one around it

    def strike(self) -> None:
        garbage(Finalizer(self._task))

    def _task(self) -> None:
        with run._restored(2, exact=False):
            pass

    def check(self) -> None:
        gc.collect()
        assert self._shown() == self.before
        assert not native_threads._limits._holds


class _Late:
    """A lock that another thread finds taken, just before it is free; or takes itself."""

    def __init__(self, limits: Any, acquired: Sequence[bool] = ()) -> None:
        self._lock, self._limits = limits._lock, limits
        self._late = [native_threads.ThreadLimit(2, exact=False)]
        self._acquired, self._is_owned = iter(acquired), self._lock._is_owned

    def acquire(self, *, blocking: bool) -> bool:
        return next(self._acquired, True) and bool(self._lock.acquire(blocking=blocking))

    def release(self) -> None:
        self._limits._over.extend(self._late)
        self._late = []
        self._lock.release()


def locked(file: int) -> bool:
    """Tell whether this process, or another one, has a part of a file locked."""
    asked = struct.pack("@hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    # Asked as the owner of an open file, to whom a lock of this process is another's.
    found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
    return struct.unpack_from("h", found) != (fcntl.F_UNLCK,)


class AtTheQueue(InSession):
    plan = parmap.plan("processes", workers=2)
    functions: ClassVar = [
        *(TaskQueue.take, TaskQueue._seize, TaskQueue.drop_from_idle, TaskQueue.abandon),
        *(TaskQueue.pids, TaskQueue.assign_next, TaskQueue._next_task, TaskQueue.add_worker),
        *(TaskQueue.remove, TaskQueue.late, TaskQueue.living, TaskQueue.named),
        *(TaskQueue.recall, recall.recall),
        *(BroadcastValues.put, BroadcastValues.drop, Deadlines.passed, Deadlines.add),
        *(Channel.give, Channel._give, Channel.forget, Channel.close),
        Worker.interrupt,
    ]

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with (
            tempfile.NamedTemporaryFile() as self.gate,
            # Only what is to be killed is, however slow a worker is to notice an interrupt.
            mock.patch.object(task_queue, "_GRACE", GUARD),
            super().open(),
        ):
            self._align()
            yield

    def run(self) -> None:
        self._more_tasks_than_workers()
        self._values_of_idle_workers()
        self._kill()
        assert self.session.executor.pids
        self._late(self.session.executor._queue)

    def _more_tasks_than_workers(self) -> None:
        """Have both workers wait, each with a task: however fast they are, the next are queued."""
        executor = self.session.executor
        large = executor.put(self.array)
        try:
            with closed(self.gate):
                first = [executor.submit(_later, self.gate.name, np.sum, large) for _ in range(2)]
                queued = [executor.submit(np.sum, large) for _ in range(3)]
                # That of the worker which stands last: the other one is looked at before.
                executor.abandon(first[0])
                queued[-1].cancel()
                self._recall(first[1])
            for future in [first[1], *queued[:-1]]:
                assert future.result(GUARD) == self.array.sum()
            wait(first, GUARD)
            executor.abandon(first[0])  # nobody has it any more
        finally:
            executor.drop(large)

    def _recall(self, future: Future[Any]) -> None:
        """Recall elements, as if the worker of this future had begun a chunk of nine."""
        executor, queue = self.session.executor, self.session.executor._queue
        while not future.running():  # a worker may have what a handler has submitted
            continue
        with queue._lock:
            tasks = {one.notes: one.task for one in queue._living.values() if one.task}
            (notes,) = (notes for notes, task in tasks.items() if task.future is future)
        for since, found in [(math.inf, (5, False)), (0.0, (1, True))]:
            os.pwrite(notes.fd, recall._STATE.pack(7, 1, 9, since), recall._AT)
            assert executor.recall(future, 8, only_slow=False) is None
            assert executor.recall(future, 7, only_slow=False) == found
        assert executor.recall(Future(), 7, only_slow=False) is None
        with mock.patch.object(recall, "lock", return_value=False):  # its worker has it
            assert executor.recall(future, 7, only_slow=False) is None

    def _values_of_idle_workers(self) -> None:
        """Have both workers know a value that goes, and hear of a folder that changes."""
        executor = self.session.executor
        executor.drop(executor._queue.broadcast.put([b"x"], inherit=True))
        executor.drop(executor.put(self.array))  # no worker has it
        small = executor.put([1, 2])
        assert self._both(len, small) == [2, 2]
        executor.drop(small)
        here = os.getcwd()
        os.chdir("/")
        try:  # with it a worker hears that the value is gone, and where it is
            assert self._both(abs, -1) == [1, 1]
        finally:
            os.chdir(here)

    def _both(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function in each of the two workers, which idle."""
        submit = self.session.executor.submit
        with closed(self.gate):
            futures = [submit(_later, self.gate.name, function, *args) for _ in range(2)]
        return [future.result(GUARD) for future in futures]

    def _kill(self) -> None:
        """Have a task killed that does not mind being interrupted."""
        executor = self.session.executor
        with tempfile.TemporaryDirectory() as folder:
            fifo = os.path.join(folder, "deaf")
            os.mkfifo(fifo)
            running = executor.submit(_deaf, fifo)
            with (
                open(fifo),  # else the interrupt might come before the task begins
                mock.patch.object(task_queue, "_GRACE", 0.0),
            ):
                executor.abandon(running)
            with contextlib.suppress(parmap.WorkerDied):
                running.result(GUARD)

    def _late(self, queue: TaskQueue) -> None:
        """Run through what only a late message, or a late writer, comes to."""
        while not (queue._idle and queue._idle[0].pid):
            continue
        idle = queue._idle[0]
        os.kill(idle.pid, signal.SIGKILL)
        while idle.number in queue._living:
            continue
        assert queue.living()
        late = self._unknown()
        late.leaving = True
        queue.assign_next(late)
        late.channel._writing = True
        late.channel.close()
        with queue._lock:
            queue.deadlines.entries.clear()
            assert not queue.late()

    def _unknown(self) -> Worker:
        """Give a worker whose number nobody knows yet, and whose channel is closed."""
        ours, theirs = socket.socketpair()
        with theirs:
            late = Worker(-1, 1, Channel(ours), Notes())
            late.notes.close()
            late.interrupt()
            late.channel.close()
            late.channel.give(Task(Future(), [b""], (), ()), {})
        return late

    def check(self) -> None:
        super().check()
        free(self.session.executor._queue._lock)
        self._align()
        living = self.session.executor._queue._living.values()
        assert len(living) == 2
        assert not any(locked(worker.notes.fd) for worker in living)

    def _align(self) -> None:
        """Bring the workers to where each run begins: both idle, in order, and told the same."""
        self._until_idle()
        self._both(abs, -1)
        self._until_idle()
        queue = self.session.executor._queue
        with queue._lock:
            queue._idle[:] = sorted(queue._idle, key=lambda worker: worker.number)

    def _until_idle(self) -> None:
        queue, never = self.session.executor._queue, threading.Event()
        while len(queue._idle) < 2 or queue._queue:
            never.wait(0.01)


class Interrupted(AtTheQueue):
    """The same where the caller's thread alone is struck at, and nothing else takes long."""

    functions: ClassVar = [
        *(TaskQueue.take, TaskQueue._seize, TaskQueue.drop_from_idle, TaskQueue.abandon),
        *(TaskQueue.pids, TaskQueue.recall, recall.recall, BroadcastValues.put),
        *(BroadcastValues.drop, Channel.give, Channel._give, Channel.forget, Worker.interrupt),
    ]
    kinds: ClassVar = ("handle", "interrupt")

    def run(self) -> None:
        self._more_tasks_than_workers()
        self._values_of_idle_workers()
        assert self.session.executor.pids
        self._unknown()


class Driven(InSession):
    """A small map, whose caller hears the worker: the worker waits until it does."""

    plan = parmap.plan("processes", workers=1)
    functions: ClassVar = [
        *(
            Driving.drive,
            Driving._drive,
            Driving._take_over,
            Driving._hear,
            Driving._answered,
            Driving._release,
        ),
        *(TaskQueue.with_tasks, TaskQueue.begin_reading, TaskQueue.answered),
        *(small_map, SmallMap.values, SmallMap.abandon),
    ]
    kinds: ClassVar = ("handle", "interrupt")

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        self.stock = []  # where there are handles, no map is small
        with tempfile.NamedTemporaryFile() as self.gate, self.plan as self.session:
            yield

    def run(self) -> None:
        session = self.session
        with self._opened_by_a_poll():
            self._all(self._sent(abs))
        with self._opened_by_a_poll():
            small = self._sent(abs)
            session.executor.submit(abs, -2)  # which waits: the worker goes back to the pool
            self._all(small)
        with self._opened_by_a_poll():
            self._all(self._sent(os._exit))
        assert session.submit(abs, -5).result(GUARD) == 5  # there is another worker
        with closed(self.gate):
            small = self._sent(abs)
            session.drive(small.sent, seconds=0.0)
        self._all(small)
        with closed(self.gate):
            self._sent(abs).abandon()
        for others in ({1}, range(small_calls._MOST + 1), [()], [[]], range(0)):
            assert not small_map(SmallMap(session), abs, (others,), star=False)
        draws = SmallMap(session)
        assert not small_map(draws, lambda x: random.random() + x, ([1],), star=False)
        for star, elements in ((True, [(-1,)]), (False, range(-2, 0))):
            self._all(self._begun(abs, elements, star=star))
        small_calls._paces.update(dict.fromkeys(range(small_calls._MOST_PACES), 1.0))
        for _ in range(2):  # the second knows how quick it was
            self._all(self._begun(lambda x: x, [1], star=False))
        with contextlib.closing(Driving(session.executor._queue, selectors.SelectSelector())) as no:
            no.drive(small.sent, seconds=GUARD)

    def _sent(self, function: Callable[[int], Any]) -> SmallMap:
        later = functools.partial(_later, self.gate.name, function)
        return self._begun(later, [-1], star=False)

    def _begun(self, function: Callable[..., Any], elements: Any, *, star: bool) -> SmallMap:
        small = SmallMap(self.session)
        try:
            assert small_map(small, function, (elements,), star=star)
        except BaseException:
            small.abandon()
            raise
        return small

    def _all(self, small: SmallMap) -> None:
        """Get the result; None if what a handler has submitted came before, or the worker died."""
        try:
            assert small.values() in ([1], [2, 1], None)
        except BaseException:
            small.abandon()
            raise
        wait(small.sent, GUARD)

    @contextlib.contextmanager
    def _opened_by_a_poll(self) -> Iterator[None]:
        poll = select.poll

        def opened() -> Any:
            fcntl.flock(self.gate, fcntl.LOCK_UN)
            return poll()

        with closed(self.gate), mock.patch.object(select, "poll", opened):
            yield


def _later(gate: str, function: Callable[..., Any], *args: Any) -> Any:
    with open(gate) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    return function(*args)


def _deaf(fifo: str = os.devnull) -> None:
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            with open(fifo, "w"):
                pass
            threading.Event().wait()


class Beginning(Section):
    functions: ClassVar = [ProcessExecutor._begin, ProcessExecutor._begin_once]

    def run(self) -> None:
        self.executor = ProcessExecutor(1, start="fork")
        assert self.executor.submit(abs, -1).result(GUARD) == 1
        self.executor._begin()
        self.executor._pool_thread.begun = False
        self.executor._begins = True
        self.executor._begin()  # as a finalizer in the middle of it
        self.executor._begins = False
        self.executor._pool_thread.begun = True
        self.executor._begin_once()

    def strike(self) -> None:
        begins = self.executor._begins or self.executor._pool_thread.begun
        garbage(Finalizer(self._submit if begins else list))

    def _submit(self) -> None:
        self.futures.append(self.executor.submit(abs, -2))

    def check(self) -> None:
        assert self.executor.submit(abs, -3).result(GUARD) == 3
        assert [future.result(GUARD) for future in self.futures] == [2] * len(self.futures)
        self.executor.shutdown()
        self.futures.clear()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        self.futures: list[Future[int]] = []
        yield


class Ends(Section):
    ended: list[bool]
    elsewhere: ClassVar = [OnceFuture.resolve]
    functions: ClassVar = [
        *(PendingFutures.add, PendingFutures.close, PendingFutures._finish),
        *(OnceFuture.resolve, _Right.take),
    ]

    def run(self) -> None:
        self.ended = []
        # In C, so that an interrupt finds it not begun, or over.
        self.tasks = PendingFutures(functools.partial(self.ended.append, True))
        for x in range(3):
            once = OnceFuture()
            self.tasks.add(once.future)
            if not x:
                once.future.cancel()
            thread = threading.Thread(target=self._resolve, args=(once, x))
            thread.start()
            thread.join()
        left: Future[None] = Future()
        self.tasks.add(left)
        self.tasks.close(wait=False, cancel=True)
        left.set_running_or_notify_cancel()
        self.tasks.close(wait=True, cancel=False)
        other = PendingFutures(list)
        other.close(wait=True, cancel=True)
        with contextlib.suppress(RuntimeError):
            other.add(Future())

    def _resolve(self, once: OnceFuture, x: int) -> None:
        if x:
            once.resolve(x, ValueError() if x == 1 else None)
        once.resolve(x)

    def strike(self) -> None:
        future: Future[None] = Future()
        with contextlib.suppress(RuntimeError):
            self.tasks.add(future)
        garbage(Finalizer(future.cancel), Finalizer(lambda: PendingFutures(list).add(Future())))

    def check(self) -> None:
        self.tasks.close(wait=True, cancel=True)
        assert self.ended == [True]
        # An interrupt in the middle of `cancel` keeps its other callbacks from being called.
        assert all(future.cancelled() for future in self.tasks._futures)
        assert self.tasks._over.acquire(blocking=False)


class Placing(InSession):
    plan = parmap.plan("processes", workers=1)
    functions: ClassVar = [
        *(Values.broadcast, Values.add, Values.forget, Values._until_gone, Values._leave),
    ]

    def run(self) -> None:
        values = self.session._values
        handle = parmap.share(list(range(10)))
        for _ in range(2):
            assert parmap.pmap(_summed, [handle, handle], [1, 2]) == [46, 47]
        values._leave(handle.key, _Broadcasting())
        del handle
        other = parmap.share([1])
        values._broadcast[other.key] = _GivenUp(values, other.key)
        assert self.session._values.broadcast(other)
        values.add(kept := parmap.share([2]), self.session.executor.put([2]))
        assert kept
        closed = Values(self.session._backend, self.session.traits)
        closed.close()
        closed.forget(kept.key, _Broadcasting())

    def check(self) -> None:
        self.stock.clear()
        super().check()
        assert all(placing.done() for placing in self.session._values._broadcast.values())


def _summed(numbers: list[int], x: int) -> int:
    return sum(numbers) + x


class _GivenUp(_Broadcasting):
    """Another thread's attempt, which fails as soon as somebody waits for it."""

    mine = False  # type: ignore[assignment]

    def __init__(self, values: Values, key: Any) -> None:
        super().__init__()
        self._give_up = lambda: values._broadcast.pop(key, None)

    def exception(self, timeout: float | None = None) -> BaseException:
        self._give_up()
        return ValueError()


_Torch = SimpleNamespace(seed=bool, mark=int, states=list, restore=bool, is_within=lambda *_: True)


class Generators(Section):
    functions: ClassVar = [
        random_state.isolated_rng,
        random_state._swapped,
        random_state._Own.python,
        random_state._Own.numpy,
    ]

    def run(self) -> None:
        import random

        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        np.random.normal()  # noqa: NPY002 - half of a pair is kept, which a swap must bring back
        self.before = self._states()
        with random_state.isolated_rng(load=True):
            random.random()
            np.random.random()  # noqa: NPY002
        torch_of, torch = random_state.torch_of, [None, _Torch]
        random_state.torch_of = lambda: torch.pop(0) if torch else None  # loaded by the block
        random_state._spare.clear()
        with random_state.isolated_rng():
            pass
        random_state.torch_of = torch_of
        with random_state.isolated_rng(seed=5):
            random.random()
        with random_state._Own().python(random), random_state._Own().numpy(np.random):
            pass
        with (
            random_state.isolated_rng(),
            random_state._Own().python(None),
            random_state._Own().numpy(None),
        ):
            np.random.normal()  # noqa: NPY002 - one of a pair
        np.random.normal()  # noqa: NPY002
        self.before = self._states()
        with random_state.isolated_rng():
            pass
        self._beside()

    def _beside(self) -> None:
        """Run through what happens while another thread has the turn."""
        entered, leave = threading.Event(), threading.Event()

        def elsewhere() -> None:
            with random_state.isolated_rng():
                entered.set()
                leave.wait()

        thread = threading.Thread(target=elsewhere)
        thread.start()
        try:
            entered.wait()
            with random_state.isolated_rng():
                pass
            with contextlib.suppress(RuntimeError), random_state.isolated_rng(load=True):
                pass
        finally:
            leave.set()
            thread.join()

    def strike(self) -> None:
        garbage(Finalizer(self._nested))

    def _nested(self) -> None:
        with parmap.plan("sequential"):
            parmap.pmap(abs, [-1])

    def check(self) -> None:
        assert not random_state._turn
        assert self._states() == self.before

    def _states(self) -> object:
        """Read both generators, with the half of a pair of normals that NumPy's keeps."""
        import random

        _, key, *rest = np.random.get_state()  # noqa: NPY002
        return random.getstate(), key.tolist(), rest


class SetUp(Section):
    functions: ClassVar = [setup.prepared]

    def run(self) -> None:
        setup._ran.clear()
        # As another process sends it: its own would come with one of the keys of this process.
        key = b"elsewhere", 1
        self.setup = CachedPayload(key, cached_payload(_set_up, "setup").payload)
        assert setup.prepared(self.setup, abs, -1) == 1
        assert setup.prepared(self.setup, abs, -1) == 1

    def strike(self) -> None:
        garbage(Finalizer(lambda: setup.prepared(self.setup, abs, -1)))

    def check(self) -> None:
        free(setup._lock)
        assert setup.prepared(self.setup, abs, -2) == 2


def _set_up() -> None:
    parmap.pmap(abs, [-1])


class Once(Section):
    """What is computed once in each worker: with a session, and before there is one."""

    functions: ClassVar = [OncePerWorker.__call__, OncePerWorker._result, OncePerWorker._earlier]

    def run(self) -> None:
        context.kept.clear()
        self.table = parmap.once_per_worker(_table)
        parmap.once_per_worker(_other_table)()
        # As the worker unpickles it for another call.
        again = parmap.once_per_worker(FunctionType(_table.__code__.replace(), globals(), "_table"))
        before = self.table()
        assert self._in_session(again) is before  # the first session takes it over
        assert self._in_session(again) is not before
        before = self.table()
        threaded = context.threaded.set(True)
        try:
            assert self._in_session(again) is before
        finally:
            context.threaded.reset(threaded)

    def _in_session(self, table: Callable[[], Any]) -> Any:
        token = context.session.set(fresh_key())
        try:
            found = table()
            assert found is table()
            return found
        finally:
            context.session.reset(token)

    def strike(self) -> None:
        garbage(Finalizer(parmap.once_per_worker(_other_table)))

    def check(self) -> None:
        for kept in context.kept.values():
            for result in kept.values():
                free(result.lock)
        assert self.table() == [1]


def _table() -> list[int]:
    return [1]


def _other_table() -> list[int]:
    return [2]


class Classes(Section):
    """A class of the script is made in a worker, and its base does not hear of it."""

    functions: ClassVar = [functions._unheard, functions._hear_again]

    def __init__(self) -> None:
        heard = self.heard = list[type]()

        class Base:
            def __init_subclass__(cls) -> None:
                heard.append(cls)

        self.base = Base

    def run(self) -> None:
        self._made("Run")

    def strike(self) -> None:
        garbage(Finalizer(lambda: self._made("Struck")))

    def _made(self, name: str) -> None:
        with functions._unheard((self.base,), {self.base: None}):
            type(name, (self.base,), {})

    def check(self) -> None:
        free(functions._hearing)
        assert not self.heard
        type("Heard", (self.base,), {})
        assert self.heard.pop().__name__ == "Heard"


class ProcessWide(Section):
    functions: ClassVar = [
        current._ProcessWide.get,
        current._ProcessWide.set,
        current._ProcessWide.session,
    ]

    def run(self) -> None:
        current._process = current._ProcessWide()
        before = parmap.current_plan()
        parmap.set_plan("threads", workers=2)
        assert parmap.pmap(abs, [-1]) == [1]
        for _ in range(2):  # the second changes nothing
            parmap.set_plan(before)
        os.environ["PARMAP_PLAN"] = "sequential"
        current._process = current._ProcessWide()
        assert parmap.pmap(abs, [-1]) == [1]
        del os.environ["PARMAP_PLAN"]

    def strike(self) -> None:
        garbage(Finalizer(lambda: parmap.pmap(abs, [-1])))

    def check(self) -> None:
        free(current._process._lock)
        assert parmap.pmap(abs, [-1, -2]) == [1, 2]


_SETTER = signal.signal


class Importing(Section):
    functions: ClassVar = [registry.require, registry._import]

    def run(self) -> None:
        self._again("colorsys")
        self._again("colorsys", pop=False)
        try:
            registry.require("no_such_engine", "mine")
        except parmap.BackendUnavailable:
            self.refused += 1

    refused = 0

    def strike(self) -> None:
        garbage(Finalizer(lambda: self._again("stringprep")))

    def _again(self, module: str, *, pop: bool = True) -> None:
        if pop:
            sys.modules.pop(module, None)
        assert registry.require(module, "mine").__name__ == module

    def check(self) -> None:
        free(registry._importing)
        assert signal.signal is _SETTER


class Speaking(Section):
    functions: ClassVar = [Agent._say]
    kinds: ClassVar = ("collect",)

    def run(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as self.out:
            Agent({})._say(host="a")
            Agent({}, lined=False)._say(host="a")

    def strike(self) -> None:
        garbage(Finalizer(list))

    def check(self) -> None:
        assert self.out.getvalue() == '{"host": "a"}\n'


def joblib_section() -> Section:
    from parmap.backends.joblib.cancelled import CancelledTasks
    from parmap.backends.joblib.instance import BackendInstance
    from parmap.backends.joblib.plan import JoblibExecutor
    from parmap.backends.joblib.tasks_out import TasksOut

    class Joblib(InSession):
        plan = parmap.plan("joblib", backend="threading", workers=2, setup=int)
        functions: ClassVar = [
            *(JoblibExecutor.send, JoblibExecutor._again),
            *(JoblibExecutor._take, JoblibExecutor._replaced),
            *(BackendInstance.take, BackendInstance.end, BackendInstance._break),
            *(BackendInstance._let_go, BackendInstance._late),
            *(TasksOut.add, TasksOut.remove, TasksOut.break_off),
            *(TasksOut.spend, TasksOut.move, TasksOut.may_end, TasksOut._taken_out),
        ]

        def run(self) -> None:
            executor = self.session.executor
            assert executor.submit(abs, -1).result(GUARD) == 1
            assert executor.submit(int, "11", base=2).result(GUARD) == 3
            self._break(executor)  # it is begun anew
            instance = executor._instance
            instance._cancelled = CancelledTasks(instance._late)
            instance._break([])
            instance.end()
            instance.end()
            assert executor.submit(abs, -1).result(GUARD) == 1
            self._break(executor, self.dead)
            self._refused(executor)
            self._moved(executor)
            self._begun_meanwhile(executor)
            with closed(self.gate):  # else it may be done before `submit` returns
                last = self.other.submit(_later, self.gate.name, abs, -1)
            assert last.result(GUARD) == 1

        def _break(self, executor: Any, *dead: Any) -> None:
            """Have nothing out fail: a future has its result before its task is let go."""
            while executor._instance._tasks:
                continue
            executor._instance._break([*dead])

        def _begun_meanwhile(self, executor: Any) -> None:
            """Run through what `_replaced` comes to when a finalizer submits in `_begin`."""
            begin = executor._begin

            def beginning() -> BackendInstance:
                executor._begin = begin
                assert executor.submit(abs, -6)
                return begin()

            self._break(executor)
            executor._begin = beginning
            try:
                assert executor.submit(abs, -5).result(GUARD) == 5
            finally:
                executor._begin = begin

        def _refused(self, executor: Any) -> None:
            """Run through what `_again` comes to when backends do not take a task."""
            begin = executor._begin
            for error in (ValueError, RuntimeError):  # after this one it tries the next
                once = OnceFuture()

                def beginning(
                    once: OnceFuture = once, error: type[Exception] = error
                ) -> BackendInstance:
                    return _refusing(begin(), once, error)

                executor._begin = beginning
                try:
                    self._break(executor)
                    executor._again(once, abs, -1)
                    why = once.future.exception(GUARD)
                    assert isinstance(why, (error, KeyboardInterrupt))
                finally:
                    executor._begin = begin
                    executor._instance._break([])

        def _moved(self, executor: Any) -> None:
            """Run through what the thread of `CancelledTasks` comes to, as both workers run on."""
            assert executor.submit(abs, -1).result(GUARD) == 1
            instance, held, moved = executor._instance, threading.Event(), OnceFuture()
            instance._cancelled = cancelled = CancelledTasks(lambda _: False)
            try:
                assert not instance._late(0)
                for stray in (OnceFuture(), OnceFuture()):
                    instance.take(stray, held.wait)
                    while not stray.future.running():
                        continue
                instance.take(moved, abs, -4)
                assert not instance._late(1)
                assert instance._late(2)
                assert instance._late(2)
                executor._again(moved, abs, -4)
                assert moved.future.result(GUARD) == 4
                executor._again(moved, abs, -4)  # done
            finally:
                held.set()
                cancelled.end()

        @contextlib.contextmanager
        def open(self) -> Iterator[None]:
            self.dead = multiprocessing.get_context("spawn").Process(target=int)
            self.dead.start()
            self.dead.join()
            with (
                tempfile.NamedTemporaryFile() as self.gate,
                parmap.plan("joblib", workers=2).start() as self.other,
                super().open(),
            ):
                yield

        def check(self) -> None:
            super().check()
            free(self.session.executor._lock)
            # An interrupt in a future's callback leaves its task out.
            self.session.executor._instance._break([])

    return Joblib()


def _refusing(instance: Any, once: OnceFuture, error: type[Exception]) -> Any:
    """Have a backend refuse one task, and no other."""
    backend = instance._backend
    submit = backend._submit

    def refuse(batch: Any, *args: Any) -> Any:
        if getattr(batch.items[0][0], "__self__", None) is once:
            raise error
        return submit(batch, *args)

    backend._submit = refuse
    return instance


def ray_section() -> Section:
    import ray

    from parmap.backends.ray import runtime
    from parmap.backends.ray.executor import RayExecutor
    from parmap.backends.ray.resolver import ResolverThread
    from parmap.backends.ray.tasks import LimitedTasks, RayTask

    class Ray(InSession):
        # Ray has room for two of its tasks; so one waits here while another is out.
        plan = parmap.plan("ray", workers=1, num_cpus=0.5)
        functions: ClassVar = [
            *(RayExecutor.send, ResolverThread.stop, ResolverThread._take_back),
            *(ResolverThread._runs, ResolverThread._resolve),
            *(LimitedTasks.admit, LimitedTasks._is_full, LimitedTasks.replace),
            *(LimitedTasks.remove_waiting, runtime.enter, runtime._leave),
        ]
        kinds: ClassVar = ("collect",)

        @contextlib.contextmanager
        def open(self) -> Iterator[None]:
            with tempfile.NamedTemporaryFile() as self.gate, super().open():
                yield

        def run(self) -> None:
            submit = self.session.executor.submit
            assert submit(abs, -1).result(GUARD) == 1
            assert self.session.executor.send(int, "11", base=2).result(GUARD) == 3
            with closed(self.gate):
                out = [submit(_later, self.gate.name, abs, -1) for _ in range(4)]
                out[2].cancel()  # it waits, like the next
                wait([out[2]], GUARD)
            assert out[3].result(GUARD) == 1
            running = submit(_deaf)
            while not any(task.ref for task in self.session.executor._tasks.out.copy()):
                continue
            running.cancel()
            unsent = RayTask(abs, (-1,))
            unsent.future.cancel()
            self.session.executor._thread.stop(unsent, unsent.future)
            assert submit(abs, -2).result(GUARD) == 2
            with self.plan:
                pass
            self._entered()

        def _entered(self) -> None:
            """Run through what comes of a Ray that is ours, the user's, or elsewhere."""
            with contextlib.suppress(parmap.PlanError):
                runtime.enter(ray, self.plan.replace(address="elsewhere:1"))
            before, runtime._runtime = runtime._runtime, None
            try:
                leave, _ = runtime.enter(ray, self.plan)
                leave()
                absent = SimpleNamespace(is_initialized=bool, init=dict, shutdown=list)
                leave, ours = runtime.enter(absent, self.plan)
                assert ours
                leave()
            finally:
                runtime._runtime = before

        def check(self) -> None:
            super().check()
            free(self.session.executor._tasks._lock)
            free(runtime._lock)

    return Ray()


SECTIONS: dict[str, Callable[[], Section]] = {
    "limits": Limits,
    "restored": Restored,
    "queue": AtTheQueue,
    "interrupted": Interrupted,
    "driven": Driven,
    "beginning": Beginning,
    "ends": Ends,
    "placing": Placing,
    "generators": Generators,
    "setup": SetUp,
    "once": Once,
    "classes": Classes,
    "process-wide": ProcessWide,
    "importing": Importing,
    "speaking": Speaking,
    "joblib": joblib_section,
    "ray": ray_section,
}


def main(name: str, kind: str) -> None:
    """Sweep, and write what was hit: ``{function: [hit, all]}``."""
    guard()
    section = SECTIONS[name]()
    wrong: list[Any] = []
    sys.unraisablehook = lambda what: wrong.append(what.exc_value)
    threading.excepthook = lambda what: wrong.append(what.exc_value)
    unreached = section.elsewhere if kind != "collect" else []
    functions = [one for one in section.functions if one not in unreached]
    sweep = Sweep(functions, section.strike)
    if kind == "collect":
        with sweep.collecting(), section.open():
            # Until nothing new is struck at: what strikes at one step changes the way to the next.
            before = None
            while before != sweep.report():
                before = sweep.report()
                with sweep.striking():
                    section.run()
                section.check()
    else:
        with section.open():
            act = section.strike if kind == "handle" else _interrupt

            def once() -> None:
                with contextlib.suppress(KeyboardInterrupt):
                    section.run()
                    len("")  # after a call, a signal of the very last step arrives
                sys.settrace(None)  # a step that did not come now does not count
                section.check()

            sweep.signalling(section.run, once, act)
    if kind == "interrupt":  # in a finalizer it ends nothing else: Python writes it, and goes on
        wrong = [error for error in wrong if not isinstance(error, KeyboardInterrupt)]
    wrong += sweep.failures
    if wrong:
        raise BaseExceptionGroup("in finalizers and threads", wrong)
    if "--missed" in sys.argv:
        print(json.dumps(sweep.missed(), indent=1))
    print(json.dumps(sweep.report()))


def _interrupt() -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(*sys.argv[1:3])
