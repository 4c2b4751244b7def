"""Values, packed for the border; error_payload.py packs errors.

Results are tried with C pickle first: it is several times faster, and what a worker could
pickle by reference the caller can look up. Whatever the *caller* sends goes through
cloudpickle at once, since C pickle would send functions of ``__main__`` by name, and a
worker's ``__main__`` is another one.
"""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import sys
from collections.abc import Callable
from contextvars import ContextVar
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, ClassVar, NamedTuple, TypeAlias

from parmap.transport.arrays import (
    HANDLES,
    array_type,
    dispatch_of_results,
    large_apart,
    reduced_text,
    refused,
)
from parmap.transport.arrays import reduced as reduced_array
from parmap.transport.arrays import result as reduced_result
from parmap.transport.functions import hidden

__all__ = [
    "ATOMS",
    "PROTOCOL",
    "Known",
    "PackedError",
    "Payload",
    "by_value",
    "dumps",
    "pack",
    "pack_result",
    "pack_within",
    "packed_name",
    "plain_pickle",
    "unpack",
]

PROTOCOL = 5
# Of these types alone is it certain that C pickle and cloudpickle do the same.
ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None)})


# What gives the numbers (`id`) of large objects that are known to recur in the elements of a call.
# None, and what gives None: the elements may change while the call runs.
Known: TypeAlias = "Callable[[], frozenset[int] | None] | None"


class Payload:
    """A packed value, which an executor may move as it likes.

    Parameters
    ----------
    data : buffer
        Its pickle.
    buffers : sequence of buffer, default ()
        What the pickle leaves out of band: the memory of arrays.

    Attributes
    ----------
    known : Known
        Of the call that it is a chunk of.
    """

    __slots__ = ("buffers", "data", "known")

    def __init__(self, data: Any, *buffers: Any) -> None:
        self.data, self.buffers = data, buffers
        self.known: Known = None

    @property
    def size(self) -> int:
        """How many bytes it has, or refers to."""
        return sum(map(_nbytes, self.buffers), _nbytes(self.data))

    def copy(self) -> Payload:
        """Make one that refers to nobody's memory."""
        return Payload(self.data, *map(_copied, self.buffers))

    def __reduce_ex__(self, protocol: int, /) -> Any:  # type: ignore[override]
        # Buffers out of band, for a wire that knows protocol 5: they are moved without a copy.
        pack_one = pickle.PickleBuffer if protocol >= 5 else _copied  # noqa: PLR2004
        return (Payload, (pack_one(self.data), *map(pack_one, self.buffers)))


def _nbytes(buffer: Any) -> int:
    return len(buffer) if type(buffer) is bytes else memoryview(buffer).nbytes


def _copied(buffer: Any) -> bytes | bytearray:
    view = pickle.PickleBuffer(buffer).raw()
    return bytes(view) if view.readonly else bytearray(view)


class PackedError(NamedTuple):
    """An error ready to travel, and its traceback as text: see error_payload.py.

    Parameters
    ----------
    error : BaseException or sequence of Link
        The error itself; where it leaves the process, it and those that it refers to.
    traceback : str
        What Python would print of it.
    """

    error: Any
    traceback: str


def dumps(
    value: Any,
    what: str,
    buffers: list[pickle.PickleBuffer] | None = None,
    *,
    own: bool = False,
) -> bytes:
    """Pickle what the caller sends; `what` begins the path in the error's message.

    Arrays that are the task's `own` may lie in the pickle if they are small; those that all tasks
    share are read-only by their buffers, which stay out of it.
    """
    try:
        append = None if buffers is None else large_apart(buffers) if own else buffers.append
        return by_value(value, append, result=what == "result")
    except Exception as error:
        from parmap.transport import pickle_errors  # only to explain a failure

        raise pickle_errors.explained(value, what, error) from error


def plain_pickle(value: Any, buffer_callback: Callable[[Any], Any] | None) -> bytes:
    """Pickle what a worker sends back, by C pickle."""
    table = dispatch_of_results()
    token = hidden.set(True)
    try:
        if not table:
            return pickle.dumps(value, PROTOCOL, buffer_callback=buffer_callback)
        with io.BytesIO() as file:
            pickler = pickle.Pickler(file, PROTOCOL, buffer_callback=buffer_callback)
            pickler.dispatch_table = table
            pickler.dump(value)
            return file.getvalue()
    finally:
        hidden.reset(token)


