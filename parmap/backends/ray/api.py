"""parmap's calls of Ray: send a task, hear of its end, cancel it, place a value."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import Any

from parmap.backends.ray.tasks import RayTask
from parmap.backends.ray.worker import Stored, run
from parmap.errors import PlanError, WorkerDied
from parmap.failures import PoolBroken
from parmap.transport.messages import CachedPayload, cached_payload

__all__ = ["RayApi", "RayReference", "remote_run"]

# Below this many bytes a value goes along with each task. From here on it stays in Ray's store,
# which all workers of a node read in place.
_SMALL = 1 << 16


class RayReference:
    """A value that was put: what stands for it among a task's arguments. Equal only to itself."""

    def __init__(self, cargo: Any) -> None:
        self.cargo = cargo


def remote_run(ray: Any, claims: dict[str, Any]) -> Callable[..., Any]:
    """Return the function that has Ray run a task which claims so much of a node."""
    try:
        # Without retries of Ray's own a death is seen at once, and known to be one.
        remote = ray.remote(max_retries=0, name="parmap", **claims)(run).remote
    except (TypeError, ValueError) as error:
        raise PlanError(f"Ray does not take these options for a task: {error}") from error
    return remote  # type: ignore[no-any-return]


class RayApi:
    """Ray, as the executor uses it: it keeps no tasks, and any thread may use it.

    Parameters
    ----------
    ray : module
        The package, initialised.
    remote : callable
        See `remote_run`.
    setup : callable or None
        Run once in each worker.
    """

    def __init__(
        self, ray: Any, remote: Callable[..., Any], setup: Callable[[], object] | None
    ) -> None:
        self._ray, self._remote = ray, remote
        self._setup: CachedPayload | None = (
            None if setup is None else cached_payload(setup, "setup")
        )
        self._ready = ray.put(None)  # of what is there Ray's own thread says so at once

    @property
    def runs(self) -> bool:
        """Whether nobody has shut Ray down."""
        return bool(self._ray.is_initialized())

    def send(self, task: RayTask) -> None:
        """Give a task to Ray, and keep its name there."""
        args = [arg.cargo if type(arg) is RayReference else arg for arg in task.args]
        task.ref = self._remote(self._setup, task.call, *args)
        task.args = ()

    def hear(self, task: RayTask, ended: Callable[[Any], object]) -> None:
        """Have Ray's own thread tell what came of a task that was sent: a value or an error."""
        # The public way to a future makes one more of them, and resolves it in Ray's thread.
        task.ref._on_completed(ended)  # noqa: SLF001

    def cancel(self, task: RayTask, *, force: bool) -> None:
        """Have Ray cancel a task, in its own thread: there tasks end, too, one after the other.

        Cancelled from another thread while its result comes in, a task is ended twice; then a
        check of Ray's fails, in C++, and brings the whole process down.
        """
        ray, ref = self._ray, task.ref
        if not ray.is_initialized():
            return
        if ray.util.client.ray.is_connected():
            # By "ray://": Ray's thread is at the far end, and the one here must not wait for it.
            ray.cancel(ref, force=force)
        else:
            self._ready._on_completed(lambda _: ray.cancel(ref, force=force))  # noqa: SLF001

    def put(self, value: Any) -> RayReference:
        """Place a value: a small one goes along with each task, a large one into Ray's store."""
        cargo = cached_payload(value, small=_SMALL)
        return RayReference(
            cargo if cargo.key else self._ray.put(Stored(uuid.uuid4().bytes, cargo))
        )

    @property
    def dashboard(self) -> str | None:
        """The address of Ray's page, where it has one."""
        url = None
        with contextlib.suppress(Exception):  # it has no public name
            url = self._ray._private.worker.get_dashboard_url()  # noqa: SLF001
        return f"http://{url}" if url else None

    # -- errors --------------------------------------------------------------------------

    def error_of(self, task: RayTask, value: Any) -> BaseException | None:
        """Return the error that Ray told of in place of a task's result, in parmap's words."""
        if isinstance(value, (self._ray.exceptions.RayError, ConnectionError)):
            return self._translated(value, task.ref)
        return None

    def is_cancellation(self, error: BaseException | None) -> bool:
        """Tell whether an error says that the task was cancelled."""
        return isinstance(error, self._ray.exceptions.TaskCancelledError)

    def _translated(self, error: BaseException, ref: Any) -> BaseException:
        """Say in parmap's words what went wrong with Ray."""
        theirs = self._ray.exceptions
        with contextlib.suppress(Exception):
            # An error that nobody has asked for Ray writes to the log.
            self._ray.get(ref, timeout=0)
        if isinstance(error, theirs.RayTaskError):
            return _cause(error)
        if isinstance(error, (theirs.RuntimeEnvSetupError, theirs.TaskUnschedulableError)):
            return PoolBroken(f"Ray cannot start a worker for this plan: {error}")
        lost = (theirs.NodeDiedError, theirs.LocalRayletDiedError, theirs.ObjectLostError)
        if isinstance(error, (theirs.OutOfMemoryError, *lost)):
            return WorkerDied(0, last_words=str(error))
        # Of a crash Ray only says that it was one.
        return WorkerDied(0) if isinstance(error, theirs.WorkerCrashedError) else error


def _cause(error: Any) -> BaseException:
    cause: BaseException = getattr(error, "cause", None) or error
    if "No module named 'parmap" in str(cause):
        return PoolBroken(
            "a worker of Ray cannot import parmap: install parmap-plans on its nodes, in the same "
            "version as here, or name it in runtime_env="
        )
    return cause
