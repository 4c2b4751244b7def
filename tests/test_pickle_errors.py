"""What cannot travel is named by its path, with its type, advice, and what weighs most."""

import array
import collections
import concurrent.futures
import contextlib
import contextvars
import ctypes
import dataclasses
import dbm.dumb
import enum
import functools
import itertools
import logging
import mmap
import multiprocessing.connection
import multiprocessing.pool
import multiprocessing.queues
import multiprocessing.synchronize
import operator
import pickle
import queue
import socket
import sqlite3
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
import tracemalloc
import types
import typing
import weakref
import zipfile

import cloudpickle
import numpy as np
import pandas as pd
import pytest

import parmap
from parmap.plans.session import Session
from parmap.transport import pickle_errors
from parmap.transport.payload import by_value
from parmap.transport.pickle_errors import explained, unreadable
from parmap.transport.weights import Weight, _weighed, heavy, kind_of, weights, written

MIB = 1 << 20
FIRST = ".__reduce__()[2][0][0][1]"  # the first type's implementation
LOCK = "_thread.lock"
MAKE = "Create it once per worker in setup=, or inside the function"
PASS = "Make it inside the function, or pass what it is made from"
OPEN = "Open it inside the function, or once per worker in setup="
FILE = "Pass its name, and open it inside the function"
MAP = "It belongs to args, of type map. Make it a list"
QUEUE = "It belongs to args[0], of type queue.Queue. Give what is in it as the call's data"
HANDLER = "It belongs to args, of type logging.StreamHandler. Call logging.getLogger(name)"
WEAK = "Pass the object itself"
UNPRINTABLE = f"args[<{__name__}.Unprintable>]"


def refusal(value):
    """What pickling raises."""
    with pytest.raises(Exception) as caught:
        by_value(value)
    return caught.value


def message(value, what="args"):
    """What the user reads when a value is sent that cannot be."""
    error = explained(value, what, refusal(value))
    assert isinstance(error, parmap.SerializationError)
    return str(error)


# -- objects --------------------------------------------------------------------------------


class Handle:
    def __init__(self):
        self.conn = threading.Lock()

    def method(self, x):
        return x


class Slotted:
    __slots__ = ("lock", "size")

    def __init__(self):
        self.lock, self.size = threading.Lock(), 1

    def method(self, x, y):
        return x


class SlottedAndMore(Slotted):  # has a __dict__ besides
    def __init__(self):
        super().__init__()
        self.other = [1]


class Buried:
    def __init__(self, lock=None):
        self.inner = {"lock": lock or threading.Lock()}

    def __reduce__(self):
        return (Buried, (self.inner["lock"],))


class Rebuilt:
    def __init__(self, lock=None):
        self.lock = lock or threading.Lock()

    def __reduce__(self):
        return (Rebuilt, (self.lock,))


class Renamed:
    def __init__(self):
        self._conn = threading.Lock()

    def __getstate__(self):
        return {"conn": self._conn}


class Made:
    def __getstate__(self):
        return [1, {"made": threading.Lock()}]


class Innocent:  # holds a lock, but does not send it
    def __init__(self):
        self.lock = threading.Lock()

    def __getstate__(self):
        return {}


class Refusing:
    def __reduce__(self):
        raise TypeError("I stay here")

    def __repr__(self):
        return "<Refusing>"


class Prickly:  # every attribute that it lacks is an error
    def __getattr__(self, name):
        raise RuntimeError(name)


class Unprintable:
    def __hash__(self):
        return 1

    def __repr__(self):
        raise RuntimeError


class Failed(Exception):
    pass


class Items(list):
    pass


class Named(dict):
    pass


class Pair(typing.NamedTuple):
    left: int
    right: object


@dataclasses.dataclass
class Plain:
    size: int
    lock: object


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    size: int
    lock: object


@dataclasses.dataclass
class Undeclared:
    size: int

    def __post_init__(self):
        self.hidden = threading.Lock()


def lock():
    return threading.Lock()


def closure():
    db = Handle()
    return lambda x: (db, x)


def closures():
    held = lock()

    def inner(x):
        return held, x

    def outer(x):
        return inner(x)

    return outer


def of_main(**names):
    """A function of a script, which reads these global names."""
    space = names | {"__name__": "__main__"}
    exec(f"def fn(x): return x, {', '.join(names)}", space)
    return space["fn"]


def attribute_like_a_global():
    """A function that reads an attribute of the name of a global, which it does not read."""
    held, space = Handle(), {"__name__": "__main__", "lock": lock()}
    exec("def make(held):\n def fn(x): return x.lock, held\n return fn", space)
    return space["make"](held)


def with_default():
    def fn(x, held=lock()):
        return x

    return fn


