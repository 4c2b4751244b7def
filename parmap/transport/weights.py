"""What an object is made of, as pickling sees it, and which of its parts weigh most.

The parts are those of the object's reduction: what would not travel is not named, and what a
``__reduce__`` hides is. No pickle is kept of what is weighed: bytes are counted and thrown away,
and arrays, whose pickle may be a copy, say their size themselves.
"""

from __future__ import annotations

import contextlib
import copyreg
import heapq
import itertools
import pickle
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType
from typing import Any, NamedTuple

from parmap.transport.arrays import reducer_of
from parmap.transport.decorated import amended

__all__ = ["ATOMS", "Part", "Reducer", "Weight", "heavy", "kind_of", "weights", "written"]

# One step of a path and what is there: a form, what to fill it with, and the part itself. A
# path is written at the end only: most parts are looked at once, and their keys may be long.
Part = tuple[str, Any, Any]
_ATTRIBUTE, _ITEM, _CELL, _KEY, _MEMBER = ".{}", "[{}]", "[{0}]", " key {}", " member {}"
_INSIDE = _CALL, _STATE = ".__reduce__()", ".__getstate__()"
_LONGEST, _WIDEST = 12, 60  # how many steps of a path are written, and characters of a key

_NUMBERS: frozenset[type] = frozenset({int, float, complex, bool, type(None)})
ATOMS: frozenset[type] = _NUMBERS | {str, bytes, bytearray, pickle.PickleBuffer}
_CONTAINERS = frozenset({dict, list, tuple, set, frozenset})  # pickle asks these no reduction
_PROTOCOL, _NOTHING = 5, object()
_BLOCK, _SPLITS = 1000, 100  # parts that are weighed at once; objects that are looked into


