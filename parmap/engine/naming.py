"""Arguments by name, for chunks that have only columns of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parmap.transport.shared import handles_exist, unwrapped_partial
from parmap.untouched import name_of

__all__ = ["ByName"]


class ByName:
    """Calls a function with keywords, from values in a known order.

    Parameters
    ----------
    fn : callable
        The user's function.
    names : tuple of str
        The names of the last values; those before are positional.
    """

    def __init__(self, fn: Callable[..., Any], names: tuple[str, ...]) -> None:
        # Under this name, so that inspect.signature sees the user's function, and its rng.
        self.__wrapped__ = fn
        self.__name__ = name_of(fn)
        self._names = names

    def __call__(self, *values: Any, **more: Any) -> Any:
        """Call the function; `more` is the random stream, where there is one."""
        fn = unwrapped_partial(self.__wrapped__) if handles_exist() else self.__wrapped__
        named = len(values) - len(self._names)
        return fn(*values[:named], **dict(zip(self._names, values[named:], strict=True)), **more)
