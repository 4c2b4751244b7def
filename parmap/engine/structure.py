"""Structures with holes: lists, tuples, dicts and dataclasses that hold values still to come.

A structure is taken apart into a program for a small stack machine, and built again with
the holes filled. Neither step recurses, so a structure may nest to any depth.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MemberDescriptorType
from typing import Any, TypeAlias

from parmap.transport.arrays import as_it_lies
from parmap.transport.shared import is_large, share
from parmap.untouched import has, is_a, own

__all__ = ["Hole", "Shape", "shape_of", "sharing_large"]


class Hole:
    """Marks what is still to come; the base of delayed calls."""

    __slots__ = ("__weakref__",)


Step: TypeAlias = tuple[Any, ...]
# An attribute's name in the object's dictionary, or that of a slot, and of which class in the MRO.
_Place: TypeAlias = "str | tuple[int, str]"


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """How to build a structure again.

    Parameters
    ----------
    steps : tuple
        The program: ``("value", x)``, ``("shared", handle)`` and ``("hole", i)`` push;
        ``("list", n)`` and the like replace what is topmost by one container of it.
    """

    steps: tuple[Step, ...]

    def build(self, values: Sequence[Any]) -> Any:
        """Build the structure; `values` go into the holes."""
        stack: list[Any] = []
        for kind, what, *more in self.steps:
            if kind == "value":
                stack.append(what)
            elif kind == "shared":
                stack.append(what.value)
            elif kind == "hole":
                stack.append(values[what])
            else:
                count = more[0]
                parts = stack[len(stack) - count :]
                del stack[len(stack) - count :]
                stack.append(_made(kind, what, parts))
        return stack[0]

    def large(self) -> list[Any]:
        """List the values that are arrays of some size."""
        return [what for kind, what, *_ in self.steps if kind == "value" and is_large(what)]

    def with_handles(self, handles: Mapping[int, Any]) -> Shape:
        """Make the same shape with handles for some values, by the values' ids."""
        return Shape(
            tuple(
                ("shared", handles[id(step[1])])
                if step[0] == "value" and id(step[1]) in handles
                else step
                for step in self.steps
            )
        )


def shape_of(structure: Any) -> tuple[Shape, list[Any]]:
    """Take a structure apart.

    Parameters
    ----------
    structure : object
        Lists, tuples, named tuples, dicts, dataclasses and attrs classes are looked into; all
        else is a value.

    Returns
    -------
    shape : Shape
        How to build it again. Parts without holes and large values are kept as they are.
    holes : list of Hole
        What to fill in, in the order of `Shape.build`; each once.

    Raises
    ------
    ValueError
        If the structure contains itself.
    TypeError
        If a hole is a dict's key, or an object belongs to another library's graph.
    """
    holes: dict[Hole, int] = {}
    steps: list[Step] = []
    # A frame: the container, its parts, where its steps begin, how many holes came before.
    frames: list[tuple[Any, Iterator[Any], int, int]] = []
    open_: set[int] = set()
    seen = 0  # holes and large values met so far, repeated ones too
    todo: Any = structure
    while True:
        parts = None if is_a(todo, Hole) else _parts(todo)
        if parts is None:
            seen += _leaf(todo, holes, steps)
        else:
            if id(todo) in open_:
                raise ValueError("a structure contains itself: it cannot be computed")
            open_.add(id(todo))
            frames.append((todo, iter(parts), len(steps), seen))
        while frames:
            container, rest, start, before = frames[-1]
            try:
                todo = next(rest)
                break
            except StopIteration:
                frames.pop()
                open_.discard(id(container))
                if seen == before:
                    steps[start:] = [("value", container)]
                else:
                    steps.append(_step(container))
        else:
            return Shape(tuple(steps)), list(holes)


def sharing_large(
    shapes: Sequence[Shape], *, but_arrays: bool
) -> tuple[list[Shape], frozenset[int]]:
    """Make the same shapes, with one handle for each large value that stands in several.

    Parameters
    ----------
    shapes : sequence of Shape
        The shapes.
    but_arrays : bool
        Whether arrays whose memory is sent as it lies get none: the place sends them once by
        itself, and tasks may write to their own.

    Returns
    -------
    shapes : list of Shape
        The new ones.
    recurring : frozenset of int
        The numbers (`id`) of the arrays that stand in several, and have no handle.
    """
    large = [what for shape in shapes for what in shape.large()]
    counts = Counter(map(id, large))
    several = {id(what): what for what in large if counts[id(what)] > 1}
    recurring = frozenset(
        number for number, what in several.items() if but_arrays and as_it_lies(what)
    )
    handles = {number: share(what) for number, what in several.items() if number not in recurring}
    return [shape.with_handles(handles) for shape in shapes] if handles else list(shapes), recurring


