"""Data sets that are always loaded, split, standardised and shuffled in the same way."""

from tfopt.datasets.epoch_batches import EpochBatches
from tfopt.datasets.higgs_like import make_higgs_like
from tfopt.datasets.loading import NAMES, Dataset, load

__all__ = ["NAMES", "Dataset", "EpochBatches", "load", "make_higgs_like"]
