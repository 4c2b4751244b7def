"""Nested loops: what `pgrid` runs, and what can be made of its results."""

# ruff: noqa: PD011 - the values of a Grid are no attribute of pandas

import itertools
import pickle
import random
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parmap


def tagged(**point):
    return tuple(point.values())


def grid_of(*sizes):
    """A grid whose values are their own places."""
    return parmap.pgrid(tagged, {name: range(n) for name, n in zip("abcdef", sizes, strict=False)})


def valued(*values):
    """A grid of one axis with these results."""
    return parmap.pgrid(lambda i: values[i], {"i": range(len(values))})


# -- what is called ---------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["sequential", "threads(workers=2)", "processes(workers=2)"])
@pytest.mark.parametrize("chunks", ["auto", "static", "guided", 1, 4])
def test_every_combination_is_one_call_with_keywords_in_loop_order(plan, chunks):
    """As nested for-loops would make them: the last axis varies fastest."""

    def fit(*, method, fold, scale=1):
        return fold, method, scale

    expected = [
        (fold, method, scale) for fold in range(3) for method in "ab" for scale in (1.5, 2.5)
    ]
    with parmap.plan(plan):
        grid = parmap.pgrid(
            fit, {"fold": range(3), "method": "ab", "scale": [1.5, 2.5]}, chunks=chunks
        )
    assert list(grid.values) == expected
    assert grid.axes == {"fold": (0, 1, 2), "method": ("a", "b"), "scale": (1.5, 2.5)}
    assert grid.shape == (3, 2, 2)
    assert len(grid) == 12


def test_a_study_of_folds_and_methods_reads_as_its_loops_would():
    """The scores of each method on each fold, and the best mean of them."""
    data = np.random.default_rng(0).normal(size=40)

    def fit(fold, method):
        held_out = data[fold::4]
        rest = np.delete(data, np.s_[fold::4])
        centre = {"mean": np.mean, "median": np.median}[method](rest)
        return float(((held_out - centre) ** 2).mean())

    with parmap.plan("processes", workers=2):
        scores = parmap.pgrid(fit, {"fold": range(4), "method": ["mean", "median"]})
    assert scores.nested() == [[fit(f, m) for m in ("mean", "median")] for f in range(4)]
    frame = scores.to_frame()
    assert list(frame.columns) == ["fold", "method", "value"]
    means = frame.groupby("method")["value"].mean()
    assert means["mean"] == pytest.approx(scores.to_numpy()[:, 0].mean())
    assert scores[2, 1] == fit(2, "median")


def test_axes_may_be_used_up_by_reading():
    """Generators and other iterators are read once, in order."""
    read = []

    def letters():
        for letter in "xy":
            read.append(letter)
            yield letter

    grid = parmap.pgrid(tagged, {"a": letters(), "b": iter([1, 2, 3])})
    assert list(grid.values) == list(itertools.product("xy", [1, 2, 3]))
    assert grid.axes == {"a": ("x", "y"), "b": (1, 2, 3)}
    assert read == ["x", "y"]


