"""What: nested loops, flattened into one pool."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

from parmap.calls.frame import columns_of, series_of
from parmap.calls.map import collected
from parmap.calls.options import MapOptions
from parmap.calls.signature import shows_options
from parmap.engine.naming import ByName
from parmap.errors import BackendUnavailable
from parmap.untouched import bytes_of, has, is_a, shown

__all__ = ["Grid", "pgrid"]


@dataclass(frozen=True, slots=True, repr=False)
class Grid:
    """The results of nested loops: one value for each combination of the axes' values.

    Parameters
    ----------
    axes : dict of str to tuple
        The values of each axis, the outermost loop first.
    values : tuple
        The results in loop order: the last axis varies fastest.
    returns_failures : bool, default False
        Whether a `Failure` stands in the place of each call that failed (``errors="return"``).

    Examples
    --------
    >>> import parmap
    >>> grid = parmap.pgrid(lambda x, y: 10 * x + y, {"x": [1, 2], "y": [3, 4, 5]})
    >>> grid
    <Grid of x=2 × y=3: 6 values>
    >>> grid[1, 2]
    25
    >>> grid.nested()
    [[13, 14, 15], [23, 24, 25]]
    >>> grid[0]
    <Grid of y=3: 3 values>
    """

    axes: dict[str, tuple[Any, ...]]
    values: tuple[Any, ...]
    returns_failures: bool = field(default=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values of each axis."""
        return tuple(map(len, self.axes.values()))

    def __len__(self) -> int:
        """Count the combinations."""
        return len(self.values)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """Give each point, a dict of axis names to values, and its result; in loop order."""
        for point, value in zip(itertools.product(*self.axes.values()), self.values, strict=True):
            yield dict(zip(self.axes, point, strict=True)), value

    def __getitem__(self, key: int | slice | tuple[int | slice, ...]) -> Any:
        """Give one result by its place on every axis, or the grid of what is left.

        Parameters
        ----------
        key : int, slice, or tuple of these
            One for each axis, from the first on; axes that are not named stay whole.

        Raises
        ------
        IndexError
            If there are more than there are axes, or one is out of range.
        TypeError
            If it is no position, such as an axis's name.
        """
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) > len(self.axes):
            raise IndexError(
                f"{len(keys)} indices for a grid of {len(self.axes)} axes: give one for each axis, "
                "or fewer"
            )
        for one in keys:
            if not (is_a(one, slice) or has(one, "__index__")):
                raise TypeError(self._no_position(one))
        keys = (*keys, *[slice(None)] * (len(self.axes) - len(keys)))
        places = [
            range(size)[k] if isinstance(k, slice) else (range(size)[k],)
            for k, size in zip(keys, self.shape, strict=True)
        ]
        values = tuple(self.values[self._offset(at)] for at in itertools.product(*places))
        axes = {
            name: axis[k]
            for (name, axis), k in zip(self.axes.items(), keys, strict=True)
            if isinstance(k, slice)
        }
        return Grid(axes, values, self.returns_failures) if axes else values[0]

    def _no_position(self, key: object) -> str:
        names = list(self.axes)
        how = "a grid is indexed by position, one whole number or slice for each axis"
        if not is_a(key, str) or key not in names:
            return f"grid[{shown(key)}]: {how}. Axes: {', '.join(names)}"
        before = ":, " * names.index(key)
        return (
            f"grid[{key!r}]: {how}. grid.axes[{key!r}] holds the values of this axis; for the "
            f"results at one of them: grid[{before}grid.axes[{key!r}].index(value)]"
        )

    def _offset(self, at: tuple[int, ...]) -> int:
        offset = 0
        for place, size in zip(at, self.shape, strict=True):
            offset = offset * size + place
        return offset

    def nested(self) -> Any:
        """Give the results as lists in lists, one level for each axis."""
        level: list[Any] = list(self.values)
        for depth in range(len(self.shape) - 1, 0, -1):
            size, count = self.shape[depth], math.prod(self.shape[:depth])
            level = [level[i * size : (i + 1) * size] for i in range(count)]
        return level if self.axes else level[0]

    def to_numpy(self) -> Any:
        """Give the results as an array.

        Returns
        -------
        numpy.ndarray
            Of shape ``grid.shape``, followed by the shape of the results where all are
            numbers or arrays of one shape; else of objects.
        """
        import numpy as np

        flat = np.array(None)
        if all(map(_is_numeric, self.values)):  # of other objects NumPy would ask attributes
            with contextlib.suppress(ValueError):  # of unequal shapes
                flat = np.array(self.values)
        if self.values and flat.dtype.kind in _NUMBERS and not _rounded(self.values, flat):
            return flat.reshape(self.shape + flat.shape[1:])
        objects = np.empty(len(self.values), dtype=object if self.values else float)
        for i, value in enumerate(self.values):
            objects[i] = value
        return objects.reshape(self.shape)

    def to_frame(self) -> Any:
        """Give the results as a tidy pandas table.

        Returns
        -------
        pandas.DataFrame
            One row per combination, in loop order; one column per axis, and ``value``. Results
            that are all dicts with strings as keys, or named tuples, have one column per key
            instead. With ``errors="return"``, the column ``error`` holds the `Failure` of each
            call that failed; the results of these calls are missing values.

        Raises
        ------
        BackendUnavailable
            If pandas is not installed.
        ValueError
            If an axis is called like a column of the results.

        Examples
        --------
        >>> import parmap
        >>> axes = {"n": [1, 2], "m": [1, 2]}
        >>> parmap.pgrid(lambda n, m: {"sum": n + m, "product": n * m}, axes).to_frame()
           n  m  sum  product
        0  1  1    2        1
        1  1  2    3        2
        2  2  1    3        2
        3  2  2    4        4
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise BackendUnavailable("to_frame() needs pandas: pip install pandas") from error
        columns = columns_of(self.axes, self.values, errors=self.returns_failures)
        return pd.DataFrame({name: series_of(pd, column) for name, column in columns.items()})

    def __repr__(self) -> str:
        """Show the axes' names and lengths."""
        axes = " × ".join(f"{name}={len(axis)}" for name, axis in self.axes.items())
        return f"<Grid of {axes or 'no axes'}: {len(self.values)} values>"

    def _repr_html_(self) -> str:
        """Show the results as a table: two axes as rows and columns, others one row each."""
        from parmap.html import table

        if len(self.axes) == 2:  # noqa: PLR2004
            rows, columns = self.axes.values()
            corner = " \\ ".join(self.axes)
            lines = [
                (name, *self.values[i * len(columns) :][: min(len(columns), _SHOWN)])
                for i, name in enumerate(rows[:_SHOWN])
            ]
            head, whole = (corner, *columns[:_SHOWN]), max(self.shape) <= _SHOWN
        else:
            points = itertools.product(*self.axes.values())
            together = zip(points, self.values, strict=True)
            lines = [(*point, value) for point, value in itertools.islice(together, _SHOWN)]
            head, whole = (*self.axes, "value"), len(self) <= _SHOWN
        more = "" if whole else "… not all are shown: .to_frame() gives them all"
        return table(repr(self).strip("<>"), lines, head, more)


