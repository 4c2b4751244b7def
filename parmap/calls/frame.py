"""A grid's results as the columns of a table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from parmap.failures import Failure
from parmap.untouched import is_a

__all__ = ["columns_of", "series_of"]

Axes = dict[str, tuple[Any, ...]]

# From here on, a float does not hold every whole number.
_EXACT = 1 << 53


def columns_of(axes: Axes, values: Sequence[Any], *, errors: bool) -> dict[str, list[Any]]:
    """Give the columns: the axes, the results, and the failures if there are any.

    Parameters
    ----------
    axes : dict of str to tuple
        See `Grid`.
    values : sequence
        The results in loop order.
    errors : bool
        Whether there is a column of failures although no call failed.

    Raises
    ------
    ValueError
        If two columns have the same name.
    """
    points = list(itertools.product(*axes.values()))
    table = {name: [point[i] for point in points] for i, name in enumerate(axes)}
    failures = [value if is_a(value, Failure) else None for value in values]
    results = _results(values, failures)
    if errors or any(failure is not None for failure in failures):
        if "error" in results:
            raise ValueError("the results have a key 'error', as the column of failures: rename it")
        results["error"] = failures
    for name in results.keys() & table.keys():
        raise ValueError(
            f"an axis is called {name!r}, as a column of the results is: rename the axis"
        )
    return table | results


def _results(values: Sequence[Any], failures: Sequence[Failure | None]) -> dict[str, list[Any]]:
    """Give a column for each key if all results are dicts or named tuples; else one column."""
    records = [
        None if failure is not None else _record(value)
        for value, failure in zip(values, failures, strict=True)
    ]
    known = [record for record in records if record is not None]
    names = dict.fromkeys(itertools.chain.from_iterable(known))
    if names and len(known) == failures.count(None):
        rows = [record or {} for record in records]
        return {name: [row.get(name) for row in rows] for name in names}
    cells = zip(values, failures, strict=True)
    return {"value": [value if failure is None else None for value, failure in cells]}


def _record(value: object) -> dict[str, Any] | None:
    """Give what a dict or a named tuple holds, by name; None for any other result."""
    if is_a(value, dict):
        items = dict(dict.items(value))  # not by methods of the user's own class
        return items if all(is_a(key, str) for key in items) else None
    if not is_a(value, tuple):
        return None
    known = (vars(one).get("_fields") for one in type(value).__mro__)
    fields = next(filter(None, known), ())
    named = type(fields) is tuple and all(type(name) is str for name in fields)
    if not named or len(fields) != tuple.__len__(value):
        return None
    return dict(zip(fields, tuple.__iter__(value), strict=True))


def series_of(pandas: Any, column: list[Any]) -> Any:
    """Make a column of the table; whole numbers stay exact beside missing values."""
    series = pandas.Series(column, dtype=None if column else object)
    gaps = any(value is None for value in column)
    if gaps and series.dtype.kind == "f" and any(map(_is_large, column)):
        return pandas.Series(column, dtype=object)
    return series


def _is_large(value: object) -> bool:
    return type(value) is int and abs(value) > _EXACT