@pytest.mark.parametrize("sizes", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_an_empty_axis_means_no_calls(sizes):
    """The loops around it turn, and find nothing to do."""
    called = []
    grid = parmap.pgrid(
        lambda **p: called.append(p), {n: range(s) for n, s in zip("abc", sizes, strict=False)}
    )
    assert called == []
    assert grid.shape == sizes
    assert list(grid) == []
    assert grid.to_numpy().shape == sizes
    assert np.array(grid.nested()).shape[:1] == sizes[:1]
    frame = grid.to_frame()
    assert frame.shape == (0, len(sizes) + 1)
    assert list(frame.columns) == [*"abc"[: len(sizes)], "value"]


def test_no_axes_mean_one_call():
    """As a product of no ranges holds one point."""
    grid = parmap.pgrid(lambda: 7, {})
    assert grid.shape == ()
    assert list(grid) == [({}, 7)]
    assert grid.nested() == 7
    assert grid.to_numpy() == 7
    assert grid.to_numpy().shape == ()
    assert grid[()] == 7
    assert grid.to_frame().to_dict("list") == {"value": [7]}
    assert repr(grid) == "<Grid of no axes: 1 values>"
    with pytest.raises(IndexError):
        grid[0]


@pytest.mark.parametrize(
    ("fn", "axes", "says"),
    [
        (tagged, [("a", range(3))], "dict"),
        (tagged, range(3), "dict"),
        (tagged, {1: range(3)}, "axis 1"),
        (tagged, {"fold": 3}, "'fold'.*3"),
        (3, {"a": range(3)}, "function first, not int"),
    ],
)
def test_what_is_no_grid_is_refused_at_once(fn, axes, says):
    with pytest.raises(TypeError, match=says):
        parmap.pgrid(fn, axes)


def test_an_axis_that_raises_as_it_is_read_raises_that():
    """Also a TypeError, which does not mean that the axis cannot be iterated over."""

    def broken():
        yield 1
        raise TypeError("in the middle")

    with pytest.raises(TypeError, match="in the middle"):
        parmap.pgrid(tagged, {"a": broken()})


def test_a_name_that_the_function_does_not_know_is_the_functions_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'flod'"):
        parmap.pgrid(lambda fold: fold, {"flod": range(3)})


def test_an_unknown_option_names_the_call():
    with pytest.raises(TypeError, match=r"pgrid\(\) has no option 'chunk'"):
        parmap.pgrid(tagged, {"a": range(3)}, chunk=3)


def test_costly_combinations_start_first():
    """A cost function gets the values in the order of the axes; results keep loop order."""
    started = []

    def run(size, power):
        started.append((size, power))
        return size**power

    axes = {"size": [1, 3, 2], "power": [2, 1]}
    chunks = parmap.Dynamic(size=1, cost=lambda size, power: size**power)
    with parmap.plan("threads", workers=1):
        grid = parmap.pgrid(run, axes, chunks=chunks)
    assert started == [(3, 2), (2, 2), (3, 1), (2, 1), (1, 2), (1, 1)]
    assert grid.nested() == [[1, 1], [9, 3], [4, 2]]


def test_failures_stand_in_their_places():
    def run(i, j):
        return i // j

    with parmap.plan("processes", workers=2):
        grid = parmap.pgrid(run, {"i": [4, 6], "j": [2, 0]}, errors="return")
    assert (grid[0, 0], grid[1, 0]) == (2, 3)
    assert [grid[0, 1].index, grid[1, 1].index] == [1, 3]
    assert isinstance(grid[1, 1].error, ZeroDivisionError)
    array = grid.to_numpy()
    assert array.dtype == object
    assert array.shape == (2, 2)
    assert array[1, 1] is grid[1, 1]
    frame = grid.to_frame()
    assert list(frame["j"]) == [2, 0, 2, 0]
    assert frame["value"].isna().tolist() == [False, True, False, True]
    assert frame["error"][1] is grid[0, 1]
    assert frame["error"].isna().tolist() == [True, False, True, False]


def test_the_first_failure_in_loop_order_is_raised():
    def run(i, j):
        if j:
            raise ValueError(i, j)

    with (
        parmap.plan("processes", workers=2),
        pytest.raises(ValueError) as caught,
    ):
        parmap.pgrid(run, {"i": range(3), "j": range(2)}, chunks=1)
    assert caught.value.args == (0, 1)


# -- item access --------------------------------------------------------------------------------

SIZES = st.lists(st.integers(0, 4), min_size=1, max_size=3)


def keys_for(size):
    ends = st.none() | st.integers(-size - 2, size + 2)
    steps = st.none() | st.integers(-3, 3).filter(bool)
    return st.integers(-size, size - 1) if size else st.nothing(), st.builds(
        slice, ends, ends, steps
    )


@given(data=st.data(), sizes=SIZES)
def test_items_are_those_of_an_array(data, sizes):
    """Whole numbers, negative ones and slices, of any step, as NumPy takes them."""
    grid = grid_of(*sizes)
    places = np.empty(sizes, dtype=object)
    for place in itertools.product(*map(range, sizes)):
        places[place] = place
    key = tuple(
        data.draw(st.one_of(keys_for(size))) for size in sizes[: data.draw(st.integers(0, 3))]
    )
    got, expected = grid[key], places[key]
    if isinstance(got, parmap.Grid):
        assert got.shape == expected.shape
        assert list(got.values) == list(expected.flat)
        # The axes went the same way as the values.
        left = [name for name, k in zip("abc", [*key, slice(None)] * 3, strict=False)]
        assert set(got.axes) <= set(left)
        for point, value in got:
            assert all(value["abc".index(name)] == at for name, at in point.items())
    else:
        assert got == expected


def test_one_key_needs_no_tuple():
    grid = grid_of(2, 3)
    assert list(grid[1].values) == [(1, 0), (1, 1), (1, 2)]
    assert grid[1].axes == {"b": (0, 1, 2)}
    assert grid[-1].axes == grid[1].axes
    assert grid[::-1].axes == {"a": (1, 0), "b": (0, 1, 2)}
    assert grid[np.int64(1), np.int64(2)] == (1, 2)
    assert grid[()].values == grid.values


@pytest.mark.parametrize("key", [2, -3, (0, 3), (0, -4), (5, 5), (0, 0, 0), (slice(None),) * 3])
def test_what_is_out_of_range_is_an_index_error(key):
    with pytest.raises(IndexError):
        grid_of(2, 3)[key]


@pytest.mark.parametrize("key", ["a", 1.0, None, ..., [0, 1]])
def test_what_is_no_index_is_a_type_error(key):
    with pytest.raises(TypeError):
        grid_of(2, 3)[key]


def test_iteration_gives_points_and_values():
    grid = parmap.pgrid(lambda x, y: x * y, {"x": [2, 3], "y": [5, 7]})
    assert list(grid) == [
        ({"x": 2, "y": 5}, 10),
        ({"x": 2, "y": 7}, 14),
        ({"x": 3, "y": 5}, 15),
        ({"x": 3, "y": 7}, 21),
    ]


@given(sizes=SIZES)
def test_nesting_is_that_of_the_loops(sizes):
    def loops(place, rest):
        return place if not rest else [loops((*place, i), rest[1:]) for i in range(rest[0])]

    assert grid_of(*sizes).nested() == loops((), sizes)


def test_a_grid_shows_its_axes():
    assert repr(grid_of(2, 3)) == "<Grid of a=2 × b=3: 6 values>"


def test_a_grid_is_a_value():
    """It can be pickled and compared, and not be changed."""
    grid = grid_of(2, 3)
    assert pickle.loads(pickle.dumps(grid)) == grid == grid_of(2, 3)
    assert grid != grid_of(3, 2)
    with pytest.raises(AttributeError):
        grid.values = ()


# -- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((1, 2, 3), "i"),
        ((1, 2.5), "f"),
        ((1j, 2), "c"),
        ((True, False), "b"),
        ((np.float32(1), np.float32(2)), "f"),
    ],
)
def test_numbers_become_an_array_of_numbers(values, kind):
    array = valued(*values).to_numpy()
    assert array.dtype.kind == kind
    assert array.shape == (len(values),)
    assert array.tolist() == list(values)
    if isinstance(values[0], np.generic):
        assert array.dtype == values[0].dtype


