"""Functions of the script, rebuilt in a worker as cloudpickle would rebuild them."""

import builtins
import functools
import os
import pickle
import pickletools
import sys
import xml.dom.minidom  # a package's module, which a function reaches through the package
from types import CellType, FunctionType

import cloudpickle
import pytest

import parmap
from parmap.transport import functions, payload

EXECUTED = {"__name__": "__main__", "path": os.path, "count": 0}
exec(
    """
def plain(x: int, y=[1], *, z=2) -> "str":
    "Say it."
    return x

def counting():
    global count
    count += 1
    return [path.basename("a/b"), counting.__name__, count]

plain.note = {"of": plain}

def elsewhere():
    return len("abc"), __builtins__

def numbers(first, /, *others: "many"):
    yield from others

async def later(x):
    return await x

def missing():
    return not_there
""",
    EXECUTED,
)


def closure(k):
    def inner(n):
        return k if n == 0 else inner(n - 1)

    return inner


def unfilled():
    def inner():
        return late

    if EXECUTED is None:
        late = 1
    return inner


def mutual():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    return even


def wrapped():
    @functools.wraps(EXECUTED["plain"])
    def outer(*args):
        return outer.__wrapped__(*args)

    return outer


def moved(module):
    def function():
        return xml.dom.minidom, os.path

    function.__module__ = module
    function.__doc__ = None
    return function


def around(inner, number):
    return lambda x: inner(x) + number


def nested():
    """Make a function around a function, and so on."""
    made = FUNCTIONS[0]
    for number in range(20):
        made = around(made, number)
    return made


FUNCTIONS = [
    *(EXECUTED[name] for name in EXECUTED if type(EXECUTED[name]) is FunctionType),
    *(closure([1]), unfilled(), mutual(), wrapped()),
    *(moved("json"), moved("not.there"), moved(None), moved(3)),
    lambda: os.sep,
]
FUNCTIONS.append(nested())


def parts(function, seen=()):
    """List all that a function is made of, but for its name space's identity."""
    if function in seen:
        return "itself", seen.index(function)
    seen = (*seen, function)
    cells = [contents(cell, seen) for cell in function.__closure__ or ()]
    space = [(name, parted(value, seen)) for name, value in function.__globals__.items()]
    own = [(name, parted(value, seen)) for name, value in vars(function).items()]
    code = function.__code__
    names = ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__")
    return (
        [code.co_code, code.co_names, code.co_freevars, code.co_flags, code.co_linetable],
        [code.co_consts, code.co_exceptiontable, cells, space, own],
        [getattr(function, name) for name in (*names, "__defaults__", "__kwdefaults__")],
        function.__builtins__ is vars(builtins),
    )


def contents(cell, seen):
    try:
        held = cell.cell_contents
    except ValueError:
        return "empty"
    return parted(held, seen)


def parted(value, seen):
    if type(value) is dict and value is not vars(builtins):
        return {name: parted(part, seen) for name, part in value.items()}
    return parts(value, seen) if type(value) is FunctionType else value


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_function_is_what_cloudpickle_would_make_of_it(function):
    ours = pickle.loads(payload.by_value(function))
    assert parts(ours) == parts(pickle.loads(cloudpickle.dumps(function)))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_its_pickle_does_not_name_cloudpickle(function):
    assert not named(payload.by_value(function)) & {"cloudpickle", "cloudpickle.cloudpickle"}


def test_functions_of_one_pickle_share_what_they_shared():
    """Their globals, and the objects in them; functions of other globals have others."""
    held = [1]
    space = {"__name__": "__main__", "held": held}
    exec("def one():\n    return held\ndef two():\n    return held, one", space)
    one, two = space["one"], space["two"]
    sent = [one, two, one, held, EXECUTED["missing"]]
    for data in (payload.by_value(sent), cloudpickle.dumps(sent)):
        first, second, again, value, other = pickle.loads(data)
        assert first is again
        assert second() == ([1], first)
        assert first() is second()[0] is value
        assert first.__globals__ is second.__globals__ is not other.__globals__


