"""The peers, and parmap, each as a value that says how one uses it.

Each is set as its documentation recommends for the kind of work; parmap has its defaults. What
a peer cannot do is None, and it takes no part in workloads that need it.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any


@dataclass(frozen=True)
class Contender:
    """A library, as the code that uses it; each call gets the pool that `open` gave."""

    open: Callable[[int], Any]
    close: Callable[[Any], None]
    map: Callable[[Any, Callable, Any], list] | None = None  # many short tasks
    each: Callable[[Any, Callable, Any], list] | None = None  # few long ones: one by one
    starmap: Callable[[Any, Callable, Any], list] | None = None
    one: Callable[[Any, Callable, Any], Any] | None = None
    stream: Callable[[Any, Callable, Iterable], Iterator] | None = None
    package: str = ""
    setting: str = ""  # what was set, for readers


def chunk(items: Any, workers: int = 2) -> int:
    """Cut as multiprocessing.Pool does by itself: four chunks for each worker."""
    return max(1, -(-len(items) // (4 * workers)))


def nothing(_: Any) -> None:
    """Close what needs no closing."""


# -- parmap ----------------------------------------------------------------------------------


def parmap_on(name: str, **options: Any) -> Contender:
    """Give parmap on a plan."""

    def enter(workers: int) -> Any:
        import parmap

        return parmap, parmap.plan(name, workers=workers, **options).__enter__()

    return Contender(
        open=enter,
        close=lambda pool: pool[1].close(),
        map=lambda pool, f, items: pool[0].pmap(f, items),
        each=lambda pool, f, items: pool[0].pmap(f, items),
        starmap=lambda pool, f, rows: pool[0].starmap(f, rows),
        one=lambda pool, f, x: pool[0].submit(f, x).result(),
        stream=lambda pool, f, items: pool[0].imap(f, items),
        package="parmap",
        setting=f"`plan({name!r}, workers=2)`, all else by default",
    )


# -- floors ----------------------------------------------------------------------------------

LOOP = Contender(
    open=nothing,
    close=nothing,
    map=lambda _, f, items: [f(x) for x in items],
    each=lambda _, f, items: [f(x) for x in items],
    starmap=lambda _, f, rows: [f(*row) for row in rows],
    one=lambda _, f, x: f(x),
    stream=lambda _, f, items: map(f, items),
    setting="`[f(x) for x in items]` in the caller, one core",
)


def piped(workers: int) -> list[Any]:
    """Fork processes that answer on a pipe, and do nothing else."""
    import multiprocessing

    near_ends = []
    for _ in range(workers):
        near, far = multiprocessing.Pipe()
        if os.fork() == 0:
            near.close()
            with suppress(EOFError):
                while True:
                    f, x = far.recv()
                    far.send(f(x))
            os._exit(0)
        far.close()
        near_ends.append(near)
    return near_ends


def unpiped(ends: list[Any]) -> None:
    """Let the processes end: all pipes first, for a later fork holds the earlier ends, too."""
    for end in ends:
        end.close()
    with suppress(ChildProcessError):
        for _ in ends:
            os.wait()


def ask(end: Any, f: Callable, x: Any) -> Any:
    """Send a task through a pipe and wait for its result."""
    end.send((f, x))
    return end.recv()


def ask_all(ends: list[Any], f: Callable, items: Any) -> list:
    """Send a task through each pipe, then wait for the results."""
    for end, x in zip(ends, items, strict=False):
        end.send((f, x))
    return [end.recv() for end, _ in zip(ends, items, strict=False)]


PIPE = Contender(
    open=piped,
    close=unpiped,
    each=ask_all,
    one=lambda ends, f, x: ask(ends[0], f, x),
    setting="`multiprocessing.Pipe` to a forked process, no pool at all",
)

# -- the standard library ----------------------------------------------------------------------


def pool_open(workers: int) -> Any:
    """Open a pool, by fork, which is the quickest way to start it."""
    import multiprocessing

    return multiprocessing.get_context("fork").Pool(workers)


MULTIPROCESSING = Contender(
    open=pool_open,
    close=lambda pool: pool.terminate(),
    map=lambda pool, f, items: pool.map(f, items),
    each=lambda pool, f, items: pool.map(f, items, 1),
    starmap=lambda pool, f, rows: pool.starmap(f, rows),
    one=lambda pool, f, x: pool.apply(f, (x,)),
    stream=lambda pool, f, items: pool.imap(f, items, 1_000),
    setting="fork; many tasks by its own chunks, few with `chunksize=1`, `imap` with 1,000",
)


def executor_open(workers: int) -> Any:
    """Open an executor of processes."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))