def test_arrays_of_one_shape_become_one_array():
    grid = parmap.pgrid(lambda i, j: np.full((4, 5), 10 * i + j), {"i": range(2), "j": range(3)})
    array = grid.to_numpy()
    assert array.shape == (2, 3, 4, 5)
    assert (array[1, 2] == 12).all()


RAGGED = {
    "of other lengths": (np.zeros(2), np.zeros(3)),
    "of other inner lengths": (np.zeros((2, 3)), np.zeros((2, 4))),
    "of other dimensions": (np.zeros((2, 2)), np.zeros(2)),
    "an array and a number": (np.zeros(2), 5.0),
    "one alone of objects": (np.array([None, 1], dtype=object),),
    "lists of other lengths": ([1, 2], [3]),
    "dicts": ({"a": 1}, {"b": 2}),
    "sets": ({1}, {2}),
    "none and a number": (None, 1),
    "nothing but none": (None, None),
    "huge numbers": (2**70, 1),
}


@pytest.mark.parametrize("name", list(RAGGED))
def test_all_else_becomes_an_array_of_objects(name):
    """Each element is the very result."""
    values = RAGGED[name]
    array = valued(*values).to_numpy()
    assert array.dtype == object
    assert array.shape == (len(values),)
    assert all(a is b for a, b in zip(array, values, strict=True))


@pytest.mark.parametrize(
    "values",
    [("ab", "c"), (1, "a"), ("a\0", "b"), (b"a\0", b"b"), (True, "yes"), (2.5, b"x")],
)
def test_texts_are_results_like_any_other(values):
    """None is cut short, padded, or made of a number; so they are objects."""
    array = valued(*values).to_numpy()
    assert array.tolist() == list(values)
    assert list(map(type, array.tolist())) == list(map(type, values))


