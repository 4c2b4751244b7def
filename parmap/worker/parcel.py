"""Values and errors, packed for the border.

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
from collections.abc import Callable, Sequence
from types import CodeType, TracebackType
from typing import Any, ClassVar, NamedTuple

from parmap.errors import RemoteTraceback, SerializationError, add_note
from parmap.worker.arrays import array_type, dispatch_of_results
from parmap.worker.arrays import reduced as reduced_array
from parmap.worker.arrays import result as reduced_result

__all__ = [
    "PROTOCOL",
    "PackedError",
    "Parcel",
    "dumps",
    "is_plain",
    "pack",
    "pack_error",
    "pack_result",
    "plain_pickle",
    "unpack",
]

PROTOCOL = 5
# Of these types alone is it certain that C pickle and cloudpickle do the same.
_ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None)})


class Parcel:
    """A packed value, which an executor may move as it likes.

    Parameters
    ----------
    data : buffer
        Its pickle.
    buffers : sequence of buffer, default ()
        What the pickle leaves out of band: the memory of arrays.
    """

    __slots__ = ("buffers", "data")

    def __init__(self, data: Any, *buffers: Any) -> None:
        self.data, self.buffers = data, buffers

    @property
    def size(self) -> int:
        """How many bytes it has, or refers to."""
        return sum(map(_nbytes, self.buffers), _nbytes(self.data))

    def copy(self) -> Parcel:
        """Make one that refers to nobody's memory."""
        return Parcel(self.data, *map(_copied, self.buffers))

    def __reduce_ex__(self, protocol: int, /) -> Any:  # type: ignore[override]
        # Buffers out of band, for a wire that knows protocol 5: they are moved without a copy.
        pack_one = pickle.PickleBuffer if protocol >= 5 else _copied  # noqa: PLR2004
        return (Parcel, (pack_one(self.data), *map(pack_one, self.buffers)))


def _nbytes(buffer: Any) -> int:
    return len(buffer) if type(buffer) is bytes else memoryview(buffer).nbytes


def _copied(buffer: Any) -> bytes | bytearray:
    view = pickle.PickleBuffer(buffer).raw()
    return bytes(view) if view.readonly else bytearray(view)


class PackedError(NamedTuple):
    """An error ready to travel, and its traceback as text."""

    error: BaseException | Parcel
    traceback: str


def dumps(value: Any, what: str, buffers: list[pickle.PickleBuffer] | None = None) -> bytes:
    """Pickle what the caller sends; `what` begins the path in the error's message."""
    try:
        append = None if buffers is None else buffers.append
        return _by_value(value, append, result=what == "result")
    except Exception as error:
        from parmap.worker import culprit  # only to explain a failure

        raise culprit.accuse(value, what, error) from error


def plain_pickle(value: Any, buffer_callback: Callable[[Any], Any] | None) -> bytes:
    """Pickle what a worker sends back, by C pickle."""
    table = dispatch_of_results()
    if not table:
        return pickle.dumps(value, PROTOCOL, buffer_callback=buffer_callback)
    with io.BytesIO() as file:
        pickler = pickle.Pickler(file, PROTOCOL, buffer_callback=buffer_callback)
        pickler.dispatch_table = table
        pickler.dump(value)
        return file.getvalue()


def _by_value(
    value: Any, buffer_callback: Callable[[Any], Any] | None = None, *, result: bool = False
) -> bytes:
    from parmap.worker.generators import generator_types  # most results need none of it

    with io.BytesIO() as file:
        pickler = _pickler(array_type(), generator_types(), result)
        pickler(file, PROTOCOL, buffer_callback=buffer_callback).dump(value)
        return file.getvalue()


