"""One big computation by a library that is parallel itself: leave it the machine.

    python examples/one_big_model.py
    PARMAP_PLAN="processes(workers=2)" python examples/one_big_model.py

A Cholesky factor of one large matrix, by NumPy and, where they are installed, by PyTorch and
JAX, on a GPU if there is one; and one random forest. On ``sequential``, the default here, each has
all cores; on other plans each is one task, with its worker's share of the cores. The table is the
same on every plan; how many threads there were and how long it took goes to standard error, and so
does what a plan's ``threads_per_worker=`` sets. ``--full`` takes a matrix of 6000 × 6000.
"""

import importlib.util
import os
import sys
import time

import numpy as np
from sklearn.datasets import make_regression
from sklearn.ensemble import RandomForestRegressor
from threadpoolctl import threadpool_info

import parmap

# What a function uses is best imported outside of it: JAX draws random numbers when it is loaded.
torch, jax = (
    importlib.import_module(name) if importlib.util.find_spec(name) else None
    for name in ("torch", "jax")
)

parmap.set_plan(os.environ.get("PARMAP_PLAN", "sequential"))

FULL = "--full" in sys.argv
SIZE = 6000 if FULL else 800
TREES = 1000 if FULL else 100


def matrix():
    """Give a large matrix that has a Cholesky factor."""
    x = np.random.default_rng(1).normal(size=(SIZE, SIZE))
    return x.T @ x


def by_numpy():
    """Give twice the logarithms on the factor's diagonal: the determinant's logarithm."""
    return 2 * np.log(np.diag(np.linalg.cholesky(matrix()))).sum()


def by_torch():
    """Do the same in PyTorch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    factor = torch.linalg.cholesky(torch.from_numpy(matrix()).to(device))
    return 2 * factor.diagonal().log().sum().item()


def by_jax():
    """Do the same in JAX."""
    jax.config.update("jax_enable_x64", True)
    return 2 * float(jax.numpy.log(jax.numpy.diag(jax.numpy.linalg.cholesky(matrix()))).sum())


def forest():
    """Give the R² of a forest on its own data; n_jobs=-1 means the worker's share of the cores."""
    data, target = make_regression(1000, 50, noise=50.0, random_state=1)
    model = RandomForestRegressor(TREES, random_state=1, n_jobs=-1)
    return model.fit(data, target).score(data, target)


def timed(task):
    """Run a task; tell how many threads it had, and how long it took."""
    began = time.perf_counter()
    result = task()
    threads = max(library["num_threads"] for library in threadpool_info())
    return result, threads, time.perf_counter() - began


tasks = {"log det, NumPy": by_numpy, "R², random forest": forest}
if torch:
    tasks["log det, PyTorch"] = by_torch
if jax:
    tasks["log det, JAX"] = by_jax

began = time.perf_counter()
for name, task in tasks.items():
    # One call at a time, for each takes all that it can get.
    result, threads, seconds = parmap.submit(timed, task).result()
    print(f"{name:18} {result:12.4f}")
    print(f"{name} took {seconds:.2f} s, with {threads} threads", file=sys.stderr)

# How many threads a worker has can be set; without a number it is its share of the cores.
for threads in (1, "auto"):
    with parmap.plan("processes", workers=1, threads_per_worker=threads):
        _, had, seconds = parmap.submit(timed, by_numpy).result()
    print(f"threads_per_worker={threads!r}: {had} threads, {seconds:.2f} s", file=sys.stderr)
print(f"{time.perf_counter() - began:.1f} s on {parmap.current_plan()}")