def _leaf(leaf: Any, holes: dict[Hole, int], steps: list[Step]) -> int:
    if is_a(leaf, Hole):
        steps.append(("hole", holes.setdefault(leaf, len(holes))))
        return 1
    if has(leaf, "__dask_graph__"):
        raise TypeError(
            f"{type(leaf).__module__}.{type(leaf).__qualname__} is another library's lazy value: "
            "compute it there, or make it with parmap.delayed"
        )
    steps.append(("value", leaf))
    return is_large(leaf)  # then its container is no single step: see sharing_large


def _parts(thing: Any) -> Sequence[Any] | None:
    """Give the parts of a container; None for what is not looked into."""
    kind = type(thing)
    if kind is list or kind is tuple:
        return thing  # type: ignore[no-any-return]
    if _is_named_tuple(kind):
        return [*tuple.__iter__(thing), *own(thing).values()]
    if kind is dict:
        if any(is_a(key, Hole) for key in thing):
            raise TypeError("a delayed call cannot be a dict's key: it has no value yet")
        return list(thing.values())
    if any(is_a(part, Hole) for part in _members(thing)):
        raise TypeError(
            f"a delayed call stands in a {kind.__name__}, which cannot be looked into: use a "
            "list, a tuple or a dict"
        )
    state = _state(thing)
    return None if state is None else [part for _, part in state]


def _members(thing: Any) -> Iterable[Any]:
    """Give what stands in a container that is not looked into, by Python's own iteration."""
    if is_a(thing, dict):
        return dict.values(thing)
    kinds: tuple[Any, ...] = (list, tuple, set, frozenset)
    for kind in kinds:
        if is_a(thing, kind):
            return kind.__iter__(thing)  # type: ignore[no-any-return]
    return ()


def _state(thing: Any) -> list[tuple[_Place, Any]] | None:
    """Give what an object of a record class holds, and where; None for other objects.

    All of it, and not the fields alone: the object is built again without its constructor, which
    ran when the user made it, and may have counted, checked or derived something.
    """
    kind = type(thing)
    if not (has(thing, "__dataclass_fields__") or has(thing, "__attrs_attrs__")):
        return None
    try:
        object.__new__(kind)
    except TypeError:  # it derives from a built-in class, which holds more than attributes
        return None
    held: list[tuple[_Place, Any]] = list(own(thing).items())
    for at, one in enumerate(kind.__mro__):
        for name, slot in one.__dict__.items():
            if type(slot) is MemberDescriptorType:
                with contextlib.suppress(AttributeError):  # not set
                    held.append(((at, name), slot.__get__(thing)))
    return held


def _step(container: Any) -> Step:
    kind = type(container)
    if kind is list or kind is tuple:
        return (kind.__name__, None, len(container))
    if kind is dict:
        return ("dict", list(container), len(container))
    if _is_named_tuple(kind):
        more = own(container)
        return ("named", (kind, list(more)), tuple.__len__(container) + len(more))
    places = [place for place, _ in _state(container) or ()]
    return ("record", (kind, places), len(places))


def _made(kind: str, what: Any, parts: list[Any]) -> Any:
    match kind:
        case "list":
            return parts
        case "tuple":
            return tuple(parts)
        case "dict":
            return dict(zip(what, parts, strict=True))
        case "named":
            cls, places = what
            size = len(parts) - len(places)
            made, parts = tuple.__new__(cls, parts[:size]), parts[size:]
        case "record":
            cls, places = what
            made = object.__new__(cls)
    for place, part in zip(places, parts, strict=True):
        if type(place) is tuple:
            at, name = place
            cls.__mro__[at].__dict__[name].__set__(made, part)
        else:
            own(made)[place] = part
    return made


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and any("_fields" in one.__dict__ for one in kind.__mro__)
