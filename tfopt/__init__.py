"""tfopt: layer-wise optimizers and training diagnostics for Keras 3.

Sub-packages are imported on first use, so that `import tfopt` is fast and does not start TensorFlow:

* `tfopt.optimizers`: `Fromage`, `LARS` and learning-rate schedules for `model.compile`.
* `tfopt.callbacks`: Keras callbacks that record what happens in a network during training, and resume training.
* `tfopt.distributed`: data-parallel training with Horovod; `tfopt.communicator`: sums and broadcasts between processes.
* `tfopt.curvature`: Hessian and Gauss-Newton matrices of a model, their extreme eigenvalues, density and trace.
* `tfopt.relative_trust`: how far a gradient can be trusted along a step.
* `tfopt.nqm`: the noisy quadratic model: the batch size, learning rate, momentum and schedule that reach a loss first.
* `tfopt.planning`: the noisy quadratic model fitted to a Keras model, and a batch size for training it.
* `tfopt.bregman`: trains Dense networks without gradients, by exact block minimisation, on one rank or many.
* `tfopt.numerics`: norms that are exact for zeros, half precision and extreme magnitudes, for your own optimizers.
* `tfopt.models`: a collection of Keras models.
* `tfopt.datasets`: real and synthetic data, always split and standardised in the same way.
"""

import importlib
from types import ModuleType

from tfopt._version import __version__

_SUBPACKAGES = (
    "bregman",
    "callbacks",
    "communicator",
    "curvature",
    "datasets",
    "distributed",
    "models",
    "nqm",
    "numerics",
    "optimizers",
    "planning",
    "relative_trust",
)

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"tfopt.{name}")
    raise AttributeError(f"module 'tfopt' has no attribute {name!r}; it has {', '.join(_SUBPACKAGES)}")


def __dir__() -> list[str]:
    return sorted(__all__)
