"""What an executor may have beyond PEP 3148, as a third party's has it or lacks it."""

import ast
import pickle
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import parmap
from parmap.backends.inline import SequentialExecutor
from parmap.backends.processes.executor import ProcessExecutor
from parmap.backends.threads import ThreadExecutor
from parmap.plans import registry

EXTRAS = {"traits", "workers", "per_node", "resolver", "dashboard"}
METHODS = {"put", "drop", "run_remote", "abandon", "recall"}
OPTIONAL = {"drive"}  # of no trait


class Bare:
    """Nothing but PEP 3148. Each task runs on copies of its arguments, as in another process."""

    def __init__(self):
        self.open, self.tasks = True, 0
        self._pool = ThreadPoolExecutor(2)

    def submit(self, fn, /, *args, **kwargs):
        self.tasks += 1
        return self._pool.submit(_copied, cloudpickle.dumps((fn, self.sent(args), kwargs)))

    def sent(self, args):
        return args

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.open = False
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)


def _copied(packed):
    fn, args, kwargs = pickle.loads(packed)
    return fn(*args, **kwargs)


class Reference:
    """What stands for a value that was put."""

    def __init__(self, value):
        self.value = value


class Placing(Bare):
    """Puts values in a place, of which tasks take them."""

    traits = parmap.Traits(places=True, keeps=True, abandons=True, recalls=True)
    workers, per_node, dashboard = 3, 1, "http://page"

    def __init__(self):
        super().__init__()
        self.placed, self.dropped, self.kept, self.abandoned = [], [], [], []
        self.recalled, self.driven = [], []

    def sent(self, args):
        return [pickle.loads(arg.value) if type(arg) is Reference else arg for arg in args]

    def put(self, value):
        self.placed.append(Reference(pickle.dumps(value)))
        return self.placed[-1]

    def drop(self, reference):
        self.dropped.append(reference)

    def run_remote(self, made, fn, /, *args):
        outer = Future()

        def keep(inner):
            self.kept.append(Reference(pickle.dumps(inner.result())))
            outer.set_result(made(self.kept[-1]))

        self.submit(fn, *args).add_done_callback(keep)
        return outer

    def abandon(self, future):
        self.abandoned.append(future)

    def drive(self, futures, /, *, seconds):
        self.driven.append(seconds)

    def recall(self, future, chunk, *, only_slow):
        self.recalled.append((chunk, only_slow))


@dataclass(frozen=True, kw_only=True)
class Given(parmap.Plan):
    """Has the executor that a test makes."""

    name = "given"
    executor: Any = field(default=None)

    def start(self):
        return self.executor


def test_an_executor_of_pep_3148_needs_no_more():
    executor = Bare()
    array = np.arange(5.0)
    with Given(executor=executor, workers=2) as session:
        assert session.executor is executor
        assert (session.workers, session.dashboard) == (2, None)
        assert session.traits == parmap.Traits()
        assert parmap.pmap(lambda x: x + 1, range(10), chunks=2) == list(range(1, 11))
        assert session.submit(abs, -1).result() == 1
        assert parmap.pmap(np.dot, [parmap.share(array)] * 2, [array, array]) == [30, 30]
        assert executor.tasks > 3
    assert not executor.open


def test_a_plan_s_traits_are_those_of_an_executor_without():
    @dataclass(frozen=True, kw_only=True)
    class Near(Given):
        traits = parmap.Traits(shares_memory=True)

    with Near(executor=ThreadPoolExecutor(2), workers=2) as session:
        assert session.traits.shares_memory
        thing = object()
        assert parmap.pmap(lambda x: x, [thing])[0] is thing


def test_each_extra_is_asked_for():
    executor = Placing()
    with Given(executor=executor, workers=2) as session:
        assert (session.workers, session.dashboard) == (3, "http://page")
        assert session.traits is executor.traits
        assert session.core_share.cores == parmap.available_cores()  # one worker on a machine
        executor.workers = 4
        assert session.workers == 4
        assert parmap.pmap(lambda x: x + 1, range(10), chunks=2) == list(range(1, 11))
        assert len(executor.placed) == 1  # the spec
        assert executor.dropped == executor.placed


def test_a_small_map_is_waited_for_by_the_executor():
    executor = Placing()
    with Given(executor=executor, workers=2):
        assert parmap.pmap(abs, [-1, -2]) == [1, 2]
    assert len(executor.driven) == 1
    assert executor.placed == executor.dropped


def test_a_shared_value_is_put_once_and_dropped():
    executor = Placing()
    with Given(executor=executor, workers=2):
        handle = parmap.share(np.arange(5))
        assert parmap.pmap(lambda x, i: int(x[i]), [handle] * 4, range(4), chunks=1) == [0, 1, 2, 3]
        assert parmap.pmap(lambda x, i: int(x[i]), [handle] * 2, range(2), chunks=1) == [0, 1]
        assert len(executor.placed) == 3  # two specs, and the value
        del handle
        assert set(executor.dropped) == set(executor.placed)


