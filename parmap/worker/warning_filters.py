"""The filters of warnings that the script has set."""

from __future__ import annotations

import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

__all__ = [
    "PER_THREAD",
    "USUAL",
    "Entry",
    "apply",
    "differs",
    "filters",
    "is_usual",
    "reset",
    "saved",
    "sendable",
]

PER_THREAD = False


class Entry(NamedTuple):
    """One filter, ready to travel.

    Parameters
    ----------
    action : str
        What it does.
    message, module : str, (str, int) or None
        What a warning must match: a text, or a pattern and its flags.
    category : str or bytes
        The class of the warnings: the name of a builtin or of a library's, or its pickle.
    line : int
        The line; 0 for all.
    """

    action: str
    message: str | tuple[str, int] | None
    category: str | bytes
    module: str | tuple[str, int] | None
    line: int


USUAL = (
    ("default", None, DeprecationWarning, "__main__", 0),
    ("ignore", None, DeprecationWarning, None, 0),
    ("ignore", None, PendingDeprecationWarning, None, 0),
    ("ignore", None, ImportWarning, None, 0),
    ("ignore", None, ResourceWarning, None, 0),
)

# Filters that libraries add as they are imported, by the parts that tell them apart. A worker has
# them where it has imported the library; where it has not, they are not worth importing it.
_LIBRARIES = frozenset(
    {
        ("ignore", "numpy.ndarray size changed", "builtins.Warning"),
        ("ignore", "numpy.ufunc size changed", "builtins.Warning"),
        ("ignore", "numpy.dtype size changed", "builtins.Warning"),
        ("ignore", "the matrix subclass is not the recommended way", "builtins.Warning"),
        ("always", None, "numpy.exceptions.RankWarning"),
        ("always", None, "numpy.RankWarning"),
        ("always", None, "scipy.special._sf_error.SpecialFunctionWarning"),
        ("ignore", "torch::jit::fuser::cuda", "builtins.Warning"),
        ("ignore", None, "torch.jit._trace.TracerWarning"),
    }
)


def filters() -> list[Any]:
    """Give the list of the filters that are in force."""
    # From Python 3.14 on they may belong to the context.
    of_context = getattr(warnings, "_get_filters", None)
    return of_context() if of_context is not None else warnings.filters  # type: ignore[return-value]


def is_usual(entries: Iterable[Any]) -> bool:
    """Tell whether filters are as in a new interpreter, but for what libraries add."""
    return tuple(one for one in entries if not _is_librarys(one)) == USUAL


def _is_librarys(entry: Any) -> bool:
    action, message, category, _, _ = entry
    text = message.pattern if type(message) is re.Pattern else message
    return (action, text, f"{category.__module__}.{category.__qualname__}") in _LIBRARIES


def sendable(
    entries: Iterable[Any], pack: Callable[[Any], bytes]
) -> tuple[tuple[Entry, ...], list[Exception]]:
    """Make filters ready to travel.

    Parameters
    ----------
    entries : iterable of tuple
        The filters.
    pack : callable
        Pickles a class.

    Returns
    -------
    entries : tuple of Entry
        Those that can travel.
    errors : list of Exception
        Why the others cannot.
    """
    made, errors = [], []
    for entry in entries:
        action, message, category, module, line = entry
        name = f"{category.__module__}.{category.__qualname__}"
        try:
            by_name = category.__module__ == "builtins" or _is_librarys(entry)
            packed = name if by_name else pack(category)
        except Exception as error:  # noqa: BLE001 - whatever a metaclass may raise
            errors.append(error)
        else:
            made.append(Entry(action, _text(message), packed, _text(module), line))
    return tuple(made), errors


def _text(pattern: Any) -> Any:
    return (pattern.pattern, pattern.flags) if type(pattern) is re.Pattern else pattern


def _rebuilt(text: Any) -> Any:
    return re.compile(*text) if type(text) is tuple else text


def _category(packed: str | bytes) -> Any:
    """Find a class; None for that of a library which is not loaded here."""
    if type(packed) is bytes:
        return pickle.loads(packed)
    assert isinstance(packed, str)
    module, _, name = packed.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _made(value: Sequence[Entry]) -> list[Any]:
    found = [(entry, _category(entry.category)) for entry in value]
    return [
        (entry.action, _rebuilt(entry.message), category, _rebuilt(entry.module), entry.line)
        for entry, category in found
        if category is not None
    ]


def differs(value: Sequence[Entry]) -> bool:
    """Tell whether other filters are in force here."""
    return _made(value) != filters()


def saved(value: Sequence[Entry]) -> Callable[[], None]:  # noqa: ARG001 - all are replaced
    """Return a function that puts those of now into force."""
    before = list(filters())
    return lambda: _replace(before)


def reset() -> None:
    """Put those of a new interpreter into force, with those of libraries that are loaded."""
    _replace([*filter(_is_librarys, filters()), *USUAL])


def apply(value: Sequence[Entry]) -> None:
    """Put filters into force."""
    _replace(_made(value))


def _replace(entries: list[Any]) -> None:
    # This tells Python that they change: what it knows of the warnings that it has shown is void.
    warnings.resetwarnings()
    filters()[:] = entries
