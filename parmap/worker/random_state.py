"""The global random generators, NumPy's, Python's and torch's: seeded, kept apart, watched.

They are imported where they are used: a call that does not need them must not load them,
and a generator that nobody has loaded is one that nobody has drawn from.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from parmap.transport.messages import Move
from parmap.worker import context

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "RngUseDetector",
    "inherited",
    "is_few",
    "isolated_rng",
    "load",
    "numpy_state",
    "renew",
    "seed_globals",
    "torch_of",
    "unnoticed_rng",
]


def seed_globals(stream: np.random.Generator) -> None:
    """Seed NumPy's and Python's global generators from an element's stream; torch's, if loaded."""
    import random

    import numpy.random

    # The bytes of `stream.integers(0, 1 << 32, size=4)` and `stream.bytes(16)`, which would cost
    # twice as much.
    seeds = stream.bytes(32)
    numpy.random.seed(numpy.frombuffer(seeds, "<u4", 4))  # noqa: NPY002 - what the user's code uses
    random.seed(int.from_bytes(seeds[16:]))
    torch = torch_of()
    if torch is not None:  # last: its draw from the stream changes no number of the others
        torch.seed(int.from_bytes(stream.bytes(8)))


class Inherited(NamedTuple):
    """The state of NumPy's global generator and torch's seed, as a fork has them from its parent.

    None where the generator was not loaded, or its state is not cheap to read. Neither may be read
    under a lock, as torch's state would be: another thread may have held that at the fork.
    """

    numpy: bytes | None
    torch: int | None


# Empty, or what this process has inherited and nobody has looked at since. Workers of a backend
# that forks them would all draw the same numbers from it.
inherited: list[Inherited] = []


def renew() -> None:
    """Prepare a forked worker for its first task: seed anew what it has inherited.

    What its backend has seeded since stays. Python's own generator reseeds itself at a fork.
    """
    for begin in context.begin_forked_worker if inherited else ():
        begin()
    while inherited:
        before = inherited.pop()
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None and numpy_state() == before.numpy:
            _renew_numpy(numpy_random)
        torch = torch_of()
        if torch is not None and torch.initial() == before.torch:
            torch.seed(None)


def _renew_numpy(module: Any) -> None:
    kind = type(module.get_bit_generator())
    if kind is module.MT19937:
        module.seed()
    else:  # seed() refuses it
        module.set_bit_generator(kind())


def torch_of() -> Any:
    """Give what handles torch's generators; None if torch is not loaded."""
    if getattr(sys.modules.get("torch"), "default_generator", None) is None:
        return None
    from parmap.worker import torch_state

    return torch_state


def load(modules: tuple[str, ...]) -> None:
    """Load modules that a function is going to load: so they are seeded, or watched, in time."""
    for module in modules:
        # If it is missing, or broken, the function meets the error where it wants the module.
        with suppress(Exception):
            importlib.import_module(module)


@contextmanager
def isolated_rng(*, load: bool = False, seed: int | None = None) -> Iterator[None]:
    """Run the block with global generators of its own, and give the caller's back untouched.

    For chunks that run in the caller's thread, and for those that seed the generators.

    Parameters
    ----------
    load : bool, default False
        Whether to load the generators: a block that is going to seed them would do so, and
        what was not there could not be given back.
    seed : int, optional
        What its generators are seeded with. Default: by the system.
    """
    if load:
        import random  # noqa: F401

        import numpy.random  # noqa: F401
    mine = _Turn(threading.get_ident())
    try:
        turn = _turn.setdefault("now", mine)
    except BaseException:  # Ctrl-C, which strikes after any call
        if _turn.get("now") is mine:
            del _turn["now"]
        raise
    try:
        if turn.thread == mine.thread:
            with _swapped(seed):
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
        if turn is mine:  # asked without a call
            del _turn["now"]


@contextmanager
def _swapped(seed: int | None) -> Iterator[None]:
    own = _spare.pop() if _spare and seed is None else _Own()
    torch = torch_of()
    try:
        with (
            own.python(sys.modules.get("random")),
            own.numpy(sys.modules.get("numpy.random")),
            own.torch(torch),
        ):
            if seed is not None:
                _seed(seed, torch)
            yield
    finally:
        if torch is None and (late := torch_of()) is not None:
            late.seed(None)  # a task's seed must not stay
        if seed is None:
            _spare.append(own)


def _seed(seed: int, torch: Any) -> None:
    """Seed those of the global generators that are loaded."""
    for name in ("random", "numpy.random"):
        if name in sys.modules:
            sys.modules[name].seed(seed)
    if torch is not None:
        torch.seed(seed)