def test_each_function_does_as_cloudpickle_s():
    """Cells, modules and types, which travel also outside of functions."""
    theirs = cloudpickle.cloudpickle
    ours = functions.replacements(cloudpickle)
    for name in theirs._BUILTIN_TYPE_NAMES.values():
        assert ours[theirs._builtin_type](name) is theirs._builtin_type(name)
    for name in ("os", "os.path", "xml.dom", "xml.dom.minidom"):
        assert ours[theirs.subimport](name) is theirs.subimport(name)
    for arguments in ((), (1,), (None,)):
        made = ours[theirs._make_cell](*arguments)
        assert contents(made, ()) == contents(theirs._make_cell(*arguments), ())
    assert contents(ours[theirs._make_empty_cell](), ()) == "empty"


@pytest.fixture
def fresh_pickler():
    """Have the pickler made anew, also for the next test."""
    payload._pickler.cache_clear()
    yield
    payload._pickler.cache_clear()


def test_a_reducer_of_modules_that_gives_a_name_is_left_alone(monkeypatch, fresh_pickler):
    """Somebody may have taught cloudpickle another way."""
    table = cloudpickle.Pickler.dispatch_table.maps[0]
    monkeypatch.setitem(table, type(os), lambda module: "path")
    assert pickle.loads(payload.by_value([os.path])) == [os.path]


def named(data):
    return {argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}


def test_a_version_that_is_not_known_rebuilds_its_functions_itself(monkeypatch, fresh_pickler):
    monkeypatch.setattr(cloudpickle, "__version__", "3.1.99")
    data = payload.by_value(closure(3))
    assert "cloudpickle.cloudpickle" in named(data)
    assert pickle.loads(data)(2) == 3


def test_the_installed_version_is_known():
    """Else each worker imports it: compare its functions with ours, and add the version."""
    assert len(functions.replacements(cloudpickle)) == 8


def test_a_package_that_is_sent_by_value(run):
    """The functions that rebuild functions still travel by name: they would need themselves."""
    out = run(
        """
        import cloudpickle, parmap
        cloudpickle.register_pickle_by_value(parmap)
        with parmap.plan("processes", workers=1):
            print(parmap.pmap(lambda x: x + 1, [1]))
        """
    )
    assert out == "[2]\n"


def test_a_class_of_the_script_still_travels():
    class Own:
        def __init__(self, cell):
            self.cell = cell

        def __eq__(self, other):
            return type(other) is Own and other.cell.cell_contents == self.cell.cell_contents

        __hash__ = None

    with parmap.plan("processes", workers=1):
        assert parmap.pmap(lambda own: own, [Own(CellType(1))]) == [Own(CellType(1))]


# What cloudpickle imports, and what a worker needs to tell of an error.
HIDDEN = ("ast", "dataclasses", "dis", "inspect", "logging", "platform", "token", "traceback")


@pytest.fixture
def hiding(tmp_path):
    """Make a folder with a file of the user's for each of these."""
    for name in HIDDEN:
        (tmp_path / f"{name}.py").write_text("mine = True")
    return os.fspath(tmp_path)


def test_a_folder_that_comes_onto_the_path_hides_nothing_from_a_worker(hiding, monkeypatch):
    """The caller has these modules, so a loop would not import the files either."""
    with parmap.plan("processes", workers=1):
        assert parmap.pmap(abs, [-1]) == [1]
        monkeypatch.syspath_prepend(hiding)
        works()


def test_nor_does_a_folder_that_the_script_changes_to(hiding, monkeypatch):
    monkeypatch.syspath_prepend("")
    with parmap.plan("processes", workers=1):
        assert parmap.pmap(abs, [-1]) == [1]
        monkeypatch.chdir(hiding)
        works()


def test_nor_does_a_folder_that_setup_puts_onto_the_path(hiding):
    def setup():
        sys.path.insert(0, hiding)
        raise ValueError("told")

    with (
        pytest.raises(parmap.PoolBroken, match="ValueError: told"),
        parmap.plan("processes", workers=1, setup=setup),
    ):
        parmap.pmap(abs, [1])


def works():
    """Send a class there and back, and have an error told."""

    class Own(list):
        """Not one that a worker can import."""

    (made,) = parmap.pmap(lambda own: Own([*own, 2]), [Own([1])])
    assert type(made) is Own
    assert made == [1, 2]
    (failure,) = parmap.pmap(lambda x: [][x], [1], errors="return")
    assert type(failure.error) is IndexError


