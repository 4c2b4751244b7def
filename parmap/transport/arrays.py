"""How arrays are pickled, so that all of them leave their memory out of band. Files are refused.

NumPy does so itself for most. Those that are not contiguous, and times, it copies into the
pickle, from where each worker would copy them once more. Arrays of objects, and of classes
of their own (masked arrays, say), are left as they are.

cloudpickle sends a text file that is open for reading as a copy of its text. Each worker would
then read the same lines, and a caller would get an `io.StringIO` for the file. Other open handles
hold the number of a file descriptor, which is another file, or none, in another process.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "HANDLES",
    "array_type",
    "as_it_lies",
    "dispatch_of_results",
    "large_apart",
    "owner_of",
    "reduced",
    "reduced_text",
    "reducer_of",
    "refused",
    "result",
]

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


def owner_of(array: Any) -> tuple[Any, int]:
    """Return the plain array that owns an array's memory, and where in memory the array begins."""
    owner = array.base if type(array.base) is type(array) else array
    return owner, array.__array_interface__["data"][0]


def as_it_lies(value: Any) -> bool:
    """Tell whether the memory of a value is sent as it lies: that of a plain array without gaps."""
    if type(value) is not array_type() or value.dtype.hasobject:
        return False
    return bool(value.flags.c_contiguous or value.flags.f_contiguous)


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


_results: tuple[Any, dict[Any, Any]] = (None, {})


def dispatch_of_results() -> dict[Any, Any]:
    """Give the dispatch table for what a worker sends back; empty where pickle's own will do."""
    global _results  # noqa: PLW0603 - a cache of one
    kind, pipes = array_type(), sys.modules.get("multiprocessing.connection")
    if kind is None and pipes is None:
        return {}
    state = (kind, pipes, len(copyreg.dispatch_table))
    if _results[0] != state:
        arrays = {} if kind is None else {kind: result}
        _results = (state, {**copyreg.dispatch_table, **_pipes_refused(), **arrays})
    return _results[1]


# By their names, so that no module is loaded for them; and the modules that define them.
HANDLES = {
    "Connection": "multiprocessing.connection",
    "PipeConnection": "multiprocessing.connection",
    "SpooledTemporaryFile": "tempfile",
    "_Database": "dbm.dumb",
}


def reduced_text(file: io.TextIOWrapper) -> Any:
    """Reduce a text file: the standard streams travel by their names, no other file does."""
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        if file is vars(sys)[name]:
            return getattr, (sys, name)
    return refused(file)


def refused(handle: object) -> NoReturn:
    """Refuse to pickle an open handle."""
    kind = type(handle).__name__
    raise pickle.PicklingError(f"a {kind} belongs to its process; a copy of it would not follow it")


def reducer_of(kind: type) -> Callable[[Any], Any] | None:
    """Return the reducer of a class that has one here."""
    if kind is io.TextIOWrapper:
        return reduced_text
    from parmap.transport.decorated import REDUCERS  # only to explain a failure

    return refused if HANDLES.get(kind.__name__) == kind.__module__ else REDUCERS.get(kind)


def _pipes_refused() -> dict[Any, Callable[[Any], NoReturn]]:
    """Return reducers for the handles that C pickle would send back from a worker.

    The caller's end would close a file descriptor of that number, whatever it is there.
    """
    module = sys.modules.get("multiprocessing.connection")
    names = ("Connection", "PipeConnection")  # the latter on Windows alone
    return {vars(module)[name]: refused for name in names if module and name in vars(module)}