class _Own:
    """States of the global generators that are a task's own, seeded by the system."""

    def __init__(self) -> None:
        self._state: Any = None
        self._bits: Any = None
        self._torch: Any = None

    @contextmanager
    def python(self, module: Any) -> Iterator[None]:
        if module is None:
            yield
            return
        callers = module.getstate()
        own = False
        try:  # all of it: Ctrl-C strikes after any call, and the caller's must come back
            module.setstate(self._state or module.Random().getstate())
            own = True
            yield
        finally:
            try:
                if own:
                    self._state = module.getstate()
            finally:
                try:
                    module.setstate(callers)
                except KeyboardInterrupt:  # it is written in Python, so perhaps at its first step
                    module.setstate(callers)
                    raise

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
            try:
                module.set_bit_generator(callers)
            finally:  # also if Ctrl-C strikes after that call
                if state["has_gauss"]:
                    module.set_state(state)

    @contextmanager
    def torch(self, module: Any) -> Iterator[None]:
        if module is None:
            yield
            return
        callers, own = module.states(), False
        try:
            if self._torch is None:
                module.seed(None)
            else:
                module.restore(self._torch)
            own = True
            yield
        finally:
            if own:
                self._torch = module.states()
            module.restore(callers)


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
    torch = torch_of()
    inherited[:] = [Inherited(numpy_state(), None if torch is None else torch.initial())]
    turn = _turn.get("now")
    if turn is not None and turn.thread != threading.get_ident():
        _turn.clear()


# Not one for all: a call inside of a task must not draw from the task's own.
_spare: list[_Own] = []
if hasattr(os, "register_at_fork"):
    # Or all workers of a fork server would draw the same numbers.
    os.register_at_fork(after_in_child=_spare.clear)
    os.register_at_fork(after_in_child=_forked)


# Words of 32 bits for each element: scikit-learn's estimators draw as many for seeds that most of
# them, as they are by default, do not use.
_FEW = 2


class RngUseDetector:
    """Notices whether a block drew from a global generator.

    Parameters
    ----------
    hints : tuple of str
        The modules that the function speaks of; see `CallSpec`. Python's generator is
        looked at only where it is named: that costs 20 µs, NumPy's costs 2.
    """

    def __init__(self, hints: tuple[str, ...]) -> None:
        load(tuple(hint for hint in hints if hint != "torch"))
        self._random = sys.modules.get("random") if "random" in hints else None
        self._python = self._random.getstate() if self._random else None
        self._numpy = numpy_state()
        torch = torch_of()
        self._torch = torch.mark() if torch else None
        self._loaded = len(sys.modules)
        self._last = None if _unnoticed else _last[0]

    def moves(self, elements: int) -> tuple[Move, ...]:
        """Name the generators that have been drawn from since, by so many elements."""
        if _unnoticed or self._last is not _last[0]:
            return ()
        # One that was loaded meanwhile has not been looked at before: the next chunk will be.
        found: list[tuple[str, bool]] = []
        state = numpy_state()
        if self._numpy is not None and state is not None and state != self._numpy:
            found.append(("numpy.random", is_few(self._numpy, state, elements)))
        if self._random is not None and self._random.getstate() != self._python:
            found.append(("random", False))
        torch = torch_of() if self._torch else None
        if torch and torch.mark() != self._torch:
            found.append(("torch", torch.is_within(self._torch, _FEW * elements)))
        loading = len(sys.modules) != self._loaded
        return tuple(Move(name, few, loading) for name, few in found)


# Blocks that run now, in any thread, whose draws are not to be noticed; and the last that ended.
_unnoticed: set[object] = set()
_last = [object()]


@contextmanager
def unnoticed_rng() -> Iterator[None]:
    """Have no detector, in any thread, tell of what is drawn while the block runs."""
    mine = object()
    _unnoticed.add(mine)
    try:
        yield
    finally:
        _last[0] = mine
        _unnoticed.discard(mine)


_WORDS = 624  # of a Mersenne twister's state; its position in them follows


def numpy_state() -> bytes | None:
    """Copy the state of NumPy's global generator from where it lies.

    Its address is public (``BitGenerator.ctypes``); to ask for the state takes 40 µs. For MT19937
    it is 624 words of 32 bits, then the position.
    """
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return None
    bits = numpy_random.get_bit_generator()
    if type(bits).__name__ != "MT19937":
        return None
    import ctypes

    return ctypes.string_at(bits.ctypes.state_address, 4 * (_WORDS + 1))


def is_few(before: bytes, after: bytes, elements: int) -> bool:
    """Tell whether NumPy's generator moved by no more than so many elements draw for seeds."""
    import numpy as np

    key, start = np.frombuffer(before, np.uint32)[:_WORDS], _position(before)
    bits = np.random.MT19937(0)
    bits.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": start}}
    step = (_position(after) - start) % _WORDS or _WORDS
    total = step
    while total <= _FEW * elements:
        bits.random_raw(step, output=False)
        state = bits.state["state"]
        if state["key"].tobytes() == after[: 4 * _WORDS]:
            return True
        step = _WORDS
        total += step
    return False


def _position(state: bytes) -> int:
    return int.from_bytes(state[4 * _WORDS :], sys.byteorder)
