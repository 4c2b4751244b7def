"""What calls cost, counted: messages, bytes, Python calls, imports. Never seconds.

The benchmarks measure time; these tests notice on any machine, however busy, when a call begins to
do more than it did.
"""

import functools
import logging
import operator
import os
import subprocess
import sys
import warnings

import pytest

import parmap
from parmap.backends.processes import handles
from parmap.backends.processes.protocol import Kind, size
from parmap.engine.callspec import spec_for
from parmap.engine.script_settings import taken
from parmap.engine.settings import Settings
from parmap.plans.placement import packed
from parmap.transport.messages import CallSpec, Chunk
from parmap.worker import environment, warning_filters
from parmap.worker.run import run_chunk


def square(x):
    return x * x


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    """Have what a script has that sets nothing: pytest's filters would travel with each call."""
    monkeypatch.setattr(parmap, "_environ_at_import", dict(environment.raw()))
    monkeypatch.setattr(environment, "_changed", set())
    monkeypatch.setattr(logging.root.manager, "loggerDict", {})  # other tests load libraries
    with warnings.catch_warnings():
        warnings.filters[:] = warning_filters.USUAL
        yield


@pytest.fixture
def written(monkeypatch):
    """Give a list that gets each write to a worker: its messages' kinds, and its bytes."""
    writes, send = [], handles.send

    def counted(channel, *messages):
        kinds = [kind for kind, _, _ in messages]
        writes.append((kinds, sum(size(frame) for _, _, frames in messages for frame in frames)))
        send(channel, *messages)

    monkeypatch.setattr(handles, "send", counted)
    return writes


def opened(path, mode="r"):
    with open(path, mode):
        pass


@pytest.fixture
def session(tmp_path):
    meeting = tmp_path / "meeting"
    os.mkfifo(meeting)
    with parmap.plan("processes", workers=2) as session:
        # Each waits for the other. So both workers have had a task, and know where they are.
        tasks = [session.submit(opened, os.fspath(meeting), mode) for mode in "rw"]
        assert [task.result() for task in tasks] == [None, None]
        assert parmap.pmap(square, range(64), chunks=1) == [x * x for x in range(64)]
        yield session


def test_one_call_is_one_small_message(session, written):
    for _ in range(10):
        session.submit(abs, -1).result()
    sent = [[kind for kind in kinds if kind is not Kind.DROP] for kinds, _ in written]
    assert sent == [[Kind.TASK]] * 10
    assert max(count for _, count in written) < 700


def test_a_map_of_two_is_a_message_for_each(session, written):
    parmap.pmap(abs, [-1, -2])
    # To drop what was broadcast before goes with a worker's next task, whenever that is.
    sent = [[kind for kind in kinds if kind is not Kind.DROP] for kinds, _ in written]
    assert sent == [[Kind.TASK]] * 2


def test_a_chunk_is_one_write_and_a_range_travels_as_a_range(session, written):
    parmap.pmap(square, range(100_000), chunks=1000)
    tasks = [write for write in written if Kind.TASK in write[0]]
    assert len(tasks) == len(written) == 100
    # The function goes to each worker once; what was dropped before goes with another message.
    assert 1 <= sum(Kind.BROADCAST in kinds for kinds, _ in written) <= 2
    assert max(count for kinds, count in tasks if kinds == [Kind.TASK]) < 400


def python_calls(call):
    """Count the calls of Python functions in this thread."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("plan", ["processes", "threads", "sequential"])
def test_an_element_costs_the_caller_no_call(plan):
    """Twenty chunks cost what they cost, however many elements are in them."""
    with parmap.plan(plan, **({} if plan == "sequential" else {"workers": 1})):
        parmap.pmap(abs, range(20), chunks=1)
        few = python_calls(lambda: parmap.pmap(abs, range(200), chunks=10))
        many = python_calls(lambda: parmap.pmap(abs, range(200_000), chunks=10_000))
    # Some of the calls depend on who is first, the worker or the caller.
    assert abs(many - few) < 200
    assert few < 4000


# How many calls of parmap's functions, which functions, and in how many files, one `pmap` of one
# chunk passes in the caller's thread. On a busy machine, one on processes waits a little more.
PASSED = {
    "sequential": (144, 109, 24),
    "threads": (195, 122, 24),
    "processes": (181, 135, 28),
    "a small map": (79, 68, 20),
}
# One that waits for its answer passes some more: the least of several calls counts. In an
# interpreter of its own: what others have loaded is looked at, too.
PASS = """
    import os, sys
    import parmap

    home = os.path.dirname(parmap.__file__) + os.sep

    def square(x):
        return x * x

    def passed(call):
        codes = []

        def profile(frame, event, argument):
            if event == "call" and frame.f_code.co_filename.startswith(home):
                codes.append(frame.f_code)

        sys.setprofile(profile)
        try:
            call()
        finally:
            sys.setprofile(None)
        return len(codes), len(set(codes)), len({code.co_filename for code in codes})

    name, options = sys.argv[1], {"chunks": 3}
    if name == "a small map":
        name, options = "processes", {}
    with parmap.plan(name, **({} if name == "sequential" else {"workers": 1})):
        found = [passed(lambda: parmap.pmap(square, [1, 2, 3], **options)) for _ in range(20)]
    print(*map(min, zip(*found)))
