import gzip
import os

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from tfopt import datasets
from tfopt.datasets.higgs import _parse_higgs, read_higgs


@pytest.mark.parametrize(
    ("name", "rows", "shape", "classes"), [("digits", 1797, (8, 8, 1), 10), ("breast_cancer", 569, (30,), 2)]
)
def test_data_that_ship_with_scikit_learn(name, rows, shape, classes):
    data = datasets.load(name, validation_fraction=0.2)
    sizes = [len(data.y_train), len(data.y_validation), len(data.y_test)]
    assert sum(sizes) == rows
    assert sizes[2] == pytest.approx(0.25 * rows, abs=1)
    assert sizes[1] == pytest.approx(0.2 * 0.75 * rows, abs=1)
    assert data.input_shape == shape
    assert data.num_classes == classes
    assert data.x_train.dtype == np.float32
    assert data.y_train.dtype == np.int64
    assert set(np.unique(data.y_train)) == set(range(classes))


def test_standardisation_is_fitted_on_the_training_part():
    data = datasets.load("breast_cancer")
    np.testing.assert_allclose(data.x_train.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(data.x_train.std(axis=0), 1.0, atol=1e-4)
    assert np.abs(data.x_test.mean(axis=0)).max() > 1e-3
    raw = datasets.load("breast_cancer", standardize=False)
    expected = (raw.x_test - raw.x_train.mean(axis=0)) / raw.x_train.std(axis=0)
    np.testing.assert_allclose(data.x_test, expected, rtol=1e-3, atol=1e-4)


def test_splits_depend_on_the_seed_only():
    first, again, other = (datasets.load("digits", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x_train, again.x_train)
    assert (first.y_train != other.y_train).any()
    counts = [np.bincount(data.y_test, minlength=10) for data in (first, other)]
    assert np.abs(counts[0] - counts[1]).max() <= 1  # stratified


def test_fewer_rows_are_the_first_ones_of_the_training_part():
    whole, part = datasets.load("digits"), datasets.load("digits", num_rows=200, validation_fraction=0.1)
    assert sorted([len(part.y_train), len(part.y_validation)]) == [20, 180]
    np.testing.assert_array_equal(part.y_test, whole.y_test)
    kept = np.concatenate([part.y_train, part.y_validation])
    np.testing.assert_array_equal(np.bincount(kept), np.bincount(whole.y_train[:200]))
    np.testing.assert_allclose(part.x_train.mean(axis=(0, 1, 2)), 0.0, atol=1e-6)


def test_flattened_and_repr():
    data = datasets.load("digits")
    assert data.flattened().x_test.shape == (450, 64)
    np.testing.assert_array_equal(data.flattened().x_train[5], data.x_train[5].ravel())
    assert repr(data) == "Dataset('digits': 1,347 train, 450 test; inputs (8, 8, 1), 10 classes)"


@pytest.fixture
def higgs_rows():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 29)).astype(np.float32)
    rows[:, 0] = rng.integers(0, 2, 40)
    return rows


def write_higgs(path, rows):
    lines = "".join(",".join(f"{value:.18e}" for value in row) + "\n" for row in rows)
    if path.suffix == ".gz":
        with gzip.open(path, "wt") as sink:
            sink.write(lines)
    else:
        path.write_text(lines)


@pytest.mark.parametrize("name", ["HIGGS.csv", "HIGGS.csv.gz"])
def test_higgs_is_parsed_once_and_cached(name, higgs_rows, tmp_path):
    write_higgs(tmp_path / name, higgs_rows)
    data = datasets.load("higgs", data_dir=tmp_path, standardize=False)
    np.testing.assert_array_equal(data.x_train, higgs_rows[:30, 1:])
    np.testing.assert_array_equal(data.x_test, higgs_rows[30:, 1:])
    np.testing.assert_array_equal(data.y_train, higgs_rows[:30, 0].astype(int))
    (tmp_path / name).unlink()
    again = datasets.load("higgs", data_dir=str(tmp_path), standardize=False)
    np.testing.assert_array_equal(again.x_train, data.x_train)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["HIGGS.npy"]


def test_higgs_in_several_chunks(higgs_rows, tmp_path):
    write_higgs(tmp_path / "HIGGS.csv", higgs_rows)
    _parse_higgs(tmp_path / "HIGGS.csv", tmp_path / "HIGGS.npy", chunk_rows=20)
    np.testing.assert_array_equal(np.load(tmp_path / "HIGGS.npy"), higgs_rows)


