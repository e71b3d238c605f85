"""`load(name)`: data sets that are always read, split and standardised in the same way.

`digits` and `breast_cancer` are part of scikit-learn. The image sets and `higgs` are read from files, and `higgs_like`
is synthetic.
"""

import os

import numpy as np

from tfopt._checks import check_choice, check_folder, check_integer
from tfopt.datasets.dataset import Dataset, Raw, check_options, check_test_fraction, make_dataset, split
from tfopt.datasets.higgs import read_higgs
from tfopt.datasets.higgs_like import make_higgs_like
from tfopt.datasets.images import read_images

_NUM_CLASSES = {
    "digits": 10,
    "breast_cancer": 2,
    "mnist": 10,
    "fashion_mnist": 10,
    "cifar10": 10,
    "cifar100": 100,
    "higgs": 2,
    "higgs_like": 2,
}
NAMES = tuple(_NUM_CLASSES)
_IMAGE_SETS = ("mnist", "fashion_mnist", "cifar10", "cifar100")


def load(
    name: str,
    *,
    seed: int = 0,
    test_fraction: float = 0.25,
    validation_fraction: float = 0.0,
    standardize: bool = True,
    data_dir: str | os.PathLike | None = None,
    num_rows: int | None = None,
) -> Dataset:
    """Load a data set, split it and standardise it.

    Splits keep the fractions of the classes and depend only on `seed`. Mean and standard deviation are those of the
    training part only: one pair per feature of a table, one pair per colour channel of images.

    Args:
        name: One of `tfopt.datasets.NAMES`.
        seed: Seed of the splits, and of the rows of `higgs_like`; an integer >= 0 and < 2^32. Default 0.
        test_fraction: Fraction of the rows used for testing, in (0, 1). Default 0.25. The image sets and `higgs` have a
            test part already and ignore it.
        validation_fraction: Fraction of the training part held out for validation, in [0, 1). Default 0.
        standardize: Whether to subtract the mean and divide by the standard deviation. Default True.
        data_dir: The folder that holds the files of `higgs` or of an image set; nothing is downloaded then. None
            (default) means `~/.tfopt/datasets`, and for image sets also Keras's download folder, into which missing
            files are downloaded. `mnist` and `fashion_mnist` are four IDX files, compressed or not; `cifar10` and
            `cifar100` are the binary version, its files or its archive. Each of them may also be a file `NAME.npz` with
            x_train, y_train, x_test and y_test. `higgs` is HIGGS.csv or HIGGS.csv.gz, beside which a cache `HIGGS.npy`
            of the parsed rows is written.
        num_rows: Number of training rows to use, an integer >= 2: the first ones, after the split by `seed` if the data
            have no test part of their own. The validation part is taken from them. None (default) means all. For
            `higgs_like`: the total number of rows for training and testing, >= 100; None means 200,000.

    Returns:
        The data.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The name is unknown, an argument is out of its range, or files are damaged or have other content.
        FileNotFoundError: The data are not on disk and cannot be downloaded. The message says which file goes where.

    Example:
        >>> load("digits")
        Dataset('digits': 1,347 train, 450 test; inputs (8, 8, 1), 10 classes)
    """
    check_choice("name", name, NAMES)
    num_drawn = 200_000
    if name == "higgs_like" and num_rows is not None:
        num_drawn, num_rows = check_integer("num_rows", num_rows, minimum=100), None
    options = check_options(seed, validation_fraction, standardize, num_rows)
    check_test_fraction(test_fraction)
    folder = None if data_dir is None else check_folder("data_dir", data_dir)
    num_classes = _NUM_CLASSES[name]
    if name == "higgs":
        train, test = read_higgs(folder, num_rows)
    elif name in _IMAGE_SETS:
        train, test = read_images(name, num_classes, folder)
    elif folder is not None:
        raise ValueError(f"`data_dir` applies only to data in files, not to {name!r}. Received: {data_dir=}")
    else:
        x, y = make_higgs_like(num_drawn, seed) if name == "higgs_like" else _read_scikit_learn(name)
        train, test = split(Raw(x, y), "test_fraction", test_fraction, seed, is_classification=True)
    return make_dataset(name, train, test, num_classes, **options)


def _read_scikit_learn(name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    if name == "digits":
        data = datasets.load_digits()
        return (data.images[..., None] / 16.0).astype(np.float32), data.target.astype(np.int64)
    data = datasets.load_breast_cancer()
    return data.data.astype(np.float32), data.target.astype(np.int64)
