"""Executors that are handed to others: `map`, and what other libraries read."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import parmap
from tests.calling import CallsContract, EndContract
from tests.mapping import MapContract


class TestSequential(MapContract):
    plan = parmap.plan("sequential")


class TestThreads(MapContract):
    plan = parmap.plan("threads", workers=2)


class TestProcesses(EndContract):
    plan = parmap.plan("processes", workers=2)


class TestForked(EndContract):
    plan = parmap.plan("processes", workers=2, start="fork")


class TestAdopted(MapContract):
    """An adopted executor stays open, so it may be adopted again and again."""

    host = ThreadPoolExecutor(2)
    plan = parmap.plan(host)

    @classmethod
    def teardown_class(cls):
        cls.host.shutdown()
        super().teardown_class()


class TestAdoptedProcesses(CallsContract):
    host = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
    plan = parmap.plan(host)

    @classmethod
    def teardown_class(cls):
        cls.host.shutdown()
        super().teardown_class()


class TestAdoptedPool(CallsContract):
    @classmethod
    def setup_class(cls):
        cls.host = multiprocessing.get_context("spawn").Pool(2)
        cls.plan = parmap.plan(cls.host)
        super().setup_class()

    @classmethod
    def teardown_class(cls):
        super().teardown_class()
        cls.host.terminate()
        cls.host.join()