def test_higgs_can_be_cut_to_fewer_rows(tmp_path):
    rows = np.ones((600, 29), dtype=np.float32)
    rows[::2, 0] = 0
    write_higgs(tmp_path / "HIGGS.csv", rows)
    assert len(datasets.load("higgs", data_dir=tmp_path, num_rows=100).y_train) == 100


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[:, :20], "row 1: expected a label 0 or 1 and 28 finite numbers"),
        (lambda rows: np.where(np.arange(40)[:, None] == 7, np.nan, rows), r"row 8: expected a label 0 or 1"),
        (lambda rows: rows + 0.5, r"row 1: expected a label 0 or 1"),
        (lambda rows: rows[:3], "holds 3 rows"),
        (lambda rows: np.vstack([np.arange(29), rows]), "row 1: .* Received: the numbers of the columns, as pandas"),
        (lambda rows: np.vstack([1 + np.arange(29), rows]), "row 1: .* Received: the numbers of the columns"),
    ],
)
def test_bad_higgs_files_are_named_and_leave_no_cache(spoil, message, higgs_rows, tmp_path):
    write_higgs(tmp_path / "HIGGS.csv", spoil(higgs_rows))
    with pytest.raises(ValueError, match=message):
        datasets.load("higgs", data_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["HIGGS.csv"]


def test_a_newer_higgs_file_replaces_the_cache(higgs_rows, tmp_path):
    write_higgs(tmp_path / "HIGGS.csv", higgs_rows[:20])
    assert len(datasets.load("higgs", data_dir=tmp_path).y_train) == 15
    write_higgs(tmp_path / "HIGGS.csv", higgs_rows)
    later = (tmp_path / "HIGGS.npy").stat().st_mtime + 10
    os.utime(tmp_path / "HIGGS.csv", (later, later))
    assert len(datasets.load("higgs", data_dir=tmp_path).y_train) == 30


@pytest.mark.parametrize("name", ["HIGGS.csv", "HIGGS.csv.gz"])
def test_a_higgs_cache_of_another_file_is_named(name, higgs_rows, tmp_path):
    """Its time says nothing: unpacking and copying keep the times of texts."""
    write_higgs(tmp_path / name, higgs_rows)
    os.utime(tmp_path / name, (0, 0))
    np.save(tmp_path / "HIGGS.npy", higgs_rows)
    assert len(datasets.load("higgs", data_dir=tmp_path).y_train) == 30
    others = [higgs_rows[::-1], np.roll(higgs_rows, 1, axis=0)]
    if name == "HIGGS.csv":  # only the beginning of a compressed text is quick to read
        others.append(higgs_rows[:20])
    for other in others:
        np.save(tmp_path / "HIGGS.npy", np.ascontiguousarray(other))
        with pytest.raises(ValueError, match=rf"HIGGS.npy was not made from {name} beside it"):
            datasets.load("higgs", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["HIGGS.csv", "HIGGS.csv.gz"])
def test_a_higgs_text_that_is_cut_in_its_last_row_is_named(name, higgs_rows, tmp_path):
    """A shorter number is a number too: only the line break tells that it is whole."""
    write_higgs(tmp_path / "HIGGS.csv", higgs_rows)
    text = (tmp_path / "HIGGS.csv").read_bytes()
    (tmp_path / "HIGGS.csv").unlink()
    for num_characters in range(1, 40):
        cut = text[:-num_characters]
        (tmp_path / name).write_bytes(gzip.compress(cut) if name.endswith(".gz") else cut)
        with pytest.raises(ValueError, match=rf"{name}( is damaged or cut off: row 40 has no|, row|, rows from) "):
            datasets.load("higgs", data_dir=tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("end", ["", "\n", "\n\n \n", "\r\n"])
def test_blank_lines_at_the_end_of_a_higgs_text_do_no_harm(end, higgs_rows, tmp_path):
    write_higgs(tmp_path / "HIGGS.csv", higgs_rows)
    text = (tmp_path / "HIGGS.csv").read_text()
    (tmp_path / "HIGGS.csv").write_text(text + end)
    for _ in range(2):  # from the text, then from the cache
        data = datasets.load("higgs", data_dir=tmp_path, standardize=False)
        np.testing.assert_array_equal(np.concatenate([data.x_train, data.x_test]), higgs_rows[:, 1:])
    for chunk_rows in (13, 20, 40):  # the end in one chunk with rows, and not
        _parse_higgs(tmp_path / "HIGGS.csv", tmp_path / "HIGGS.npy", chunk_rows)
        np.testing.assert_array_equal(np.load(tmp_path / "HIGGS.npy"), higgs_rows)
    (tmp_path / "HIGGS.npy").unlink()
    first, rest = text.split("\n", 1)
    (tmp_path / "HIGGS.csv").write_text(f"{first}\n\n{rest}{end}")
    with pytest.raises(ValueError, match=r"HIGGS.csv, row 2: expected a label 0 or 1"):
        datasets.load("higgs", data_dir=tmp_path)


def test_the_newer_text_of_higgs_counts(higgs_rows, tmp_path):
    write_higgs(tmp_path / "HIGGS.csv", higgs_rows[:20])
    os.utime(tmp_path / "HIGGS.csv", (0, 0))
    write_higgs(tmp_path / "HIGGS.csv.gz", higgs_rows)
    assert len(datasets.load("higgs", data_dir=tmp_path).y_train) == 30


def test_damaged_higgs_files_are_named(higgs_rows, tmp_path):
    write_higgs(tmp_path / "HIGGS.csv.gz", higgs_rows)
    whole = (tmp_path / "HIGGS.csv.gz").read_bytes()
    (tmp_path / "HIGGS.csv.gz").write_bytes(whole[:-200])
    with pytest.raises(ValueError, match="HIGGS.csv.gz is damaged or cut off"):
        datasets.load("higgs", data_dir=tmp_path)
    spoilt = bytearray(whole)
    spoilt[len(whole) // 2] ^= 255
    (tmp_path / "HIGGS.csv.gz").write_bytes(spoilt)
    with pytest.raises(ValueError, match="HIGGS.csv.gz is damaged or cut off"):
        datasets.load("higgs", data_dir=tmp_path)
    (tmp_path / "HIGGS.csv.gz").unlink()
    (tmp_path / "HIGGS.csv").write_bytes(b"1.0,\xff\xfe\n" * 20)
    with pytest.raises(ValueError, match="HIGGS.csv is damaged or cut off"):
        datasets.load("higgs", data_dir=tmp_path)
    (tmp_path / "HIGGS.csv").unlink()
    (tmp_path / "HIGGS.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="HIGGS.npy is damaged .* Delete it"):
        datasets.load("higgs", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[:, :5], r"29 float32 numbers, .*Received: an array of shape \(40, 5\) and dtype float32. D"),
        (lambda rows: rows.astype(np.float64), r"Received: an array of shape \(40, 29\) and dtype float64"),
        (lambda rows: rows[:3], r"must hold 8 or more rows"),
        (lambda rows: rows[0], r"Received: an array of shape \(29,\)"),
        (lambda rows: np.array(3.0), r"Received: an array of shape \(\) and dtype float64"),
        (
            lambda rows: np.where(np.arange(40)[:, None] == 7, np.float32(np.nan), rows),
            "HIGGS.npy, row 8: expected a l",
        ),
        (lambda rows: np.where(np.arange(40)[:, None] == 39, np.float32(np.inf), rows), "HIGGS.npy, row 40: expected"),
        (
            lambda rows: np.vstack([np.arange(29, dtype=np.float32), rows]),
            "HIGGS.npy, row 1: .* numbers of the columns",
        ),
        (lambda rows: rows + np.float32(0.5), r"row 1: expected a label 0 or 1"),
        (lambda rows: rows[:, ::-1], r"row 1: expected a label 0 or 1"),
        (lambda rows: rows.astype(object), "is damaged"),
    ],
)
def test_foreign_higgs_caches_are_named(spoil, message, higgs_rows, tmp_path, monkeypatch):
    monkeypatch.setattr("tfopt.datasets.higgs._CHUNK_ROWS", 9)
    np.save(tmp_path / "HIGGS.npy", spoil(higgs_rows), allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        datasets.load("higgs", data_dir=tmp_path)


def test_higgs_caches_of_other_kinds_are_named(higgs_rows, tmp_path, monkeypatch):
    cache = tmp_path / "HIGGS.npy"
    np.save(cache, higgs_rows)
    whole = cache.read_bytes()
    monkeypatch.setattr("tfopt.datasets.higgs._CHUNK_ROWS", 9)
    data = datasets.load("higgs", data_dir=tmp_path, standardize=False)
    np.testing.assert_array_equal(np.concatenate([data.x_train, data.x_test]), higgs_rows[:, 1:])
    assert data.x_train.dtype == np.float32
    for content in (whole[:-1], whole[: -29 * 4], whole[:60], whole + b"0", b"label,lepton pT\n", b"\x80\x04K\x01."):
        cache.write_bytes(content)
        with pytest.raises(ValueError, match=r"HIGGS.npy is damaged.*Delete it: it is rebuilt"):
            datasets.load("higgs", data_dir=tmp_path)
    with cache.open("wb") as sink:
        np.savez(sink, rows=higgs_rows)
    with pytest.raises(ValueError, match="HIGGS.npy must hold one array. Received: a NpzFile"):
        datasets.load("higgs", data_dir=tmp_path)


def test_flipped_bits_in_the_header_of_a_higgs_cache_are_seen(higgs_rows, tmp_path):
    """One bit of each of the 128 bytes before the rows. What is read all the same has the same rows."""
    cache = tmp_path / "HIGGS.npy"
    np.save(cache, higgs_rows)
    whole = cache.read_bytes()
    for place in range(128):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << place % 8
        cache.write_bytes(spoilt)
        try:
            x_train, y_train, x_test, y_test = read_higgs(tmp_path, None)
        except ValueError as error:
            assert "HIGGS.npy" in str(error)  # noqa: PT017
        else:
            np.testing.assert_array_equal(np.concatenate([x_train, x_test]), higgs_rows[:, 1:])
            np.testing.assert_array_equal(np.concatenate([y_train, y_test]), higgs_rows[:, 0])


def test_more_higgs_rows_than_there_are(higgs_rows, tmp_path):
    write_higgs(tmp_path / "HIGGS.csv", higgs_rows)
    with pytest.raises(ValueError, match="`num_rows` must be at most the 30 training rows"):
        datasets.load("higgs", data_dir=tmp_path, num_rows=100)


def test_higgs_that_is_not_a_table(tmp_path):
    (tmp_path / "HIGGS.csv").write_text("label,lepton pT\n1,2\n")
    with pytest.raises(ValueError, match="row 1: expected a label 0 or 1 .* Received: .label,lepton pT"):
        datasets.load("higgs", data_dir=tmp_path)


def test_missing_higgs_says_which_file_goes_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"needs HIGGS.csv or HIGGS.csv.gz in .*11,000,000 rows"):
        datasets.load("higgs", data_dir=tmp_path)


def test_higgs_like_needs_more_than_a_linear_classifier():
    data = datasets.load("higgs_like", num_rows=60_000)
    linear = LogisticRegression(max_iter=200).fit(data.x_train, data.y_train).score(data.x_test, data.y_test)
    assert 0.62 < linear < 0.66
    network = MLPClassifier((64,), batch_size=500, learning_rate_init=3e-3, max_iter=12, random_state=0)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        network.fit(data.x_train, data.y_train)
    assert network.score(data.x_test, data.y_test) > 0.75


def test_higgs_like_is_its_written_formula():
    """An independent transcription, one row at a time."""
    x, y = datasets.make_higgs_like(200, seed=5)
    rng = np.random.default_rng(5)
    normals, uniforms = rng.standard_normal((200, 21)), rng.random(200)
    for row in range(200):
        u = normals[row]
        p, eta, phi = np.exp(u[:7] / 2), u[7:14], np.pi * np.tanh(0.8 * u[14:])
        m = [
            np.sqrt(
                p[k] * p[(k + 1) % 7] * (np.cosh(eta[k] - eta[(k + 1) % 7]) - np.cos(phi[k] - phi[(k + 1) % 7])) + 0.01
            )
            for k in range(7)
        ]
        np.testing.assert_allclose(x[row], np.concatenate([p, eta, phi, m]), rtol=1e-5)
        b = np.exp(-2 * (np.log(m) - 0.3) ** 2)
        s = 0.75 * (u[0] - u[1] + 0.7 * u[7] - 0.5 * u[14]) + 0.8 * (u[8] * u[9] - u[2] * u[15])
        s += 2.6 * (b[0] + b[2] + b[4] - b[1] - b[3] - b[5])
        assert y[row] == (uniforms[row] < 1 / (1 + np.exp(-s)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "mnits"}, ValueError, "`name` must be one of 'digits'"),
        ({"seed": -1}, ValueError, "`seed` must be an integer >= 0"),
        ({"test_fraction": 0}, ValueError, "`test_fraction` must be"),
        ({"test_fraction": 1.0}, ValueError, "`test_fraction` must be"),
        ({"validation_fraction": -0.1}, ValueError, "`validation_fraction` must be"),
        ({"test_fraction": 1e-4}, ValueError, "`test_fraction` must leave"),
        ({"validation_fraction": 0.9999}, ValueError, "`validation_fraction` must leave"),
        ({"standardize": "no"}, TypeError, "`standardize` must be True or False"),
        ({"data_dir": "/x"}, ValueError, "`data_dir` applies only to data in files, not to 'digits'"),
        ({"name": "higgs", "data_dir": 3}, TypeError, "`data_dir` must be a path"),
        ({"name": "mnist", "data_dir": __file__}, ValueError, "`data_dir` must be a folder"),
        ({"seed": 2**32}, ValueError, "`seed` must be an integer >= 0 and <= 4294967295"),
        ({"num_rows": 1}, ValueError, "`num_rows` must be an integer >= 2"),
        ({"num_rows": 5000}, ValueError, "`num_rows` must be at most the 1,347 training rows"),
        ({"name": "higgs_like", "num_rows": 3}, ValueError, "`num_rows` must be an integer >= 100"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        datasets.load(**{"name": "digits", **arguments})
