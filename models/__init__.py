"""Keras models to test every optimizer and callback of tfopt on.

Builders return uncompiled Keras models. Their first arguments are `input_shape`, the sizes of the layers, and
`num_outputs`; a model that is fixed by other things takes only these.
"""

from tfopt._checks import check_keras_3

check_keras_3()

from tfopt.models.convnet import convnet  # noqa: E402
from tfopt.models.milne_regression import milne_regression  # noqa: E402
from tfopt.models.mlp import mlp  # noqa: E402
from tfopt.models.noisy_quadratic import noisy_quadratic, output_as_loss  # noqa: E402
from tfopt.models.registry import get, list_models  # noqa: E402
from tfopt.models.resnet import resnet  # noqa: E402

__all__ = ["convnet", "get", "list_models", "milne_regression", "mlp", "noisy_quadratic", "output_as_loss", "resnet"]
