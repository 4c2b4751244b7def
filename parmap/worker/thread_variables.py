"""The environment variables that tell native libraries their threads: read as a library loads.

A worker process of parmap's has them for good. In the caller's own process they are set as long
as a call runs, for a task may be the first to load a library, and then they are put back.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from parmap import cores

__all__ = [
    "LOKY",
    "NAMES",
    "ThreadLimit",
    "hold",
    "holds",
    "limited",
    "natural",
    "number",
    "release",
]

LOKY = "LOKY_MAX_CPU_COUNT"  # what joblib, and so scikit-learn, takes n_jobs=-1 for

# These take OMP_NUM_THREADS where their own is not set: a user who set that has set them all.
_FOLLOW = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

NAMES = (
    *_FOLLOW,  # before the one that they follow
    "OMP_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
    LOKY,
)


_SET = NAMES[:-1]  # without the last, which has a control
_READ = (*_SET, "NUMEXPR_MAX_THREADS")
_KEYS = tuple(map(os.environ.encodekey, _READ))
# In the place of what we have set, and what was there before, where we have set nothing.
_NOBODYS: tuple[tuple[Any, ...], Any] = ((), None)


class ThreadLimit:
    """A limit that somebody asked for; only itself is equal to it."""

    __slots__ = ("exact", "threads")

    def __init__(self, threads: int, exact: bool) -> None:  # noqa: FBT001 - as it is kept
        self.threads, self.exact = threads, exact

    def of(self, before: int | None) -> int:
        """Give the number for a library that had another before, or none."""
        return self.threads if self.exact or before is None else min(self.threads, before)

    def says(self, other: ThreadLimit | None) -> bool:
        """Whether another asks for the same."""
        return other is not None and (self.threads, self.exact) == (other.threads, other.exact)


def number(text: str | None) -> int | None:
    """Read a variable as the libraries do: of ``"4,2"``, OpenMP's levels, the first counts."""
    try:
        read = int((text or "").partition(",")[0])
    except ValueError:
        return None
    return read if read > 0 else None


def limited(name: str, threads: int, environ: Mapping[str, str], *, exact: bool) -> int:
    """Give the number for a variable.

    Parameters
    ----------
    name : str
        The variable.
    threads : int
        How many threads a library may use.
    environ : mapping
        What the user has set. A smaller number there is kept.
    exact : bool
        Whether to give just that number, upwards, too.
    """
    limit = threads
    if not exact:
        given = (name, "OMP_NUM_THREADS") if name in _FOLLOW else (name,)
        users = next(filter(None, (number(environ.get(one)) for one in given)), threads)
        limit = min(threads, users)
    if name == "NUMEXPR_NUM_THREADS":
        # Asked for more than its maximum, it complains and takes one thread only.
        limit = min(limit, number(environ.get("NUMEXPR_MAX_THREADS")) or 64)
    return limit


