"""What the user gives as ``rng=``: where a call's random streams begin, and who takes them."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Literal, cast

from parmap.transport.root import Root
from parmap.untouched import is_a, own

__all__ = ["Streams", "root_of", "takes_rng"]

_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_ADVANCES = ("spawn", "jumped")


@dataclass(frozen=True, slots=True)
class Streams:
    """Which random streams a call's elements get; an int as ``rng=`` means ``Streams(seed)``.

    Parameters
    ----------
    seed : int, sequence of int, or numpy.random.SeedSequence
        The seed of all of them.
    bit_generator : {"PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"}, default "PCG64"
        NumPy's bit generator.
    advance : {"spawn", "jumped"}, default "spawn"
        How element *i* gets its own: ``SeedSequence(seed).spawn(n)[i]``, or
        ``PCG64(seed).jumped(i)``: the seed's one stream, *i* long jumps ahead, so that
        streams cannot overlap. SFC64 cannot jump.

    Notes
    -----
    A jump of MT19937 costs a millisecond, so element *i* of a chunk costs that once if the
    worker had element *i* - 1, else *i* of them. Spawning costs about 3 µs, 40 for MT19937; in
    chunks of one or two elements, or before NumPy 2.0, about 12 and 90.

    Examples
    --------
    >>> import parmap
    >>> def draw(i, rng):
    ...     return float(rng.normal())
    >>> a = parmap.pmap(draw, range(3), rng=parmap.Streams(1, "Philox"))
    >>> a == parmap.pmap(draw, range(3), rng=parmap.Streams(1, "Philox"), chunks=1)
    True
    """

    seed: Any
    bit_generator: str = "PCG64"
    advance: Literal["spawn", "jumped"] = "spawn"

    def __post_init__(self) -> None:
        if self.bit_generator not in _BIT_GENERATORS:
            raise ValueError(
                f"bit_generator={self.bit_generator!r}: give one of {', '.join(_BIT_GENERATORS)}"
            )
        if self.advance not in _ADVANCES:
            raise ValueError(f"advance={self.advance!r}: give one of {', '.join(_ADVANCES)}")
        if self.advance == "jumped" and self.bit_generator == "SFC64":
            raise ValueError("SFC64 cannot jump: use advance='spawn', or another bit generator")


def root_of(rng: Any) -> Root:
    """Find where the streams of a call begin, from what the user gave as ``rng=``.

    Parameters
    ----------
    rng : int, sequence of int, SeedSequence, Generator, BitGenerator or Streams
        As in SPEC 7 of Scientific Python. Seeds are values: the same streams each time. A
        generator is a running thing: four numbers are drawn from it for the seed, so that
        the next call gets other streams.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If a seed is negative.
    """
    from numpy.random import BitGenerator, Generator, SeedSequence

    streams = rng if isinstance(rng, Streams) else Streams(rng)
    seed = streams.seed
    if isinstance(seed, BitGenerator):
        seed = Generator(seed)
    if isinstance(seed, Generator):
        # Not its seed_seq.spawn: a generator that was jumped, or set to a state, has a
        # seed sequence that says nothing of it.
        seed = [int(word) for word in seed.integers(0, 1 << 32, size=4)]
    if not isinstance(seed, SeedSequence):
        seed = SeedSequence(_entropy(seed))
    entropy = _entropy(seed.entropy)
    return Root(
        entropy, tuple(seed.spawn_key), seed.pool_size, streams.bit_generator, streams.advance
    )


def _entropy(seed: Any) -> Any:
    """Check a seed, and make it hashable: a whole number, or a tuple of such."""
    try:
        if isinstance(seed, (bool, str, bytes, Mapping)):
            raise TypeError  # noqa: TRY301 - each is iterable or a number, and a mistake
        many = isinstance(seed, Iterable)
        words = tuple(map(operator.index, seed)) if many else (operator.index(seed),)
    except TypeError:
        raise TypeError(
            f"rng={seed!r}: give a whole number, a numpy SeedSequence, Generator or BitGenerator, "
            "or parmap.Streams"
        ) from None
    if min(words, default=0) < 0:
        raise ValueError(f"rng={seed!r}: a seed is not negative: give 0 or more")
    return words if many else words[0]


def takes_rng(function: Callable[..., Any]) -> bool:
    """Tell whether a function has a parameter ``rng`` that is still to be given."""
    if is_a(function, functools.partial) and "rng" in function.keywords:
        return False
    try:
        parameter = inspect.signature(_plain(function)).parameters.get("rng")
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    return parameter is not None and parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )


def _plain(function: Any) -> Callable[..., Any]:
    """Give a function that takes what a callable object takes, without asking the object.

    `inspect.signature` asks for half a dozen attributes, which the object's class may compute.
    """
    if is_a(function, functools.partial):
        return functools.partial(_plain(function.func), *function.args, **function.keywords)
    wrapped = own(function).get("__wrapped__")
    if wrapped is not None and not is_a(function, _PLAIN):
        return _plain(wrapped)
    if is_a(function, _PLAIN):
        return cast("Callable[..., Any]", function)
    found = (one.__dict__ for one in type(function).__mro__)
    call = next((slots["__call__"] for slots in found if "__call__" in slots), None)
    if type(call) is not FunctionType:
        raise TypeError("it has no signature of its own")
    return functools.partial(call, function)


# Functions, classes and methods, whose signatures are Python's own.
_PLAIN = (type, FunctionType, BuiltinFunctionType, MethodType)


# Public: pickles and tracebacks name it as users do, wherever it is defined.
Streams.__module__ = "parmap"