def kind_of(value: Any) -> str:
    """Name an object's type, as one would write it."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def written(what: str, steps: Sequence[tuple[str, Any]]) -> str:
    """Write a path; the middle of a very long one is left out."""
    ends = list(steps)
    if len(steps) > _LONGEST:
        half = _LONGEST // 2
        ends[half:-half] = [(f" ... ({len(steps) - 2 * half:,} more) ... ", None)]
    return (what + "".join(itertools.starmap(_step, ends))).removeprefix(".")


def _step(form: str, key: Any) -> str:
    if form == _ATTRIBUTE:
        return f".{key}" if str(key).isidentifier() else f".__dict__[{key!r}]"
    try:
        text = repr(key)
    except Exception:  # noqa: BLE001 - a user's __repr__
        text = f"<{kind_of(key)}>"
    text = text.strip("(,)") if form == _CELL and key else text
    return form.format(text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "...")


class Reducer:
    """Takes objects apart as cloudpickle does.

    Parameters
    ----------
    skip : collection of type, default ATOMS
        Parts of these types are passed over where they may be many.
    """

    def __init__(self, skip: Collection[type] = ATOMS) -> None:
        import cloudpickle

        self._pickler = cloudpickle.Pickler(_Counter(), _PROTOCOL)
        self._skip = skip

    def reduce(self, value: Any) -> tuple[Any, ...] | None:
        """Give what pickling makes of an object, or raise as it does; None: a name alone."""
        kind = type(value)
        made = amended(self._pickler, value)
        if made is NotImplemented:
            if issubclass(kind, type | FunctionType):
                return None  # cloudpickle has looked it up
            reducer = reducer_of(kind) or self._pickler.dispatch_table.get(kind)
            made = value.__reduce_ex__(_PROTOCOL) if reducer is None else reducer(value)
        if isinstance(made, str):
            self._pickler.dump(value)  # looks it up
            return None
        if not (isinstance(made, tuple) and len(made) > 1):
            raise pickle.PicklingError(f"__reduce__ gave {kind_of(made)}")
        return made

    def parts(self, value: Any, *, wholly: bool = True) -> Iterator[Part]:
        """Give the parts that pickling visits, or raise as it does.

        If not `wholly`, not those that have better names, or are one object's block of bytes.
        """
        kind = type(value)
        if kind in _CONTAINERS:
            yield from _contents(value, self._skip)
        elif kind not in ATOMS and not (
            # Never into a plain array: its reduction may be a copy.
            kind.__module__ == "numpy" and _is_array(value) if wholly else _own_size(value)
        ):
            made = self.reduce(value)
            known = _known(value, made)
            if known is not None:
                # A library may change: what is not found so is found in the reduction.
                with contextlib.suppress(Exception):
                    yield from known
            if made is not None and (wholly or known is None):
                yield from _reduced(value, made, self._skip)


def _contents(value: Any, skip: Collection[type]) -> Iterator[Part]:
    if type(value) is dict:
        for key, item in value.items():
            if type(key) not in skip:
                yield _KEY, key, key
            if type(item) not in skip:
                yield _ITEM, key, item
    elif type(value) in (list, tuple):
        yield from ((_ITEM, i, item) for i, item in enumerate(value) if type(item) not in skip)
    else:
        yield from ((_MEMBER, item, item) for item in value if type(item) not in skip)


def _loaded(module: str, name: str) -> Any:
    """Give a class for issubclass(). Of a module that is not loaded there are no objects."""
    return getattr(sys.modules.get(module), name, ())


def _is_array(value: Any) -> bool:
    """Tell whether a value is an array of plain numbers."""
    return issubclass(type(value), _loaded("numpy", "ndarray")) and not value.dtype.hasobject


def _known(value: Any, made: tuple[Any, ...] | None) -> Iterator[Part] | None:
    """Give the parts of what is written in other terms than those that it is pickled in."""
    kind = type(value)
    if kind is FunctionType and made is not None and len(made[1]) > 1:  # else it dispatches
        return _captured(value, *made[2])
    if issubclass(kind, _loaded("numpy", "ndarray")) and value.dtype == object:
        cells = zip(itertools.product(*map(range, value.shape)), value.flat, strict=True)
        return ((_CELL, place, part) for place, part in cells)
    if issubclass(kind, _loaded("pandas", "DataFrame")):
        return ((_ITEM, name, value.iloc[:, i]) for i, name in enumerate(value.columns))
    if issubclass(kind, _loaded("pandas", "Series")):
        items = value.array if value.dtype == object else ()
        return ((".iloc[{}]", i, item) for i, item in enumerate(items))
    return None


def _captured(function: FunctionType, attributes: Any, slots: Any) -> Iterator[Part]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        with contextlib.suppress(ValueError):  # a cell that is not filled yet
            yield ".__closure__[{}]", name, cell.cell_contents
    # The globals that the code reads: cloudpickle sends no others.
    yield from ((".__globals__[{}]", name, part) for name, part in slots["__globals__"].items())
    rest = sorted(slots.keys() - {"__closure__", "__globals__"})
    yield from ((_ATTRIBUTE, name, slots[name]) for name in rest)
    yield from ((_ATTRIBUTE, name, part) for name, part in attributes.items())


def _reduced(value: Any, made: tuple[Any, ...], skip: Collection[type]) -> Iterator[Part]:
    """Give the parts of a reduction, by the names of the attributes that hold them."""
    names = _Names(value, skip)
    call, args, state, items, pairs = (*made, None, None, None)[:5]
    if call is not copyreg.__newobj__:  # type: ignore[attr-defined]
        yield from names.explain(call, f"{_CALL}[0]")
    if issubclass(type(value), BaseException) and names.of(args):
        yield _ATTRIBUTE, "args", args
    else:
        for i, part in enumerate(args):
            yield from names.explain(part, f"{_CALL}[1][{i}]")
    yield from ((_ITEM, i, item) for i, item in enumerate(items or ()))
    yield from (p for k, item in pairs or () for p in ((_KEY, k, k), (_ITEM, k, item)))
    getstate: Any = type(value).__getstate__
    place = f"{_CALL}[2]" if getstate is object.__getstate__ else _STATE
    if type(state) in (tuple, list):
        for i, part in enumerate(state):
            yield from names.explain(part, f"{place}[{i}]")
    else:
        yield from names.explain(state, place)


class _Names:
    """Which attribute of an object holds a part of it."""

    def __init__(self, value: Any, skip: Collection[type]) -> None:
        self._value, self._kind, self._skip = value, type(value), skip
        self._own: Mapping[str, Any] = {}
        with contextlib.suppress(AttributeError):  # not by the class's own: it may raise anything
            self._own = object.__getattribute__(value, "__dict__")
        self._found: dict[int, tuple[str, Any]] | None = None

    def explain(self, part: Any, place: str) -> Iterator[Part]:
        """Name a part of the reduction; its place there is the name when all else fails."""
        if type(part) in self._skip:
            return
        if part is not self._own and (name := self.of(part)):
            yield _ATTRIBUTE, name, part
        elif part is self._own or (type(part) is dict and not issubclass(self._kind, Mapping)):
            for key, item in part.items():
                name = key if self._own.get(key, _NOTHING) is item else self.of(item)
                form = f"{place}[{{}}]" if name is None else _ATTRIBUTE
                if type(item) not in self._skip:
                    yield form, key if name is None else name, item
        elif type(part) in _CONTAINERS and issubclass(self._kind, Sequence | Mapping):
            yield "", None, part  # a Counter's dict, a tuple's items
        else:
            yield place, None, part

    def of(self, part: Any) -> str | None:
        """Give the attribute's name."""
        if part is self._kind:
            return "__class__"
        if self._found is None:
            # With the values: an id may be another object's when this one is gone.
            self._found = {id(held): (name, held) for name, held in self._attributes()}
        name, held = self._found.get(id(part), ("", _NOTHING))
        return name if held is part else None

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        """Give the attributes that no code of a user's has to be run for."""
        for cls in self._kind.__mro__:
            for name, member in vars(cls).items():
                builtin = cls.__module__ == "builtins" and type(member) is GetSetDescriptorType
                if builtin or type(member) is MemberDescriptorType:
                    with contextlib.suppress(Exception):  # not set
                        yield name, member.__get__(self._value)
        if issubclass(self._kind, tuple):
            yield from zip(getattr(self._kind, "_fields", ()), self._value, strict=False)
        yield from self._own.items()