"""


@pytest.mark.parametrize("plan", PASSED)
def test_one_call_passes_few_functions_and_files(run, plan):
    """To read what happens in one call is to read all of these: the numbers only go down."""
    # Without the flags of other scripts, which set filters of warnings.
    found = tuple(map(int, run(PASS, plan, flags=()).split()))
    assert all(map(operator.le, found, PASSED[plan])), found


def test_one_call_takes_few_calls(session, tmp_path):
    """Each takes a microsecond: of 80 there were 140."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    session.submit(square, 3).result()
    futures = []
    # The task waits to be written to: else what is done with its result might be counted, too.
    count = python_calls(lambda: futures.append(session.submit(opened, os.fspath(fifo))))
    fifo.write_text("")
    assert futures[0].result() is None
    # What libraries have set is read by functions of theirs: other tests have loaded many.
    assert count - python_calls(lambda: taken(session.traits)) < 100


def test_a_chunk_takes_its_worker_few_calls(session):
    """As above, it was twice as many; counted here, on what would be sent."""
    chunk = Chunk(([(3,)],))
    # Without a core share, which would limit the libraries of this process for good.
    spec = spec_for(session, square, Settings(star=True))._replace(core_share=None)
    broadcast = session.broadcast(spec, 1)
    payload = packed(chunk, star=True, copies=session.traits.copies)
    run_chunk(broadcast.spec, payload)  # loads what it needs
    assert python_calls(lambda: run_chunk(broadcast.spec, payload)) < 60


def test_a_time_limit_costs_an_element_no_call():
    """It costs a block of 1,024 elements a few calls, in the worker."""
    few, many = Chunk((range(5_000),)), Chunk((range(105_000),))
    spec = CallSpec(abs, timeout=60.0)
    run_chunk(spec, few)  # loads what it needs
    counts = [python_calls(functools.partial(run_chunk, spec, chunk)) for chunk in (few, many)]
    # On a busy machine, a block that took long is followed by a shorter one.
    assert counts[1] - counts[0] < 2_000


def test_a_call_leaves_nothing_to_the_garbage_collector(run):
    """Memory goes at once, since nothing refers to itself."""
    out = run(
        """
        import gc, parmap

        def calls():
            parmap.pmap(lambda x: x * x, range(100), chunks=10)
            parmap.submit(abs, -1).result()

        with parmap.plan("processes", workers=2):
            calls()
            gc.collect()
            gc.disable()
            for _ in range(5):
                calls()
            print(gc.collect())
        """
    )
    assert out == "0\n"


def modules(code):
    """The modules that a new interpreter has loaded after some code."""
    code += "\nimport sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_to_import_parmap_loads_one_module():
    """Of `typing`, which most files need, it has no need: that would be nine tenths of its time."""
    assert modules("import parmap") - modules("pass") == {"parmap"}


def test_to_name_a_plan_loads_neither_engine_nor_pool():
    """The workers of a script's first call start before these are loaded."""
    loaded = modules("import parmap; parmap.set_plan('processes', workers=2)")
    assert not loaded & {"parmap.transport.messages", "parmap.worker.thread_variables"}
    assert not loaded & {
        "parmap.plans.session",
        "parmap.engine.loop",
        "parmap.backends.processes.executor",
    }
    assert not loaded & {"concurrent.futures", "logging", "subprocess", "cloudpickle"}
    assert not loaded & {"pickle", "socket", "selectors", "random"}


def test_a_call_loads_nothing_for_options_that_it_does_not_have():
    call = "import parmap\nwith parmap.plan('processes', workers=1): parmap.pmap(lambda x: x, [1])"
    assert not modules(call) & {"random", "socket", "ssl", "tempfile", "numpy", "tqdm"}


def test_a_worker_s_side_waits_for_no_dataclass():
    """Each costs a script's start 0.7 ms, the modules behind it 7, and a traceback 5."""
    loaded = modules("from parmap.backends.processes import worker")
    assert "parmap.transport.messages" in loaded
    assert not loaded & {"dataclasses", "inspect", "logging", "traceback", "concurrent.futures"}
    assert not loaded & {"cloudpickle", "random", "selectors", "socket"}


def test_a_worker_loads_what_it_needs_and_no_more():
    with parmap.plan("processes", workers=1):
        loaded = parmap.submit(lambda: sorted(sys.modules)).result()
    ours = {name for name in loaded if name.startswith("parmap.")}
    assert not {name for name in ours if name.startswith("parmap.engine")}
    assert not set(loaded) & {
        *("numpy", "tqdm", "multiprocessing", "subprocess", "asyncio", "socket", "selectors"),
        # The function is the script's own: also such a one is rebuilt without these.
        *("cloudpickle", "logging", "inspect", "dataclasses", "traceback", "platform", "uuid"),
    }
    assert len(ours) < 29


def test_an_executor_s_chunk_is_one_message(session, written):
    found = session.executor.map(square, range(1000), chunksize=500)
    assert list(found) == [x * x for x in range(1000)]
    kinds = [kind for kinds, _ in written for kind in kinds if kind is not Kind.DROP]
    assert kinds == [Kind.TASK] * 2
