"""The global random generators, NumPy's and Python's: seeded, kept apart, watched.

They are imported where they are used: a call that does not need them must not load them,
and a generator that nobody has loaded is one that nobody has drawn from.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Watch", "apart", "seed_globals"]


def seed_globals(stream: np.random.Generator) -> None:
    """Seed NumPy's and Python's global generators from an element's stream."""
    import random

    import numpy.random

    numpy.random.seed(stream.integers(0, 1 << 32, size=4))  # noqa: NPY002 - what the user's code uses
    random.seed(int.from_bytes(stream.bytes(16)))


@contextmanager
def apart(*, load: bool = False) -> Iterator[None]:
    """Run the block with global generators of its own, and give the caller's back untouched.

    For chunks that run in the caller's thread, and for those that seed the generators.

    Parameters
    ----------
    load : bool, default False
        Whether to load the generators: a block that is going to seed them would do so, and
        what was not there could not be given back.
    """
    if load:
        import random  # noqa: F401

        import numpy.random  # noqa: F401
    mine = _Turn(threading.get_ident())
    try:
        turn = _turn.setdefault("now", mine)
        if turn.thread == mine.thread:
            with _swapped():
                yield
        elif load:
            # Swapping under another thread's swap would give back the wrong ones at the end.
            raise RuntimeError(
                "another thread of this process runs a call whose tasks use the global random "
                "generators: take the stream as a parameter instead: def f(..., rng)"
            )
        else:
            yield
    finally:
        if _turn.get("now") is mine:
            del _turn["now"]


@contextmanager
def _swapped() -> Iterator[None]:
    own = _spare.pop() if _spare else _Own()
    try:
        with own.python(sys.modules.get("random")), own.numpy(sys.modules.get("numpy.random")):
            yield
    finally:
        _spare.append(own)


class _Own:
    """States of the global generators that are a task's own, seeded by the system."""

    def __init__(self) -> None:
        self._state: Any = None
        self._bits: Any = None

    @contextmanager
    def python(self, module: Any) -> Iterator[None]:
        if module is None:
            yield
            return
        callers = module.getstate()
        try:  # all of it: Ctrl-C strikes after any call, and the caller's must come back
            module.setstate(self._state or module.Random().getstate())
            yield
            self._state = module.getstate()
        finally:
            module.setstate(callers)

    @contextmanager
    def numpy(self, module: Any) -> Iterator[None]:
        if module is None:
            yield
            return
        # Swapping the bit generator is free, but forgets the half of a pair of normals that
        # is kept for the next draw; it can be read and set only with the whole state, 40 µs.
        state, callers = module.get_state(legacy=False), module.get_bit_generator()
        self._bits = self._bits or module.MT19937()
        try:
            module.set_bit_generator(self._bits)
            yield
        finally:
            module.set_bit_generator(callers)
            if state["has_gauss"]:
                module.set_state(state)


class _Turn:
    """The right to swap the generators; only itself is equal to it."""

    __slots__ = ("thread",)

    def __init__(self, thread: int) -> None:
        self.thread = thread


# Whose turn it is: one thread swaps at a time, and may do so again inside of it. It is taken and
# given back in single steps, without a lock: a call that a finalizer or a signal handler makes
# in this thread, at any step, finds it taken by this thread, or free.
_turn: dict[str, _Turn] = {}


def _forked() -> None:
    """Be the child of a fork: of the threads only this one goes on."""
    turn = _turn.get("now")
    if turn is not None and turn.thread != threading.get_ident():
        _turn.clear()


# Not one for all: a call inside of a task must not draw from the task's own.
_spare: list[_Own] = []
if hasattr(os, "register_at_fork"):
    # Or all workers of a zygote would draw the same numbers.
    os.register_at_fork(after_in_child=_spare.clear)
    os.register_at_fork(after_in_child=_forked)


class Watch:
    """Notices whether a block drew from a global generator.

    Parameters
    ----------
    hints : tuple of str
        The modules that the function speaks of; see `Job`. Python's generator is
        looked at only where it is named: that costs 20 µs, NumPy's costs 2.
    """

    def __init__(self, hints: tuple[str, ...]) -> None:
        for module in hints:  # what the function itself loads would be seen too late
            importlib.import_module(module)
        self._random = sys.modules.get("random") if "random" in hints else None
        self._python = self._random.getstate() if self._random else None
        self._numpy = _numpy_mark()

    def touched(self) -> tuple[str, ...]:
        """Name the generators that have been drawn from since."""
        names = []
        mark = _numpy_mark()
        # One that was loaded meanwhile has not been looked at before: the next chunk will be.
        if self._numpy is not None and mark != self._numpy:
            names.append("numpy.random")
        if self._random is not None and self._random.getstate() != self._python:
            names.append("random")
        return tuple(names)


def _numpy_mark() -> tuple[int, ...] | None:
    """Read three words of NumPy's global generator: its first two, and its position.

    Its state is read where it lies (the address is public: ``BitGenerator.ctypes``), for
    asking for a copy takes 40 µs. For MT19937 it is 624 words of 32 bits, then the position.
    """
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return None
    bits = numpy_random.get_bit_generator()
    if type(bits).__name__ != "MT19937":
        return None
    import ctypes

    address = bits.ctypes.state_address
    words = (ctypes.c_uint32 * 625).from_address(address)
    return words[0], words[1], words[624]
