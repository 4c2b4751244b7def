"""Workers run the code that the caller has loaded: of its script, and of its own modules."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import importlib
import importlib.util
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import parmap
from parmap.testing.material import LONG, Contract

__all__ = ["CodeContract"]

_DECORATED = """
import functools

@functools.cache
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

@functools.singledispatch
def shown(x):
    return f"<{x}>"

@shown.register
def _(x: list):
    return "".join(map(shown, x))

class Model:
    factor = 3

    @functools.cached_property
    def weights(self):
        return [1, self.factor]

    @functools.lru_cache(maxsize=2)
    def at(self, i):
        return self.weights[i % 2] + i

    @functools.singledispatchmethod
    def named(self, x):
        return "other"

    @named.register
    def _(self, x: int):
        return f"{x} of {self.factor}"

model = Model()

def uses_all(i):
    parts = fibonacci(i), shown([i, [str(i)]]), model.weights, model.at(i), model.named(i)
    return *parts, model.named("x"), fibonacci.cache_parameters()["maxsize"]
"""

_REGISTRIES = """
class Shape:
    known = {}

    def __init_subclass__(cls, /, sides, **others):
        super().__init_subclass__(**others)
        if sides in Shape.known:
            raise TypeError(f"{sides} twice")
        Shape.known[sides] = cls

class Triangle(Shape, sides=3):
    def name(self):
        return "triangle"

class Square(Shape, sides=4):
    def name(self):
        return "square"

class Listed(type):
    names = []

    def __new__(meta, name, bases, space):
        meta.names.append(name)
        return super().__new__(meta, name, bases, space)

class First(metaclass=Listed):
    pass

class Second(First):
    value = 2

def looked_up(i):
    return Shape.known[3 + i % 2]().name(), len(Shape.known), Second.value, Listed.names

def named(i):
    return Triangle().name()

def made(i):
    return Square()
"""

_STRINGS = """
limit = 5
unneeded = (i for i in "abc")  # cannot travel

def doubled(x):
    return 2 * x

def evaluated(i):
    return eval("doubled(limit) + i")

def looked_up(i):
    return globals()["limit"] + i, len("unneeded")

def inside(i):
    return [eval("limit") for _ in range(2)]

def put_together(i):
    return eval("".join(["lim", "it"]))

def misspelled(i):
    return limt
"""


def script(text: str) -> dict[str, Any]:
    """Run the text of a script, as one that Python runs."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(text, space)  # noqa: S102
    return space


def expected(fn: Callable[[int], Any], count: int = 4) -> list[Any]:
    """Return what the loop would."""
    return [fn(i) for i in range(count)]


_USED = """
SIZE = {size}

def size(i):
    return SIZE + i
"""

_USER = """
import used_by_it
from used_by_it import size

calls = 0

class Sized:
    def __init__(self, i):
        self.i = i

    def size(self):
        return size(self.i)

def both(i):
    return size(i), used_by_it.size(i), used_by_it.SIZE

def counted(i):
    global calls
    calls += 1
    return calls

def late(i):
    import used_by_it as again
    from used_by_it import SIZE

    return again.size(i), SIZE
"""


