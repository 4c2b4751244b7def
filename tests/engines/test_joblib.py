"""Plan ``joblib``, on its own backends and on one that a package registers."""

import pytest

import parmap
from parmap.testing import PlanContract

pytest.importorskip("joblib")


class TestLoky(PlanContract):
    plan = parmap.plan("joblib", workers=2)


class TestThreading(PlanContract):
    plan = parmap.plan("joblib", backend="threading", workers=2)


class TestMultiprocessing(PlanContract):
    plan = parmap.plan("joblib", backend="multiprocessing", workers=2)


class TestOneWorker(PlanContract):
    plan = parmap.plan("joblib", workers=1)