def test_all_but_the_first_workers_find_cloudpickle_loaded(run):
    """In a large pool the fork server loads it, once, and not each worker that needs it."""
    out = run(
        """
        import os, sys, tempfile
        import parmap

        folder = tempfile.TemporaryDirectory()
        paths = [os.path.join(folder.name, name) for name in ("here", "go")]

        def found():
            with open(paths[0], "wb", buffering=0) as here, open(paths[1], "rb", buffering=0) as go:
                here.write(b".")
                go.read(1)  # not before each worker has one of these tasks
            return "cloudpickle" in sys.modules

        for path in paths:
            os.mkfifo(path)
        here, go = (os.open(path, os.O_RDWR) for path in paths)
        with parmap.plan("processes", workers=10) as session:
            answers = [session.submit(found) for _ in range(10)]
            for _ in answers:
                os.read(here, 1)
            os.write(go, b"." * 10)
            print([answer.result() for answer in answers].count(True))
        """,
        flags=(),
    )  # under filters of warnings every worker loads it
    assert out == "2\n"


PICKLING = """
    import copy, dataclasses, enum, pickle, sys
    import parmap

    class Point:
        class Inner:
            pass

        def __init__(self, x):
            self.x = x

        def __eq__(self, other):
            return type(other) is Point and other.x == self.x

    class Colour(enum.Enum):
        RED = 1

    @dataclasses.dataclass(frozen=True, slots=True)
    class Slotted:  # there are two classes of this name: one is made from the other
        x: int

    def other():
        class Point:
            pass

        return Point

    other = other()

    def pickled(x):
        point = Point(x)
        assert pickle.loads(pickle.dumps(Slotted(x))) == Slotted(x)
        assert [Point.Inner.__qualname__, other.__qualname__] == names
        assert pickle.loads(pickle.dumps(point)) == copy.deepcopy(point) == point
        assert type(pickle.loads(pickle.dumps(Point.Inner()))) is Point.Inner
        assert pickle.loads(pickle.dumps(Colour.RED)) is Colour.RED
        return pickle.dumps(point), point

    names = [Point.Inner.__qualname__, other.__qualname__]

    def inside(inner):
        made = pickle.loads(pickle.dumps(inner))
        return type(made) is type(inner), type(inner).__qualname__

    def copied(point):
        return Point(point.x)

    # In a session of its own, whose workers have not seen the class around it.
    with parmap.plan(sys.argv[1], workers=2):
        assert parmap.pmap(inside, [Point.Inner()] * 2) == [(True, "Point.Inner")] * 2
    with parmap.plan(sys.argv[1], workers=2):
        for _ in range(2):
            data, points = zip(*parmap.pmap(pickled, range(4), chunks=1))
            assert list(map(pickle.loads, data)) == list(points) == list(map(Point, range(4)))
        # A result stays with a worker, and another one may read it.
        graph = [parmap.delayed(copied)(parmap.delayed(Point)(x)) for x in range(8)]
        assert parmap.compute(graph) == list(map(Point, range(8)))
    assert "__getattr__" not in globals()
"""


@pytest.mark.parametrize("plan", ["threads", "processes"])
def test_tasks_pickle_objects_of_the_script_s_classes(run, plan):
    run(PICKLING, plan)


VALIDATED = """
    import sys, threading
    import parmap, pydantic

    limit = 3
    lock = threading.Lock()  # pydantic looks for annotations among the globals, all of them

    class Model(pydantic.BaseModel):
        a: int

    @pydantic.validate_call(validate_return=True)
    def validated(x: int, model: Model) -> int:
        return str(x + model.a + limit)

    class Own:
        @classmethod
        @pydantic.validate_call
        def validated(cls, x: int):
            return cls.__name__, x

    def both(x):
        return validated(str(x), {"a": x}), Own.validated(str(x))

    def refused(x):
        try:
            return validated("x", {"a": 1})
        except pydantic.ValidationError as error:
            return error.error_count()

    with parmap.plan(sys.argv[1], workers=2):
        assert parmap.pmap(both, range(4)) == [(2 * x + 3, ("Own", x)) for x in range(4)]
        assert parmap.pmap(refused, range(2)) == [1, 1]
"""


@pytest.mark.parametrize("plan", ["threads", "processes"])
def test_functions_whose_arguments_pydantic_validates(run, plan):
    pytest.importorskip("pydantic", reason="pydantic is not installed")
    run(VALIDATED, plan)
