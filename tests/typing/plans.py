"""What type checkers make of plans: read by mypy and pyright, never run."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import assert_type

import parmap


def half(x: float) -> float:
    return x / 2


def specs(name: str, given: parmap.Plan) -> None:
    assert_type(parmap.plan("processes", workers=2), parmap.Plan)
    parmap.plan("processes(workers=2)")
    parmap.plan(name)
    parmap.plan(given)
    parmap.plan(["processes", given])
    parmap.plan(ThreadPoolExecutor(2))
    parmap.plan(multiprocessing.Pool(2))
    parmap.plan(3)  # type: ignore[arg-type]
    parmap.set_plan(None)  # type: ignore[arg-type]


def where(plan: parmap.Plan) -> None:
    with plan as session:
        assert_type(session, parmap.Session)
        assert_type(session.executor, Executor)
        assert_type(session.submit(half, 1.0).result(), float)
    parmap.set_plan("threads")
    assert_type(parmap.current_plan(), parmap.Plan)


@parmap.plan("threads", workers=2)
def analysis(x: int, *, y: str = "") -> float:
    return float(x)


def decorated() -> None:
    assert_type(analysis(1, y=""), float)
    analysis("1")  # type: ignore[arg-type]
