"""Executors that are handed to others: `map`, and what other libraries read."""

from concurrent.futures import ThreadPoolExecutor

import parmap
from tests.mapping import ChunksContract, MapContract


class TestSequential(MapContract):
    plan = parmap.plan("sequential")


class TestThreads(MapContract):
    plan = parmap.plan("threads", workers=2)


class TestProcesses(ChunksContract):
    plan = parmap.plan("processes", workers=2)


class TestForked(ChunksContract):
    plan = parmap.plan("processes", workers=2, start="fork")


class TestAdopted(MapContract):
    """A guest leaves the host open, so one may be adopted again and again."""

    host = ThreadPoolExecutor(2)
    plan = parmap.plan(host)

    @classmethod
    def teardown_class(cls):
        cls.host.shutdown()
        super().teardown_class()
