"""Thread controls: where the number of threads of each native library is read and set."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from parmap.worker import thread_variables as variables
from parmap.worker.thread_variables import LOKY, number

__all__ = ["Library", "ThreadControl", "control_of", "loky", "numba", "turn"]


class Library(NamedTuple):
    """A native library with threads of its own, and how many this thread would get now."""

    user_api: str
    internal_api: str
    version: str | None
    threading_layer: str | None
    num_threads: int | None
    filepath: str


class ThreadControl(NamedTuple):
    """Where one library's number is read and set.

    `mark` gives what `set` takes to go back, which may mean "none of its own".
    """

    name: str
    get: Callable[[], int | None]
    set: Callable[[Any], object]
    shared: bool  # the process's number, or each thread has its own
    mark: Callable[[], Any]
    natural: int | None = None  # where it has loaded with our limit: what it would have had

    def before(self) -> int | None:
        """Give the number that it has to go back to."""
        return self.get() if self.natural is None else self.natural


def turn(control: ThreadControl, number: int | None) -> None:
    """Set a control, unless it shows that number: to set it may start threads."""
    if control.get() != number:
        control.set(number)


def control_of(one: Any) -> ThreadControl | None:
    """Give a library's control, if it has one of its own."""
    get, turn, shared = one.get_num_threads, one.set_num_threads, False
    match one.internal_api:
        case "openblas" if one.threading_layer != "openmp":
            turn, shared = _openblas(one), True
        case "openmp":
            shared = one.prefix == "vcomp"
        case "mkl":
            return _mkl(one)
        case "blis":
            shared = str(one.version).startswith("0.")
        case _:
            # OpenBLAS over OpenMP takes the number of that, at each call; FlexiBLAS has it
            # from the library behind it; and of one that others registered we know nothing.
            return None
    natural = variables.natural(one.internal_api)
    return None if get() is None else ThreadControl(one.filepath, get, turn, shared, get, natural)


def _openblas(one: Any) -> Callable[[int], None]:
    # From 3.8 on, threadpoolctl lets but one thread set it, the first one that does, for
    # as long as it lives, and ignores all others without a word.
    free = getattr(one, "clear_controlling_thread", lambda **_: None)

    def turn(threads: int) -> None:
        free(force=True)
        one.set_num_threads(threads)
        free(force=True)

    return turn


def _mkl(one: Any) -> ThreadControl:
    # Not by threadpoolctl, which before 3.8 set the process's, after that the thread's.
    turn = one.dynlib.MKL_Set_Num_Threads_Local

    def mark() -> int:
        own = int(turn(0))  # which gives what it was, 0 where the thread follows the process
        turn(own)
        return own

    return ThreadControl(
        one.filepath, one.get_num_threads, turn, False, mark, variables.natural("mkl")
    )


def numba() -> list[ThreadControl]:
    """Give Numba's control, in a list that is empty until its threads run."""
    # One of these comes with the first parallel function; before, to ask starts the threads.
    if not any(f"numba.np.ufunc.{x}" in sys.modules for x in ("omppool", "tbbpool", "workqueue")):
        return []
    numba = sys.modules["numba"]
    get, most = numba.get_num_threads, numba.config.NUMBA_NUM_THREADS
    return [
        ThreadControl("numba", get, lambda n: numba.set_num_threads(min(n, most)), False, mark=get)
    ]


def loky() -> ThreadControl:
    """Give the control of what joblib takes for the number of cores."""

    def get() -> int | None:
        return number(os.environ.get(LOKY))

    def turn(threads: int | None) -> None:
        if threads is None:
            os.environ.pop(LOKY, None)
        else:
            os.environ[LOKY] = str(threads)

    return ThreadControl(LOKY, get, turn, shared=True, mark=get)
