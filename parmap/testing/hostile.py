"""What is the user's is carried, called and given back, and not looked into."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import numpy as np
import pytest

import parmap
from parmap.testing.material import LONG, Contract

__all__ = ["HostileContract"]


class AttrDict(dict[str, Any]):
    """Raises KeyError for an attribute that it has not."""

    __getattr__ = dict.__getitem__


class Growing(collections.defaultdict[str, Any]):
    """Gains a key by being asked for an attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # as pickle and copy ask any object
            raise AttributeError(name)
        return self[name]


class Proxy:
    """Stands for something that is not there: any attribute raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name} outside of its context")

    def __call__(self, x: Any) -> Any:
        return 3 * x


class Classless(Proxy):
    """Does not even tell its class."""

    @property  # type: ignore[misc]
    def __class__(self) -> NoReturn:  # type: ignore[override]
        """Ask what it stands for."""
        raise RuntimeError("no class outside of its context")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (Classless, ())


class Undecided:
    """Compares to arrays, is neither true nor false, has no hash, no length and no text."""

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Any:
        return np.zeros(3)

    def __ne__(self, other: object) -> Any:
        raise RuntimeError("compared")

    def __bool__(self) -> NoReturn:
        raise RuntimeError("asked whether it is true")

    def __len__(self) -> NoReturn:
        raise RuntimeError("asked for its length")

    def __iter__(self) -> NoReturn:
        raise RuntimeError("iterated over")

    def __repr__(self) -> NoReturn:
        raise RuntimeError("asked for its text")

    def __call__(self, x: Any) -> Any:
        return 3 * x

    @property
    def nbytes(self) -> NoReturn:
        """Look large."""
        raise RuntimeError("asked for its size")

    flags = func = keywords = __wrapped__ = __notes__ = nbytes


class Wrong(Exception):  # noqa: N818
    """An error that answers for no attribute."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(f"asked for {name}")

    def __str__(self) -> NoReturn:
        raise RuntimeError("asked for its text")


KINDS: dict[str, Callable[[], Any]] = {
    "a dict with attributes": lambda: AttrDict(alpha=2),
    "a dict that grows": lambda: Growing(int, alpha=2),
    "a proxy of nothing": Proxy,
    "a proxy without a class": Classless,
    "an object without a truth": Undecided,
}
CALLABLE = {name: make for name, make in KINDS.items() if callable(make())}


class HostileContract(Contract):
    """What is the user's is carried, called and given back, and not looked into."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_hostile_element(self, kind: str) -> None:
        """It comes to the function as what it is, and back, from pmap, imap, starmap and others."""
        make, name = KINDS[kind], type(KINDS[kind]()).__name__
        given = [make() for _ in range(3)]

        def fn(thing: Any) -> Any:
            return type(thing).__name__, thing

        results = [
            parmap.pmap(fn, given),
            parmap.pmap(fn, iter(given), chunks=2, errors="return", retries=1),
            parmap.starmap(fn, [(one,) for one in given], timeout=LONG),
            list(parmap.imap(fn, given)),
            list(parmap.pgrid(fn, {"thing": given}).values),
            parmap.compute([parmap.delayed(fn)(one) for one in given]),
            [parmap.submit(fn, one).result(LONG) for one in given],
        ]
        for some in results:
            assert [(text, type(thing).__name__) for text, thing in some] == [(name, name)] * 3
        self._unchanged(given)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_hostile_value_around_a_function(self, kind: str) -> None:
        """In a closure, a partial, a default, a shared value, or as a keyword."""
        thing = KINDS[kind]()
        if kind == "a proxy without a class" and not self.shares_memory():
            pytest.skip("cloudpickle asks what a function captures for its class")
        name = type(thing).__name__

        def told(x: Any, held: Any = thing) -> Any:
            return type(thing).__name__, type(held).__name__, x

        def named(held: Any, x: Any) -> Any:
            return type(held).__name__, x

        handle = parmap.share(thing)
        assert parmap.pmap(told, range(3)) == [(name, name, x) for x in range(3)]
        expected = [(name, x) for x in range(3)]
        assert parmap.pmap(functools.partial(named, thing), range(3)) == expected
        assert parmap.pmap(named, [handle] * 3, range(3)) == expected
        assert parmap.pmap(functools.partial(named, handle), range(3)) == expected
        assert parmap.compute([parmap.delayed(named)(thing, x=x) for x in range(3)]) == expected
        assert [parmap.submit(named, held=thing, x=x).result(LONG) for x in range(3)] == expected
        self._unchanged([thing])

    @pytest.mark.parametrize("kind", CALLABLE)
    @pytest.mark.parametrize("options", [{}, {"errors": "return"}, {"retries": 1, "chunks": 1}])
    def test_a_hostile_function(self, kind: str, options: Any) -> None:
        """A callable object is called, and asked for nothing else."""
        fn = CALLABLE[kind]()
        assert parmap.pmap(fn, range(4), **options) == [0, 3, 6, 9]
        assert parmap.starmap(fn, [(1,), (2,)], **options) == [3, 6]
        assert list(parmap.imap(fn, range(4), **options)) == [0, 3, 6, 9]
        assert list(parmap.pgrid(fn, {"x": range(3)}, **options).values) == [0, 3, 6]
        assert parmap.compute([parmap.delayed(fn)(x) for x in range(3)], **options) == [0, 3, 6]
        assert parmap.submit(fn, 2).result(LONG) == 6
        assert parmap.submit(fn, x=2).result(LONG) == 6

    @pytest.mark.parametrize("kind", CALLABLE)
    def test_a_hostile_function_and_a_seed(self, kind: str) -> None:
        """That it takes no stream is found without asking it."""
        fn = CALLABLE[kind]()
        traits = self.session.traits
        shared = traits.threaded or (traits.shares_memory and not traits.same_thread)
        if shared or traits.noisy:
            with pytest.raises(TypeError, match="has no parameter rng"):
                parmap.pmap(fn, range(4), rng=1)
            return
        assert parmap.pmap(fn, range(4), rng=1) == [0, 3, 6, 9]

    def test_a_hostile_error(self) -> None:
        """It is raised, or stands in a failure, as the error that it is."""

        def fail(x: Any) -> NoReturn:
            raise Wrong(x)

        with pytest.raises(Wrong):
            parmap.pmap(fail, range(3))
        results: list[Any] = parmap.pmap(fail, range(3), errors="return", retries=1)
        assert [type(result.error) for result in results] == [Wrong] * 3
        with pytest.raises(ExceptionGroup) as caught:
            parmap.pmap(fail, range(3), errors="group")
        assert [type(error) for error in caught.value.exceptions] == [Wrong] * 3
        results = parmap.compute([parmap.delayed(fail)(x) for x in range(3)], errors="return")
        assert [type(result.error) for result in results] == [Wrong] * 3

    def test_a_failure_as_a_result_is_a_result(self) -> None:
        """A function may return the failures of a map of its own."""

        def inner(x: int) -> Any:
            return parmap.pmap(lambda y: 1 / y, [x], errors="return")[0]

        call = parmap.delayed(inner)(0)
        name = parmap.delayed(lambda value: type(value).__name__)
        assert parmap.compute([name(call), type(call).__name__]) == ["Failure", "Delayed"]
        results: list[Any] = parmap.pmap(inner, [0, 1], errors="group")
        assert [type(value) for value in results] == [parmap.Failure, float]

    @staticmethod
    def _unchanged(things: list[Any]) -> None:
        """Check that no dict has gained a key."""
        for thing in things:
            if issubclass(type(thing), dict):
                assert list(thing) == ["alpha"]
