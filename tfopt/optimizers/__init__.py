"""Keras 3 optimizers whose steps are relative to the size of each layer.

`Fromage` and `LARS` are `keras.optimizers.Optimizer`s. Importing this module registers them, so models that were saved
with them load without `custom_objects`.
"""

from tfopt._checks import check_keras_3

check_keras_3()

from tfopt.optimizers import schedules  # noqa: E402
from tfopt.optimizers.fromage import Fromage  # noqa: E402
from tfopt.optimizers.lars import LARS  # noqa: E402

__all__ = ["LARS", "Fromage", "schedules"]