class Weight(NamedTuple):
    """Something heavy: the path to it, its type, and the bytes that it takes to send."""

    path: str
    kind: str
    size: int


def weights(value: Any, what: str = "") -> list[Weight]:
    """Find the three heaviest things that a value holds.

    Each is the smallest that still holds the bulk of its weight: the array, not the model
    around it; but the list, when it holds a thousand arrays.

    Parameters
    ----------
    value : object
        A function, or anything else that is to be sent.
    what : str, default ""
        What to call it: the paths begin so.

    Returns
    -------
    list of Weight
        Three at most, the heaviest first; none that is less than a hundredth of the whole.
    """
    return _weighed(value, what)[1]


def heavy(value: Any, what: str = "", least: int = 0) -> str:
    """Say in one line how much a value takes to send, and what in it is heaviest.

    Parameters
    ----------
    value, what
        As for `weights`.
    least : int, default 0
        The number of bytes from which on something is said, rather than "".
    """
    total, rows = _weighed(value, what, least)
    text = f"{what or 'it'} takes {_size(total)} to send"
    inner = [f"{row.path} ({row.kind}, {_size(row.size)})" for row in rows if row.path != what]
    return "" if total < least else ": ".join(filter(None, [text, ", ".join(inner)]))


def _size(count: int) -> str:
    if count < 1 << 20:
        return f"{count:,} bytes"
    return f"{count / 2**20:,.3g} MiB" if count < 999 << 20 else f"{count / 2**30:,.1f} GiB"


class _Node(NamedTuple):
    size: int
    steps: tuple[tuple[str, Any], ...]
    value: Any


def _three(nodes: Iterator[_Node] | list[_Node]) -> list[_Node]:
    return heapq.nlargest(3, nodes, key=lambda node: node.size)


