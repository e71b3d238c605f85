"""Which batch size for my model? The noisy quadratic model, fitted to a Keras model at its current weights.

The fit measures the curvature of the loss, the noise of its gradients and the loss that training can still gain, each
along the spectrum of the Gauss-Newton or Hessian matrix. `tfopt.nqm` then predicts how many steps each batch size
takes, and at which learning rate.
"""

from tfopt._checks import check_keras_3

check_keras_3()

from tfopt.planning.fit import fit_noisy_quadratic  # noqa: E402
from tfopt.planning.interval import Interval  # noqa: E402
from tfopt.planning.noisy_quadratic_fit import NoisyQuadraticFit  # noqa: E402
from tfopt.planning.plan import BatchSizePlan, Suggestion  # noqa: E402
from tfopt.planning.planner import plan_batch_size, plan_from_fit  # noqa: E402

__all__ = [
    "BatchSizePlan",
    "Interval",
    "NoisyQuadraticFit",
    "Suggestion",
    "fit_noisy_quadratic",
    "plan_batch_size",
    "plan_from_fit",
]
