"""The noisy quadratic model: which batch size, learning rate, momentum, averaging and schedule reach a loss first.

Expected losses are exact in float64, for whole grids of settings. They follow linear recurrences, and matrix powers
give the loss after any number of steps directly.

References:
    Zhang et al.: Which algorithmic choices matter at which batch sizes? Insights from a noisy quadratic model. NeurIPS
    2019, arXiv:1907.04164.
"""

from tfopt._checks import check_keras_3

check_keras_3()

from tfopt.nqm.algorithm import (  # noqa: E402
    Algorithm,
    convergence_rate,
    largest_stable_learning_rate,
    steady_state_loss,
)
from tfopt.nqm.batch_size import CriticalBatchSize, critical_batch_size  # noqa: E402
from tfopt.nqm.dynamics import expected_loss  # noqa: E402
from tfopt.nqm.information_bound import information_bound  # noqa: E402
from tfopt.nqm.monte_carlo import Trajectories, UpdateRule, monte_carlo  # noqa: E402
from tfopt.nqm.noise import noise_batches  # noqa: E402
from tfopt.nqm.plots import (  # noqa: E402
    plot_learning_rates,
    plot_schedule,
    plot_steps_to_target,
    plot_training_curves,
)
from tfopt.nqm.problem import NoisyQuadratic  # noqa: E402
from tfopt.nqm.schedules import Schedule, optimal_schedule  # noqa: E402
from tfopt.nqm.search import OptimalSettings, optimize  # noqa: E402
from tfopt.nqm.steps_to_target import steps_to_target  # noqa: E402

__all__ = [
    "Algorithm",
    "CriticalBatchSize",
    "NoisyQuadratic",
    "OptimalSettings",
    "Schedule",
    "Trajectories",
    "UpdateRule",
    "convergence_rate",
    "critical_batch_size",
    "expected_loss",
    "information_bound",
    "largest_stable_learning_rate",
    "monte_carlo",
    "noise_batches",
    "optimal_schedule",
    "optimize",
    "plot_learning_rates",
    "plot_schedule",
    "plot_steps_to_target",
    "plot_training_curves",
    "steady_state_loss",
    "steps_to_target",
]