@functools.cache
def _pickler(arrays: type | None, generators: tuple[type, ...], result: bool) -> Any:  # noqa: FBT001
    """Make cloudpickle's pickler, of functions that know which file they come from.

    From version 3.1.3 on cloudpickle writes ``<dynamic-code>`` for it, so that equal
    functions give equal pickles: a traceback from a worker would have no line of source.
    """
    import cloudpickle  # 10 ms, and the sequential plan never needs it

    theirs: dict[type, Any] = cloudpickle.Pickler.dispatch_table.maps[0]

    def reduced(code: CodeType) -> Any:
        make, arguments = theirs[CodeType](code)
        return make, (*arguments[:_FILENAME], code.co_filename, *arguments[_FILENAME + 1 :])

    ours: dict[type, Any] = {CodeType: reduced}
    if arrays is not None:
        ours[arrays] = reduced_result if result else reduced_array

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = _Table({**theirs, **ours}, generators)

    return Pickler


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
        from parmap.worker.generators import reduced

        super().__init__(table)
        self._generators, self._reduced = generators, reduced

    def __missing__(self, kind: type) -> Any:
        if issubclass(kind, self._generators):
            return self._reduced
        return copyreg.dispatch_table[kind]


_FILENAME = 10  # its place among the arguments of CodeType


def pack(value: Any, what: str, *, views: bool = False) -> Parcel:
    """Pack what the caller sends.

    Parameters
    ----------
    value : object
        What to pack.
    what : str
        What the path in an error's message begins with.
    views : bool, default False
        Whether the parcel may refer to the arrays' own memory, since whoever moves it takes
        a copy at once; else it is a copy itself.
    """
    if not views:
        return Parcel(dumps(value, what))
    buffers: list[pickle.PickleBuffer] = []
    return Parcel(dumps(value, what, buffers), *buffers)


def is_plain(columns: Sequence[Any]) -> bool:
    """Whether these are a few arguments of which C pickle makes just what cloudpickle does.

    It does so in 2 µs instead of 9. To look at many would cost more than it saves.
    """
    return all(type(column) is range or _is_plain(column) for column in columns)


def _is_plain(column: Any) -> bool:
    if type(column) is not list or len(column) > _FEW:
        return False
    if len(column) == 1 and type(column[0]) is tuple and len(column[0]) <= _FEW:
        column = column[0]  # a row of arguments
    return _ATOMS.issuperset(map(type, column))


_FEW = 16


def pack_result(value: Any, *, views: bool) -> Parcel:
    """Pack what a worker sends back; `views` as in `pack`."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        return Parcel(plain_pickle(value, buffers.append if views else None), *buffers)
    except Exception:  # noqa: BLE001 - whatever a user's __reduce__ may raise; the next line decides
        return pack(value, "result", views=views)


def unpack(parcel: Parcel, *, readonly: bool = False) -> Any:
    """Give the packed value.

    Parameters
    ----------
    parcel : Parcel
        What was packed.
    readonly : bool, default False
        Whether its arrays cannot be written to: all tasks share them.
    """
    buffers = [memoryview(b).toreadonly() for b in parcel.buffers] if readonly else parcel.buffers
    try:
        return pickle.loads(parcel.data, buffers=buffers)
    except Exception as error:
        from parmap.worker import culprit

        raise culprit.unreadable(error) from error


_READONLY = (
    "parmap: arrays that all tasks share (those that the function captures, repeated arguments, "
    "what parmap.share gave) are read-only in the workers. Work on a copy: x = x.copy(); or "
    "give the array as an element"
)


def pack_error(error: BaseException, *, crosses: bool) -> PackedError:
    """Make an error ready to travel, whatever its class does in its constructor."""
    if not crosses:
        return PackedError(error, _told(error, error.__traceback__))
    if type(error) in (ValueError, TypeError) and "read-only" in str(error):
        add_note(error, _READONLY)
    text = _told(error, _trimmed(error.__traceback__))
    return PackedError(Parcel(_pickled_error(error)), text)


def _told(error: BaseException, trace: TracebackType | None) -> str:
    import traceback  # 5 ms, for which no start waits

    return "".join(traceback.format_exception(type(error), error, trace))


def unpack_error(packed: PackedError) -> BaseException:
    """Give the error; one that travelled has the worker's traceback as its cause."""
    if not isinstance(packed.error, Parcel):
        return packed.error
    error: BaseException = unpack(packed.error)
    # A frozen dataclass refuses attributes, even those that Python itself sets.
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(packed.traceback))
    return error


