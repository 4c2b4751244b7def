"""The random streams of many elements at once: the same numbers, for a fifth of the time.

To make one stream, NumPy hashes the seed and the element's index into a pool, the pool into the
words that the bit generator starts from, and spends 4 µs on each. Here NumPy's vectors hash the
indices of a whole block. Each stream is new, and has a `numpy.random.SeedSequence` of its own.

The hash is that of `numpy.random.SeedSequence`, after Melissa O'Neill's ``seed_seq_fe``. Whether a
bit generator's streams can be made this way is tried once per process, by making some both ways.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.random
from numpy.random import BitGenerator, Generator, SeedSequence
from numpy.random.bit_generator import ISeedSequence

from parmap.transport.root import Root

__all__ = ["Spawned", "spawned"]

# The constants of the hash: where its multipliers begin, and by what each follows the last.
_MIX_FIRST, _MIX_FACTOR = 0x43B0D7E5, 0x931E8875
_WORDS_FIRST, _WORDS_FACTOR = 0x8B51F9DD, 0x58F38DED
_LEFT, _RIGHT = np.array([0xCA01F9DD, 0x4973F715], np.uint32)
_HALF = np.uint32(16)

# Elements whose streams are hashed together: what a vector costs is shared, and 256 times the
# 2.5 kB of an MT19937 are still little.
_BLOCK = 256


def spawned(root: Root, indices: Sequence[int]) -> Spawned | None:
    """Make the streams of elements, all of a chunk; None if that must go one by one."""
    kind = getattr(numpy.random, root.bit_generator)
    asked = _asked(kind)
    # NumPy takes numbers of other types, too, and knows which words they have. An index of more
    # than one word is far out.
    if asked is None or max(indices) >= 1 << 32 or not _is_plain(root):
        return None
    return Spawned(root, indices, kind, asked)


def _is_plain(root: Root) -> bool:
    return all(type(number) is int for number in (*_numbers(root.entropy), *root.spawn_key))


def _numbers(entropy: Any) -> tuple[int, ...]:
    return entropy if isinstance(entropy, tuple) else (entropy,)


class Spawned:
    """The streams of a chunk's elements, made in their order.

    Parameters
    ----------
    root : Root
        Where the streams begin.
    indices : sequence of int
        The elements' places in the input, each less than 2**32.
    kind : type
        The bit generator.
    asked : tuple of (int, dtype)
        Which words it asks of its seed sequence.
    """

    __slots__ = ("_asked", "_block", "_children", "_given", "_indices", "_kind", "_root")

    def __init__(
        self, root: Root, indices: Sequence[int], kind: Any, asked: tuple[int, Any]
    ) -> None:
        self._root, self._indices = root, indices
        self._kind, self._asked = kind, asked
        self._children = _children(root)
        self._given = _Given()
        self._block: tuple[int, Any, Any] = (0, (), ())

    def stream(self, place: int) -> Generator:
        """Make the generator of the element at a place of the chunk; fast if they come in order."""
        first, pools, words = self._block
        if not 0 <= place - first < len(pools):
            first, pools, words = self._block = self._hashed(place)
        self._given.words = words[place - first]
        bits = self._kind(self._given)
        entropy, key, size, _, _ = self._root
        pool = pools[place - first].copy()  # one that is kept must not keep the block's
        sequence: Any = SeedSequence.__new__(SeedSequence)
        sequence.__setstate__((entropy, 0, pool, size, (*key, self._indices[place])))
        try:
            # It takes the sequence, then refuses the state: reading and writing that would
            # cost 2 µs, and 60 of an MT19937.
            bits.__setstate__((None, sequence))
        except TypeError:
            if bits.seed_seq is sequence:
                return Generator(bits)
        bits.__setstate__((bits.state, sequence))
        return Generator(bits)

    def _hashed(self, first: int) -> tuple[int, Any, Any]:
        pools = self._children.pools(self._indices[first : first + _BLOCK])
        return first, pools, _words(pools, *self._asked)


class _Children:
    """The pools of a root's children: NumPy's hash of all that they share, then their indices'."""

    __slots__ = ("_constants", "_left")

    def __init__(self, root: Root) -> None:
        size = root.pool_size
        # Each word before the index was mixed into each word of the pool; what the seed does not
        # fill of the pool, zeros do.
        before = max(_count(_numbers(root.entropy)), size) + _count(root.spawn_key)
        first = _MIX_FIRST * pow(_MIX_FACTOR, size * before, 1 << 32) % (1 << 32)
        self._constants = _constants(first, _MIX_FACTOR, size)
        self._left = root.sequence().pool * _LEFT

    def pools(self, indices: Sequence[int]) -> Any:
        """Compute the pool of each index, a row each."""
        values = _mixed(np.array(indices, np.uint32)[:, None], self._constants)
        values *= _RIGHT
        np.subtract(self._left, values, out=values)
        values ^= values >> _HALF
        return values


