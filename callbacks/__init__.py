"""Keras callbacks that record what happens to a network while it trains."""

from tfopt._checks import check_keras_3

check_keras_3()

from tfopt.callbacks.weight_norms import WeightNorms  # noqa: E402

__all__ = ["WeightNorms"]
