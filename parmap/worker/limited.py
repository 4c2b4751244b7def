"""Runs the elements of a call with a time limit."""

from __future__ import annotations

import math
import time
from typing import Any

from parmap.transport.messages import CallSpec, Chunk, ElementError
from parmap.worker import forks
from parmap.worker.run import begin, calls_of, end_fork, failed, stopped, too_late
from parmap.worker.watchdog import Blocks

__all__ = ["run_limited"]


def run_limited(spec: CallSpec, chunk: Chunk) -> tuple[list[Any], list[ElementError]]:
    """Run blocks of elements in C, each element timed; the time limit ends one that hangs."""
    values: list[Any] = []
    element_errors: list[ElementError] = []
    assert spec.timeout is not None
    end = math.inf if chunk.seconds is None else time.perf_counter() + chunk.seconds
    blocks = Blocks(calls_of(spec, chunk), spec.timeout, ends=spec.expendable)
    try:
        while (start := len(values)) < chunk.size and (not start or time.perf_counter() < end):
            size = begin(chunk, start, min(blocks.size, chunk.size - start))
            if not size:
                break
            error = _block_error(spec, blocks, values, size)
            for offset, took in blocks.late(start, len(values) - start):
                late = failed(too_late(took, spec.timeout), crosses=True)
                element_errors.append(ElementError(offset, late))
                values[offset] = None
                if spec.stop:
                    return values[:offset], element_errors
            if error is not None:
                offset = min(len(values), chunk.size - 1)  # as above
                element_errors.append(ElementError(offset, failed(error, crosses=True)))
                if spec.stop or isinstance(error, KeyboardInterrupt):
                    break
                values.append(None)
    finally:
        blocks.close()
    return values, element_errors


def _block_error(
    spec: CallSpec, blocks: Blocks, values: list[Any], size: int
) -> BaseException | None:
    """Run a block of elements, add their values, and give the error that has ended it."""
    error: BaseException | None = None
    start, born = len(values), forks.generation
    try:
        blocks.run(start, size, values)
        if len(values) - start < size:
            error = stopped()
    except BaseException as caught:  # noqa: BLE001 - as above
        error = caught
    if forks.generation != born:
        end_fork(spec, error)
    return error
