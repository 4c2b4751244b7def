"""Random numbers are the same on every plan."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import random
import warnings
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


def _mean(draw: Any, size: int) -> float:
    return float(draw(size=size).mean())


def _heard(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    ours = [one for one in caught if one.category is parmap.UnseededRandomWarning]
    return [str(one.message) for one in ours]


def _spawn(x: int, rng: np.random.Generator) -> tuple[int, str, list[float]]:
    children = [*rng.spawn(1), *rng.spawn(2)]
    return x, repr(rng.bit_generator.seed_seq), [float(one.random()) for one in (*children, rng)]


def _keep(x: int, rng: np.random.Generator) -> tuple[int, np.random.Generator]:
    return x, rng


def _by_hand(count: int, fn: Any = _draw) -> list[Any]:
    children = np.random.SeedSequence(_SEED).spawn(count)
    return [fn(x, np.random.Generator(np.random.PCG64(s))) for x, s in enumerate(children)]


class StreamsContract(Contract):
    """With one seed, element i gets the i-th child of its SeedSequence; nothing else matters."""

    @pytest.mark.parametrize("chunks", _CHUNKS, ids=str)
    def test_streams_are_the_children_of_the_seed(self, chunks: Any) -> None:
        """Bit for bit, for every chunking and every number of elements."""
        for count in (0, 1, 2, 37):
            assert parmap.pmap(_draw, range(count), rng=_SEED, chunks=chunks) == _by_hand(count)

    @pytest.mark.parametrize("chunks", [1, 7])
    def test_streams_spawn_and_can_be_kept(self, chunks: Any) -> None:
        """Each is a Generator of its own, which knows its seed sequence."""
        assert parmap.pmap(_spawn, range(9), rng=_SEED, chunks=chunks) == _by_hand(9, _spawn)
        kept = parmap.pmap(_keep, range(9), rng=_SEED, chunks=chunks)
        assert [_draw(x, own) for x, own in kept] == _by_hand(9)

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
        if not self._seeds():
            with pytest.raises(TypeError, match="rng"):
                parmap.pmap(_draw_globally, range(9), rng=_SEED)
        else:
            assert parmap.pmap(_draw_globally, range(9), rng=_SEED, chunks=2) == want

    def _seeds(self) -> bool:
        """Tell whether the plan can seed global generators, which nobody else may use then."""
        facts = self.session.traits
        shared = facts.threaded or (facts.shares_memory and not facts.same_thread)
        return not (shared or facts.noisy)

    def test_functions_of_global_generators_draw_from_the_workers_own(self) -> None:
        """Given as functions or as arguments: no two calls draw the same numbers by accident."""

        def some(**options: Any) -> list[float]:
            mean = parmap.delayed(_mean)
            return parmap.compute([mean(np.random.normal, 5) for _ in range(6)], **options)  # type: ignore[no-any-return]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", parmap.UnseededRandomWarning)
            assert len(set(some(chunks=1))) == 6
            drawn = parmap.pmap(np.random.normal, [0.0] * 40, chunks=5)
            drawn += parmap.pmap(random.gauss, [0.0] * 40, [1.0] * 40, chunks=5)
            assert len(set(drawn)) == 80
        if self._seeds():
            with parmap.plan("sequential"):
                want = some(rng=_SEED)
            assert some(rng=_SEED, chunks=1) == want

    def test_a_copied_generator_is_warned_of(self) -> None:
        """Once, and only where it is copied; generators of the elements' own are as they are."""
        rng = np.random.default_rng(_SEED)
        said = _heard(lambda: parmap.pmap(lambda _: rng.random(), range(6), chunks=1))
        assert len(said) == (0 if self.shares_memory() else 1)
        assert all("draw the same numbers" in one for one in said)

        def own(x: int, stream: np.random.Generator) -> float:
            return x + stream.random()

        rngs = np.random.default_rng(_SEED).spawn(6)
        want = list(map(own, range(6), np.random.default_rng(_SEED).spawn(6)))
        got: list[float] = []
        assert _heard(lambda: got.extend(parmap.pmap(own, range(6), rngs, chunks=1))) == []
        assert got == want

    def test_draws_that_no_seed_reaches_are_warned_of(self) -> None:
        """Of functions without a stream, and of those that have one and draw elsewhere."""

        def bad(x: int, rng: np.random.Generator | None = None) -> float:  # noqa: ARG001
            return x + np.random.random()  # noqa: NPY002 - what is tested

        def good(x: int, rng: np.random.Generator | None = None) -> float:
            own = np.random.default_rng(x) if rng is None else rng
            return own.random() + random.Random(x).random()  # noqa: S311 - as above

        for options in ({}, {"rng": _SEED}):
            said = _heard(lambda given=options: parmap.pmap(bad, range(6), chunks=2, **given))
            assert len(said) == 1
            assert "the global generator of numpy.random" in said[0]
            assert _heard(lambda given=options: parmap.pmap(good, range(6), **given)) == []

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
