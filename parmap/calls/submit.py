"""What: one call, as a future."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar, overload

from parmap.plans.current import current_session

__all__ = ["submit"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def submit(fn: Callable[..., R], /, *args: Any, rng: Any, **kwargs: Any) -> Future[R]: ...
@overload
def submit(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...
def submit(fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
    """Start one call in a worker of the current plan.

    Parameters
    ----------
    fn : callable
        The function.
    *args, **kwargs
        Its arguments. ``rng=`` is the map option of that name (see `MapOptions`): the
        function gets the stream that element 0 of a map would get.

    Returns
    -------
    concurrent.futures.Future
        Its result to come; ``as_completed``, ``wait`` and ``asyncio.wrap_future`` of the
        standard library work on it. On the plan ``sequential`` it is there at once.
        Its callbacks may make other calls and wait for them: they run in a thread that the
        pool does not need, under the plan that is current where you add them. The end of the
        session waits for them.

    Raises
    ------
    SerializationError
        If the function or an argument cannot travel to a worker.

    Examples
    --------
    >>> import parmap
    >>> parmap.submit(pow, 2, 10).result()
    1024
    """
    if not callable(fn):
        raise TypeError(
            f"submit() needs a function first, not {type(fn).__name__}: submit(fn, *args)"
        )
    return current_session().submit(fn, *args, **kwargs)


# Public: pickles and tracebacks name it as users do, wherever it is defined.
submit.__module__ = "parmap"