def by_value(
    value: Any,
    buffer_callback: Callable[[Any], Any] | None = None,
    *,
    result: bool = False,
    into: io.BytesIO | None = None,
) -> bytes:
    """Pickle by cloudpickle, and raise as that does."""
    from parmap.transport.generators import generator_types  # most results need none of it

    with into or io.BytesIO() as file:
        pickler = _pickler(array_type(), generator_types(), result)
        pickler(file, PROTOCOL, buffer_callback=buffer_callback).dump(value)
        return file.getvalue()


@functools.cache
def _pickler(arrays: type | None, generators: tuple[type, ...], result: bool) -> Any:  # noqa: C901, FBT001
    """Make cloudpickle's pickler, of functions that know which file they come from."""
    import cloudpickle  # 10 ms, and the sequential plan never needs it

    from parmap.transport import captured, functions, modules, worker_globals
    from parmap.transport.decorated import DISPATCH, reduced_dispatch

    table = cloudpickle.Pickler.dispatch_table.maps[0]
    rebuild = functions.replacements(cloudpickle)
    by_name = frozenset([*rebuild.values(), *functions.OTHERS])  # they would need themselves
    classes = functions.make_class, functions.make_enum
    # As cloudpickle's own reducers do, with a call less for each.
    has_name = cloudpickle.cloudpickle._should_pickle_by_reference  # noqa: SLF001
    reduced_class = cloudpickle.cloudpickle._class_reduce  # noqa: SLF001
    reduced_whole = cloudpickle.cloudpickle._dynamic_class_reduce  # noqa: SLF001

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = _Table(
            {**table, **_reducers(table, rebuild, arrays, result=result)}, generators
        )

        # All in one: it is called for each object, and a call more costs more than what it does.
        def reducer_override(self, obj: Any) -> Any:  # noqa: C901
            # cloudpickle's own asks isinstance(), and so each object for its __class__.
            kind = type(obj)
            if kind is FunctionType and obj not in by_name:
                made = NotImplemented if has_name(obj) else self._dynamic_function_reduce(obj)
            elif issubclass(kind, type):
                made = reduced_class(obj)
            elif kind is ModuleType and not (result or captured.stays(obj)):
                return captured.whole(obj, self.globals_ref, by_value)
            else:
                return NotImplemented
            if type(made) is not tuple:
                # A result travels by name wherever it can: the caller knows its own modules.
                if result or obj.__module__ in modules.installed or modules.by_name(obj.__module__):
                    return made
                reduce = self._dynamic_function_reduce if kind is FunctionType else reduced_whole
                made = reduce(obj)
            make, arguments, *state = made
            if kind is FunctionType:
                code, slots = obj.__code__, state[0][1]
                if code is DISPATCH:
                    return reduced_dispatch(obj)
                # Of most functions all of this is false.
                if not result and (
                    not captured.EVALUATES.isdisjoint(code.co_names)
                    or sys.modules.keys() & code.co_names
                    or ModuleType in map(type, slots["__globals__"].values())
                    or CodeType in map(type, code.co_consts)
                    or code.co_freevars
                    or obj.__module__ != "__main__"
                    or worker_globals.owned.get()
                ):
                    captured.amend(obj, slots, self.globals_ref, by_value)
                    if functions.IMPORTS in slots:
                        make, state[-1] = functions.make_importing, functions.restore
            if state:  # its last item is a function that sets it
                state[-1] = rebuild.get(state[-1], state[-1])
            make = rebuild.get(make, make)
            if make in classes:
                make, arguments = functions.named(obj, make, arguments, result=result)
            return make, arguments, *state

    return Pickler


def _reducers(
    theirs: dict[type, Any], rebuild: dict[Any, Any], arrays: type | None, *, result: bool
) -> dict[type, Any]:
    """Make the reducers that take the place of cloudpickle's.

    From version 3.1.3 on cloudpickle writes ``<dynamic-code>`` for the file of a function: a
    traceback from a worker would have no line of source.
    """
    from parmap.transport.decorated import REDUCERS

    def reduced(code: CodeType) -> Any:
        make, arguments = theirs[CodeType](code)
        return make, (*arguments[:_FILENAME], code.co_filename, *arguments[_FILENAME + 1 :])

    def reduced_part(part: Any) -> Any:
        made = theirs[type(part)](part)
        return (rebuild.get(made[0], made[0]), *made[1:]) if type(made) is tuple else made

    def reduced_variable(variable: ContextVar[Any]) -> Any:
        from parmap.transport import variables  # few functions name one

        return variables.reduced(variable, by_value)

    ours: dict[type, Any] = {CodeType: reduced, io.TextIOWrapper: reduced_text, **REDUCERS}
    ours |= {CellType: reduced_part, ModuleType: reduced_part, ContextVar: reduced_variable}
    return ours if arrays is None else {**ours, arrays: reduced_result if result else reduced_array}