def modules_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Give what writes a module into a folder, and imports it; forget the modules at the end."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names: list[str] = []

    def write(name: str, text: str) -> Any:
        file = folder / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        names.append(name)
        return importlib.import_module(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


class CodeContract(Contract):
    """Workers run what the caller has loaded, whatever has made it."""

    @pytest.fixture
    def module(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Callable[..., Any]]:
        """Give what writes a module of the user's, and imports it once."""
        yield from modules_in(tmp_path, monkeypatch)

    def test_what_decorators_make_of_functions(self) -> None:
        """A cache, a dispatch on types and a cached property travel with the script's functions."""
        space = script(_DECORATED)
        for name in ("uses_all", "fibonacci", "shown"):
            assert parmap.pmap(space[name], range(4)) == expected(space[name])
        assert parmap.submit(space["fibonacci"], 9).result(LONG) == 34
        assert parmap.pmap(space["model"].at, range(4)) == expected(space["model"].at)

    def test_classes_that_their_bases_know(self) -> None:
        """What a base, or a metaclass, has noted of its classes is there, once."""
        space = script(_REGISTRIES)
        for _ in range(2):  # the second time a worker may have the classes
            for fn in (space["looked_up"], space["named"]):
                assert parmap.pmap(fn, range(4)) == expected(fn)
            (result,) = parmap.pmap(space["made"], [0])
            assert type(result) is space["Square"]
        assert len(space["Shape"].known) == 2

    def test_names_in_strings(self) -> None:
        """What `eval` and the like are given as constants travels with the function."""
        space = script(_STRINGS)
        for name in ("evaluated", "looked_up", "inside"):
            assert parmap.pmap(space[name], range(4)) == expected(space[name])

    def test_a_name_that_no_code_has(self) -> None:
        """The error says how a name travels, where that may be the reason."""
        space = script(_STRINGS)
        if self.shares_memory():
            assert parmap.pmap(space["put_together"], range(2)) == [5, 5]
        else:
            with pytest.raises(NameError, match="limit") as caught:
                parmap.pmap(space["put_together"], range(2))
            assert "only the names that stand in" in " ".join(caught.value.__notes__)
        with pytest.raises(NameError, match="limt") as caught:
            parmap.pmap(space["misspelled"], range(2))
        assert "only the names that stand in" not in " ".join(caught.value.__notes__)

    def test_a_module_that_is_edited(self, module: Callable[..., Any]) -> None:
        """Whatever the file says now: what is loaded here runs, reloaded or not."""
        used = module("used_by_it", _USED.format(size=1))
        user = module("user_of_it", _USER)
        fns: list[Callable[[int], Any]] = [
            used.size,
            user.both,
            user.late,
            user.counted,
            lambda i: user.Sized(i).size(),
            lambda i: (used.SIZE, user.used_by_it.size(i)),
            lambda i: (user.counted(i), user.calls),
        ]

        def check() -> None:
            for fn in fns:
                user.calls = 0
                want = [fn(0)]
                user.calls = 0
                assert parmap.pmap(fn, [0]) == want
                assert parmap.submit(fn, 0).result(LONG) == want[0] or self.shares_memory()

        check()
        Path(used.__file__).write_text(_USED.format(size=1000))
        check()
        importlib.reload(used)
        assert used.size(0) == 1000
        check()
        importlib.reload(user)
        fns[1:4] = [user.both, user.late, user.counted]
        check()
        (result,) = parmap.pmap(user.Sized, [7])
        assert (type(result), result.size()) == (user.Sized, 1007)

    def test_a_module_that_is_loaded_by_its_path(self, tmp_path: Path) -> None:
        """Workers cannot import it, and need not."""
        file = tmp_path / "loaded_by_path.py"
        file.write_text(_USED.format(size=5) + "\nclass Own:\n    size = staticmethod(size)\n")
        spec = importlib.util.spec_from_file_location("loaded_by_path", file)
        assert spec is not None
        assert spec.loader is not None
        loaded: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        for registered in (False, True):
            if registered:
                sys.modules["loaded_by_path"] = loaded
            try:
                for fn in (loaded.size, lambda i: loaded.Own.size(i) + 0, loaded.Own().size):
                    assert parmap.pmap(fn, range(4)) == [5, 6, 7, 8]
                (result,) = parmap.pmap(lambda _: loaded.Own(), [0])
                assert type(result) is loaded.Own
                assert parmap.pmap(lambda _: "size" in dir(loaded), [0]) == [True]
            finally:
                sys.modules.pop("loaded_by_path", None)

    def test_installed_packages_travel_by_name(self) -> None:
        """A worker has its own functions of them, and their state."""
        for fn in (textwrap.dedent, importlib.import_module, importlib.reload):
            (back,) = parmap.pmap(lambda _, fn=fn: fn, [0])
            assert back is fn