def loky_open(workers: int) -> Any:
    """Open an executor of loky."""
    import loky

    return loky.get_reusable_executor(workers, timeout=None)


def star(f: Callable, row: tuple) -> Any:
    """Call a function with a row of arguments, for peers that have no starmap."""
    return f(*row)


def executor(opened: Callable[[int], Any], close: Callable[[Any], None], **more: str) -> Contender:
    """Give a pool with the interface of concurrent.futures."""
    return Contender(
        open=opened,
        close=close,
        map=lambda pool, f, items: list(pool.map(f, items, chunksize=chunk(items))),
        each=lambda pool, f, items: list(pool.map(f, items)),
        starmap=lambda pool, f, rows: list(pool.map(partial(star, f), rows, chunksize=chunk(rows))),
        one=lambda pool, f, x: pool.submit(f, x).result(),
        stream=lambda pool, f, items: pool.map(f, items, chunksize=1_000),
        **more,
    )


FUTURES = executor(
    executor_open,
    lambda pool: pool.shutdown(cancel_futures=True),
    setting="fork; many tasks with `chunksize` of an eighth of them, few with 1",
)
LOKY = executor(
    loky_open,
    lambda pool: pool.shutdown(kill_workers=True),
    package="loky",
    setting="`get_reusable_executor`; many tasks with `chunksize` of an eighth of them, few with 1",
)

# -- other libraries ---------------------------------------------------------------------------


def joblib_open(workers: int) -> Any:
    """Enter joblib's context, which keeps the workers."""
    import joblib

    return joblib, joblib.Parallel(workers).__enter__()


def joblib_map(pool: Any, f: Callable, items: Any) -> list:
    """Map with batches as large as the other peers' chunks; the workers are the same."""
    joblib, _ = pool
    run = joblib.Parallel(2, batch_size=chunk(items))
    return run(joblib.delayed(f)(x) for x in items)


def joblib_stream(pool: Any, f: Callable, items: Iterable) -> Iterator:
    """Give results as they come."""
    joblib, _ = pool
    run = joblib.Parallel(2, return_as="generator", batch_size=1_000)
    return run(joblib.delayed(f)(x) for x in items)


JOBLIB = Contender(
    open=joblib_open,
    close=lambda pool: pool[1].__exit__(None, None, None),
    map=joblib_map,
    each=lambda pool, f, items: pool[1](pool[0].delayed(f)(x) for x in items),
    starmap=lambda pool, f, rows: joblib_map(pool, partial(star, f), rows),
    one=lambda pool, f, x: pool[1]([pool[0].delayed(f)(x)])[0],
    stream=joblib_stream,
    package="joblib",
    setting="loky; many tasks with `batch_size` of an eighth of them, few by default",
)


def mpire_open(workers: int) -> Any:
    """Open a pool of mpire that keeps its workers."""
    import mpire

    return mpire.WorkerPool(workers, keep_alive=True)


def mpire_map(pool: Any, f: Callable, items: Any, **options: Any) -> list:
    """Map; results that are arrays stay apart, as the other peers leave them."""
    return pool.map(f, items, concatenate_numpy_output=False, **options)


MPIRE = Contender(
    open=mpire_open,
    close=lambda pool: pool.terminate(),
    map=mpire_map,
    each=partial(mpire_map, chunk_size=1),
    starmap=mpire_map,  # it unpacks tuples by itself
    one=lambda pool, f, x: pool.apply(f, x),
    stream=lambda pool, f, items: pool.imap(f, items, chunk_size=1_000),
    package="mpire",
    setting="`keep_alive=True`; many tasks by its own chunks, few with `chunk_size=1`",
)


