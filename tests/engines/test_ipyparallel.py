"""An adopted executor of ipyparallel, on two engines."""

import pytest

import parmap
from parmap.testing import PlanContract

ipyparallel = pytest.importorskip("ipyparallel")


class TestIPyParallel(PlanContract):
    @classmethod
    def setup_class(cls):
        cls.cluster = ipyparallel.Cluster(n=2, log_level=40)
        client = cls.cluster.start_and_connect_sync(activate=False)
        cls.executor = client.executor()
        cls.plan = parmap.plan(cls.executor)
        super().setup_class()
        assert cls.session.workers == 2

    @classmethod
    def teardown_class(cls):
        super().teardown_class()
        assert cls.executor.submit(abs, -1).result() == 1
        cls.cluster.stop_cluster_sync()
