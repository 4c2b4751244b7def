"""Facts about a place where chunks run."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Traits"]


class Traits(NamedTuple):
    """Facts about a place.

    Parameters
    ----------
    shares_memory : bool, default False
        Tasks see the caller's own objects: nothing is packed.
    same_thread : bool, default False
        Tasks run in the caller's own thread, inside ``submit``.
    same_host : bool, default True
        Workers run on the caller's machine.
    threaded : bool, default False
        Several tasks may run at once in one process, so that what is global there is shared.
        True also where memory is shared and tasks leave the caller's thread.
    replaces_workers : bool, default False
        A worker process that ends is replaced, and what it had in hand can be run again.
    sees_deaths : bool, default False
        The executor learns how a worker ended, and what it had noted: at which element it was,
        and whether it ended itself because that ran too long.
    round_trip : float, default 0.001
        Seconds that a small task takes there and back, about.
    places : bool, default False
        The executor has ``put(value) -> reference`` and ``drop(reference)``.
    keeps : bool, default False
        The executor has ``run_remote(made, fn, *args)``, which leaves the result with the workers,
        and gives a future of ``made(reference)``.
    abandons : bool, default False
        The executor has ``abandon(future)``, which stops a task that runs.
    frees : bool, default False
        A worker whose task runs, though nobody waits for it any more, is soon there for other
        tasks: the task is interrupted, or the worker restarted. Elsewhere a task runs to its end.
    recalls : bool, default False
        The executor has ``recall(future, chunk, only_slow=…)``, which takes back the elements of a
        chunk that its worker has not begun.
    trusted : bool, default False
        Worker processes have the script's key, by which processes of `multiprocessing` know each
        other, so that a manager's proxies work in tasks. It comes by a channel of the script's own.
    noisy : bool, default False
        Threads in the workers' processes that run no tasks may draw from Python's global
        generator.
    copies : bool, default False
        ``submit`` copies the arguments before it returns, and a worker sends a result before
        it runs anything else: so both may refer to arrays in place.
    inside : bool, default False
        Tasks run in threads of this process, although what they get is packed.
    recurring : bool, default False
        A large array that several tasks of a call hold is sent once, by ``submit`` itself, and each
        task may write to its own. Elsewhere `parmap.compute` shares it, read-only.
    exclusive : bool, default False
        Workers are processes that the plan has started for its own tasks alone, and each runs one
        task at a time: so what is a process's own can be as the task's caller has it.
    """

    shares_memory: bool = False
    same_thread: bool = False
    same_host: bool = True
    threaded: bool = False
    replaces_workers: bool = False
    sees_deaths: bool = False
    round_trip: float = 0.001
    places: bool = False
    keeps: bool = False
    abandons: bool = False
    frees: bool = False
    recalls: bool = False
    trusted: bool = False
    noisy: bool = False
    copies: bool = False
    inside: bool = False
    recurring: bool = False
    exclusive: bool = False


Traits.__module__ = "parmap"  # public: pickles and tracebacks name it as users do
