"""Workers share the cores: what a task may use, and how many threads libraries take in it."""

from __future__ import annotations

import numpy as np
import pytest

import parmap
from parmap.testing.material import Contract
from parmap.worker import native_threads

__all__ = ["CoreShareContract"]


def _seen(size: int) -> tuple[int, set[int | None]]:
    """Multiply matrices; tell the cores, and the threads that libraries take, in this task."""
    a = np.ones((size, size))
    assert (a @ a)[0, 0] == size
    return parmap.available_cores(), {one.num_threads for one in native_threads.loaded()}


class CoreShareContract(Contract):
    """Each worker has its share of the cores, and so have the libraries in it."""

    def _share(self) -> int:
        sharers = self.session._backend.per_node or self.session.workers  # noqa: SLF001
        return max(1, parmap.available_cores() // sharers)

    def test_a_task_sees_the_workers_share_of_the_cores(self) -> None:
        """Inside of a task, `available_cores` is what the worker has."""
        seen = parmap.pmap(lambda _: parmap.available_cores(), range(8), chunks=1)
        assert set(seen) == {self._share()}
        assert self.session.submit(parmap.available_cores).result() == self._share()

    def test_libraries_take_no_more_threads_than_that(self) -> None:
        """Inside of a task, BLAS and OpenMP use as many threads as the worker has cores."""
        before = {one.filepath: one.num_threads for one in native_threads.loaded()}
        seen = parmap.pmap(_seen, [10] * 8, chunks=1)
        assert {cores for cores, _ in seen} == {self._share()}
        limits = {number or 0 for _, numbers in seen for number in numbers}
        assert limits, "NumPy's BLAS has threads, so something must have been found"
        assert max(limits) <= self._share()
        after = {one.filepath: one.num_threads for one in native_threads.loaded()}
        assert before.items() <= after.items(), "the caller's own limits have changed"

    def test_joblib_takes_no_more_cores_than_that(self) -> None:
        """What joblib and scikit-learn take ``n_jobs=-1`` for is the worker's share, too."""
        pytest.importorskip("joblib")

        def cores(_: int) -> int:
            import joblib

            return int(joblib.cpu_count())

        assert set(parmap.pmap(cores, range(4), chunks=1)) == {self._share()}

    def test_calls_inside_of_tasks_share_it_again(self) -> None:
        """Two threads inside of a task have half of the worker's cores each, at least one."""

        def inner(_: int) -> int:
            return parmap.available_cores()

        def outer(_: int) -> list[int]:
            with parmap.plan("threads", workers=2):
                return parmap.pmap(inner, range(2))

        half = max(1, self._share() // 2)
        assert parmap.pmap(outer, range(2), chunks=1) == [[half, half]] * 2