def with_keyword_default():
    def fn(x, *, held=lock()):
        return x

    return fn


def nested_default():
    def inner(x, held=[lock()]):
        return x

    return lambda x: inner(x)


def with_attribute():
    def fn(x):
        return x

    fn.cache = {"lock": lock()}
    return fn


def local_instance():
    class Local:
        shared = lock()

    return Local()


def local_method():
    class Local:
        def __init__(self):
            self.lock = lock()

        def method(self, x):
            return x

    return Local().method


def local_base():
    class Base:
        def work(self, held=lock()):
            return held

    class Derived(Base):
        pass

    return Derived()


def local_enum():
    class Colour(enum.Enum):
        RED = 1

    Colour.lock = lock()
    return Colour.RED


def cached():
    held = Handle()

    @functools.lru_cache
    def fn(x):
        return held, x

    return fn


def dispatching():
    held = Handle()

    @functools.singledispatch
    def fn(x):
        return x

    @fn.register
    def _(x: int):
        return held, x

    return fn


def partial_of_method():
    return functools.partial(Slotted().method, 1)


def partial_with_keyword():
    return functools.partial(max, key=Handle().method)


def no_identifier():
    return types.SimpleNamespace(**{"a b": lock()})


def default_factory():
    return collections.defaultdict(closure())


def frame_with_metadata():
    frame = pd.DataFrame({"a": [1]})
    frame.attrs["lock"] = lock()
    return frame


def executor():
    return concurrent.futures.ThreadPoolExecutor(1)


def module():
    made = types.ModuleType("made_here")
    made.lock = lock()
    return made


def recursive_list():
    value = []
    value += [value, lock()]
    return value


def recursive_dict():
    value = {}
    value |= {"self": value, "inner": [lock()]}
    return value


def child_of_parent():
    parent, child = types.SimpleNamespace(), types.SimpleNamespace()
    child.parent, parent.child, parent.lock = parent, child, lock()
    return child


def objects(*shape):
    made = np.zeros(shape, dtype=object)
    made[(1,) * len(shape)] = lock()
    return made


def records():
    made = np.zeros(2, dtype=[("size", int), ("any", object)])
    made["any"][1] = lock()
    return made


class Boxed(ctypes.Structure):
    _fields_ = (("held", ctypes.c_void_p),)


def coroutine():
    async def fn():
        pass

    made = fn()
    made.close()
    return made


def generator():
    return (x for x in [1])


def deep_down():
    value = lock()
    for _ in range(150):
        value = [value]
    return value


def case(name, make, path, kind=LOCK, advice=MAKE):
    return pytest.param(make, path, kind, advice, id=name)


