"""Data sets that are always loaded, split, standardised and shuffled in the same way."""

from tfopt.datasets.dataset import Dataset
from tfopt.datasets.epoch_batches import EpochBatches
from tfopt.datasets.higgs_like import make_higgs_like
from tfopt.datasets.loading import NAMES, load
from tfopt.datasets.own_data import from_arrays, from_table

__all__ = ["NAMES", "Dataset", "EpochBatches", "from_arrays", "from_table", "load", "make_higgs_like"]
