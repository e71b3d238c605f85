"""Data sets that are always loaded, split, standardised and shuffled in the same way."""

from typing import TYPE_CHECKING

from tfopt._lazy import lazy_names
from tfopt.datasets.dataset import Dataset
from tfopt.datasets.higgs_like import make_higgs_like
from tfopt.datasets.loading import NAMES, load
from tfopt.datasets.own_data import from_arrays, from_table

if TYPE_CHECKING:
    from tfopt.datasets.epoch_batches import EpochBatches

__all__ = ["NAMES", "Dataset", "EpochBatches", "from_arrays", "from_table", "load", "make_higgs_like"]

# It is a data set of Keras.
__getattr__, __dir__ = lazy_names(__name__, {"EpochBatches": "epoch_batches"}, __all__)
