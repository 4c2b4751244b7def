"""The protocols around the engine: a backend, the open session, and the buffer for its results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # to name a plan loads neither futures nor the engine
    from collections.abc import Callable, Collection, Iterator, Sequence
    from concurrent.futures import Future

    from parmap.engine.callbacks import Callbacks
    from parmap.engine.traits import Traits
    from parmap.failures import Failure
    from parmap.transport.messages import CallSpec, Chunk, CoreShare, Outcome
    from parmap.transport.payload import Known

__all__ = ["Backend", "OpenSession", "ResultBuffer"]


class Backend(Protocol):
    """An executor that a plan's `start` returns, with all that it may have beyond PEP 3148.

    `submit` and `shutdown` are required, as `concurrent.futures.Executor` has them; `map` is not
    used. All else is an extra with a default: an executor has it under this name, or lacks it.
    Deriving from this class is possible, and not needed. Extras that are wrong raise
    `parmap.PlanError` when a session begins.

    Attributes
    ----------
    traits : Traits or None, default None
        Facts about the place; see `Traits`. Default: the `traits` of the plan. Read once, when
        a session begins.
    workers : int or None, default None
        How many tasks run at once; at least 1, also where workers start on demand. It may change,
        and is read by each call. Default: the plan's ``count()``.
    per_node : int or None, default None
        How many tasks run at once on the machine that runs most; at least 1. The cores of a machine
        are shared out among so many. Default: `workers`, as on one machine.
    resolver : int or None, default None
        The identifier (`threading.get_ident`) of the thread that resolves all futures, if there is
        one. A call that would wait for its results in this thread is refused, since it would
        wait for ever. Default: futures are resolved by several threads, or nobody knows.
    dashboard : str or None, default None
        The address of a page that shows the workers, for `Session.dashboard`.

    Notes
    -----
    What a session submits, `pickle` can pickle: functions of parmap, whose arguments hold what is
    the user's packed. `Plan.initializer`, and what users submit to `Session.executor`, may need
    cloudpickle. Where the traits have ``shares_memory=True`` nothing is packed.

    A session calls the other methods only if the executor's traits say that it has them: `put` and
    `drop` by ``places=True``, `run_remote` by ``keeps=True`` together with ``places=True``,
    `abandon` by ``abandons=True``, `recall` by ``recalls=True``.

    Examples
    --------
    An executor that runs each task at once. Of the extras it has two:

    >>> from concurrent.futures import Executor, Future
    >>> from dataclasses import dataclass
    >>> import parmap
    >>> class Here(Executor):
    ...     workers = 1
    ...     traits = parmap.Traits(shares_memory=True, same_thread=True)
    ...
    ...     def submit(self, fn, /, *args, **kwargs):
    ...         future = Future()
    ...         future.set_running_or_notify_cancel()
    ...         try:
    ...             future.set_result(fn(*args, **kwargs))
    ...         except Exception as error:
    ...             future.set_exception(error)
    ...         return future
    ...
    ...     def shutdown(self, wait=True, *, cancel_futures=False):
    ...         pass
    >>> @dataclass(frozen=True, kw_only=True)
    ... class HerePlan(parmap.Plan):
    ...     name = "here"
    ...
    ...     def start(self):
    ...         return Here()
    >>> with HerePlan():
    ...     parmap.pmap(abs, [-1, -2])
    [1, 2]
    """

    # Typed Any: to a type checker, no property may stand for an attribute of another type.
    traits: Any = None
    workers: Any = None
    per_node: Any = None
    resolver: Any = None
    dashboard: Any = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call ``fn(*args, **kwargs)``; return the future of its result."""
        raise NotImplementedError

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; end the workers when those that were taken are done."""
        raise NotImplementedError

    def put(self, value: Any, /) -> Any:
        """Send a value once to where all workers reach it; return a reference to it.

        A task gets the value where the reference is itself a positional argument of `submit`.
        Default: the value is its own reference, and travels with each task.

        The value is an object of parmap's own, which `pickle` can pickle; its arrays are read-only
        in workers. It refers to the user's arrays in place, so it is to be pickled before `put`
        returns. Where the traits have ``copies=True``, it is the user's object instead: cloudpickle
        pickles it, and arrays are to be made read-only by the executor.
        """
        return value

    def drop(self, reference: Any, /) -> None:  # noqa: ARG002
        """Forget a value. Only tasks whose results nobody needs any more may still refer to it.

        A finalizer may call it, in any thread and in the middle of any other method: it must not
        wait for a lock that its own thread may hold. Default: there is nothing to forget.
        """
        return

    def run_remote(
        self,
        made: Callable[[Any], Any],  # noqa: ARG002
        fn: Callable[..., Any],  # noqa: ARG002
        /,
        *args: Any,  # noqa: ARG002
    ) -> Future[Any]:
        """Have a worker call ``fn(*args)`` and keep the result.

        The future's result is ``made(reference)``, with a reference as `put` returns them. Default:
        results return to the caller.
        """
        raise TypeError(f"{type(self).__name__} has no run_remote")

    def abandon(self, future: Future[Any], /) -> None:  # noqa: ARG002
        """Stop a task that runs: nobody waits for it any more. Default: it runs to its end."""
        return

    def recall(
        self,
        future: Future[Any],  # noqa: ARG002
        chunk: int,  # noqa: ARG002
        /,
        *,
        only_slow: bool,  # noqa: ARG002
    ) -> tuple[int, bool] | None:
        """Take back elements that a worker has not begun of the chunk that has that number.

        All of them, if the worker is at an element that is slow. Else half of them; or none, for
        `only_slow`. Default: none. The worker asks its ``parmap.worker.context.worker.begun`` how
        far it may go, before each part of a chunk.

        Returns
        -------
        tuple of (int, bool) or None
            How many elements stay with the worker, which begins no other; and whether it is at a
            slow one. None where nothing is taken back.
        """
        return None

    def drive(self, futures: Collection[Future[Any]], /, *, seconds: float) -> None:  # noqa: ARG002
        """Wait for these tasks, for so many seconds at most; it may return before.

        The calling thread may do meanwhile what brings their results. Default: it returns at once.
        """
        return


class OpenSession(Protocol):
    """An open session, as the engine uses it; `parmap.Session` is one."""

    @property
    def workers(self) -> int:
        """How many chunks run at once; may change."""

    @property
    def traits(self) -> Traits:
        """Facts about the place."""

    @property
    def core_share(self) -> CoreShare | None:
        """What each worker may use of its node."""

    @property
    def nested(self) -> tuple[Any, ...]:
        """The plans for calls inside the tasks."""

    @property
    def block(self) -> Any:
        """Its `with` block; the ``key`` of that says, in the workers, which session it is.

        What is ``owned`` are globals of the workers' own: functions are packed without them.
        """

    @property
    def callbacks(self) -> Callbacks:
        """What runs the callbacks of single calls."""

    def broadcast(
        self, spec: CallSpec, chunks: int | None = None, *, waits: bool = True, known: Known = None
    ) -> Any:
        """Put a call's spec where every worker reaches it; return what `send` and `drop` take.

        It is for at most so many chunks, if that is known. A caller that `waits` for them must
        not be the thread that hears of their ends. Elements stay as they are until the call
        is over if there is `known`: that gives the numbers (`id`) of large objects in them that
        are known to recur.
        """

    def check(self, *, waits: bool = False) -> None:
        """Refuse a call if the session is over, or if a caller that `waits` would wait for ever."""

    def drive(self, futures: Collection[Future[Outcome]], *, seconds: float) -> None:
        """Wait for these chunks, as `Backend.drive` does."""

    def send_small(self, spec: bytes, fn: bytes, chunk: Chunk) -> Future[Any]:
        """Have a worker run a chunk of a small call; give the future of what that comes to."""

    def send(self, broadcast: Any, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run a chunk as a broadcast spec says."""

    def run_remote(self, broadcast: Any, chunk: Chunk) -> Future[Outcome]:
        """Have a worker run a chunk of one element, whose result stays there."""

    def drop(self, broadcast: Any) -> None:
        """Forget a broadcast spec: the call is over. None where the call has none."""

    def recall(
        self, future: Future[Outcome], chunk: int, *, only_slow: bool
    ) -> tuple[int, bool] | None:
        """Take back elements of a chunk that have not begun, as `Backend.recall` does."""

    def abandon(self, future: Future[Outcome], chunk: Chunk) -> None:
        """Stop a chunk that nobody waits for any more, as far as the place can."""


class ResultBuffer(Protocol):
    """Takes results as they come; gives them when their turn is."""

    released: int

    def put(self, indices: Sequence[int], values: list[Any]) -> None:
        """Take the results of some elements; neighbours come as a range."""

    def fail(self, index: int, failure: Failure) -> None:
        """Take what stands for the result of an element that failed."""

    def ready(self) -> Iterator[list[Any]]:
        """Give what may go out now, and count it in `released`."""


Backend.__module__ = "parmap"  # public: tracebacks and the docs name it as users do
