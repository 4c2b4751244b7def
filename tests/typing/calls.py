"""What type checkers make of calls: read by mypy and pyright, never run."""

from __future__ import annotations

import functools
from concurrent.futures import Future
from typing import Any, Literal, assert_type

import numpy as np

import parmap


def half(x: float) -> float:
    return x / 2


def draw(x: float, rng: np.random.Generator) -> float:
    return x + float(rng.normal())


def scaled(x: float, *, by: int) -> str:
    return str(by * x)


def maps(how: Literal["raise", "return"], options: parmap.MapOptions) -> None:
    assert_type(parmap.pmap(half, [1.0]), list[float])
    assert_type(parmap.pmap(half, [1.0], errors="raise", chunks=3), list[float])
    assert_type(parmap.pmap(half, [1.0], errors="group", progress=True), list[float])
    assert_type(parmap.pmap(half, [1.0], errors="return"), list[float | parmap.Failure])
    assert_type(parmap.pmap(half, [1.0], errors=how), list[float | parmap.Failure])
    assert_type(parmap.pmap(half, [1.0], **options), list[float | parmap.Failure])
    assert_type(parmap.pmap(functools.partial(scaled, by=2), [1.0]), list[str])
    assert_type(parmap.pmap(draw, [1.0], rng=1), list[float])
    assert_type(parmap.pmap(lambda x: str(x), range(3)), list[str])
    assert_type(parmap.starmap(half, [(1.0,)]), list[float])
    assert_type(
        parmap.starmap(half, [(1.0,)], errors="return", retries=parmap.Retry(2)),
        list[float | parmap.Failure],
    )


async def lazily() -> None:
    assert_type(parmap.imap(half, [1.0], ordered=False), parmap.Results[float])
    failing = parmap.imap(half, [1.0], window=4, errors="return")
    assert_type(failing, parmap.Results[float | parmap.Failure])
    for value in failing:
        assert_type(value, float | parmap.Failure)
    async for result in parmap.imap(half, [1.0]):
        assert_type(result, float)


def chunks() -> None:
    parmap.pmap(half, [1.0], chunks="auto")
    parmap.pmap(half, [1.0], chunks="static")
    parmap.pmap(half, [1.0], chunks=parmap.Dynamic(cost=half))
    parmap.pmap(half, [1.0], chunks="dynamik")  # type: ignore[call-overload]
    parmap.pmap(half, [1.0], errors="ignore")  # type: ignore[call-overload]
    parmap.pmap(half, [1.0], seed=1)  # type: ignore[call-overload]
    parmap.pgrid(half, {"x": [1.0]}, chunks="dynamik")  # type: ignore[arg-type]
    parmap.compute([], alpha=1)  # type: ignore[call-arg]


def single_calls() -> None:
    assert_type(parmap.submit(half, 1.0), Future[float])
    assert_type(parmap.submit(scaled, 1.0, by=2), Future[str])
    assert_type(parmap.submit(draw, 1.0, rng=1), Future[float])
    assert_type(parmap.submit(str), Future[str])
    parmap.submit(half, "1")  # type: ignore[call-overload]
    parmap.submit(scaled, 1.0)  # type: ignore[call-overload]


def grids() -> None:
    grid = parmap.pgrid(half, {"x": [1.0]}, rng=1)
    assert_type(grid, parmap.Grid)
    assert_type(grid.shape, tuple[int, ...])
    call = parmap.delayed(half)(1.0)
    assert_type(call, parmap.Delayed)
    assert_type(parmap.compute(call), Any)