@pytest.mark.parametrize(
    ("make", "path", "kind", "advice"),
    [
        case("lock", lock, "args"),
        case("recursive lock", lambda: [threading.RLock()], "args[0]", "_thread.RLock"),
        case("dict", lambda: {"a": 1, "b": {"c": lock()}}, "args['b']['c']"),
        case("key", lambda: {Refusing(): 1}, "args key <Refusing>", f"{__name__}.Refusing", PASS),
        case("key that has no repr", lambda: {Unprintable(): lock()}, UNPRINTABLE),
        case("long key", lambda: {"k" * 99: lock()}, f"args['{'k' * 56}...]"),
        case("set", lambda: {Refusing()}, "args member <Refusing>", f"{__name__}.Refusing", PASS),
        # Functions
        case("closure", closure, "args.__closure__['db'].conn"),
        case("closures", closures, "args.__closure__['inner'].__closure__['held']"),
        case("global", lambda: of_main(db=Handle()), "args.__globals__['db'].conn"),
        case("no global", attribute_like_a_global, "args.__closure__['held'].conn"),
        case("default", with_default, "args.__defaults__[0]"),
        case("keyword default", with_keyword_default, "args.__kwdefaults__['held']"),
        case("nested default", nested_default, "args.__closure__['inner'].__defaults__[0][0]"),
        case("function attribute", with_attribute, "args.cache['lock']"),
        case("lambda", lambda: {"f": closure()}, "args['f'].__closure__['db'].conn"),
        case("partial", partial_of_method, "args.func.__self__.lock"),
        case("partial's argument", lambda: functools.partial(max, lock()), "args.args[0]"),
        case("partial's keyword", partial_with_keyword, "args.keywords['key'].__self__.conn"),
        case("method in C", lambda: lock().acquire, "args.__self__"),
        case("cached", cached, "args.__wrapped__.__closure__['held'].conn"),
        case("cached inside", lambda: [cached()], "args[0].__wrapped__.__closure__['held'].conn"),
        case("dispatch", dispatching, f"args{FIRST}.__closure__['held'].conn"),
        # Instances
        case("instance", Handle, "args.conn"),
        case("slots", Slotted, "args.lock"),
        case("slots and dict", SlottedAndMore, "args.lock"),
        case("dataclass", lambda: Plain(1, lock()), "args.lock"),
        case("frozen dataclass with slots", lambda: Frozen(1, lock()), "args.lock"),
        case("no field of the dataclass", lambda: Undeclared(1), "args.hidden"),
        case("buried by reduce", Buried, "args.__reduce__()[1][0]"),
        case("attribute in reduce", Rebuilt, "args.lock"),
        case("renamed by getstate", Renamed, "args._conn"),
        case("made by getstate", Made, "args.__getstate__()[1]['made']"),
        case("not sent", lambda: [Innocent(), lock()], "args[1]"),
        case("refuses", lambda: [Refusing()], "args[0]", f"{__name__}.Refusing", PASS),
        case("raises in getattr", lambda: [Prickly(), lock()], "args[1]"),
        case("no identifier", no_identifier, "args.__dict__['a b']"),
        case("exception", lambda: Failed("x", lock()), "args.args[1]"),
        case("class", local_instance, "args.__class__.shared"),
        case("base", local_base, "args.__class__.__bases__[0].work.__defaults__[0]"),
        case("enumeration", local_enum, "args.__class__.lock"),
        case("method of a local class", local_method, "args.__self__.lock"),
        case("property", lambda: property(closure()), "args.fget.__closure__['db'].conn"),
        # Containers
        case("list subclass", lambda: Items([1, lock()]), "args[1]"),
        case("dict subclass", lambda: Named(a=lock()), "args['a']"),
        case("namedtuple", lambda: Pair(1, lock()), "args.right"),
        case("counter", lambda: collections.Counter({"a": lock()}), "args['a']"),
        case("default factory", default_factory, "args.default_factory.__closure__['db'].conn"),
        case("defaultdict", lambda: collections.defaultdict(int, a=lock()), "args['a']"),
        case("ordered dict", lambda: collections.OrderedDict(a=lock()), "args['a']"),
        case("user dict", lambda: collections.UserDict(a=lock()), "args.data['a']"),
        case("chain map", lambda: collections.ChainMap({}, {"a": lock()}), "args.maps[1]['a']"),
        case("deque", lambda: collections.deque([1, lock()]), "args[1]"),
        case("mapping proxy", lambda: types.MappingProxyType({"a": lock()}), "args['a']"),
        case("list in itself", recursive_list, "args[1]"),
        case("dict in itself", recursive_dict, "args['inner'][0]"),
        case("child and parent", child_of_parent, "args.parent.lock"),
        case("deep down", deep_down, f"args{'[0]' * 6} ... (138 more) ... {'[0]' * 6}"),
        # Arrays and tables
        case("array", lambda: objects(4), "args[1]"),
        case("matrix", lambda: objects(2, 3), "args[1, 1]"),
        case("array of no dimension", lambda: np.array(lock()), "args[()]"),
        case("structured array", records, "args.__reduce__()[2][4][1][1]"),
        case("masked array", lambda: [np.ma.zeros(3), lock()], "args[1]"),
        case("series", lambda: pd.Series([1, lock()]), "args.iloc[1]"),
        case("frame", lambda: pd.DataFrame({"a": [1, 2], "b": [1, lock()]}), "args['b'].iloc[1]"),
        case("index", lambda: pd.Index([1, lock()]), "args._data[1]"),
        case("metadata of a frame", frame_with_metadata, "args._attrs['lock']"),
        # Kinds that are known
        case("generator", generator, "args", "generator", "Make it a list"),
        case("map", lambda: map(str, generator()), "args.__reduce__()[1][1]", "generator", MAP),
        case("coroutine", coroutine, "args", "coroutine", "asyncio.run()"),
        case("frame of the stack", sys._getframe, "args", "frame", "Pass its text"),
        case("thread-local", threading.local, "args", "_thread._local"),
        case("event", threading.Event, "args._cond._lock", LOCK, f"threading.Event. {MAKE}"),
        case("queue", lambda: [queue.Queue()], "args[0].mutex", LOCK, QUEUE),
        case("handler", logging.StreamHandler, "args.lock", "_thread.RLock", HANDLER),
        case("weak reference", lambda: weakref.ref(Handle), "args", "weakref.ReferenceType", WEAK),
        case("context", contextvars.Context, "args", "_contextvars.Context", "of its values"),
        case("pointer", Boxed, "args", f"{__name__}.Boxed", "Pass the values that it points to"),
        case("module", module, "args.lock", LOCK, "to args, of type module. Make it a file"),
        case("executor", executor, "args._work_queue", "_queue.SimpleQueue", "Start it inside"),
    ],
)
def test_path_type_and_advice(make, path, kind, advice):
    text = message(make())
    assert text.startswith(f"{path} cannot be sent between processes: it is of type {kind} (")
    assert advice in text
    assert text.endswith("; or use a plan that shares memory, such as 'threads'.")


