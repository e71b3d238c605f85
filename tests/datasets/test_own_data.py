import numpy as np
import pandas
import pytest

from tfopt import datasets

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((120, 3)), np.arange(120) % 3


def test_arrays_are_split_and_standardised_as_load_does():
    digits = datasets.load("digits", standardize=False, seed=3)
    whole = np.concatenate([digits.x_train, digits.x_test]), np.concatenate([digits.y_train, digits.y_test])
    given = [array.copy() for array in whole]
    data = datasets.from_arrays(*given, validation_fraction=0.2, num_rows=1000)
    for array, before in zip(given, whole, strict=True):
        np.testing.assert_array_equal(array, before)  # left as they were
    assert repr(data) == "Dataset('arrays': 800 train, 200 validation, 450 test; inputs (8, 8, 1), 10 classes)"
    assert np.abs(np.bincount(data.y_test) - np.bincount(whole[1]) / 4).max() < 1  # stratified
    np.testing.assert_allclose([data.x_train.mean(), data.x_train.std()], [0.0, 1.0], atol=1e-5)


def test_columns_far_from_zero_are_standardised_in_float64():
    """A time stamp near 1.7e9 with a deviation of 1 has no digit left in float32."""
    x = X * [1.0, 1e-12, 3.0] + [1.7e9, 0.0, -4.0]
    data = datasets.from_arrays(x, Y)
    order = datasets.from_arrays(np.arange(120.0)[:, None], Y, standardize=False).x_train[:, 0].astype(int)
    part = X[order]
    np.testing.assert_allclose(data.x_train, (part - part.mean(axis=0)) / part.std(axis=0), atol=1e-5)


def test_means_are_zero_far_from_zero_in_float32():
    x = (X + np.array([1e6, 0.0, -3e4])).astype(np.float32)
    data = datasets.from_arrays(x[:100], Y[:100], x_test=x[100:], y_test=Y[100:])
    exact = x[:100].astype(np.float64)
    np.testing.assert_allclose(data.x_train, (exact - exact.mean(axis=0)) / exact.std(axis=0), atol=1e-5)


@pytest.mark.parametrize("dtype", [str, object, bytes, "bytes"])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_words_are_classes_in_alphabetical_order(dtype, shape):
    words = np.array(["pear", "apple", "fig"])[Y].reshape(shape)
    words = words.astype("S").astype(object) if dtype == "bytes" else words.astype(dtype)
    data = datasets.from_arrays(X[:100], words[:100], x_test=X[100:], y_test=words[100:])
    assert (data.class_names, data.num_classes) == (("apple", "fig", "pear"), 3)
    np.testing.assert_array_equal(data.y_train, np.array([2, 0, 1])[Y[:100]])
    np.testing.assert_array_equal(data.y_test, np.array([2, 0, 1])[Y[100:]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_constant_columns_are_only_shifted(dtype):
    x = np.column_stack([np.arange(120), np.full(120, 7)]).astype(dtype)
    data = datasets.from_arrays(x, Y)
    np.testing.assert_array_equal(data.x_train[:, 1], 0.0)
    np.testing.assert_allclose(data.x_train[:, 0].std(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("value", [0.1, 3.3, 21.3, 1e6 + 0.1, 0.0, -5.7])
def test_a_column_that_is_constant_in_the_training_part_keeps_its_unit(value):
    """The mean of equal numbers differs from them by rounding, which is no deviation."""
    x, x_test = np.column_stack([np.full(1000, value), np.arange(1000)]), np.array([[value, 0.0], [value + 0.25, 1.0]])
    data = datasets.from_arrays(x, np.arange(1000) % 2, x_test=x_test, y_test=np.array([0, 1]))
    np.testing.assert_array_equal(data.x_train[:, 0], 0.0)
    np.testing.assert_allclose(data.x_test[:, 0], [0.0, 0.25], atol=1e-6)


def test_a_test_part_of_ones_own():
    data = datasets.from_arrays(X[:100], Y[:100, None], x_test=X[100:], y_test=Y[100:, None])
    mean, deviation = X[:100].mean(axis=0), X[:100].std(axis=0)
    np.testing.assert_allclose(data.x_train, (X[:100] - mean) / deviation, atol=1e-6)
    np.testing.assert_allclose(data.x_test, (X[100:] - mean) / deviation, atol=1e-6)
    np.testing.assert_array_equal(data.y_test, Y[100:])


@pytest.mark.parametrize("shape", [(120,), (120, 1), (120, 2)])
def test_regression(shape):
    y = RNG.standard_normal(shape)
    data = datasets.from_arrays(X, y, name="mine", test_fraction=0.5)
    assert repr(data) == "Dataset('mine': 60 train, 60 test; inputs (3,), regression)"
    assert (data.y_train.shape, data.y_train.dtype, data.num_classes) == ((60, *shape[1:]), np.float32, None)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"x": X.ravel()}, ValueError, "`x` must have one or more rows of features"),
        ({"x": X[:5]}, ValueError, "`y` must have a label for each of the 5 rows of `x`"),
        ({"x": np.where(np.arange(120)[:, None] == 7, np.nan, X)}, ValueError, "`x` must hold finite numbers. Row 7"),
        ({"x": X.astype(str)}, TypeError, "`x` must hold real numbers"),
        ({"y": Y - 1}, ValueError, "`y` must hold classes >= 0. Received: -1"),
        ({"y": np.eye(3, dtype=int)[Y]}, ValueError, "`y` must have a label for each"),
        (
            {"y": np.array(["a", "b", "c"])[Y], "x_test": X, "y_test": Y},
            TypeError,
            "must both hold words, or both hold n",
        ),
        ({"y": np.array(["a", None, 2.0], object)[Y]}, TypeError, "`y` must hold real numbers, or words. Received"),
        ({"y": np.where(Y == 1, np.inf, Y)}, ValueError, "`y` must hold finite numbers. Row 1"),
        ({"y": np.array([5] + [0] * 119)}, ValueError, "two or more rows of each class.* one row of class 5"),
        ({"x_test": X}, ValueError, "`x_test` and `y_test` must both"),
        ({"x_test": X[:, :2], "y_test": Y}, ValueError, r"`x_test` must have rows like `x`: shape \(3,\)"),
        ({"x_test": X, "y_test": Y + 0.5}, ValueError, "`y_test` must have rows like `y`"),
        ({"num_rows": 91}, ValueError, "`num_rows` must be at most the 90 training rows"),
        ({"test_fraction": 1.5}, ValueError, "`test_fraction` must be"),
        ({"name": 3}, TypeError, "`name` must be a string"),
    ],
)
def test_bad_arrays(arguments, error, match):
    with pytest.raises(error, match=match):
        datasets.from_arrays(**{"x": X, "y": Y, **arguments})


