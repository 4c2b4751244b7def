"""Plan ``processes``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from parmap.engine.traits import Traits
from parmap.errors import PlanError
from parmap.plans.plan import Plan

if TYPE_CHECKING:  # see parmap.plans.plan
    from concurrent.futures import Executor

    from parmap.backends.processes.forkserver import ForkServer
    from parmap.transport.messages import CoreShare

__all__ = ["Processes"]

_STARTS = ("fresh", "fork")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)  # as `Plan`
class Processes(Plan):
    """Worker processes on this machine: for Python code that computes.

    Parameters
    ----------
    start_method : {"fresh", "fork"}, default "fresh"
        Written ``start=`` in options. ``"fresh"``: workers are new interpreters, to which
        functions travel; no ``if __name__ == "__main__"`` is needed. ``"fork"``: workers
        begin as copies of this process, as it is at the first call, and share its loaded
        data; unsafe where threads run.
    """

    start_method: Literal["fresh", "fork"] = field(default="fresh", metadata={"option": "start"})

    name: ClassVar[str] = "processes"
    traits: ClassVar[Traits] = Traits(
        replaces_workers=True,
        sees_deaths=True,
        places=True,
        abandons=True,
        recalls=True,
        frees=True,
        trusted=True,
        copies=True,
        recurring=True,
        exclusive=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_method not in _STARTS:
            raise PlanError(
                f"start={self.start_method!r}: give one of {', '.join(map(repr, _STARTS))}"
            )

    def core_share(self, workers: int) -> CoreShare | None:
        """Share the cores out; the processes are the pool's own."""
        own = super().core_share(workers)
        return None if own is None else own._replace(kept=True)

    def start(self) -> Executor:
        """Start the workers, without waiting until they are ready."""
        workers = self.count()
        # Imported here: only this plan needs selectors, sockets and subprocesses. The fork server
        # starts while this process loads the rest.
        from parmap.backends.processes.system_unix import unforked

        with unforked:  # until the pool has it, a fork would keep the channel to it open
            fork_server = _fork_server(workers) if self.start_method == "fresh" else None
            try:
                from parmap.backends.processes.executor import ProcessExecutor

                core_share = self.core_share(workers)
            except BaseException:
                if fork_server is not None:
                    fork_server.close()
                raise
            return ProcessExecutor(
                workers,
                self.initializer,
                start=self.start_method,
                core_share=core_share,
                fork_server=fork_server,
            )


def _fork_server(workers: int) -> ForkServer:
    from parmap.backends.processes.forkserver import ForkServer

    try:
        return ForkServer("fresh")
    except OSError as error:
        from parmap.backends.processes.limits import refused  # only to explain a failure

        raise refused(error, workers) from error