def test_open_things(tmp_path):
    (tmp_path / "text").write_text("some")
    with contextlib.ExitStack() as stack:
        keep = stack.enter_context
        binary = keep(open(tmp_path / "text", "rb"))
        for thing, kind, advice in (
            (keep(open(tmp_path / "out", "w")), "_io.TextIOWrapper", FILE),
            (keep(open(tmp_path / "text")), "_io.TextIOWrapper", FILE),
            (keep(tempfile.SpooledTemporaryFile()), "tempfile.SpooledTemporaryFile", FILE),
            (binary, "_io.BufferedReader", FILE),
            (keep(open(tmp_path / "raw", "wb", buffering=0)), "_io.FileIO", FILE),
            (keep(dbm.dumb.open(str(tmp_path / "dbm"))), "dbm.dumb._Database", FILE),
            (keep(tempfile.NamedTemporaryFile()), "_io.BufferedRandom", FILE),
            (keep(mmap.mmap(binary.fileno(), 0, prot=mmap.PROT_READ)), "mmap.mmap", FILE),
            (keep(zipfile.ZipFile(tmp_path / "zip", "w")), "_io.BufferedRandom", FILE),
            (keep(socket.socket()), "socket.socket", OPEN),
            (keep(contextlib.closing(sqlite3.connect(":memory:"))), "sqlite3.Connection", OPEN),
        ):
            held = types.SimpleNamespace(it=thing)
            text = message(lambda x, held=held: held, "fn")
            assert text.startswith("fn.__defaults__[0].it")
            assert f"it is of type {kind} (" in text
            assert advice in text


@pytest.mark.parametrize(
    "value",
    [
        collections.defaultdict(lambda: 0),
        {"f": lambda x: x},
        pytest.param(
            itertools.chain([1], [2]),
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 14), reason="iterators of itertools no longer travel"
            ),
            id="itertools.chain",
        ),
        types.MappingProxyType({}),
        sys,
        operator.itemgetter(1),
        functools.lru_cache,
    ],
    ids=kind_of,
)
@pytest.mark.filterwarnings("ignore:Pickle, copy, and deepcopy support will be removed")
def test_what_travels_is_not_accused(value):
    pickle.loads(cloudpickle.dumps(value))
    assert pickle_errors._trail([value], 100) == []
    assert "args[1]" in message([value, lock()])


def test_every_kind_in_the_table_exists():
    classes = [
        *(type(threading.Lock()), type(threading.RLock()), threading.local, threading.Condition),
        *(threading.Event, threading.BoundedSemaphore, threading.Barrier, threading.Timer),
        *(queue.PriorityQueue, queue.SimpleQueue, multiprocessing.queues.JoinableQueue),
        *(multiprocessing.synchronize.Lock, multiprocessing.pool.ThreadPool, logging.FileHandler),
        *(concurrent.futures.ProcessPoolExecutor, subprocess.Popen, Session),
        *(types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType, types.ModuleType),
        *(types.FrameType, types.TracebackType, enumerate, filter, map, zip),
        *(itertools.chain, itertools.islice, type(itertools.tee([])[0])),
        *(weakref.ref, ctypes.c_char_p),
        *(contextvars.Context, ssl.SSLSocket, ssl.SSLContext),
        *(open, tempfile._TemporaryFileWrapper, mmap.mmap, zipfile.ZipFile, tarfile.TarFile),
        *(dbm.dumb._Database, tempfile.SpooledTemporaryFile, multiprocessing.connection.Connection),
        *(sqlite3.Connection, sqlite3.Cursor),
    ]
    names = {
        f"{base.__module__.partition('.')[0]}.{base.__qualname__}"
        for cls in classes
        for base in (cls.__mro__ if isinstance(cls, type) else type(sys.__stdout__).__mro__)
    }
    others = {"h5py", "netCDF4", "psycopg", "psycopg2", "sqlalchemy", "duckdb", "_duckdb", "redis"}
    others |= {"pymongo", "botocore"}
    assert {row for row in pickle_errors._ADVICE if row.partition(".")[0] not in others} <= names


def test_a_subclass_is_of_its_kind_and_nothing_is_imported():
    connection = type("Connection", (Refusing,), {"__module__": "psycopg2.extensions"})
    connection.__qualname__ = "connection"
    mine = type("Mine", (connection,), {})
    assert OPEN in message(mine())
    assert "psycopg2" not in sys.modules


