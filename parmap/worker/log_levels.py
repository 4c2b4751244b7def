"""The levels of loggers that the script has set, and that below which all logging is disabled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

__all__ = ["MARK", "PER_THREAD", "Levels", "apply", "differs", "levels", "mark", "reset", "saved"]

PER_THREAD = False

# Engines set the levels of their own loggers, in the caller and, otherwise, in their workers.
_ENGINES = ("distributed", "dask", "tornado", "bokeh", "ray", "parmap")
# Levels that libraries set as they are imported: their loggers have them in workers, too.
_LIBRARIES = frozenset(
    {
        *(("torch", 30), ("torch.__trace", 10), ("c10d-NullHandler-default", 10)),
        *(("strobelight_function_profiler", 20), ("strobelight_compile_time_profiler", 20)),
        ("torch.fx.passes.utils.matcher_utils", 30),
        ("torch.fx.passes.infra.pass_manager", 30),
    }
)


class Levels(NamedTuple):
    """Levels that are not as in a new interpreter.

    Parameters
    ----------
    disabled : int
        What `logging.disable` has set.
    levels : dict of str to int
        By the loggers' names; that of the root logger by the empty one.
    """

    disabled: int = 0
    levels: dict[str, int] = {}  # noqa: RUF012 - it is never changed


class _Mark:
    """Lies in the root logger's cache, which `logging` clears whenever a level changes.

    So it is cheap to see whether one has: to read the levels of 500 loggers takes 12 us.
    """


MARK: Any = _Mark()


def mark() -> int:
    """Leave the mark, and count the loggers."""
    loggers = len(logging.root.manager.loggerDict)
    logging.root._cache[MARK] = True  # type: ignore[attr-defined]  # noqa: SLF001 - see there
    return loggers


def levels() -> Levels | None:
    """Read the levels that were set; None where none was."""
    found = Levels(int(logging.root.manager.disable), dict(_set_levels()))
    return None if found == Levels() else found


def _set_levels() -> Iterator[tuple[str, int]]:
    if logging.root.level != logging.WARNING:
        yield "", logging.root.level
    for name, logger in list(logging.root.manager.loggerDict.items()):
        # Of another class is what stands for a logger that only its children have been asked for.
        level = logger.level if isinstance(logger, logging.Logger) else logging.NOTSET
        if level == logging.NOTSET or (name, level) in _LIBRARIES:
            continue
        if name.partition(".")[0] not in _ENGINES:
            yield name, level


def differs(value: Levels) -> bool:
    """Tell whether levels are others here."""
    return _here(value) != value


def saved(value: Levels) -> Callable[[], None]:
    """Return a function that sets the levels that these loggers have now."""
    return partial(apply, _here(value))


def _here(value: Levels) -> Levels:
    here = {name: logging.getLogger(name).level for name in value.levels}
    return Levels(int(logging.root.manager.disable), here)


def reset() -> None:
    """Set all levels as they are in a new interpreter."""
    for name, _ in list(_set_levels()):
        logging.getLogger(name).setLevel(logging.NOTSET if name else logging.WARNING)
    logging.disable(logging.NOTSET)


def apply(value: Levels) -> None:
    """Set levels."""
    for name, level in value.levels.items():
        logging.getLogger(name).setLevel(level)
    logging.disable(value.disabled)