def _weighed(value: Any, what: str, least: int = 0) -> tuple[int, list[Weight]]:
    reducer = Reducer(_NUMBERS)
    total = _Scale(reducer, {}).weigh(value)
    if total < least:
        return total, []
    nodes = [_Node(total, (), value)]
    looked: set[int] = set()
    unfolded: dict[int, Any] = {}  # with the objects, so that no other gets their ids
    for _ in range(_SPLITS):
        node = next((node for node in _three(nodes) if id(node.value) not in looked), None)
        if node is None:
            break
        looked.add(id(node.value))
        inner = _heaviest(node, reducer, unfolded | {id(node.value): node.value})
        # What a function captures is always named; of others, parts that are most of them.
        captures = type(node.value) in (FunctionType, MethodType, partial)
        if captures or 2 * sum(part.size for part in inner) >= node.size:
            unfolded[id(node.value)] = node.value
            nodes.remove(node)
            held = unfolded.keys() | {id(other.value) for other in nodes}
            nodes += [part for part in inner if id(part.value) not in held]
    rows = (Weight(written(what, n.steps), kind_of(n.value), n.size) for n in _three(nodes))
    return total, [row for row in rows if 100 * row.size >= total]


def _heaviest(node: _Node, reducer: Reducer, outside: Mapping[int, Any]) -> list[_Node]:
    """Give the three heaviest parts; each part is weighed twice at most."""
    parts = reducer.parts(node.value, wholly=False)
    blocks = iter(lambda: list(itertools.islice(parts, _BLOCK)), [])
    scale = _Scale(reducer, outside)
    try:
        some = next(blocks, [])
        if len(some) == _BLOCK:
            every = itertools.chain([some], blocks)
            # So only the parts of three blocks are ever held.
            three = heapq.nlargest(3, every, key=lambda block: scale.weigh([b[2] for b in block]))
            some = list(itertools.chain.from_iterable(three))
    except Exception:  # noqa: BLE001 - it cannot be pickled, so it has no parts
        return []
    scale = _Scale(reducer, outside)
    return _three(
        _Node(scale.weigh(part), (*node.steps, (form, key)), part)
        for form, key, part in some
        if not form.startswith(_INSIDE)  # of no use to a user who looks for what is large
    )


class _Counter:
    """A file that counts what is written to it, and throws it away."""

    def __init__(self) -> None:
        self.total = 0

    def write(self, data: bytes) -> None:
        self.total += len(data)

    def take(self, buffer: pickle.PickleBuffer) -> None:
        self.total += memoryview(buffer).nbytes


class _Scale(pickle.Pickler):
    """Weighs by pickling into nothing. What it has met before weighs nothing again.

    Nor does what cannot be pickled, nor `outside`: what holds what is weighed, and is led back to.
    """

    def __init__(self, reducer: Reducer, outside: Mapping[int, Any]) -> None:
        self._counter = _Counter()
        super().__init__(self._counter, _PROTOCOL, buffer_callback=self._counter.take)
        self._reducer, self._outside = reducer, outside

    def weigh(self, value: Any) -> int:
        before = self._counter.total
        with contextlib.suppress(Exception):  # nested too deeply, say: what was pickled counts
            self.dump(value)
        return self._counter.total - before

    def reducer_override(self, value: Any, /) -> Any:
        if id(value) in self._outside:
            return object, ()
        try:
            size = _own_size(value)
            if size is None:
                return self._reducer.reduce(value) or NotImplemented
        except Exception:  # noqa: BLE001 - it cannot be pickled
            size = 0
        self._counter.total += size
        return object, ()


def _own_size(value: Any) -> int | None:
    """Give the size of what may be copied when it is pickled, and knows how large it is."""
    kind = type(value)
    if _is_array(value) or issubclass(kind, (memoryview, _loaded("torch", "Tensor"))):
        return int(value.nbytes)
    if issubclass(kind, (_loaded("polars", "DataFrame"), _loaded("polars", "Series"))):
        return int(value.estimated_size())
    is_array = issubclass(kind, _loaded("array", "array"))
    return len(value) * int(value.itemsize) if is_array else None
