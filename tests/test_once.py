"""What is computed once in each worker: how long it is kept, and what is refused."""

import asyncio
import functools
import importlib
import os
import pickle
import random
import sys

import pytest

import parmap
from parmap.worker import context


@parmap.once_per_worker
def token():
    """Say which."""
    return os.urandom(8)


@parmap.once_per_worker(per_process=True)
def shared():
    return os.urandom(8)


def tokens(_):
    return token()


PLANS = ["sequential", "threads(workers=2)", "processes(workers=2)"]


@pytest.mark.parametrize("plan", PLANS)
def test_each_session_has_its_own(plan):
    found = []
    for _ in range(2):
        with parmap.plan(plan) as session:
            found.append({one for _ in range(3) for one in parmap.pmap(tokens, range(8))})
            assert 1 <= len(found[-1]) <= session.workers
    assert found[0].isdisjoint(found[1])
    assert not [key for key in context.kept if key is not None]  # nothing of them stays here


def noted():
    token()


@pytest.mark.parametrize("plan", PLANS)
def test_what_setup_has_computed_is_kept(plan):
    def found(_):
        return len(context.kept.get(None, {})), token(), len(context.kept.get(None, {}))

    context.kept.clear()
    with parmap.plan(plan, setup=noted):
        before, _, after = parmap.pmap(found, [0])[0]
    assert before - after == 1  # the session has taken it over


def test_inner_calls_use_what_their_worker_has():
    def outer(_):
        return {token(), *parmap.pmap(tokens, range(3))}

    with parmap.plan("processes", workers=2):
        assert [len(found) for found in parmap.pmap(outer, range(8), chunks=1)] == [1] * 8


def test_threads_each_have_one_or_share_one():
    with parmap.plan("threads", workers=2):
        assert len(set(parmap.pmap(lambda _: shared(), range(16), chunks=1))) == 1


def test_it_is_a_function_with_a_name():
    assert (token.__name__, token.__doc__, token.__module__) == ("token", "Say which.", __name__)
    assert pickle.loads(pickle.dumps(token)) is token
    assert "token" in repr(token)
    assert token() is token()


def test_one_of_a_module_of_the_user(tmp_path, monkeypatch):
    text = "import os, parmap\n@parmap.once_per_worker\ndef made():\n    return os.urandom(8)\n"
    (tmp_path / "has_once.py").write_text(text + "def use(_):\n    return made()\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("has_once")
    try:
        with parmap.plan("processes", workers=1):
            found = {one for _ in range(3) for one in parmap.pmap(module.use, range(4))}
            found |= set(parmap.pmap(lambda _: module.made(), range(4)))
        assert len(found) == 1
    finally:
        del sys.modules["has_once"]


def test_random_numbers_of_the_caller_are_left_alone():
    @parmap.once_per_worker
    def drawn():
        return random.random()

    random.seed(1)
    first = drawn()
    here = random.random()
    random.seed(1)
    assert here == random.random() != first


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (len, "takes a function"),
        (functools.partial(len, "a"), "takes a function"),
        (parmap.Plan, "takes a function"),
        (lambda x: x, "takes arguments"),
        (lambda x=1: x, "takes arguments"),
        (lambda *xs: xs, "takes arguments"),
        (lambda **xs: xs, "takes arguments"),
        (lambda: (yield), "generator or a coroutine"),
    ],
)
def test_what_cannot_be_kept_is_refused(fn, says):
    with pytest.raises(TypeError, match=says):
        parmap.once_per_worker(fn)


def test_coroutines_are_refused():
    async def later():
        await asyncio.Event().wait()

    with pytest.raises(TypeError, match="coroutine"):
        parmap.once_per_worker(later)
