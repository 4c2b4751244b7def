"""What the master of the MPI ranks runs: test_mpi.py gives it to pytest there."""

from mpi4py.futures import MPIPoolExecutor

import parmap
from parmap.testing import PlanContract


class TestMPI(PlanContract):
    @classmethod
    def setup_class(cls):
        cls.executor = MPIPoolExecutor()
        cls.plan = parmap.plan(cls.executor)
        super().setup_class()
        assert cls.session.workers == 2

    @classmethod
    def teardown_class(cls):
        super().teardown_class()
        assert cls.executor.submit(abs, -1).result() == 1
        cls.executor.shutdown()