@shows_options
def pgrid(
    fn: Callable[..., Any], axes: Mapping[str, Iterable[Any]], /, **options: Unpack[MapOptions]
) -> Grid:
    """Run nested loops in parallel, all in one pool.

    Parameters
    ----------
    fn : callable
        Called once for each combination, with the axes' names as keywords:
        ``fn(fold=…, method=…)``.
    axes : dict of str to iterable
        The loops, the outermost first.
    **options
        See `MapOptions`. A ``cost=`` function gets the values in the order of the axes.
        With ``rng=``, the combinations are numbered in loop order.

    Returns
    -------
    Grid
        The results in loop order.

    Raises
    ------
    Exception
        As `pmap`.

    Examples
    --------
    >>> import parmap
    >>> parmap.pgrid(lambda fold, power: fold**power, {"fold": [1, 2, 3], "power": [1, 2]})
    <Grid of fold=3 × power=2: 6 values>
    """
    if not callable(fn):
        raise TypeError(f"pgrid() needs a function first, not {type(fn).__name__}: pgrid(fn, axes)")
    if not isinstance(axes, Mapping):
        raise TypeError(
            "pgrid() needs a dict of names to iterables: pgrid(fn, {'fold': range(10)})"
        )
    lists = {}
    for name, values in axes.items():
        if not isinstance(name, str):
            raise TypeError(
                f"the axis {name!r} is a keyword of the function: give it a text as name"
            )
        if not (has(values, "__iter__") or has(values, "__getitem__")):
            raise TypeError(f"the axis {name!r} cannot be iterated over: {shown(values)}")
        # Not tuple(values), which asks how many there are: that may raise, and loops do not. Nor a
        # comprehension: on some builds of Python 3.13 that wants iterators to be iterable.
        lists[name] = tuple(itertools.chain(values))
    points = list(itertools.product(*lists.values()))
    by_name = ByName(fn, tuple(lists))
    results = collected("pgrid", by_name, (points,), options, star=True)
    return Grid(lists, tuple(results), options.get("errors") == "return")


# Rows, and columns, that a notebook shows.
_SHOWN = 20

# NumPy's kinds of numbers and times. Texts stay Python's: an array of them cuts and pads.
_NUMBERS = "biufcmM"


def _rounded(values: tuple[Any, ...], flat: Any) -> bool:
    """Tell whether whole numbers were made floats, having no integer type in common."""
    return bool(flat.dtype.kind == "f" and all(is_a(value, int) for value in values))


def _is_numeric(value: object) -> bool:
    """Tell whether a result may be a number, or hold numbers, by its type."""
    return is_a(value, _NUMERIC) or bytes_of(value) is not None


# Times, too: NumPy makes arrays of them.
_NUMERIC = (numbers.Number, list, tuple, dt.date, dt.timedelta)


# Public: pickles and tracebacks name it as users do, wherever it is defined.
Grid.__module__ = pgrid.__module__ = "parmap"