def _trimmed(tb: TracebackType | None) -> TracebackType | None:
    """Drop parmap's own frames from the top: a user looks for the user's lines."""
    inner = tb
    while inner and inner.tb_frame.f_globals.get("__name__", "").startswith("parmap.worker"):
        inner = inner.tb_next
    return inner or tb


def _pickled_error(error: BaseException) -> bytes:
    """Pickle an error so that it can be read again, with as much of it as can travel.

    Pickle rebuilds an exception by calling its class with `args`, which fails at the far
    end when ``__init__`` takes something else, and changes the error when ``__init__``
    changes its argument. So the pickle is read back here; if it gives another error, this
    one is rebuilt without calling ``__init__``.
    """
    try:
        data = _plain(error)
        same = pickle.loads(data)
    except BaseException:  # noqa: BLE001 - a user's class may raise anything, even SystemExit
        same = None
    if _alike(same, error):
        return data
    for candidate in (
        (_rebuild, (type(error), error.args, _portable(vars(error)))),
        (_rebuild, (type(error), tuple(map(_or_repr, error.args)), _portable(vars(error)))),
    ):
        try:
            data = _plain(_Reduced(candidate))
            pickle.loads(data)
        except BaseException:  # noqa: BLE001, S112 - as above; the next candidate asks for less
            continue
        return data
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    stand_in = SerializationError(
        f"an element raised {kind}, and that error cannot travel from the worker: "
        f"{_safe_repr(error)}. Its traceback is the cause of this error."
    )
    return _plain(stand_in)


class _Reducers:
    """The process's reducers, but tblib's, which Dask installs for all errors.

    Those also send tracebacks, and lose what an error's class keeps outside of its ``__dict__``:
    the code of a SystemExit.
    """

    def __getitem__(self, kind: type) -> Any:
        reducer = copyreg.dispatch_table[kind]
        if getattr(reducer, "__module__", "") == "tblib.pickling_support":
            raise KeyError(kind)
        return reducer


def _plain(value: Any) -> bytes:
    try:
        with io.BytesIO() as file:
            pickler = pickle.Pickler(file, PROTOCOL)
            pickler.dispatch_table = _Reducers()  # type: ignore[assignment]
            pickler.dump(value)
            return file.getvalue()
    except Exception:  # noqa: BLE001 - a local class, say, which must be sent by value
        return _by_value(value)


def _alike(same: BaseException | None, error: BaseException) -> bool:
    if same is None or type(same) is not type(error):
        return False
    try:
        return bool(same.args == error.args and vars(same).keys() == vars(error).keys())
    except Exception:  # noqa: BLE001 - arrays among the arguments do not compare to a bool
        return len(same.args) == len(error.args)


class _Reduced:
    """Pickles as a call that somebody else wrote down."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def _rebuild(
    kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    error = kind.__new__(kind, *args)
    # Past the class's own __setattr__: a frozen dataclass refuses.
    BaseException.__setattr__(error, "args", args)
    error.__dict__.update(state)
    return error


def _portable(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if _travels(value)}


def _or_repr(value: Any) -> Any:
    return value if _travels(value) else _safe_repr(value)


def _travels(value: Any) -> bool:
    if type(value) in _ATOMS:
        return True
    try:
        pickle.loads(_plain(value))
    except BaseException:  # noqa: BLE001 - see _pickled_error
        return False
    return True


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a user's __repr__
        return f"<{type(value).__qualname__}>"
