"""A plan of one's own: the process pool of the standard library."""

import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass

import cloudpickle

from parmap import Plan


class _Pool(ProcessPoolExecutor):
    """A process pool that takes any function: its own pickle knows only those of modules."""

    def submit(self, fn, /, *args, **kwargs):
        return super().submit(_call, cloudpickle.dumps((fn, args, kwargs)))


def _call(packed):
    fn, args, kwargs = cloudpickle.loads(packed)
    return fn(*args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Futures(Plan):
    """Workers of `concurrent.futures`; as always with them, the script needs a guard."""

    name = "futures"

    def start(self) -> Executor:
        setup = self.initializer or (lambda: None)
        return _Pool(
            self.count(),
            mp_context=multiprocessing.get_context("forkserver"),
            initializer=_call,
            initargs=(cloudpickle.dumps((setup, (), {})),),
        )
