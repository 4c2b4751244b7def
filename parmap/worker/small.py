"""Runs the chunks of small calls in a worker."""

from __future__ import annotations

from typing import Any

from parmap.transport.messages import CallSpec, Chunk, Outcome, SmallOutcome
from parmap.transport.payload import ATOMS, Payload, unpack
from parmap.worker.run import inside, outcome_of

__all__ = ["run_small"]


def run_small(
    packed: bytes, fn: bytes, columns: tuple[Any, ...], seconds: float | None, number: int
) -> SmallOutcome | Outcome:
    """Run a chunk of a small call, which brings its spec and its function.

    Parameters
    ----------
    packed : bytes
        The pickle of a `CallSpec` without its function.
    fn : bytes
        That of the function.
    columns, seconds, number
        See `Chunk`; the elements are of Python's plain types.

    Returns
    -------
    SmallOutcome or Outcome
        The former where there is no more to tell, and results are of plain types, too: C pickle
        makes of them, and of all that is given here, just what cloudpickle does.
    """
    spec = _specs.get(packed)
    if spec is None:
        if len(_specs) >= _MOST_SPECS:
            _specs.clear()
        spec = _specs[packed] = unpack(Payload(packed))
    spec = CallSpec(unpack(Payload(fn)), *spec[1:])
    values, element_errors, took, moves = inside(spec, Chunk(columns, False, (), seconds, number))
    if not element_errors and not moves and ATOMS.issuperset(map(type, values)):
        return values, took
    return outcome_of(spec, values, element_errors, took, moves)


# The specs of small calls, without their functions, by their pickles: a session has few.
_specs: dict[bytes, CallSpec] = {}
_MOST_SPECS = 16