# -- other messages -------------------------------------------------------------------------


def test_the_path_of_what_has_no_name_begins_with_its_attribute():
    assert message(Handle(), "").startswith("conn cannot be sent")
    assert message(lock(), "").startswith("it cannot be sent")


def test_a_result_is_to_be_plain_data():
    text = message({"held": [queue.Queue()]}, "result")
    assert text.startswith("result['held'][0].mutex cannot be sent")
    assert "Return plain data instead" in text
    assert "Give what is in it" not in text


def test_what_is_nested_too_deeply():
    value = None
    for _ in range(100_000):
        value = [value]
    text = message(value)
    assert text.startswith("args[0][0][0]")
    assert "it is nested too deeply (PicklingError" in text
    assert "Flatten it" in text
    while value:  # or freeing it would be as deep
        value = value.pop()


def test_reductions_that_never_end():
    class Endless:
        def __reduce__(self):
            return (Endless, (Endless(),))

    assert "nested too deeply" in message(Endless())


def test_a_reduction_that_calls_itself():
    class Circular:
        def __reduce__(self):
            return self.__reduce__()

    text = message([Circular()])
    assert text.startswith("args[0] cannot be sent between processes: it is of type ")


def test_no_reduction_at_all():
    class Wrong:
        def __reduce__(self):
            return [1, 2]

    assert message([1, Wrong()]).startswith("args[1] cannot be sent")


def test_what_fails_once_only():
    class Moody:
        def __init__(self):
            self.times = 0

        def __reduce__(self):
            self.times += 1
            if self.times == 1:
                raise ValueError("not today")
            return (list, ())

    text = message(Moody())
    assert text.startswith("args cannot be sent between processes: it is of type ")
    assert "(ValueError: not today)" in text


def test_the_error_of_a_value_that_is_placed_meanwhile_is_passed_on():
    class Handed:
        def __reduce__(self):
            raise explained(Handle(), "", TypeError("no"))

    text = message({"h": Handed()})
    assert text.startswith("args['h']: conn cannot be sent between processes: it is of type")


def test_what_has_no_such_name_over_there():
    error = AttributeError("Can't get attribute 'f' on <module '__main__' (built-in)>")
    assert "by its name alone" in str(unreadable(error))
    assert "__setstate__" in str(unreadable(AttributeError("'X' object has no attribute 'y'")))


# -- cost -----------------------------------------------------------------------------------


class Counted:
    """Counts how often any of its kind is taken apart."""

    times = 0

    def __reduce__(self):
        Counted.times += 1
        return (Counted, ())


@pytest.fixture
def count(monkeypatch):
    """How often objects are taken apart, and pickled, while a value is diagnosed."""

    def count(value):
        error = refusal(value)
        pickles = []
        with monkeypatch.context() as patch:
            patch.setattr(cloudpickle, "dumps", lambda *args, **options: pickles.append(args))
            patch.setattr(cloudpickle.Pickler, "dump", lambda self, value: pickles.append(value))
            Counted.times = 0
            text = str(explained(value, "args", error))
        return text, Counted.times, len(pickles)

    return count


@pytest.mark.parametrize("depth", [0, 1, 30])
def test_each_object_is_taken_apart_twice_at_whatever_depth(count, depth):
    value = [*(Counted() for _ in range(5000)), lock()]
    for _ in range(depth):
        value = {"in": value}
    text, times, pickles = count(value)
    assert "[5000] cannot be sent" in text
    assert times <= 2 * 5000  # to find the cause, and to weigh the whole
    assert pickles == 0


def test_what_comes_after_the_cause_is_not_looked_at(count):
    *_, times, _ = count([lock(), *(Counted() for _ in range(5000))])
    assert times <= 5000


def test_what_is_shared_is_taken_apart_once(count):
    shared = [Counted() for _ in range(100)]
    *_, times, _ = count([[shared] * 50 for _ in range(50)] + [lock()])
    assert times <= 2 * 100


def test_names_are_looked_up_once_each(count):
    text, _, pickles = count([len] * 1000 + [abs] * 1000 + [lock()])
    assert "args[2000] cannot be sent" in text
    assert pickles <= 2 * 2  # by the walk, and to weigh


def test_plain_data_in_plenty(count):
    text, *_ = count([0] * 1_000_000 + ["x"] * 1000 + [lock()])
    assert text.startswith("args[1001000] cannot")


