"""Which part of an object cannot travel: walk down to it, name the path, say what to do.

The walk visits what pickling visits, each object once and in the same order, but only takes
it apart: so it costs about what the failed pickling did, however deep the cause sits. It
runs only after a failure.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

from parmap.errors import SerializationError, said
from parmap.transport.weights import ATOMS, Part, Reducer, heavy, kind_of, written

__all__ = ["explained", "unreadable"]

_DEEPEST = 10_000
_BIG = 10 << 20  # bytes from which on a message tells what weighs so much

_INPUT = (
    "Make it inside the function, or pass what it is made from (a file name, not the open file)"
)
_RESULT = "Return plain data instead (a list, not a generator; numbers, not the open file)"
_LESS = (
    "Send less: load it inside the function, or once per worker in setup=, from a file that "
    "all of them can read"
)
_FLATTER = "Flatten it: a list of the objects rather than a chain of them"
_ELSE = "or use a plan that shares memory, such as 'threads'"

_LOCK = "Create it once per worker in setup=, or inside the function"
_FILE = "Pass its name, and open it inside the function"
_CONNECTION = "Open it inside the function, or once per worker in setup="
_LIST = "Make it a list"
_QUEUE = "Give what is in it as the call's data, and return the results"
_RUNNING = "Start it inside the function, or once per worker in setup="

# Each kind by its package and its name there, whatever module of the package it is in: none of
# them is imported, and subclasses count.
_ADVICE = {
    "_thread.lock": _LOCK,
    "_thread.RLock": _LOCK,
    "_thread._local": _LOCK,
    "threading.Condition": _LOCK,
    "threading.Event": _LOCK,
    "threading.Semaphore": _LOCK,
    "threading.Barrier": _LOCK,
    "multiprocessing.SemLock": _LOCK,
    "logging.Handler": "Call logging.getLogger(name) inside the function; add handlers in setup=",
    "queue.Queue": _QUEUE,
    "_queue.SimpleQueue": _QUEUE,
    "multiprocessing.Queue": _QUEUE,
    "multiprocessing._ConnectionBase": _QUEUE,
    "builtins.generator": _LIST,
    "builtins.async_generator": _LIST,
    "builtins.enumerate": _LIST,
    "builtins.filter": _LIST,
    "builtins.map": _LIST,
    "builtins.zip": _LIST,
    "itertools._tee": _LIST,
    "itertools.chain": _LIST,
    "itertools.islice": _LIST,
    "builtins.coroutine": "Call asyncio.run() on a new one inside the function",
    "builtins.frame": "Pass its text: traceback.format_stack()",
    "builtins.traceback": "Pass its text: traceback.format_exc()",
    "builtins.module": "Make it a file that workers can import, and import it inside the function",
    "weakref.ReferenceType": "Pass the object itself, not a weak reference",
    "_contextvars.Context": "Pass those of its values that the function needs",
    "_ctypes._CData": "Pass the values that it points to",
    "_io._IOBase": _FILE,
    "tempfile._TemporaryFileWrapper": _FILE,
    "tempfile.SpooledTemporaryFile": _FILE,
    "mmap.mmap": _FILE,
    "dbm._Database": _FILE,
    "zipfile.ZipFile": _FILE,
    "tarfile.TarFile": _FILE,
    "h5py.HLObject": _FILE,
    "netCDF4.Dataset": _FILE,
    "_socket.socket": _CONNECTION,
    "ssl.SSLContext": _CONNECTION,
    "sqlite3.Connection": _CONNECTION,
    "sqlite3.Cursor": _CONNECTION,
    "psycopg.BaseConnection": _CONNECTION,
    "psycopg2.connection": _CONNECTION,
    "sqlalchemy.Engine": _CONNECTION,
    "sqlalchemy.Connection": _CONNECTION,
    "sqlalchemy.Session": _CONNECTION,
    "duckdb.DuckDBPyConnection": _CONNECTION,
    "_duckdb.DuckDBPyConnection": _CONNECTION,
    "redis.Redis": _CONNECTION,
    "pymongo.MongoClient": _CONNECTION,
    "botocore.BaseClient": _CONNECTION,
    "threading.Thread": _RUNNING,
    "subprocess.Popen": _RUNNING,
    "concurrent.Executor": _RUNNING,
    "multiprocessing.Pool": _RUNNING,
    "parmap.Session": "Call parmap.pmap itself inside the function: a task has a plan of its own",
}


def explained(value: Any, what: str, error: BaseException) -> SerializationError:
    """Make the error that names what inside `value` cannot be pickled.

    Parameters
    ----------
    value : object
        What could not be pickled.
    what : str
        What to call it, such as ``"args"``; the path begins so. Empty where the parts'
        own names say enough.
    error : BaseException
        What pickling raised.
    """
    too_deep = isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)
    # Pickle gives up after a third to the whole of this limit, by what is nested.
    trail = _trail(value, sys.getrecursionlimit() // 4 if too_deep else _DEEPEST)
    path = _path(what, trail) or "it"
    if isinstance(error, SerializationError):  # of a value that is placed while this is packed
        return SerializationError(f"{path}: {error}")
    refusing = trail[-1].value if trail else value
    reason = f"{type(error).__name__}: {said(error).partition(chr(10))[0]}".removesuffix(": ")
    if too_deep and len(trail) > sys.getrecursionlimit() // 4:
        fault, advice = f"it is nested too deeply ({reason})", _FLATTER
    elif not trail and _too_large(error):
        fault, advice = f"it is too large ({reason})", _LESS
    else:
        fault, advice = f"it is of type {kind_of(refusing)} ({reason})", _advice(trail, what)
    text = f"{path} cannot be sent between processes: {fault}. {advice}; {_ELSE}."
    weight = heavy(value, what, _BIG)
    return SerializationError(f"{text} In all, {weight}." if weight else text)


def _lacks_name(error: AttributeError) -> bool:
    """Tell whether a module lacks a name. Up to Python 3.14, only pickle's text says so."""
    own = type(error) is AttributeError and type(error.obj) is ModuleType
    return own or "<module " in said(error)


