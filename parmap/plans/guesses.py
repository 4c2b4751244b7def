"""Names that other libraries give to options and plans, and what parmap calls them.

Who comes from joblib writes ``n_jobs=``, and who comes from R ``"multisession"``. No spelling here
is close to these, so the error names the right word. Loaded only where something is wrong.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["of_call", "of_name", "of_plan", "suggest"]

# What parmap has, and the names elsewhere, without their underscores. First the options of a call.
_CALL = {
    "chunks": "chunksize chunklength pmchunksize batchsize nsplits scheduling futurechunksize",
    "rng": "seed seeds randomstate randomseed rngseed futureseed generator",
    "errors": "onerror errorhandling returnexceptions raiseexceptions stoponerror ignoreerrors",
    "retries": "retry maxretries nretries numretries attempts maxattempts",
    "timeout": "tasktimeout timelimit maxtime timeouts timeoutseconds",
    "progress": "verbose verbosity progressbar showprogress pbar pmpbar usetqdm tqdm disp bar",
    "label": "desc description name title taskname",
}
# The options of a plan.
_PLAN = {
    "workers": "njobs jobs nworkers numworkers maxworkers processes nprocesses numprocesses "
    "pmprocesses nprocs nproc ncpus numcpus cpus ncores numcores cores mccores poolsize",
    "threads_per_worker": "threads nthreads numthreads innermaxnumthreads blasthreads",
    "setup": "initializer initargs initfunc workerinit init",
    "start": "mpcontext startmethod context",
    "nested": "inner",
}
# What says elsewhere where a call runs; what only `imap` has; arguments in a container.
_WHERE = "plan executor pool pmpool backend engine scheduler client prefer parallel pmparallel"
_LAZY = "ordered unordered window lazy returnas prefetch buffersize"
_ARGUMENTS = "args kwargs kwds fnargs fnkwargs funcargs funckwargs moreargs extra"
_NAMES = {
    "processes": "multiprocessing multiprocess multisession multicore processpool "
    "processpoolexecutor concurrentfutures loky fork spawn cluster local parallel snow psock",
    "threads": "threading multithreading threadpool threadpoolexecutor",
    "sequential": "serial sync single singlethreaded transparent inline",
    "slurm": "batchtoolsslurm sbatch slurmcluster",
    "htcondor": "condor",
    "pbs": "torque",
    "sge": "gridengine",
}


def of_call(name: str, valid: Iterable[str]) -> str:
    """Say what to write instead of an option that no call has; empty where nothing is known."""
    plain, valid = _plain(name), list(valid)
    if here := _meant(plain, _CALL):
        return f": use {here}="
    if here := _meant(plain, _PLAN):
        return f": it belongs to the plan: parmap.set_plan('processes', {here}=...)"
    if plain in _WHERE.split():
        return ": calls run on the plan that is set: parmap.set_plan('processes')"
    if plain in _LAZY.split():
        who = "" if "window" in valid else "only parmap.imap returns results one by one; "
        return f": {who}use ordered= or window="
    if plain in _ARGUMENTS.split():
        return ": bind other arguments of the function: functools.partial(function, ...)"
    return suggest(name, valid)


def of_plan(name: str, valid: Iterable[str]) -> str:
    """Say what to write instead of an option that a plan does not have."""
    plain, valid = _plain(name), list(valid)
    here = _meant(plain, _PLAN)
    if here in valid:
        return f": use {here}="
    if here := _meant(plain, _CALL):
        return f": it is an option of each call: parmap.pmap(function, data, {here}=...)"
    return suggest(name, valid)


def of_name(name: str, valid: Iterable[str]) -> str:
    """Say what to write instead of the name of a plan that there is not."""
    here = _meant(_plain(name), _NAMES)
    return f": parmap calls it {here!r}" if here else suggest(name, valid)


def suggest(word: str, valid: Iterable[str]) -> str:
    """Ask "did you mean …?" about a mistyped name; empty when nothing is close."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _meant(plain: str, table: dict[str, str]) -> str:
    """Give the name here that has this one among its names elsewhere, or is it."""
    return next((here for here, words in table.items() if plain in (here, *words.split())), "")