def test_whole_numbers_are_not_rounded():
    """No type of NumPy's holds both of these; a float would, but as another number."""
    assert valued(2**63 + 1, -1).to_numpy().tolist() == [2**63 + 1, -1]


def test_grids_as_results_stay_grids():
    inner = lambda i: parmap.pgrid(lambda a, b: a * b + i, {"a": range(2), "b": range(3)})
    array = parmap.pgrid(inner, {"i": range(2)}).to_numpy()
    assert array.shape == (2,)
    assert array[1].nested() == inner(1).nested()


# -- tables ---------------------------------------------------------------------------------------


def test_a_table_has_one_row_per_call_in_loop_order():
    axes = {"i": [1, 2], "x": [0.5, 1.5], "name": ["a", "b"], "flag": [True, False]}
    frame = parmap.pgrid(lambda i, x, name, flag: i * x, axes).to_frame()
    rows = list(itertools.product(*axes.values()))
    assert list(frame[list(axes)].itertuples(index=False, name=None)) == rows
    assert frame["value"].tolist() == [i * x for i, x, *_ in rows]
    kinds = {name: pd.api.types.infer_dtype(frame[name]) for name in frame}
    assert kinds == {
        "i": "integer",
        "x": "floating",
        "name": "string",
        "flag": "boolean",
        "value": "floating",
    }
    assert frame["i"].dtype == np.int64
    assert frame["x"].dtype == np.float64
    assert frame["flag"].dtype == bool
    assert frame["value"].dtype == np.float64
    assert frame.index.tolist() == list(range(16))


@pytest.mark.parametrize(
    "values",
    [
        (np.zeros(2), np.ones(2)),
        (np.zeros((2, 2)), np.ones((2, 2))),
        (np.zeros(2), np.ones(3)),
        ((1, 2), (3, 4)),
        ([1, 2], [3]),
        ({"a": 1}, 2),
        ({1: 1}, {1: 2}),
        ({}, {}),
        (None, 1),
        ("a", 2),
        (range(2), range(3)),
    ],
)
def test_a_cell_holds_a_whole_result(values):
    """Also where it is an array, a list or a dict."""
    frame = valued(*values).to_frame()
    assert frame.shape == (2, 2)
    for cell, value in zip(frame["value"], values, strict=True):
        if isinstance(value, np.ndarray):
            assert np.array_equal(cell, value)
        else:
            assert cell == value or (value is None and pd.isna(cell))


@pytest.mark.parametrize("axis", [[(1, 2), (3, 4)], [np.zeros(2), np.ones(2)], [[1], [2, 3]]])
def test_an_axis_may_hold_anything(axis):
    frame = parmap.pgrid(lambda p: len(p), {"p": axis}).to_frame()
    assert all(a is b for a, b in zip(frame["p"], axis, strict=True))


class Fit(NamedTuple):
    slope: float
    name: str


class Odd(tuple):
    """A tuple that is no named tuple, although it looks like one."""

    __slots__ = ()

    _fields = (1, 2)


class Plain(dict):
    """A dict whose methods are not the dict's own."""

    def __iter__(self):
        raise AssertionError("asked")

    items = keys = __len__ = __iter__


def test_what_only_looks_like_a_named_tuple_is_one_cell():
    assert list(valued(Odd((1, 2))).to_frame().columns) == ["i", "value"]
    assert valued(Odd((1, 2))).to_frame()["value"][0] == (1, 2)


@pytest.mark.parametrize("kind", [dict, Fit, Plain, lambda **row: row])
def test_dicts_and_named_tuples_have_a_column_for_each_of_their_names(kind):
    grid = parmap.pgrid(lambda n, m: kind(slope=n / m, name=f"{n}/{m}"), {"n": [1, 2], "m": [2, 4]})
    frame = grid.to_frame()
    assert frame.to_dict("list") == {
        "n": [1, 1, 2, 2],
        "m": [2, 4, 2, 4],
        "slope": [0.5, 0.25, 1.0, 0.5],
        "name": ["1/2", "1/4", "2/2", "2/4"],
    }
    assert frame["slope"].dtype == np.float64
    assert frame.groupby("n")["slope"].mean().tolist() == [0.375, 0.75]