PRICES = np.random.default_rng(1).integers(0, 10_000, 120)
TO_FLOAT = r".*integers or words are taken as classes. For a regression, convert .*\.astype\('float64'\)"


@pytest.mark.parametrize(
    ("y", "arguments", "match"),
    [
        (PRICES, {}, "two or more rows of each class"),
        (PRICES[:, None], {"test_fraction": 0.5}, "two or more rows of each class"),
        (10**12 * (PRICES // 100), {}, "two or more rows of each class"),
        (np.arange(120) // 2, {}, "`test_fraction` must leave a row of each of the 60 classes"),
        (np.arange(120) // 4, {"validation_fraction": 0.1}, "`validation_fraction` must leave a row of each"),
        (
            PRICES,
            {"x_test": X, "y_test": PRICES, "validation_fraction": 0.1},
            "`validation_fraction` needs two or more",
        ),
        (-PRICES, {}, "`y` must hold classes >= 0"),
        (np.stack([PRICES, PRICES], axis=1), {}, r"Received: dtype int64, shape \(120, 2\)"),
    ],
)
def test_integers_of_a_regression_are_told_to_be_classes(y, arguments, match):
    with pytest.raises(ValueError, match=match + TO_FLOAT):
        datasets.from_arrays(X, y, **arguments)
    as_numbers = {name: value.astype(float) if name == "y_test" else value for name, value in arguments.items()}
    assert datasets.from_arrays(X, y.astype(float), **as_numbers).num_classes is None
    if y.ndim == 1 and not arguments and y.min() == 0:
        with pytest.raises(ValueError, match=match + TO_FLOAT):
            datasets.from_table(TABLE.assign(price=y), "price", features=["a"])


TABLE = pandas.DataFrame({
    "a": X[:, 0],
    "b": Y * 10,
    "c": Y == 0,
    "kind": np.array(["x", "z", "y"])[Y],
    "price": X[:, 1],
})


@pytest.mark.parametrize("form", ["frame", "csv", "csv.gz"])
def test_tables(form, tmp_path):
    table = TABLE
    if form != "frame":
        table = tmp_path / f"mine.{form}"
        TABLE.to_csv(table, index=False)
    data = datasets.from_table(table, "kind", standardize=False, validation_fraction=0.1)
    name = "table" if form == "frame" else "mine"
    assert repr(data) == f"Dataset({name!r}: 81 train, 9 validation, 30 test; inputs (4,), 3 classes)"
    assert data.class_names == ("x", "y", "z")
    words = {0: "x", 20: "y", 10: "z"}
    for b, label in zip(data.x_train[:, 1], data.y_train, strict=True):
        assert data.class_names[label] == words[int(b)]
    assert datasets.from_table(table, "price", features=["a", "c"]).num_classes is None
    assert datasets.from_table(table, "c", features=["a"]).num_classes == 2


@pytest.mark.parametrize(
    ("table", "arguments", "match"),
    [
        (TABLE, {"target": "d"}, "The table has no column 'd'. Its columns are: a, b"),
        (TABLE, {"target": "b"}, "Column 'kind' must hold numbers.*pandas.get_dummies"),
        (TABLE, {"target": "b", "features": ["a", "q"]}, "The table has no column 'q'"),
        (TABLE, {"target": "b", "features": ["a", "b"]}, "`features` must name columns other than the target 'b'"),
        (TABLE.assign(a=[np.nan] + [0.0] * 119), {"target": "kind"}, "Column 'a' has 1 gaps, the first in row 1"),
        (pandas.concat([TABLE, TABLE["a"]], axis=1), {"target": "kind"}, "The table has more than one column 'a'"),
        (pandas.concat([TABLE, TABLE["kind"]], axis=1), {"target": "kind"}, "more than one column 'kind'"),
        ("table.xlsx", {"target": "b"}, "must be a data frame or a file .csv"),
    ],
)
def test_bad_tables(table, arguments, match):
    with pytest.raises(ValueError, match=match):
        datasets.from_table(table, **arguments)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(FileNotFoundError):
        datasets.from_table(tmp_path / "none.csv", "a")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty.csv could not be read as a table"):
        datasets.from_table(tmp_path / "empty.csv", "a")