class _Held:
    """What the calls that run have set in this process's environment.

    There is no lock here: `parmap.worker.native_threads` calls `hold` and `release` under its
    own. A signal handler that makes a call may come in between, in the same thread. It only
    notes what is asked; the outer call then sees that something has changed, and goes round once
    more. KeyboardInterrupt may leave variables half set: `native_threads` then releases, which
    sets them all.
    """

    def __init__(self) -> None:
        self._asked: list[ThreadLimit] = []
        self._changes, self._applying = 0, False
        self._torn = False  # whether an interrupt has left variables half set
        self._due = False  # or as they were, though `_asked` has changed
        self._ours = [_NOBODYS] * len(_KEYS)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def hold(self, limit: ThreadLimit) -> None:
        self._due = True
        self._asked.append(limit)
        self._apply()

    def release(self, limit: ThreadLimit) -> None:
        if self.holds(limit) or (self._due and not self._applying):
            self._due = True
            # By identity: another call may ask for as many.
            self._asked = [one for one in self._asked if one is not limit]
            self._apply()

    def holds(self, limit: ThreadLimit) -> bool:
        return any(one is limit for one in self._asked)

    def _apply(self) -> None:
        self._changes += 1
        if self._applying:
            return
        self._applying, seen = True, 0
        try:
            while seen != self._changes:
                seen = self._changes
                torn, self._torn = self._torn, True
                self._turn(list(self._asked), torn=torn)
                self._torn = False
            self._due = False
        finally:
            self._applying = False

    def _turn(self, asked: list[ThreadLimit], *, torn: bool) -> None:
        # Past the mapping's own methods: at each call these ten would take 15 us.
        now = tuple(map(os.environ._data.get, _KEYS))  # type: ignore[attr-defined]  # noqa: SLF001
        users = tuple(
            [
                one if text in ours else text
                for text, (ours, one) in zip(now, self._ours, strict=True)
            ]
        )
        # Each once: a thousand calls that run at a time mostly ask for the same.
        limits = frozenset([(one.threads, one.exact) for one in asked])
        wanted = _wanted(users, limits) if limits else users
        aside = _aside(users, wanted) if limits else {}
        # First what it was, then the variable: who reads both in between finds the user's.
        cores.aside = {**cores.aside, **aside}
        # Both are ours until all is done: an interrupt may leave either.
        self._ours = list(zip(zip(now, wanted, strict=True), users, strict=True))
        for name, text, other in zip(_READ, now, wanted, strict=True):
            if other is None and (torn or text is not None):
                try:
                    del os.environ[name]
                except KeyError:  # somebody else has, just now
                    continue
            elif other is not None and (torn or text != other):
                os.environ[name] = os.environ.decodevalue(other)
        cores.aside = aside
        self._ours = [
            ((other,), one) if other != one else _NOBODYS
            for other, one in zip(wanted, users, strict=True)
        ]

    def _forked(self) -> None:
        """Be the child of a fork: its calls are its own, and what was set stays until they end."""
        self._applying = False  # the lock of `native_threads` is held while a process forks
        self._asked = []


# What variables hold, as the system has it; in the order of `_KEYS`.
_Texts = tuple[Any, ...]


@functools.lru_cache(64)
def _wanted(users: _Texts, limits: frozenset[tuple[int, bool]]) -> _Texts:
    """Give what the variables are to hold, if calls ask for these limits."""
    environ = _decoded(users)
    wanted = list(users)
    for place, name in enumerate(_SET):
        least = min(limited(name, threads, environ, exact=exact) for threads, exact in limits)
        if least != number(environ.get(name)):
            wanted[place] = os.environ.encodevalue(str(least))
    return tuple(wanted)


@functools.lru_cache(64)
def _aside(users: _Texts, wanted: _Texts) -> dict[str, tuple[str, str | None]]:
    """Give the form in which `parmap.cores` has it; not to be changed."""
    before, after = _decoded(users), _decoded(wanted)
    return {
        name: (after[name], before.get(name)) for name in after if after[name] != before.get(name)
    }


def _decoded(texts: _Texts) -> dict[str, str]:
    decode = os.environ.decodevalue
    pairs = zip(_READ, texts, strict=True)
    return {name: decode(text) for name, text in pairs if text is not None}


def natural(internal_api: str) -> int | None:
    """Give the number that a library which has just loaded would have had without us.

    Parameters
    ----------
    internal_api : str
        The library, as threadpoolctl calls it.

    Returns
    -------
    int or None
        None where we have set nothing, so that it has that number.
    """
    own = {"openblas": "OPENBLAS_NUM_THREADS", "mkl": "MKL_NUM_THREADS", "blis": "BLIS_NUM_THREADS"}
    names = (own.get(internal_api, "OMP_NUM_THREADS"), "OMP_NUM_THREADS")
    if not any(name in cores.aside for name in names):
        return None
    said = next(filter(None, (number(cores.users_variable(name)) for name in names)), None)
    if internal_api == "blis":
        return said or 1
    machine = cores.affinity() or os.cpu_count() or 1
    if said is None:
        return machine
    return min(said, machine) if internal_api == "openblas" else said


_held = _Held()
hold, release, holds = _held.hold, _held.release, _held.holds