def bag_map(f: Callable, items: Any, **how: Any) -> list:
    """Map a bag of eight partitions."""
    import dask.bag

    return dask.bag.from_sequence(items, npartitions=8).map(f).compute(**how)


BAG = Contender(
    open=executor_open,
    close=lambda pool: pool.shutdown(cancel_futures=True),
    map=lambda pool, f, items: bag_map(f, items, scheduler="processes", pool=pool),
    starmap=lambda pool, f, rows: bag_map(partial(star, f), rows, scheduler="processes", pool=pool),
    package="dask",
    setting="a bag of 8 partitions, scheduler `processes` on a pool that is kept",
)

# -- engines -----------------------------------------------------------------------------------


def client_open(workers: int) -> Any:
    """Start a cluster of Dask."""
    import distributed

    cluster = distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=None
    )
    return distributed.Client(cluster), cluster


def client_close(pool: Any) -> None:
    """End it."""
    for part in pool:
        part.close()


CLIENT = Contender(
    open=client_open,
    close=client_close,
    map=lambda pool, f, items: pool[0].gather(pool[0].map(f, items, pure=False)),
    one=lambda pool, f, x: pool[0].submit(f, x, pure=False).result(),
    package="distributed",
    setting="`LocalCluster` of 2 processes; a task for each element",
)
CLIENT_BAG = Contender(
    open=client_open,
    close=client_close,
    map=lambda pool, f, items: bag_map(f, items, scheduler=pool[0]),
    package="distributed",
    setting="`LocalCluster` of 2 processes; a bag of 8 partitions",
)


def ray_open(workers: int) -> Any:
    """Start Ray."""
    import ray

    # "local": one of its own, also where a file is left of one that was killed.
    ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    return ray


@cache
def remote_of(f: Callable) -> Any:
    """Make a remote function, once, as a user does."""
    import ray

    return ray.remote(f)


def ray_each(ray: Any, f: Callable, items: Any) -> list:
    """Call a remote function for each element."""
    return ray.get([remote_of(f).remote(x) for x in items])


def ray_pool_open(workers: int) -> Any:
    """Start Ray, and its likeness of multiprocessing.Pool."""
    ray_open(workers)
    from ray.util.multiprocessing import Pool

    return Pool(workers)


def ray_close(_: Any) -> None:
    """End Ray."""
    import ray

    ray.shutdown()


RAY = Contender(
    open=ray_open,
    close=ray_close,
    map=ray_each,
    one=lambda ray, f, x: ray.get(remote_of(f).remote(x)),
    package="ray",
    setting="`ray.init('local', num_cpus=2)`; a remote call for each element",
)
RAY_POOL = Contender(
    open=ray_pool_open,
    close=ray_close,
    map=lambda pool, f, items: pool.map(f, items),
    one=lambda pool, f, x: pool.apply(f, (x,)),
    package="ray",
    setting="`ray.util.multiprocessing.Pool`, its own chunks",
)

POOLS: dict[str, Contender] = {
    "list comprehension": LOOP,
    "bare pipe": PIPE,
    "parmap": parmap_on("processes"),
    "parmap, threads": parmap_on("threads"),
    "multiprocessing.Pool": MULTIPROCESSING,
    "concurrent.futures": FUTURES,
    "loky": LOKY,
    "joblib": JOBLIB,
    "mpire": MPIRE,
    "dask.bag": BAG,
    "parmap on dask": parmap_on("dask"),
    "client.map": CLIENT,
    "dask.bag on a client": CLIENT_BAG,
    "parmap on ray": parmap_on("ray"),
    "Ray remote call": RAY,
    "Ray Pool": RAY_POOL,
}

# Pools of this machine alone: none has a process that is busy while it waits.
LOCAL = (
    *("parmap", "multiprocessing.Pool", "concurrent.futures", "loky", "joblib", "mpire"),
    "dask.bag",
)
# Those that can be given tasks one by one.
SINGLY = tuple(name for name in LOCAL if POOLS[name].each)
