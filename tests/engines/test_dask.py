"""Plan ``dask``, on real schedulers and workers."""

import pytest

import parmap
from parmap.testing import PlanContract

pytest.importorskip("distributed")


class TestProcesses(PlanContract):
    plan = parmap.plan("dask", workers=2)


class TestThreads(PlanContract):
    plan = parmap.plan("dask", workers=2, processes=False)
