"""The image sets are read from files of the true format, with few rows, and from nothing else."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile

import keras
import numpy as np
import pytest

from tfopt import datasets
from tfopt.datasets import images
from tfopt.datasets.cifar import CIFAR

NUM_TRAIN, NUM_TEST = 15, 5


def make_arrays(name):
    """Return images (20, ...) uint8 and labels (20,), of which the first ones are those of the true set."""
    rng = np.random.default_rng(0)
    shape = (32, 32, 3) if name in CIFAR else (28, 28)
    labels = rng.integers(0, 100 if name == "cifar100" else 10, NUM_TRAIN + NUM_TEST).astype(np.uint8)
    labels[:10] = images._FIRST_LABELS.get(name, labels[:10])
    return rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels


def write_idx(folder, name, ending="", part="train", stem="{}-idx{}-ubyte", rows=slice(NUM_TRAIN)):
    x, y = (array[rows] for array in make_arrays(name))
    for kind, array, size in (("images", x, 3), ("labels", y, 1)):
        content = struct.pack(f">I{size}I", 2048 + size, *array.shape) + array.tobytes()
        file = f"{part}-{stem.format(kind, size)}{ending}"
        (folder / file).write_bytes(gzip.compress(content) if ending else content)


def write_four_idx(folder, name, **options):
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder, name, **options)
    write_idx(folder, name, part="t10k", rows=slice(NUM_TRAIN, None), **options)


def cifar_files(name):
    """Return the content of each file of the binary version."""
    x, y = make_arrays(name)
    coarse = [np.full((len(y), 1), 7, np.uint8)] if name == "cifar100" else []
    rows = np.hstack([*coarse, y[:, None], x.transpose(0, 3, 1, 2).reshape(len(y), -1)])
    cifar = CIFAR[name]
    parts = [*np.array_split(rows[:NUM_TRAIN], len(cifar.train)), rows[NUM_TRAIN:]]
    return {file: part.tobytes() for file, part in zip((*cifar.train, *cifar.test), parts, strict=True)}


def write_cifar(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in cifar_files(name).items():
        (folder / file).write_bytes(content)


def write_archive(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / CIFAR[name].archive, "w:gz") as archive:
        for file, content in cifar_files(name).items():
            member = tarfile.TarInfo(f"{CIFAR[name].folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_npz(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    x, y = make_arrays(name)
    y = y[:, None] if name in CIFAR else y
    train, test = slice(NUM_TRAIN), slice(NUM_TRAIN, None)
    np.savez(folder / f"{name}.npz", x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])


@pytest.fixture(autouse=True)
def few_rows(tmp_path, monkeypatch):
    """Expect as many rows as the functions above write, and let the default folders be empty."""
    monkeypatch.setattr(images, "_NUM_TRAIN_ROWS", dict.fromkeys(images._NUM_TRAIN_ROWS, NUM_TRAIN))
    monkeypatch.setattr(images, "_NUM_TEST_ROWS", NUM_TEST)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def check_raw(data, name):
    x, y = make_arrays(name)
    expected = x.reshape(len(x), *x.shape[1:3], -1).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(data.x_train, expected[:NUM_TRAIN])
    np.testing.assert_array_equal(data.x_test, expected[NUM_TRAIN:])
    np.testing.assert_array_equal(np.concatenate([data.y_train, data.y_test]), y)
    assert (data.x_train.dtype, data.y_train.dtype) == (np.float32, np.int64)
    assert data.num_classes == {"cifar100": 100}.get(name, 10)


FORMS = {
    "idx": ("mnist", write_four_idx, ""),
    "idx with dots": ("mnist", lambda folder, name: write_four_idx(folder, name, stem="{}.idx{}-ubyte"), ""),
    "idx, compressed": ("fashion_mnist", lambda folder, name: write_four_idx(folder, name, ending=".gz"), ""),
    "idx in a folder": (
        "fashion_mnist",
        lambda folder, name: write_four_idx(folder, name, ending=".gz"),
        "fashion-mnist",
    ),
    "npz": ("mnist", write_npz, ""),
    "npz of CIFAR": ("cifar10", write_npz, ""),
    "CIFAR-10": ("cifar10", write_cifar, ""),
    "CIFAR-10 in its folder": ("cifar10", write_cifar, "cifar-10-batches-bin"),
    "CIFAR-100": ("cifar100", write_cifar, "cifar-100-binary"),
    "archive of CIFAR-10": ("cifar10", write_archive, ""),
    "archive of CIFAR-100": ("cifar100", write_archive, ""),
}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_every_form(form, tmp_path):
    name, write, folder = FORMS[form]
    write(tmp_path / "data" / folder, name)
    check_raw(datasets.load(name, data_dir=tmp_path / "data", standardize=False), name)
    data = datasets.load(name, data_dir=str(tmp_path / "data" / folder), num_rows=12)
    channels = tuple(range(3))
    assert len(data.y_train) == 12
    np.testing.assert_allclose(data.x_train.mean(axis=channels, dtype=np.float64), 0.0, atol=1e-5)
    np.testing.assert_allclose(data.x_train.std(axis=channels, dtype=np.float64), 1.0, atol=1e-5)


@pytest.mark.parametrize("folder", ["home/.tfopt/datasets", "keras/datasets/fashion-mnist"])
def test_the_default_folders_are_searched(folder, tmp_path):
    write_four_idx(tmp_path / folder, "fashion_mnist", ending=".gz")
    check_raw(datasets.load("fashion_mnist", standardize=False), "fashion_mnist")


def test_an_archive_is_downloaded_and_its_hash_is_checked(tmp_path, monkeypatch):
    write_archive(tmp_path / "site", "cifar10")
    archive = tmp_path / "site" / CIFAR["cifar10"].archive
    good = hashlib.md5(archive.read_bytes()).hexdigest()
    for md5, works in (("0" * 32, False), (good, True)):
        changed = type(CIFAR["cifar10"])(**{**vars(CIFAR["cifar10"]), "url": archive.as_uri(), "md5": md5})
        monkeypatch.setitem(CIFAR, "cifar10", changed)
        if works:
            check_raw(datasets.load("cifar10", standardize=False), "cifar10")
        else:
            with pytest.raises(ValueError, match="[Hh]ash|corrupt"):
                datasets.load("cifar10")
            assert not (tmp_path / "keras/datasets" / archive.name).exists()  # it would be read the next time


def damage(name, write, change, match, file=None):
    return pytest.param(name, write, change, match, file, id=f"{name}: {match}")


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def compressed(folder, name):
    write_four_idx(folder, name, ending=".gz")


@pytest.mark.parametrize(
    ("name", "write", "change", "match", "file"),
    [
        damage("mnist", write_four_idx, lambda c: c[:-1], f"{IMAGES} is damaged or cut off: its header", IMAGES),
        damage("mnist", write_four_idx, lambda c: c + b"0", f"{LABELS} is damaged or cut off", LABELS),
        damage("mnist", write_four_idx, lambda c: c[:9], f"{IMAGES} is damaged", IMAGES),
        damage("mnist", write_four_idx, lambda c: b"", f"{IMAGES} is not an IDX file", IMAGES),
        damage("mnist", write_four_idx, lambda c: b"labels" + c, f"{LABELS} is not an IDX file", LABELS),
        damage("mnist", write_four_idx, lambda c: b"\0\0\x0d" + c[3:], "must hold images: unsigned bytes", IMAGES),
        damage("mnist", write_four_idx, lambda c: c[:-1] + b"\x0a", "integer labels from 0 to 9", LABELS),
        damage("mnist", compressed, lambda c: c[:-40], f"{IMAGES}.gz is damaged or cut off", f"{IMAGES}.gz"),
        damage("mnist", compressed, lambda c: c[:30] + b"\0" + c[31:], f"{IMAGES}.gz is damaged", f"{IMAGES}.gz"),
        damage("cifar10", write_cifar, lambda c: c[:-1], "data_batch_3.bin is damaged or cut off", "data_batch_3.bin"),
        damage("cifar10", write_cifar, lambda c: b"", "data_batch_3.bin is damaged or cut off", "data_batch_3.bin"),
        damage("cifar10", write_cifar, lambda c: c[3073:], "must have 15 images", "data_batch_3.bin"),
        damage("cifar10", write_cifar, lambda c: b"\x0a" + c[1:], "labels from 0 to 9", "data_batch_3.bin"),
        damage("cifar10", write_archive, lambda c: c[:-300], "tar.gz is damaged or cut off", "cifar-10-binary.tar.gz"),
        damage("cifar100", write_npz, lambda c: c[:-300], "npz is damaged or cut off", "cifar100.npz"),
        damage("cifar100", write_npz, lambda c: b"", "npz is damaged or cut off", "cifar100.npz"),
    ],
)
def test_damaged_files_are_named(name, write, change, match, file, tmp_path):
    write(tmp_path, name)
    (tmp_path / file).write_bytes(change((tmp_path / file).read_bytes()))
    with pytest.raises(ValueError, match=match):
        datasets.load(name, data_dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"'{name}' is not in {tmp_path}. Put .* as `data_dir="):
        datasets.load(name, data_dir=tmp_path)
    (write_cifar if name == "cifar10" else write_four_idx)(tmp_path, name)
    gone = "data_batch_2.bin" if name == "cifar10" else LABELS
    (tmp_path / gone).unlink()
    with pytest.raises(FileNotFoundError, match=f"Missing: {gone}"):
        datasets.load(name, data_dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_without_a_network_the_error_names_folder_files_and_option(name, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", no_network)
    monkeypatch.setattr(keras.utils, "get_file", no_network)
    files = r"cifar-10-binary.tar.gz" if name == "cifar10" else r"images-idx3"
    with pytest.raises(FileNotFoundError, match=rf"no network.*{files}.*home/.tfopt/datasets.*`data_dir=`"):
        datasets.load(name)


def test_the_two_sets_of_the_same_file_names_are_not_confused(tmp_path):
    write_four_idx(tmp_path, "fashion_mnist")
    with pytest.raises(ValueError, match="first ten training labels of 'mnist'.*those of 'fashion_mnist'"):
        datasets.load("mnist", data_dir=tmp_path)


def test_labels_and_images_in_the_wrong_files_are_named(tmp_path):
    write_four_idx(tmp_path, "mnist")
    (tmp_path / IMAGES).write_bytes((tmp_path / LABELS).read_bytes())
    with pytest.raises(ValueError, match=f"{IMAGES} must hold images: .* Received: values of type 8 in 1 dim"):
        datasets.load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y_test": None}, r"must hold the arrays x_train, .* Missing: y_test"),
        ({"x_test": np.zeros((5, 28, 28))}, "must have images of shape .* unsigned bytes"),
        ({"x_test": np.zeros((5, 32, 32), np.uint8)}, "must have images of shape"),
        ({"y_test": np.zeros(4, np.uint8)}, "and a label for each"),
        ({"y_test": np.array([0, 1, 2, 3, -1])}, "integer labels from 0"),
        ({"y_test": np.zeros(5)}, "integer labels from 0"),
        ({"x_test": np.array([{}] * 5, dtype=object)}, "npz is damaged or cut off"),
    ],
)
def test_other_arrays_in_an_npz_are_named(change, match, tmp_path):
    write_npz(tmp_path, "mnist")
    arrays = {**np.load(tmp_path / "mnist.npz"), **change}
    np.savez(tmp_path / "mnist.npz", **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=match):
        datasets.load("mnist", data_dir=tmp_path)


def test_pickled_files_are_not_read(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0]}))
    with pytest.raises(FileNotFoundError, match="the binary version; pickled files are not read"):
        datasets.load("cifar10", data_dir=tmp_path)
