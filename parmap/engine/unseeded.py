"""What a call says of random numbers that repeat, or that nobody can draw again: each once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from parmap.engine.hints import hints_of, look
from parmap.engine.script_settings import say_unapplied
from parmap.engine.traits import Traits
from parmap.engine.users_line import users_line
from parmap.errors import UnseededRandomWarning
from parmap.transport.caller import Unapplied
from parmap.transport.messages import Move
from parmap.untouched import class_name, name_of
from parmap.worker.random_state import is_few, numpy_state

__all__ = ["Unseeded"]

# Generators that are remembered while a call runs. One that many elements have is among the first.
_REMEMBERED = 16


class Unseeded:
    """Watches over the random numbers of one call.

    Parameters
    ----------
    functions : sequence of callable
        The user's functions.
    traits : Traits
        Facts about the place.
    streams : bool
        Whether the call has ``rng=``.
    alone : bool
        Whether the caller's own code stands still while tasks run.
    where : (str, int), optional
        The file and line to point at. Default: the user's, when there is something to say.

    Attributes
    ----------
    hints : tuple of str
        See `CallSpec`.
    """

    def __init__(
        self,
        functions: Sequence[Callable[..., Any]],
        traits: Traits,
        *,
        streams: bool,
        alone: bool,
        where: tuple[str, int] | None = None,
    ) -> None:
        self.hints, self._named = look(functions)
        self._call = WatchedCall(functions, traits, streams, where)
        # Generators that elements brought, and which those were.
        self._sent: list[tuple[Any, Sequence[int]]] = []
        self._said = False
        self._draws: GlobalDraws | None = None
        beside = (traits.shares_memory or traits.threaded) and not traits.same_thread
        # Whether code outside this call may draw while a task runs.
        self._others = beside and not alone
        # Where only other tasks of this call may: NumPy's state before all of them.
        self._before = numpy_state() if beside and alone else None

    @property
    def silent(self) -> bool:
        """Whether the functions' code speaks of no generator."""
        return not (self.hints or self._named)

    def packed(self, found: Sequence[Any]) -> None:
        """Warn of generators that were packed with the spec, of which each worker gets a copy.

        Or of those that it makes itself, where it imports the functions.
        """
        if found:
            self._say_copied(found[0], "which it captures, or which several elements have")
        elif self._named and not (self._call.traits.shares_memory or self._call.traits.inside):
            self._say_copied(self._named[0], "which each makes as it imports a module")

    def sent(self, found: Sequence[Any], indices: Sequence[int]) -> None:
        """Warn of generators that were packed with elements, and before were with others."""
        for generator in found:
            before = next((own for one, own in self._sent if one is generator), None)
            if before is None:
                if len(self._sent) < _REMEMBERED:
                    self._sent.append((generator, indices))
            elif indices[0] not in before:  # a chunk may be sent again, whole or in parts
                self._say_copied(generator, "which it captures, or which several elements have")

    def _say_copied(self, generator: Any, how: str) -> None:
        if self._said:
            return
        self._said = True
        functions = self._call.functions
        if self._call.streams:
            cure = "Draw from the parameter rng instead"
        else:
            name = name_of(functions[0])
            cure = f"Give the call rng=1 (any whole number), and {_TAKE.format(name)}"
        self._call.warn(
            f"{_either(functions)} uses a random generator that is copied to the workers (a "
            f"{class_name(type(generator))}, which {how}): "
            f"the copies draw the same numbers. {cure}; or give each element a generator of its "
            "own, as pmap(f, data, rng.spawn(len(data))) does"
        )

    def hear(self, told: Sequence[Move | Unapplied], taken: int = 1) -> None:
        """Warn of global generators that moved, where results depend on that.

        And of settings that were not applied.

        Parameters
        ----------
        told : sequence of Move or Unapplied
            What moved during a chunk, and which settings it had not.
        taken : int, default 1
            How many elements have been handed out.
        """
        moves = [one for one in told if type(one) is Move]
        if len(moves) < len(told):
            say_unapplied([one for one in told if type(one) is Unapplied], self._call.where)
        if not moves:
            return
        if self._draws is None:  # few calls move any
            self._draws = GlobalDraws(self._call, others=self._others, before=self._before)
        self._draws.hear(moves, taken)