def test_an_array_is_not_copied_to_look_into_it():
    value = [np.zeros((200, MIB // 8)), np.zeros((200, MIB // 4))[:, ::2], lock()]
    with pytest.raises(TypeError) as caught:
        cloudpickle.Pickler(Nowhere(), 5, buffer_callback=lambda _: None).dump(value[2])
    text, peak = traced(lambda: str(explained(value, "args", caught.value)))
    assert text.startswith("args[2] cannot be sent")
    assert "args takes 400 MiB to send" in text
    assert peak < MIB


# -- weights --------------------------------------------------------------------------------


class Nowhere:
    def write(self, data):
        return len(data)


def traced(call):
    """What a call gives, and the most memory that it had."""
    heavy([0])  # what the first call imports
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Model:
    def __init__(self, size):
        self.coef_ = np.zeros(size)
        self.names = [f"name {i}" for i in range(100)]


class Hidden:
    def __init__(self, size):
        self.size = size

    def __getstate__(self):
        return {"made": bytes(self.size)}


class Node:
    def __init__(self, parent, size):
        self.parent, self.data, self.children = parent, np.zeros(size), []
        if parent:
            parent.children.append(self)


def holds_much():
    model, table, small = Model(MIB), {"a": np.zeros(MIB // 2)}, 3
    words = [f"word {i:04}" for i in range(100_000)]
    return lambda x: (model, table, words, small, x)


def paths(value, what="fn"):
    return [path for path, _, _ in weights(value, what)]


def test_the_three_heaviest_things_that_a_function_captures():
    first, second, third = weights(holds_much(), "fn")
    assert first[:2] == ("fn.__closure__['model'].coef_", "numpy.ndarray")
    assert second[:2] == ("fn.__closure__['table']['a']", "numpy.ndarray")
    assert third[:2] == ("fn.__closure__['words']", "list")
    assert [first.size // MIB, second.size // MIB, third.size // MIB] == [8, 4, 1]
    assert isinstance(first, Weight)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: of_main(db=Model(MIB)), ["fn.__globals__['db'].coef_"]),
        (lambda: functools.partial(max, Model(MIB)), ["fn.args[0].coef_"]),
        (lambda: functools.partial(holds_much(), key=np.zeros(9 * MIB)), ["fn.keywords['key']"]),
        (lambda: Model(MIB).coef_, ["fn"]),
        (lambda: {"deep": [{"down": (bytes(MIB),)}]}, ["fn['deep'][0]['down'][0]"]),
        (lambda: {b"k" * MIB: 1}, [f"fn key b'{'k' * 55}..."]),
        # Spread over many parts: what holds them is the thing to name.
        (lambda: {"all": [np.zeros(1000) for _ in range(1000)]}, ["fn['all']"]),
        (lambda: {"all": list(range(MIB))}, ["fn['all']"]),
        (lambda: {"all": [f"{i}" for i in range(10_000)]}, ["fn['all']"]),
        (lambda: {"all": objects(100, 100)}, ["fn['all']"]),
        # Far behind in a long list.
        (lambda: [*([b"x"] * 5000), np.zeros(MIB), *([b"x"] * 5000)], ["fn[5000]"]),
        # What no attribute holds is not looked into.
        (lambda: [Hidden(MIB)], ["fn[0]"]),
        # What cannot travel itself does not keep the rest from being weighed.
        (lambda: [lock(), Refusing(), Model(MIB)], ["fn[2].coef_"]),
        (lambda: [threading.Event(), {"x": lock(), "y": np.zeros(MIB)}], ["fn[1]['y']"]),
        # Counted once.
        (lambda: [np.zeros(MIB)] * 3, ["fn[0]"]),
        (lambda: {"frame": pd.DataFrame({"a": np.zeros(MIB), "b": 1})["a"]}, ["fn['frame']"]),
        (lambda: array.array("d", bytes(MIB)), ["fn"]),
        (lambda: [memoryview(bytes(MIB))], ["fn[0]"]),
        (lambda: [np.ma.zeros(MIB)], ["fn[0]"]),
    ],
)
def test_the_path_ends_where_the_bulk_is(make, expected):
    assert paths(make())[:1] == expected


def test_the_columns_of_a_frame():
    frame = pd.DataFrame({"a": np.zeros(MIB), "b": 1, "c": np.zeros(MIB)})
    rows = weights([frame], "args")
    assert [row.path for row in rows] == ["args[0]['a']", "args[0]['b']", "args[0]['c']"]
    assert [row.size >> 20 for row in rows] == [8, 8, 8]


def test_what_is_met_on_two_ways_is_named_once():
    shared = np.zeros(MIB)
    first, second = {"data": shared}, {"data": shared, "own": np.zeros(MIB)}
    rows = weights(lambda: (first, second), "fn")
    assert [row.path for row in rows] == [
        "fn.__closure__['first']['data']",
        "fn.__closure__['second']['own']",
    ]


def test_what_holds_nothing_but_what_is_named_is_not_named():
    shared = np.zeros(MIB)
    first, second = {"data": shared}, {"data": shared, "own": np.zeros(2 * MIB)}
    assert paths(lambda: (first, second)) == [
        "fn.__closure__['second']['own']",
        "fn.__closure__['second']['data']",
    ]


def test_a_child_does_not_weigh_what_its_parent_does():
    root = Node(None, MIB)
    children = [Node(root, MIB // 8 * size) for size in (1, 3, 1)]
    assert paths(root, "root")[:2] == ["root.data", "root.children[1].data"]
    assert paths(children[0], "child")[:2] == ["child.parent.data", "child.parent.children[1].data"]


def test_a_list_in_itself():
    value = [np.zeros(MIB)]
    value.append(value)
    assert paths(value) == ["fn[0]"]


def test_what_is_light_beside_the_rest_is_left_out():
    assert paths({"a": np.zeros(MIB), "b": bytes(1000)}) == ["fn['a']"]
    assert paths({"a": np.zeros(1000), "b": bytes(1000)}) == ["fn['a']", "fn['b']"]


def test_a_function_that_travels_by_its_name_holds_nothing():
    assert weights(dataclasses.replace, "fn") == []
    assert heavy(dataclasses.replace, "fn").endswith(" bytes to send")


@pytest.mark.parametrize(
    "value",
    [
        [f"{i}" for i in range(10_000)],
        {i: (i, float(i)) for i in range(10_000)},
        [Plain(i, [i]) for i in range(1000)],
        [Frozen(i, [i]) for i in range(1000)],
        [lambda x: x] * 10,
        np.zeros(1000),
        pd.DataFrame({"a": range(1000), "b": "text"}),
        [bytes(MIB), bytearray(MIB), "é" * MIB],
    ],
    ids=lambda value: kind_of(value[0] if type(value) is list else value),
)
def test_the_weight_is_the_length_of_the_pickle(value):
    total, _ = _weighed(value, "")
    assert total == pytest.approx(len(cloudpickle.dumps(value, 5)), rel=0.02)


@pytest.mark.parametrize(
    "view",
    [
        lambda whole: whole,
        lambda whole: whole[::2],
        lambda whole: whole[::-1],
        lambda whole: {"model": Handle(), "deep": [whole[::2]]},
        lambda whole: (lambda x: whole[::2], whole[::2]),
        lambda whole: pd.DataFrame({"a": whole}),
        lambda whole: np.broadcast_to(whole[:1], (25 * MIB,)),
        lambda whole: whole.view("M8[s]")[::2],
        memoryview,
        lambda whole: memoryview(whole)[::2],
        lambda whole: array.array("b", memoryview(whole).cast("b")),
    ],
)
def test_weighing_an_array_of_200_mib_takes_no_memory(view):
    value = view(np.zeros(25 * MIB))
    rows, peak = traced(lambda: weights(value, "fn"))
    assert rows[0].size >= 100 * MIB
    assert peak < MIB


def test_weighing_bytes_takes_no_memory():
    value = {"all": [bytes(50 * MIB), bytearray(50 * MIB)]}
    rows, peak = traced(lambda: weights(value, "fn"))
    assert [row.size // MIB for row in rows] == [50, 50]
    assert peak < MIB


def test_tables_of_arrow_and_of_polars():
    arrow, polars = pytest.importorskip("pyarrow"), pytest.importorskip("polars")
    numbers = np.zeros(3 * MIB)
    for make in (lambda: arrow.table({"a": numbers}), lambda: polars.DataFrame({"a": numbers})):
        value = {"table": make()}
        rows, peak = traced(lambda value=value: weights(value, "args"))
        assert [(row.path, row.size // MIB) for row in rows] == [("args['table']", 24)]
        assert peak < MIB


def test_tensors_say_their_size(monkeypatch):
    class Tensor(Refusing):
        nbytes = 30 * MIB

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(Tensor=Tensor))
    assert weights({"t": Tensor()}, "args")[0].size == pytest.approx(30 * MIB, rel=0.01)


def test_each_part_of_a_long_list_is_weighed_few_times():
    value = [Counted() for _ in range(5000)]
    Counted.times = 0
    assert paths(value) == ["fn"]
    # In the whole, in its block, and, of the three heaviest blocks, by itself.
    assert Counted.times <= 2 * 5000 + 3 * 1000


def test_one_line_for_a_warning():
    assert heavy(holds_much(), "fn") == (
        "fn takes 13.2 MiB to send: fn.__closure__['model'].coef_ (numpy.ndarray, 8 MiB), "
        "fn.__closure__['table']['a'] (numpy.ndarray, 4 MiB), "
        "fn.__closure__['words'] (list, 1.23 MiB)"
    )
    assert heavy(np.zeros(200 * MIB), "args[0]") == "args[0] takes 1.6 GiB to send"
    assert heavy([1], "x").startswith("x takes ")
    assert heavy(holds_much()).startswith("it takes 13.2 MiB to send: __closure__['model'].coef_ (")


def test_nothing_is_said_of_what_is_light():
    assert heavy(holds_much(), "fn", 14 * MIB) == ""
    assert heavy(holds_much(), "fn", 12 * MIB)


def test_the_weight_is_told_where_it_is_large():
    fn, held = holds_much(), lock()
    text = message(lambda x: (held, fn), "fn")
    assert text.startswith("fn.__closure__['held'] cannot be sent")
    assert "'threads'. In all, fn takes 13.2 MiB to send: fn.__closure__['fn'].__closure__" in text
    table = list(range(1000))
    assert "to send" not in message(lambda x: (held, table), "fn")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OverflowError("cannot serialize a bytes object larger than 4 GiB"),
        pickle.PicklingError("cannot serialize a string larger than 4 GiB"),
    ],
    ids=repr,
)
def test_what_is_too_large_to_be_pickled(error):
    text = str(explained(holds_much(), "fn", error))
    assert text.startswith("fn cannot be sent between processes: it is too large (")
    assert "once per worker in setup=, from a file" in text
    assert "In all, fn takes 13.2 MiB to send: fn.__closure__['model'].coef_ (numpy" in text


def test_long_paths_are_abridged():
    steps = [("[{}]", i) for i in range(20)]
    assert written("a", steps[:12]) == "a" + "".join(f"[{i}]" for i in range(12))
    assert written("a", steps).startswith("a[0][1][2][3][4][5] ... (8 more) ... [14][15]")
    assert written("", [(".{}", "fn")]) == "fn"


# -- where users meet it --------------------------------------------------------------------


@pytest.fixture(scope="module")
def one():
    with parmap.plan("processes", workers=1) as session:
        yield session


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize(
    ("make", "path"),
    [
        (closure, "fn.__closure__['db'].conn"),
        (closures, "fn.__closure__['inner'].__closure__['held']"),
        (partial_of_method, "fn.func.__self__.lock"),
        (local_method, "fn.__self__.lock"),
        (with_default, "fn.__defaults__[0]"),
        (lambda: of_main(db=Handle()), "fn.__globals__['db'].conn"),
        (lambda: Handle().method, "fn.__self__.conn"),
    ],
)
def test_functions_that_cannot_be_sent(make, path):
    fn = make()
    for call in (lambda: parmap.pmap(fn, [1]), lambda: parmap.submit(fn, 1)):
        with pytest.raises(parmap.SerializationError) as caught:
            call()
        assert str(caught.value).startswith(f"{path} cannot be sent between processes")
        assert MAKE in str(caught.value)
    # The pool has not noticed.
    assert parmap.pmap(lambda x: x + 1, [1]) == [2]


@pytest.mark.usefixtures("one")
def test_a_heavy_function_that_cannot_be_sent():
    db, table = Handle(), np.zeros(2 * MIB)
    with pytest.raises(parmap.SerializationError, match=r"fn\.__closure__\['db'\]\.conn") as caught:
        parmap.pmap(lambda x: (db, table, x), [1])
    assert "it takes 16 MiB to send: fn.__closure__['table'] (numpy.ndarray" in str(caught.value)


@pytest.mark.usefixtures("one")
def test_elements_and_results_that_cannot_be_sent():
    data = [{"x": 1}, {"x": generator()}, {"x": 3}]
    first, second, third = parmap.pmap(lambda d: d["x"], data, errors="return")
    assert (first, third) == (1, 3)
    assert str(second.error).startswith("args[0]['x'] cannot be sent between processes")
    assert "Make it a list" in str(second.error)
    (only,) = parmap.pmap(lambda x: {"rows": (y for y in [x])}, [1], errors="return")
    assert str(only.error).startswith("result['rows'] cannot be sent between processes")
    assert "Return plain data instead" in str(only.error)


SCRIPT = """
    import parmap

    class Named:
        def __reduce__(self):
            return "named"

    named = Named()

    with parmap.plan("processes", workers=1):
        try:
            parmap.pmap(lambda x: named, [1])
        except parmap.SerializationError as error:
            print(error)
"""


def test_an_object_of_a_script_that_travels_by_its_name(run):
    said = run(SCRIPT)
    assert "Can't get attribute 'named'" in said or "has no attribute 'named'" in said
    assert "It travels by its name alone" in said
