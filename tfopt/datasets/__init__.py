"""Data sets: loaded, split and standardised the same way every time."""

from tfopt.datasets.higgs_like import make_higgs_like
from tfopt.datasets.loading import NAMES, Dataset, load

__all__ = ["NAMES", "Dataset", "load", "make_higgs_like"]
