"""The directory that the script is in, where its workers began in another."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["PER_THREAD", "apply", "differs", "here", "reset", "saved"]

PER_THREAD = False


def here() -> str | None:
    """Give the directory; None if it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def differs(value: str) -> bool:
    """Tell whether this process is elsewhere, and can be there."""
    return here() != value and os.path.isdir(value)  # another machine may not have it


def saved(value: str) -> Callable[[], None]:  # noqa: ARG001 - there is one
    """Return a function that goes back to where this process is."""
    before = here()
    return lambda: None if before is None else os.chdir(before)


def apply(value: str) -> None:
    """Go there."""
    os.chdir(value)


def reset() -> None:
    """Stay: where a new interpreter begins, its parent is."""
