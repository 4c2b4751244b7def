"""Random numbers are the same on every plan."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parmap
from parmap.testing.material import Contract

__all__ = ["StreamsContract"]

_SEED = 12345
_CHUNKS = ("auto", "static", "dynamic", "guided", 1, 7, parmap.Static(cyclic=True))


def _draw(x: int, rng: np.random.Generator) -> tuple[int, float, int]:
    return x, float(rng.normal()), int(rng.integers(1 << 62))


def _draw_globally(x: int) -> tuple[int, float, float]:
    return x, float(np.random.random()), random.random()  # noqa: NPY002, S311 - what is tested


def _by_hand(count: int) -> list[tuple[int, float, int]]:
    children = np.random.SeedSequence(_SEED).spawn(count)
    return [_draw(x, np.random.Generator(np.random.PCG64(s))) for x, s in enumerate(children)]


class StreamsContract(Contract):
    """With one seed, element i gets the i-th child of its SeedSequence; nothing else matters."""

    @pytest.mark.parametrize("chunks", _CHUNKS, ids=str)
    def test_streams_are_the_children_of_the_seed(self, chunks: Any) -> None:
        """Bit for bit, for every chunking and every number of elements."""
        for count in (0, 1, 2, 37):
            assert parmap.pmap(_draw, range(count), rng=_SEED, chunks=chunks) == _by_hand(count)

    def test_every_kind_of_call_has_them(self) -> None:
        """Maps, lazy or not, grids, graphs and single calls number their elements alike."""
        want = _by_hand(6)
        assert list(parmap.imap(_draw, iter(range(6)), rng=_SEED)) == want
        assert parmap.starmap(_draw, [(x,) for x in range(6)], rng=_SEED) == want
        assert list(parmap.pgrid(_draw, {"x": range(6)}, rng=_SEED).values) == want
        draw = parmap.delayed(_draw)
        assert parmap.compute([draw(x) for x in range(6)], rng=_SEED) == want
        assert parmap.submit(_draw, 0, rng=_SEED).result() == want[0]

    def test_global_generators_are_seeded_or_refused(self) -> None:
        """A function without a parameter rng draws the same numbers, or is told to take one."""
        with parmap.plan("sequential"):
            want = parmap.pmap(_draw_globally, range(9), rng=_SEED)
        facts = self.session.traits
        if facts.threaded or (facts.shares_memory and not facts.same_thread):
            with pytest.raises(TypeError, match="rng"):
                parmap.pmap(_draw_globally, range(9), rng=_SEED)
        else:
            assert parmap.pmap(_draw_globally, range(9), rng=_SEED, chunks=2) == want

    def test_an_element_that_is_retried_gets_its_stream_again(self, tmp_path: Path) -> None:
        """What it drew before it failed does not count."""
        self.need_same_host()

        def fn(x: int, rng: np.random.Generator) -> tuple[int, float, int]:
            drawn = _draw(x, rng)
            if not (tmp_path / str(x)).exists():
                (tmp_path / str(x)).touch()
                raise OSError(x)
            return drawn

        assert parmap.pmap(fn, range(5), rng=_SEED, retries=parmap.Retry(1, on=OSError)) == (
            _by_hand(5)
        )

    def test_inner_calls_spawn_from_the_elements_stream(self) -> None:
        """So they are reproducible, too, and differ between elements."""

        def outer(_: int, rng: np.random.Generator) -> list[Any]:
            return parmap.pmap(_draw, range(3), rng=rng)

        with parmap.plan("sequential"):
            want = parmap.pmap(outer, range(4), rng=_SEED)
        assert parmap.pmap(outer, range(4), rng=_SEED, chunks=1) == want
        assert len({str(row) for row in want}) == 4
