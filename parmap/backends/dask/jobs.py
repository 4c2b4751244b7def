"""Batch jobs as a cluster of Dask: submitted, watched, and replaced when they end.

::

    this process                     a job
    scheduler, client  ←── TLS ──→   worker, worker
    Board ── squeue                  agent ── looks whether the scheduler answers
      Job ── sbatch, scancel           └── reads order.json, in a folder that is yours alone
    guardian ── scancel, rm

The guardian is a process of its own: it cancels and removes also where this one is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dask.utils import parse_bytes
from distributed.core import Status

from parmap.backends.dask import guardian
from parmap.backends.dask.cluster import awaited, cluster
from parmap.backends.dask.hosts import orders
from parmap.errors import PoolBroken

__all__ = ["job_class", "started"]

_AGENT = "parmap.backends.dask.agent"
_OURS = 0.9  # of a job's memory: the rest is the agent's
_TAIL = 20  # lines of a job's log
# Seconds between looks at the queue, and until it is told that jobs wait there.
_LOOK = 3.0
_PATIENCE = 10.0
# One that ends within so many seconds, so many times in a row, may not be able to run.
_SHORT_LIFE = 30.0
_SHORT_LIVES = 3
_GONE = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
}
_log = logging.getLogger("parmap.dask")


def job_class(kind: type[Any], **options: Any) -> type[Any]:
    """Give what makes jobs of a class of `dask_jobqueue` that run parmap's agent.

    Parameters
    ----------
    kind : type
        The class.
    **options
        What it is told of each job.
    """

    class Job(kind):  # type: ignore[misc]
        """A job, in the place of a worker."""

        def __init__(
            self,
            scheduler: str,
            name: Any,
            *,
            file: str,
            log: str | None,
            board: Board | None = None,
        ) -> None:
            super().__init__(scheduler=scheduler, name=name, log_directory=log, **options)
            self._command_template = f"{options['python']} -m {_AGENT} {shlex.quote(file)}"
            self._board = board

        async def start(self) -> None:
            """Submit it."""
            await super().start()
            if self._board is not None:
                self._board.add(self)

        async def again(self) -> None:
            """Submit another in its place."""
            assert self._board is not None
            self._board.remove(self)
            with self.job_file() as script:
                self.job_id = self._job_id_from_submit_output(await self._submit_job(script))
            self._board.add(self)

        async def close(self) -> None:
            """Cancel it."""
            await super().close()
            if self._board is not None:
                self._board.remove(self)
            self.status = Status.closed  # as the cluster wants it, which the class forgets

    return Job


class Board:
    """What the batch system says of our jobs; those that end are replaced.

    Only Slurm is asked: what the commands of others say was not tried.

    Parameters
    ----------
    own : Path
        The session's folder.
    cancel : str
        The command that cancels a job.

    Attributes
    ----------
    states : dict of str to tuple
        State and reason, by the jobs' numbers.
    """

    def __init__(self, own: Path, cancel: str) -> None:
        self._guardian = subprocess.Popen(
            [sys.executable, guardian.__file__, os.fspath(own), cancel],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # neither Ctrl-C nor the end of a terminal is for it
        )
        self._jobs: list[Any] = []
        self._watch: asyncio.Task[None] | None = None
        self._submitted: dict[str, float] = {}
        self._short: Counter[Any] = Counter()
        self.states: dict[str, tuple[str, str]] = {}

    def add(self, job: Any) -> None:
        """Watch a job."""
        self._jobs.append(job)
        self._tell(f"+{job.job_id}")
        self._submitted[job.job_id] = time.monotonic()
        if self._watch is None and shutil.which("squeue"):
            self._watch = asyncio.create_task(self._look())

    def remove(self, job: Any) -> None:
        """Watch it no longer."""
        if job in self._jobs:
            self._jobs.remove(job)
            self._tell(f"-{job.job_id}")

    def close(self) -> None:
        """Remove the folder, and cancel what is left."""
        self._guardian.communicate()

    def _tell(self, line: str) -> None:
        assert self._guardian.stdin is not None
        with contextlib.suppress(OSError):  # somebody has killed it
            print(line, file=self._guardian.stdin, flush=True)

    @property
    def hopeless(self) -> bool:
        """Whether jobs end as soon as they run, again and again."""
        return any(count >= _SHORT_LIVES for count in self._short.values())

    @property
    def waiting(self) -> str:
        """Say which jobs wait in the queue, and why."""
        reasons = Counter(reason for state, reason in self.states.values() if state == "PENDING")
        said = ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        return f"{reasons.total()} of {len(self._jobs)} jobs wait in the queue: {said}" * bool(said)

    async def _look(self) -> None:
        told = ""
        while self._jobs:
            await asyncio.sleep(_LOOK)
            await self._ask()
            oldest = min(map(self._age, self._jobs), default=0.0)
            if self.waiting != told and oldest > _PATIENCE:
                told = self.waiting
                if told:
                    _log.warning("%s", told)
            for job in list(self._jobs):
                await self._replace(job)
        self._watch = None

    def _age(self, job: Any) -> float:
        return time.monotonic() - self._submitted.get(job.job_id, time.monotonic())

    async def _ask(self) -> None:
        """Ask for all of the user's jobs: one question, however many there are."""
        process = await asyncio.create_subprocess_exec(
            *("squeue", "--noheader", "--me", "--states=all", "--format=%i|%T|%r"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        said, _ = await process.communicate()
        if process.returncode:
            return  # it is too busy to answer, say
        rows = [line.split("|") for line in said.decode().splitlines()]
        known = {number: (state, reason) for number, state, reason in rows}
        self.states = {}
        for job in self._jobs:
            # One submitted just now may not be listed yet; one that ended long ago is not.
            unlisted = ("COMPLETED", "") if self._age(job) > _PATIENCE else ("", "")
            self.states[job.job_id] = known.get(job.job_id, unlisted)

    async def _replace(self, job: Any) -> None:
        state, _ = self.states.get(job.job_id, ("", ""))
        if state not in _GONE or self.hopeless:
            return
        self._short[job] = self._short[job] + 1 if self._age(job) < _SHORT_LIFE else 0
        if self.hopeless:
            return
        _log.warning("Job %s has ended (%s): another takes its place", job.job_id, state)
        with contextlib.suppress(RuntimeError):  # it cannot be submitted now: again next time
            await job.again()


def started(
    job: Callable[..., Any],
    jobs: int,
    per_job: int,
    least: int,
    *,
    cancel: str,
    threads: int | str | None,
    memory: str,
    environ: Mapping[str, str],
    security: Any,
    host: str | None,
    folder: str,
    patience: float,
    dashboard: bool,
) -> Any:
    """Start a scheduler here, and submit jobs.

    Parameters
    ----------
    job : callable
        Makes them; see `job_class`.
    jobs, per_job : int
        How many, and how many workers in each.
    least : int
        How many workers to wait for.
    cancel : str
        The command that cancels a job.
    threads : int, "auto" or None
        The option ``threads_per_worker``.
    memory : str
        Of each job.
    environ : mapping of str to str
        More for the workers' environment.
    security : distributed.Security or None
        Who may connect.
    host : str or None
        Where the scheduler listens.
    folder : str
        Where the session's folder is made.
    patience : float
        Seconds to wait for `least` workers.
    dashboard : bool
        Whether to serve Dask's page.
    """
    _sweep(Path(folder))
    own = _private(Path(folder))
    file, log = own / "order.json", own / "log"
    board = Board(own, cancel)
    try:
        listens = {"host": host, "protocol": "tcp" if security is None else "tls"}
        here = cluster({}, listens, dashboard=dashboard, security=security)
        told = orders(threads, environ, security) | {"count": per_job}
        told["scheduler"] = here.scheduler_address
        told["options"]["memory_limit"] = int(_OURS * parse_bytes(memory)) // per_job
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as order:
            json.dump(told, order)
        options = {"file": os.fspath(file), "log": os.fspath(log), "board": board}
        here.worker_spec.update({n: {"cls": job, "options": options} for n in range(jobs)})
        try:
            here.sync(here._correct_state)  # noqa: SLF001 - as `scale` does, with its one kind
        except RuntimeError as error:
            here.close()
            raise PoolBroken(f"a job cannot be submitted: {error}") from error
        except BaseException:
            here.close()
            raise
        close, here.close = here.close, lambda *given: _closed(close, board, *given)
        return awaited(
            here,
            least,
            lambda: _why(board, log, patience),
            patience=patience,
            hopeless=lambda: board.hopeless,
        )
    except BaseException:
        board.close()
        raise


def _closed(close: Callable[..., Any], board: Board, *given: Any) -> None:
    close(*given)
    board.close()


def _private(folder: Path) -> Path:
    """Make a folder of this session's, which only the user can look into."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = folder / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    own.mkdir(mode=0o700)
    return own


def _sweep(folder: Path) -> None:
    """Remove what sessions of this machine have left: it went down, say."""
    for left in folder.glob(f"{socket.gethostname()}-*-*"):
        number = left.name.removeprefix(f"{socket.gethostname()}-").partition("-")[0]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (ValueError, PermissionError):
            continue


def _why(board: Board, log: Path, patience: float) -> str:
    """Say why no workers came: the queue, and the end of the newest log."""
    ended = f"jobs end as soon as they run: {board.states}" if board.hopeless else ""
    lines = [ended or f"no workers came within {patience:g} s"]
    if board.waiting:
        lines.append(f"{board.waiting}. start_timeout= waits for longer")
    logs = sorted(log.glob("*"), key=lambda one: one.stat().st_mtime) if log.exists() else []
    for newest in [one for one in logs if one.stat().st_size][-1:]:
        tail = newest.read_text(errors="replace").splitlines()[-_TAIL:]
        lines += ["The end of the job's log:", *(f"  {line}" for line in tail)]
    return "\n".join(lines)