def test_a_name_that_some_dicts_lack_is_missing_there():
    frame = valued({"a": 1}, {"b": "x", "a": 2}, {"b": "y"}).to_frame()
    assert list(frame.columns) == ["i", "a", "b"]
    assert frame["a"].tolist()[:2] == [1, 2]
    assert frame["b"].tolist()[1:] == ["x", "y"]
    assert frame.isna().to_numpy().tolist() == [
        [False, False, True],
        [False, False, False],
        [False, True, False],
    ]


def test_failures_among_dicts_leave_gaps():
    def fit(n):
        if n == 1:
            raise ValueError(n)
        return {"slope": n, "size": 2**60 + n}

    grid = parmap.pgrid(fit, {"n": range(3)}, errors="return")
    frame = grid.to_frame()
    assert list(frame.columns) == ["n", "slope", "size", "error"]
    assert frame["error"].tolist() == [None, grid[1], None]
    assert frame["slope"].dropna().tolist() == [0, 2]
    assert frame["size"].dropna().tolist() == [2**60, 2**60 + 2]  # not rounded to floats
    assert frame[frame["error"].isna()]["n"].tolist() == [0, 2]


def test_the_column_of_failures_does_not_depend_on_luck():
    """A script that reads it works also where nothing failed, and where everything did."""
    axes = {"n": range(2), "m": range(2)}
    grid = parmap.pgrid(lambda n, m: n + m, axes, errors="return")
    assert list(grid.to_frame().columns) == ["n", "m", "value", "error"]
    assert grid.to_frame()["error"].isna().all()
    assert list(grid[0].to_frame().columns) == ["m", "value", "error"]
    assert pickle.loads(pickle.dumps(grid)).to_frame().equals(grid.to_frame())
    grid = parmap.pgrid(lambda n, m: 1 / 0, axes, errors="return")
    assert grid.to_frame()["value"].isna().all()
    assert grid.to_frame()["error"].tolist() == list(grid.values)
    grid = parmap.pgrid(lambda n, m: n + m, axes)
    assert list(grid.to_frame().columns) == ["n", "m", "value"]


@pytest.mark.parametrize(
    ("axis", "result", "errors"),
    [
        ("n", {"n": 1}, "raise"),
        ("n", {"error": 1}, "return"),
        ("error", 1, "return"),
        ("value", 1, "raise"),
    ],
)
def test_two_columns_of_one_name_are_refused(axis, result, errors):
    grid = parmap.pgrid(lambda **point: result, {axis: range(2)}, errors=errors)
    with pytest.raises(ValueError, match="rename"):
        grid.to_frame()


def test_an_axis_s_name_is_no_position():
    grid = parmap.pgrid(lambda n, m: n * m, {"n": [1, 2], "m": [3, 4, 5]})
    with pytest.raises(TypeError) as caught:
        grid["m"]
    said = str(caught.value)
    assert "grid.axes['m'] holds the values of this axis" in said
    assert "grid[:, grid.axes['m'].index(value)]" in said
    assert grid[:, grid.axes["m"].index(4)].nested() == [4, 8]
    with pytest.raises(TypeError, match=r"grid\['k'\]: a grid is indexed by position.*Axes: n, m"):
        grid["k"]
    with pytest.raises(TypeError, match=r"grid\[1.0\]: a grid is indexed by position"):
        grid[0, 1.0]
    assert grid[np.int64(1), 0] == 6


def test_an_axis_called_value_has_no_place_in_a_table():
    grid = parmap.pgrid(lambda value: value, {"value": range(2)})
    assert grid.nested() == [0, 1]
    with pytest.raises(ValueError, match="rename the axis"):
        grid.to_frame()


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(parmap.BackendUnavailable, match="pip install pandas"):
        grid_of(2).to_frame()


@given(sizes=SIZES, seed=st.integers(0, 99))
def test_all_views_agree(sizes, seed):
    """Nested lists, array, table, items and iteration show the same values."""
    numbers = random.Random(seed)
    values = {p: numbers.random() for p in itertools.product(*map(range, sizes))}
    axes = {name: range(n) for name, n in zip("abc", sizes, strict=False)}
    grid = parmap.pgrid(lambda **point: values[tuple(point.values())], axes)
    assert grid.to_numpy().tolist() == grid.nested()
    assert grid.to_frame()["value"].tolist() == list(values.values())
    assert [value for _, value in grid] == list(values.values())
    assert all(grid[place] == value for place, value in values.items())