# A call's chunks have one root.
_children = functools.lru_cache(maxsize=8)(_Children)


def _count(numbers: tuple[int, ...]) -> int:
    """Count the words of 32 bits that some numbers fill; zero fills one, too."""
    return sum(max(1, (number.bit_length() + 31) // 32) for number in numbers)


def _words(pools: Any, count: int, dtype: Any) -> Any:
    """Compute the words that NumPy generates from pools, a row for each pool."""
    columns, constants = _reading(count * dtype.itemsize // 4, pools.shape[1])
    # Each row must lie in one piece: bit generators read it from its address.
    values = _mixed(np.take(pools, columns, axis=1), constants)
    if dtype == np.uint32:
        return values
    # The lower half first, whatever this machine's own order.
    return values.astype("<u4", copy=False).view("<u8").astype(np.uint64, copy=False)


@functools.lru_cache(maxsize=32)
def _reading(count: int, size: int) -> tuple[Any, Any]:
    """Give which words of a pool some words are made from, in turn, and by which constants."""
    return np.arange(count) % size, _constants(_WORDS_FIRST, _WORDS_FACTOR, count)


def _mixed(values: Any, constants: Any) -> Any:
    values = values ^ constants[:-1]
    values *= constants[1:]
    values ^= values >> _HALF
    return values


def _constants(first: int, factor: int, count: int) -> Any:
    """Compute the multipliers for some words in a row, and the one after."""
    values = np.full(count + 1, factor, np.uint32)
    values[0] = first
    return np.multiply.accumulate(values, dtype=np.uint32)


class _Given(ISeedSequence):
    """A seed sequence whose words are there already."""

    words: Any

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:  # noqa: ARG002
        """Return the words; the bit generator asks for as many as it always does."""
        return self.words


class _Noting(ISeedSequence):
    """A seed sequence that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Any]] = []

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        self.asked.append((n_words, np.dtype(dtype)))
        return SeedSequence(1).generate_state(n_words, dtype)


@functools.cache
def _asked(kind: Any) -> tuple[int, Any] | None:
    """Find which words a bit generator asks for; None if its streams cannot be made from words.

    Before NumPy 2.0 a bit generator takes no seed sequence after it was made. What a later one
    may change is seen here: streams made this way are NumPy's own, or the way is not taken.
    """
    root, indices = Root((1, 1 << 40), (7,), 5, kind.__name__, "spawn"), (3, (1 << 32) - 1)
    try:
        noting = _Noting()
        kind(noting)
        [asked] = noting.asked
        streams = Spawned(root, indices, kind, asked)
        made = [streams.stream(place).bit_generator for place in (0, 1)]
        true = [kind(root.sequence(index)) for index in indices]
        return asked if all(map(_equal, made, true)) else None
    except Exception:  # noqa: BLE001 - whatever another NumPy has to say, the way is not for it
        return None


def _equal(made: BitGenerator, true: BitGenerator) -> bool:
    ours, theirs = made.seed_seq, true.seed_seq
    return (
        type(ours) is type(theirs)
        and repr(ours) == repr(theirs)
        and np.array_equal(ours.generate_state(16), theirs.generate_state(16))
        # More than the 624 words that an MT19937 has.
        and np.array_equal(made.random_raw(700), true.random_raw(700))
    )
