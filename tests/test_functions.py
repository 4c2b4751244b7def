"""Functions of the script, rebuilt in a worker as cloudpickle would rebuild them."""

import builtins
import os
import pickle
import pickletools
import sys
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


FUNCTIONS = [EXECUTED["plain"], EXECUTED["counting"], closure([1]), unfilled(), lambda: os.sep]


def parts(function, seen=()):
    """List all that a function is made of, but for its name space's identity."""
    if function in seen:
        return "itself"
    seen = (*seen, function)
    cells = [contents(cell, seen) for cell in function.__closure__ or ()]
    space = {name: parted(value, seen) for name, value in function.__globals__.items()}
    space.pop("__builtins__")
    own = {k: [*v, v["of"] is function] for k, v in vars(function).items()}
    code = function.__code__
    names = ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__")
    return (
        [code.co_code, code.co_names, code.co_consts, code.co_freevars, cells, space, own],
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
    return parts(value, seen) if type(value) is FunctionType else value


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_function_is_what_cloudpickle_would_make_of_it(function):
    ours = pickle.loads(payload.by_value(function))
    assert parts(ours) == parts(pickle.loads(cloudpickle.dumps(function)))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_its_pickle_does_not_name_cloudpickle(function):
    assert not named(payload.by_value(function)) & {"cloudpickle", "cloudpickle.cloudpickle"}


def named(data):
    return {argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}


def test_a_version_that_is_not_known_rebuilds_its_functions_itself(monkeypatch):
    monkeypatch.setattr(cloudpickle, "__version__", "4.0.0")
    payload._pickler.cache_clear()
    try:
        data = payload.by_value(closure(3))
    finally:
        payload._pickler.cache_clear()
    assert "cloudpickle.cloudpickle" in named(data)
    assert pickle.loads(data)(2) == 3


def test_the_installed_version_is_known():
    """Else each worker imports it: compare its functions with ours, and add the version."""
    assert len(functions.replacements(cloudpickle)) == 6


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


def test_all_but_the_first_workers_find_cloudpickle_loaded(tmp_path):
    """In a large pool the fork server loads it, once, and not each worker that needs it."""
    path = os.fspath(tmp_path / "fifo")
    os.mkfifo(path)
    there = os.open(path, os.O_RDWR)

    def tell():
        with open(path, "w") as fifo:
            fifo.write("y" if "cloudpickle" in sys.modules else "n")

    with parmap.plan("processes", workers=10, setup=tell):
        told = [os.read(there, 1) for _ in range(10)]
    os.close(there)
    assert sorted(told) == [b"n"] * 8 + [b"y"] * 2