class WatchedCall(NamedTuple):
    """What `Unseeded` is told of a call."""

    functions: Sequence[Callable[..., Any]]
    traits: Traits
    streams: bool
    where: tuple[str, int] | None

    def warn(self, text: str) -> None:
        """Warn, at the user's line."""
        where = self.where or users_line()
        warnings.warn_explicit(text, UnseededRandomWarning, *where, registry=_warned)


class GlobalDraws:
    """Warns, once, of draws from global generators that nobody has seeded.

    Parameters
    ----------
    call : WatchedCall
        The call.
    others : bool
        Whether code outside this call may draw while a task runs: then a move tells nothing.
    before : bytes or None
        Where only other tasks of this call may: NumPy's state before all of them.
    """

    def __init__(self, call: WatchedCall, *, others: bool, before: bytes | None) -> None:
        self._call, self._others, self._before = call, others, before
        self._code: Any = None  # the `Draws` of the functions
        self._said = False

    def hear(self, moves: Sequence[Move], taken: int) -> None:
        """Warn if these moves tell of draws; see `Unseeded.hear`."""
        if self._said:
            return
        from parmap.engine.draws import draws_of  # to read code takes modules that calls do not

        if self._code is None:
            self._code = draws_of(self._call.functions)
        own = [move.generator for move in moves if move.generator in self._code.drawn]
        names = own or [move.generator for move in moves if self._is_told(move, taken)]
        names = [name for name in names if name not in self._code.seeded]  # by the function itself
        if names:
            ours = [fn for fn in self._call.functions if not draws_of([fn]).drawn.isdisjoint(names)]
            self._say(names, ours)

    def _is_told(self, move: Move, taken: int) -> bool:
        """Whether a move tells something, of a generator that the function's code does not name.

        Then it was a library; a module, as it was loaded; or somebody else's thread.
        """
        noise = self._call.traits.noisy and move.generator == "random"
        if noise or move.loading or self._others:
            return False
        if self._call.streams:
            return True
        now = numpy_state() if move.generator == "numpy.random" else None
        if self._before is None or now is None:
            return not move.few
        # What moved while one task ran, others may have moved; so all of the call's count.
        return not is_few(self._before, now, taken)

    def _say(self, names: Sequence[str], ours: Sequence[Callable[..., Any]]) -> None:
        self._said = True
        hinted = [fn for fn in self._call.functions if hints_of([fn])]
        suspects, own = ours or hinted or self._call.functions, bool(ours)
        name, whose = _either(suspects), f"the global generator of {' and of '.join(names)}"
        who = name if own else f"{name}, or a function that it calls,"
        library = _TORCH if names == ["torch"] else _LIBRARY
        if self._call.streams:
            self._call.warn(
                f"{name} takes rng, and {'it' if own else who} still draws from {whose}, which "
                "rng= then leaves unseeded: its results cannot be reproduced. Draw from rng "
                f"instead: rng.normal(). A library takes a seed from it: {library}"
            )
        else:
            take = _TAKE.format(name_of(suspects[0]))
            self._call.warn(
                f"{who} draws from {whose} without a seed: its results cannot be reproduced. Give "
                f"the call rng=1 (any whole number), and {take}. A library takes a seed from it: "
                f"{library}"
            )


_TAKE = "take the stream as a parameter: def {}(..., rng): rng.normal()"
_LIBRARY = "random_state=int(rng.integers(2**31))"
_TORCH = "generator=torch.Generator().manual_seed(int(rng.integers(2**63)))"


def _either(functions: Sequence[Callable[..., Any]]) -> str:
    return " or ".join(dict.fromkeys(map(name_of, functions)))


# Python shows a warning once per place and text; where, it keeps in a registry.
_warned: dict[Any, Any] = {}
