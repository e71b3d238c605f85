"""A zoo of Keras models, the same for every optimizer, callback, trainer and simulator of tfopt.

Builders return uncompiled `keras.Model`s.
"""

from tfopt._checks import check_keras_3

check_keras_3()

from tfopt.models.mlp import mlp  # noqa: E402

__all__ = ["mlp"]
