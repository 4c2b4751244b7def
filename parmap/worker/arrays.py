"""How arrays are pickled, so that all of them leave their memory out of band.

NumPy does so itself for most. Those that are not contiguous, and times, it copies into the
pickle, from where each worker would copy them once more. Arrays of objects, and of classes
of their own (masked arrays, say), are left as they are.
"""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Callable
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["array_type", "dispatch_of_results", "large_apart", "reduced", "result"]

_PROTOCOL = 5

# Below this many bytes a buffer is copied into the pickle: a frame of its own costs more. So a
# message of 300,000 small arrays is one frame, and not as many.
_SMALL = 1 << 16


def large_apart(buffers: list[PickleBuffer]) -> Callable[[PickleBuffer], bool]:
    """Make a callback for pickle that keeps large buffers out of band, in a list."""

    def stays(buffer: PickleBuffer) -> bool:
        if len(buffer.raw()) < _SMALL:
            return True
        buffers.append(buffer)
        return False

    return stays


def array_type() -> Any:
    """Give the class of arrays; None as long as nobody has imported NumPy."""
    numpy = sys.modules.get("numpy")
    return getattr(numpy, "ndarray", None)


def reduced(array: np.ndarray[Any, Any]) -> Any:
    """Reduce an array that is sent to a worker."""
    if not array.dtype.hasobject:
        if array.dtype.kind in "mM":  # times refuse to be a buffer
            return _times, (array.view("i8"), array.dtype)
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            array = array.copy(order="K")
    return array.__reduce_ex__(_PROTOCOL)


def _times(numbers: Any, dtype: Any) -> Any:
    return numbers.view(dtype)


def result(array: np.ndarray[Any, Any]) -> Any:
    """Reduce an array that a worker sends back: the caller may write to it.

    Also if it is a part of an array that all tasks share, which is read-only here.
    """
    return reduced(array if array.flags.writeable else array.copy(order="K"))


_results: tuple[int, dict[Any, Any]] = (-1, {})


def dispatch_of_results() -> dict[Any, Any]:
    """Give the dispatch table for what a worker sends back; empty without NumPy."""
    global _results  # noqa: PLW0603 - a cache of one
    kind = array_type()
    if kind is None:
        return {}
    if _results[0] != len(copyreg.dispatch_table):
        _results = (len(copyreg.dispatch_table), {**copyreg.dispatch_table, kind: result})
    return _results[1]