def test_arrays_that_were_put_are_read_only():
    with Given(executor=Placing(), workers=2):
        assert not any(parmap.pmap(lambda x: x.flags.writeable, [parmap.share(np.arange(5))] * 2))


def test_a_value_that_cannot_be_packed_is_named_whatever_the_executor_would_say():
    with Given(executor=Placing(), workers=2):
        handle = parmap.share({"a": [threading.Lock()]})
        with pytest.raises(parmap.SerializationError, match=r"share\(\.\.\.\)\['a'\]\[0\]"):
            parmap.pmap(len, [handle])


def test_results_stay_where_the_executor_keeps_them():
    executor = Placing()
    with Given(executor=executor, workers=2):
        inner = parmap.delayed(lambda: [1, 2])()
        ends = [parmap.delayed(fn)(inner) for fn in (sum, len)]  # a chain would be one task
        assert parmap.compute(*ends) == (3, 2)
        assert len(executor.kept) == 1


def test_a_task_that_nobody_needs_is_abandoned():
    executor, begun, over = Placing(), threading.Event(), threading.Event()
    _events.update(begun=begun, over=over)
    with Given(executor=executor, workers=2) as session:
        future = session.submit(_waits)
        assert begun.wait(60)
        future.cancel()
        assert len(executor.abandoned) == 1
        over.set()


_events = {}


def _waits():
    _events["begun"].set()
    _events["over"].wait(60)


def test_a_call_that_would_wait_in_the_resolver_is_refused():
    executor = Bare()
    executor.resolver = threading.get_ident()
    with Given(executor=executor, workers=2) as session:
        with pytest.raises(parmap.ParmapError, match="would wait forever"):
            parmap.pmap(abs, [1])
        assert session.submit(abs, -1).result() == 1
        executor.resolver = None
        assert parmap.pmap(abs, [-1]) == [1]


def lacking(name):
    executor = Placing()
    kind = type("Lacking", (Bare,), {n: getattr(Placing, n) for n in METHODS - {name}})
    executor.__class__ = kind
    executor.traits = Placing.traits
    return executor


def having(**extras):
    executor = Bare()
    vars(executor).update(extras)
    return executor


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        (having(traits={"places": True}), r"traits=\{'places': True\}: give it parmap.Traits"),
        (having(traits=parmap.Traits(keeps=True), run_remote=len), "without places=True"),
        (having(traits=parmap.Traits(abandons=True), abandon=True), "no method abandon"),
        (having(workers=[1, 2]), r"workers=\[1, 2\]: give a whole number of at least 1"),
        (having(workers=0), "workers=0: give a whole number"),
        (having(workers=1.5), "workers=1.5: give a whole number"),
        (having(per_node=-1), "per_node=-1: give a whole number"),
        (having(resolver=threading.current_thread()), "resolver=<.*: give a whole number"),
        *[(lacking(name), f"no method {name}") for name in sorted(METHODS)],
    ],
    ids=lambda one: one if type(one) is str else "executor",
)
def test_what_is_wrong_is_refused_when_a_session_begins(executor, message):
    with (
        pytest.raises(parmap.PlanError, match=message),
        Given(executor=executor, workers=2),
    ):
        pass
    assert not executor.open


def test_an_executor_that_derives_from_the_protocol_must_still_have_what_it_promises():
    class Promising(Executor, parmap.Backend):
        traits = parmap.Traits(places=True)

    with pytest.raises(parmap.PlanError, match="places=True in its traits, and no method put"):
        registry.backend(Promising(), parmap.plan("sequential"))


@pytest.mark.parametrize("kind", [SequentialExecutor, ThreadExecutor, ProcessExecutor])
def test_parmap_s_own_executors_have_all_extras_and_are_wrapped_in_nothing(kind):
    plan = parmap.plan("threads", workers=1)
    executor = kind() if kind is SequentialExecutor else kind(1, None)
    try:
        assert registry.backend(executor, plan) is executor
    finally:
        executor.shutdown()


def test_each_extra_is_documented_with_its_default():
    public = {name for name in vars(parmap.Backend) if not name.startswith("_")}
    assert public == EXTRAS | METHODS | OPTIONAL | {"submit", "shutdown"}
    for name in EXTRAS:
        assert f"    {name} : " in parmap.Backend.__doc__
    for name in METHODS | OPTIONAL:
        assert "Default:" in getattr(parmap.Backend, name).__doc__


def test_only_the_registry_looks_for_what_an_executor_has():
    for name in ("session", "placement", "lent"):
        path = Path(registry.__file__).with_name(f"{name}.py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                looks = node.func.id in {"getattr", "hasattr"}
                assert not looks or ast.unparse(node.args[0]) == "self", ast.unparse(node)
