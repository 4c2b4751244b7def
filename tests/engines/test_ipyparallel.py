"""An adopted executor of ipyparallel, on two engines."""

import pytest

import parmap
from parmap.testing import PlanContract

ipyparallel = pytest.importorskip("ipyparallel")


@pytest.mark.brief  # what travels is as on an adopted executor of the standard library
class TestIPyParallel(PlanContract):
    @classmethod
    def setup_class(cls):
        cls.cluster = ipyparallel.Cluster(n=2, log_level=40)
        client = cls.cluster.start_and_connect_sync(activate=False)
        cls.executor = client.executor()
        cls.plan = parmap.plan(cls.executor)
        super().setup_class()
        cls.client = client
        assert cls.session.workers == 2

    @classmethod
    def teardown_class(cls):
        super().teardown_class()
        assert cls.executor.submit(abs, -1).result() == 1
        cls.client.close()
        cls.cluster.stop_cluster_sync()

    def test_an_executor_that_runs_each_task_everywhere_is_refused(self):
        with pytest.raises(parmap.PlanError, match="all of its engines run each task"):
            parmap.plan(self.client[:].executor)
        with parmap.plan(self.client.load_balanced_view().executor):
            assert parmap.pmap(abs, [-1, 2]) == [1, 2]
