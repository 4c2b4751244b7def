"""What is computed once in each worker, and kept for the session."""

from __future__ import annotations

import functools
import os
import threading
import zlib
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, Generic, TypeVar, overload

from parmap.transport.identity import Key, fresh_key, is_own
from parmap.untouched import shown
from parmap.worker import context
from parmap.worker.random_state import isolated_rng, load, unnoticed_rng

__all__ = ["OncePerWorker", "once_per_worker"]

T = TypeVar("T")

# Sessions of other processes whose results stay here; nobody says when such a session is over.
_MOST = 4
_RUNS_LATER = 0x20 | 0x80 | 0x200  # of a code's flags: a generator, a coroutine, or both


class _Thread(threading.local):
    """A thread, for what is kept for it alone: numbers of threads come again."""

    def __init__(self) -> None:
        self.key = object()


_thread = _Thread()

_Name = tuple[str, str, Key | None]


class _Result:
    """A result, once there is one.

    The lock is held while the user's function computes it. It is reentrant: a finalizer or a signal
    handler may call the same function meanwhile. That call computes another result, which is kept
    until the first call ends.
    """

    __slots__ = ("lock", "made")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.made: tuple[CodeType, Any] | None = None  # the code that has made it, and the result

    def of(self, code: CodeType) -> tuple[CodeType, Any] | None:
        """Return it, if it is there, and of some code, or of another copy of that."""
        return self.made if self.made is not None and self.made[0] == code else None


class OncePerWorker(Generic[T]):
    """A function that is called once in each worker. Made by `once_per_worker`.

    Parameters
    ----------
    fn : FunctionType
        The function.
    per_process : bool
        Whether all threads of a process have one result.
    token : tuple or None
        Tells functions apart that have the same name and code, and capture other values.
    """

    def __init__(self, fn: Any, *, per_process: bool = False, token: Key | None = None) -> None:
        functools.update_wrapper(self, fn)
        self._fn, self._per_process, self._token = fn, per_process, token
        self._name: _Name = (fn.__module__, fn.__qualname__, token)

    def __call__(self) -> T:
        """Return the worker's result; compute it first if there is none."""
        result, code = self._result(), self._fn.__code__
        made = result.made
        if made is not None and made[0] is code:
            return made[1]  # type: ignore[no-any-return]
        with result.lock:
            found = result.of(code)
            value: T = self._computed(code) if found is None else found[1]
            result.made = code, value  # the next time it is this very code
        return value

    def _result(self) -> _Result:
        session = context.session.get()
        alone = self._per_process or (session is not None and not context.threaded.get())
        scope = None if alone else _thread.key
        kept = context.kept.get(session)
        if kept is None:
            kept = _kept_for(session)
        found = kept.get((self._name, scope))
        if found is None and session is not None:
            found = self._earlier(scope)
        made: _Result = kept.setdefault((self._name, scope), found or _Result())
        return made

    def _earlier(self, scope: object) -> _Result | None:
        """Take over what setup= has computed here, which runs before there is a session."""
        before: dict[Any, _Result] = context.kept.get(None, {})
        for key in list(before):
            if key[0] == self._name and (scope is None or key[1] is scope):
                return before.pop(key, None)
        return None

    def _computed(self, code: CodeType) -> T:
        if context.threaded.get():  # other threads draw from the same generators
            with unnoticed_rng():
                return self._fn()  # type: ignore[no-any-return]
        load(("random", *("numpy.random",) * (not {"numpy", "np"}.isdisjoint(code.co_names))))
        with isolated_rng(seed=zlib.crc32(repr(self._name[:2]).encode())):
            return self._fn()  # type: ignore[no-any-return]

    def __reduce__(self) -> Any:
        """Travel by name where workers find it so, else with the function."""
        from parmap.transport.decorated import has_name

        if has_name(self):
            return self.__qualname__
        return _made, (self._fn, self._per_process, self._token)

    def __repr__(self) -> str:
        """Show which function it is."""
        return f"<once per worker: {self._name[1]}>"

    __qualname__: str


def _made(fn: Callable[[], T], per_process: bool, token: Key | None) -> OncePerWorker[T]:  # noqa: FBT001
    return OncePerWorker(fn, per_process=per_process, token=token)


def _kept_for(session: Key | None) -> dict[Any, _Result]:
    """Begin to keep results for a session."""
    kept = context.kept.setdefault(session, {})
    others = [one for one in list(context.kept) if one is not None and not is_own(one)]
    for one in others[:-_MOST]:
        context.kept.pop(one, None)
    return kept


@overload
def once_per_worker(fn: Callable[[], T], /, *, per_process: bool = False) -> OncePerWorker[T]: ...


@overload
def once_per_worker(
    fn: None = None, /, *, per_process: bool = False
) -> Callable[[Callable[[], T]], OncePerWorker[T]]: ...


def once_per_worker(fn: Any = None, /, *, per_process: bool = False) -> Any:
    """Compute a function's result once in each worker, and keep it for the session.

    For what is costly to make and cannot be sent, such as a model, a connection or an index.
    The first task that calls the function in a worker computes the result; later tasks there get
    the same object.

    Parameters
    ----------
    fn : callable
        A function without arguments. Its result is known by its module, its name and its code: if
        you define it anew, with other code, it is computed anew.
    per_process : bool, default False
        Whether threads of one process share one result. By default, each thread that is a worker
        has its own.

    Returns
    -------
    callable
        A function that returns the worker's result.

    Raises
    ------
    TypeError
        If `fn` is not a function, takes arguments, or is a generator or a coroutine.

    Notes
    -----
    An error is not kept: the next call tries again. On plan ``sequential``, the caller is the
    worker. What ``setup=`` has computed is kept, too.

    While the result is computed, the global random generators are its own, seeded from the
    function's name. Afterwards their state is restored: so the numbers that an element draws do not
    depend on which element came first. In threads, which share these generators, they are left
    alone.

    Examples
    --------
    >>> import parmap
    >>> @parmap.once_per_worker
    ... def table():
    ...     print("computed")
    ...     return {number: number**2 for number in range(10)}
    >>> with parmap.plan("sequential"):
    ...     parmap.pmap(lambda number: table()[number], [2, 3, 4])
    computed
    [4, 9, 16]
    """
    if fn is None:
        return functools.partial(once_per_worker, per_process=per_process)
    if type(fn) is not FunctionType:
        raise TypeError(f"once_per_worker takes a function, got {shown(fn)}")
    code, name = fn.__code__, fn.__qualname__
    if code.co_argcount or code.co_kwonlyargcount or code.co_flags & 0x0C:
        raise TypeError(
            f"once_per_worker: {name} takes arguments, but a worker keeps one result. Take what it "
            "needs from globals, or define a function without arguments that calls it"
        )
    if code.co_flags & _RUNS_LATER:
        raise TypeError(
            f"once_per_worker: {name} is a generator or a coroutine, which can be used up only "
            "once. Return a list or another result that can be kept"
        )
    return OncePerWorker(fn, per_process=per_process, token=fresh_key() if fn.__closure__ else None)


if hasattr(os, "register_at_fork"):
    # The child is another worker, and another thread may have held a lock.
    os.register_at_fork(after_in_child=context.kept.clear)

OncePerWorker.__module__ = once_per_worker.__module__ = "parmap"
