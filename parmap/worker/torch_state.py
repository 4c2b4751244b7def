"""torch's global generators, where it is loaded: that of the CPU, and those of the GPUs in use."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["initial", "is_within", "mark", "restore", "seed", "states"]

# Steps to try, each 5 µs: of a chunk of more elements any move counts.
_MOST = 100


def _torch() -> Any:
    return sys.modules["torch"]  # to import it takes seconds, and is the user's to do


def _gpus() -> Any:
    cuda = getattr(_torch(), "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def seed(number: int | None) -> None:
    """Seed all; None: with what the system gives.

    Not by `torch.manual_seed`, which takes 150 µs: it also looks for kinds of GPUs that nobody
    uses.
    """
    number = int.from_bytes(os.urandom(8)) if number is None else number
    _torch().default_generator.manual_seed(number)
    gpus = _gpus()
    if gpus is not None:
        gpus.manual_seed_all(number)


def states() -> tuple[Any, Any]:
    """Copy the states of all."""
    gpus = _gpus()
    own = _torch().default_generator.get_state()
    return own, None if gpus is None else gpus.get_rng_state_all()


def restore(states: tuple[Any, Any]) -> None:
    """Set the states of all."""
    _torch().default_generator.set_state(states[0])
    if states[1] is not None:
        _torch().cuda.set_rng_state_all(states[1])


def mark() -> bytes:
    """Copy the state of the CPU's generator."""
    return bytes(_torch().default_generator.get_state().numpy())


def initial() -> int:
    """Tell the seed of the CPU's generator, without its lock."""
    return int(_torch().default_generator.initial_seed())


def is_within(before: bytes, most: int) -> bool:
    """Tell whether the state is no more than so many draws of 32 bits after another."""
    torch, after = _torch(), mark()
    other = torch.Generator()
    other.set_state(torch.frombuffer(bytearray(before), dtype=torch.uint8))
    one = torch.empty((), dtype=torch.int32)
    for _ in range(min(most, _MOST)):
        one.random_(generator=other)
        if bytes(other.get_state().numpy()) == after:
            return True
    return False
