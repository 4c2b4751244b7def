"""Grids are nested loops; graphs are the calls that they are made of."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

import parmap
from parmap.testing.material import Contract, examples

__all__ = ["GraphsContract"]

_add, _total = parmap.delayed(operator.add), parmap.delayed(sum)


@st.composite
def _graphs(draw: st.DrawFn) -> list[tuple[str, tuple[int, ...]]]:
    """Draw calls, each with the earlier calls that it needs."""
    count = draw(st.integers(1, 25))
    graph: list[tuple[str, tuple[int, ...]]] = [("leaf", ())]
    for place in range(1, count):
        needs = tuple(draw(st.lists(st.integers(0, place - 1), max_size=3)))
        graph.append((draw(st.sampled_from(["add", "total"])) if needs else "leaf", needs))
    return graph


# Which constructors have run, here in the caller.
_made: list[str] = []


@dataclass
class _Record:
    value: Any
    more: Any = None
    count: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        _made.append("record")
        self.count += 1
        self.derived = [self.value]


@dataclass(frozen=True, slots=True)
class _Frozen:
    value: Any
    more: Any = None

    def __post_init__(self) -> None:
        _made.append("frozen")
        object.__setattr__(self, "more", (self.value, self.more))


class _Pair(NamedTuple):
    value: Any
    more: Any


class _Checked(_Pair):
    def __new__(cls, value: Any, more: Any = None) -> Self:
        _made.append("checked")
        return super().__new__(cls, value, more)


def _seen(thing: Any) -> tuple[Any, ...]:
    more = (thing.count, thing.derived) if type(thing) is _Record else ()
    return type(thing).__name__, thing.value, thing.more, *more


_EXPECTED: dict[type, tuple[Any, ...]] = {
    _Record: ("_Record", 3, [5], 1, [3]),
    _Frozen: ("_Frozen", 3, (3, [5])),
    _Checked: ("_Checked", 3, [5]),
}


class GraphsContract(Contract):
    """What is flattened into one pool gives what plain Python gives."""

    @pytest.mark.parametrize("kind", [_Record, _Frozen, _Checked])
    def test_constructors_are_not_run_again(self, kind: Any) -> None:
        """A record with results in it is the one that was made, and not made anew."""
        three, five = _add(1, 2), _add(2, 3)
        _made.clear()
        given = kind(three, [five])
        count = len(_made)
        result = parmap.compute({"here": given})["here"]
        there = parmap.compute(parmap.delayed(_seen)(given))
        assert len(_made) == count
        assert _seen(result) == there == _EXPECTED[kind]

    def test_a_grid_is_nested_loops(self) -> None:
        """In loop order, and in the loops' shape."""
        axes = {"a": range(3), "b": "xy", "c": [1.5, 2.5]}
        grid = parmap.pgrid(lambda a, b, c: (a, b, c), axes)
        assert list(grid.values) == list(itertools.product(range(3), "xy", [1.5, 2.5]))
        assert grid.nested()[2][1][0] == grid[2, 1, 0] == (2, "y", 1.5)

    @examples
    @given(graph=_graphs())
    def test_a_graph_gives_what_its_calls_give(self, graph: list[Any]) -> None:
        """Shared calls, several needs, any order."""
        plain: list[int] = []
        lazy: list[Any] = []
        for place, (kind, needs) in enumerate(graph):
            if kind == "leaf":
                plain.append(place)
                lazy.append(_add(place, 0))
            elif kind == "add":
                plain.append(plain[needs[0]] + plain[needs[-1]])
                lazy.append(_add(lazy[needs[0]], lazy[needs[-1]]))
            else:
                plain.append(sum(plain[need] for need in needs))
                lazy.append(_total([lazy[need] for need in needs]))
        assert parmap.compute({"all": lazy, "last": (lazy[-1],)}) == {
            "all": plain,
            "last": (plain[-1],),
        }

    def test_a_chain_and_a_fan(self) -> None:
        """Many calls in single file, and many side by side."""
        chain = _add(0, 1)
        for _ in range(2_000):
            chain = _add(chain, 1)
        assert parmap.compute(chain) == 2_001
        assert parmap.compute(_total([_add(i, 1) for i in range(2_000)])) == sum(range(2_001))

    def test_a_call_that_fails_fails_what_needs_it(self) -> None:
        """And nothing else; the message names it."""

        def load(x: int) -> int:
            raise LookupError(x)

        lost = parmap.delayed(load)(7)
        spoilt, kept = _add(_add(lost, 1), 2), _add(1, 2)
        results = parmap.compute([spoilt, kept, lost], errors="return")
        assert results[1] == 3
        assert isinstance(results[0].error, parmap.DependencyFailed)
        assert "load" in str(results[0].error)
        assert isinstance(results[2].error, LookupError)
        with pytest.raises(LookupError, match="7"):
            parmap.compute([kept, spoilt])
