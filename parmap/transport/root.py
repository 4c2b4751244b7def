"""Random streams: each element its own, from the seed and its index alone.

The scheme is NumPy's: element *i* gets ``SeedSequence(seed, spawn_key=(i,))``, which is what
``SeedSequence(seed).spawn(n)[i]`` gives for any n. So no stream depends on the plan, on the
chunks, or on how many elements there are, and none has to be made before its element runs.

NumPy is imported where it is used: a call without ``rng=`` must not load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Root"]


class Root(NamedTuple):
    """Where the streams of one call begin.

    Parameters
    ----------
    entropy : int or tuple of int
        The seed.
    spawn_key : tuple of int
        The place of this root among the seed's descendants.
    pool_size : int
        As in `numpy.random.SeedSequence`.
    bit_generator, advance
        As in `Streams`.
    """

    entropy: Any
    spawn_key: tuple[int, ...]
    pool_size: int
    bit_generator: str
    advance: str

    def sequence(self, *index: int) -> np.random.SeedSequence:
        """Give the seed sequence of an element, or without an index the root's own."""
        from numpy.random import SeedSequence

        return SeedSequence(
            self.entropy, spawn_key=(*self.spawn_key, *index), pool_size=self.pool_size
        )

    def stream(self, index: int) -> np.random.Generator:
        """Make the generator of an element."""
        import numpy.random

        if self.advance == "jumped":
            return numpy.random.Generator(_jumped(self, index))
        kind = getattr(numpy.random, self.bit_generator)
        return numpy.random.Generator(kind(self.sequence(index)))


# The last jump in this process: a chunk's elements come in order, and the next is one away.
_last: tuple[Root, int, Any] | None = None


def _jumped(root: Root, index: int) -> np.random.BitGenerator:
    import numpy.random

    global _last  # noqa: PLW0603 - a cache of one; threads take it from each other
    last = _last  # read once: another thread may replace it at any step
    if last is not None and last[0] == root and last[1] <= index:
        _, at, bits = last
    else:
        at, bits = 0, getattr(numpy.random, root.bit_generator)(root.sequence())
    # A copy even of no jump, or the element would draw from the cached one.
    ahead = bits.jumped(index - at) if index > at else _copied(bits)
    _last = (root, index, _copied(ahead))
    return ahead  # type: ignore[no-any-return]


def _copied(bits: Any) -> Any:
    copy = type(bits)(0)
    copy.state = bits.state
    return copy
