"""What the script has set, read when a call begins, for its tasks to see; see `Setting`.

Each call reads all of it, so most is compared, in C, with what the last call has seen. To read it
takes 2 to 4 us where NumPy, pandas and scikit-learn are loaded.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from parmap.engine.traits import Traits
from parmap.engine.users_line import users_line
from parmap.errors import said
from parmap.transport.caller import Unapplied
from parmap.transport.payload import by_value
from parmap.worker import environment, log_levels, warning_filters
from parmap.worker.ambient import GROUP, SETTINGS, Setting

__all__ = ["find_offered", "say_unapplied", "taken"]

# A setting's name, and its value, ready to travel.
Taken = tuple[tuple[str, Any], ...]


class _Seen(NamedTuple):
    """What the last call has seen of the settings with many parts, and what of it is set."""

    environ: Any
    filters: list[Any]
    loggers: int
    taken: Taken


class _Tables(NamedTuple):
    """The settings to read: all of them, and those of a thread or context of its own."""

    all: tuple[tuple[str, Setting], ...]
    per_thread: tuple[tuple[str, Setting], ...]


def _tables(settings: dict[str, Setting]) -> _Tables:
    per_thread = {name: one for name, one in settings.items() if one.per_thread}
    return _Tables(tuple(settings.items()), tuple(per_thread.items()))


# Each is replaced as a whole: threads read them at any time.
_seen = _Seen(None, [], 0, ())
_read = _tables(SETTINGS)


def taken(traits: Traits) -> Taken:
    """Give what is set that a place's tasks do not see by themselves."""
    found: Taken = ()
    beside = traits.shares_memory or traits.inside  # then what is process-wide is there
    try:
        for name, setting in _read.per_thread if beside else _read.all:
            if sys.modules.get(setting.module) is not None:
                value = setting.read()
                if value != setting.usual:
                    found = (*found, (name, by_value(value)))
    except Exception:  # noqa: BLE001 - whatever another package's function may raise
        found = tuple(_carefully(_read.per_thread if beside else _read.all))
    if beside:
        return found
    seen, root = _seen, logging.root
    # All of it here, and not in the files of these settings: a call of a function takes as long.
    if (
        os.environ._data != seen.environ  # type: ignore[attr-defined]  # noqa: SLF001
        or (warnings.filters if _filters is None else _filters()) != seen.filters
        or log_levels.MARK not in root._cache  # type: ignore[attr-defined]  # noqa: SLF001
        or len(root.manager.loggerDict) != seen.loggers
    ):
        seen = _look()
    return (*found, *seen.taken) if seen.taken else found


# From Python 3.14 on.
_filters = getattr(warnings, "_get_filters", None)


def _look() -> _Seen:
    """Look at the settings with many parts anew."""
    global _seen  # noqa: PLW0603 - see there
    filters, environ = list(warning_filters.filters()), dict(environment.raw())
    loggers = log_levels.mark()  # first: a level that changes now is seen by the next call
    found: list[tuple[str, Any]] = []
    for name, read in (
        ("environment variables", lambda: environment.changes(environ)),
        ("levels of loggers", log_levels.levels),
        ("warning filters", lambda: _filters_to_send(filters)),
    ):
        try:
            value = read()
            if value:
                found.append((name, value))
        except Exception as error:  # noqa: BLE001 - a class of loggers, or of warnings, is the user's
            _say(name, f"reading it raised {type(error).__name__}: {said(error)}")
    _seen = _Seen(environ, filters, loggers, tuple(found))
    return _seen


def _filters_to_send(filters: list[Any]) -> tuple[warning_filters.Entry, ...]:
    if warning_filters.is_usual(filters):
        return ()
    entries, errors = warning_filters.sendable(filters, by_value)
    for error in errors:
        _say("warning filters", f"one of them cannot be pickled: {said(error)}")
    return entries


def _carefully(table: Iterable[tuple[str, Setting]]) -> Iterator[tuple[str, Any]]:
    """Read settings of which one raises."""
    for name, setting in table:
        try:
            if sys.modules.get(setting.module) is None:
                continue
            value = setting.read()
            if value != setting.usual:
                yield name, by_value(value)
        except Exception as error:  # noqa: BLE001 - as above
            _say(name, f"reading it raised {type(error).__name__}: {said(error)}")


def say_unapplied(unapplied: Iterable[Unapplied], where: tuple[str, int] | None) -> None:
    """Warn of settings that a chunk's worker had not as the script has them."""
    for one in unapplied:
        _say(one.setting, one.why, where)


def _say(name: str, why: str, where: tuple[str, int] | None = None) -> None:
    """Warn of a setting, once."""
    if name not in _said:
        _said.add(name)
        warnings.warn_explicit(
            f"tasks do not see the script's setting {name!r}: {why}. Set it in setup=, or in the "
            "function",
            RuntimeWarning,
            *(where or users_line()),
        )


_said: set[str] = set()


def find_offered() -> None:
    """Have the settings read, too, that installed packages offer."""
    global _read  # noqa: PLW0603 - see there
    _read = _tables(_offered())


@functools.cache
def _offered() -> dict[str, Setting]:
    """Load the settings that installed packages offer; give them, and ours.

    To look through the files takes some milliseconds, while the workers start. `importlib.metadata`
    would take as long again to be imported.
    """
    if not any(map(_offers, list(sys.path))):
        return SETTINGS
    from importlib.metadata import entry_points

    offered = {}
    for point in entry_points(group=GROUP):
        try:
            setting = point.load()
            if type(setting) is not Setting:
                raise TypeError(f"{point.value} is no parmap.Setting")  # noqa: TRY301 - told below
            offered[point.name] = setting
        except Exception as error:  # noqa: BLE001 - whatever another package's module may raise
            _say(point.name, f"the entry point does not load: {said(error)}")
    return {**offered, **SETTINGS}


def _offers(folder: object) -> bool:
    """Tell whether a package in a folder of the path offers settings."""
    try:
        with os.scandir(folder if isinstance(folder, str) else os.devnull) as entries:
            return any(_names_group(entry.path) for entry in entries if _INFO(entry.name))
    except OSError:
        return False


_INFO = re.compile(r".*\.(dist|egg)-info$").match


def _names_group(info: str) -> bool:
    try:
        with open(os.path.join(info, "entry_points.txt"), "rb") as file:
            return GROUP.encode() in file.read()
    except OSError:
        return False