def unreadable(error: BaseException) -> SerializationError:
    """Make the error for something that arrived but cannot be unpickled there."""
    if isinstance(error, ModuleNotFoundError):
        advice = (
            f"The worker cannot import {error.name!r}: install it where the workers run, or "
            f"call cloudpickle.register_pickle_by_value({error.name}) before the call."
        )
    elif isinstance(error, AttributeError) and _lacks_name(error):
        advice = (
            "It travels by its name alone, and the worker's module has no such name: define it "
            "in a module that workers can import."
        )
    else:
        advice = (
            "Check its __reduce__, __setstate__ or __init__, and that both ends have the same "
            "versions."
        )
    why = f"{type(error).__name__}: {said(error)}"
    made = SerializationError(f"something arrived that cannot be unpickled: {why}. {advice}")
    made.__cause__ = error
    return made


class _Visit(NamedTuple):
    """An object on the way: the step that leads to it, and its parts still to be visited."""

    step: tuple[str, Any]
    value: Any
    parts: Iterator[Part]


def _trail(value: Any, deepest: int) -> list[_Visit]:
    """Walk as pickling does; give the way to the first object that refuses, [] if none does.

    A stack of its own rather than recursion: the walk must get to what pickle got to.

    Parameters
    ----------
    value : object
        Where to begin.
    deepest : int
        The number of steps after which to give up, and give the way to there.
    """
    reducer = Reducer()
    trail = [_Visit(("", None), value, reducer.parts(value))]
    # With the objects, many of which pickling makes on the way: ids must not be used again.
    seen = {id(value): value}
    while trail and len(trail) <= deepest:
        try:
            form, key, part = next(trail[-1].parts)
        except StopIteration:
            trail.pop()
            continue
        except Exception:  # noqa: BLE001 - whatever a user's __reduce__ may raise: this is the one
            break
        if type(part) not in ATOMS and id(part) not in seen:
            seen[id(part)] = part
            trail.append(_Visit((form, key), part, reducer.parts(part)))
    return trail


def _path(what: str, trail: list[_Visit]) -> str:
    return written(what, [visit.step for visit in trail[1:]])


def _too_large(error: BaseException) -> bool:
    return isinstance(error, MemoryError | OverflowError) or "4 GiB" in said(error)


def _advice(trail: list[_Visit], what: str) -> str:
    """Say what to do about the outermost object of a kind that is known."""
    if what == "result":
        return _RESULT
    for length, visit in enumerate(trail, 1):
        for kind in type(visit.value).__mro__:
            package = str(kind.__module__).partition(".")[0]
            advice = _ADVICE.get(f"{package}.{kind.__qualname__}")
            if advice and length == len(trail):
                return advice
            if advice:
                owner = _path(what, trail[:length])
                return f"It belongs to {owner}, of type {kind_of(visit.value)}. {advice}"
    return _INPUT