class _Table(dict[type, Any]):
    """Reducers; those that libraries register for all picklers may come at any time.

    A ChainMap would do, and is asked for each object: six calls in Python for one.

    Parameters
    ----------
    table : dict
        The reducers that are known.
    generators : tuple of type
        The classes of random generators; those that derive from them count, too.
    """

    def __init__(self, table: dict[type, Any], generators: tuple[type, ...]) -> None:
        from parmap.transport.decorated import VALIDATING, reduced_validating
        from parmap.transport.generators import reduced

        super().__init__(table)
        self._generators, self._reduced = generators, reduced
        self._validating, self._reduced_validating = VALIDATING, reduced_validating

    def __missing__(self, kind: type) -> Any:
        if issubclass(kind, self._generators):
            return self._reduced
        if HANDLES.get(kind.__name__) == kind.__module__:
            return refused
        if self._validating.get(kind.__name__) == kind.__module__:
            return self._reduced_validating
        return copyreg.dispatch_table[kind]


_FILENAME = 10  # its place among the arguments of CodeType


def pack(value: Any, what: str, *, views: bool = False, own: bool = False) -> Payload:
    """Pack what the caller sends.

    Parameters
    ----------
    value : object
        What to pack.
    what : str
        What the path in an error's message begins with.
    views : bool, default False
        Whether the payload may refer to the arrays' own memory, since whoever moves it takes
        a copy at once; else it is a copy itself.
    own : bool, default False
        See `dumps`.
    """
    if not views:
        return Payload(dumps(value, what))
    buffers: list[pickle.PickleBuffer] = []
    return Payload(dumps(value, what, buffers, own=own), *buffers)


def packed_name(fn: object) -> bytes | None:
    """Pickle a function by its name, where cloudpickle would, which takes ten times as long."""
    import cloudpickle

    from parmap.transport import modules

    if type(fn) is not FunctionType or cloudpickle.list_registry_pickle_by_value():
        return None
    module = fn.__module__
    if type(module) is not str or module == "__main__" or module not in sys.modules:
        return None  # C pickle would import it
    if module not in modules.installed and not modules.by_name(module):
        return None
    try:
        return pickle.dumps(fn, PROTOCOL)
    except Exception:  # noqa: BLE001 - another function has its name; a module's __getattr__ raises
        return None


def pack_within(value: Any, size: int) -> bytes | None:
    """Pickle what the caller sends, in so many bytes; None if that takes more, or an array."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        packed = by_value(value, buffers.append, into=_Within(size))
    except _TooLargeError:
        return None
    except Exception as error:
        from parmap.transport import pickle_errors  # only to explain a failure

        raise pickle_errors.explained(value, "", error) from error
    return None if buffers else packed


class _TooLargeError(Exception):
    """A pickle is larger than it may be."""


class _Within(io.BytesIO):
    """Refuses bytes beyond a size, so that no large object is copied for nothing."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left = size

    def write(self, data: Any, /) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise _TooLargeError
        return super().write(data)


def pack_result(value: Any, *, views: bool) -> Payload:
    """Pack what a worker sends back; `views` as in `pack`."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        return Payload(plain_pickle(value, large_apart(buffers) if views else None), *buffers)
    except Exception:  # noqa: BLE001 - whatever a user's __reduce__ may raise; the next line decides
        return pack(value, "result", views=views, own=True)


def unpack(payload: Payload, *, readonly: bool = False) -> Any:
    """Give the packed value.

    Parameters
    ----------
    payload : Payload
        What was packed.
    readonly : bool, default False
        Whether its arrays cannot be written to: all tasks share them.
    """
    buffers = [memoryview(b).toreadonly() for b in payload.buffers] if readonly else payload.buffers
    try:
        return pickle.loads(payload.data, buffers=buffers)
    except Exception as error:
        from parmap.transport import pickle_errors

        raise pickle_errors.unreadable(error) from error
