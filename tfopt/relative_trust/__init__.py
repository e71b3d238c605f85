"""How far a gradient can be trusted along a step (Bernstein, Vahdat, Yue, Liu, NeurIPS 2020, arXiv 2002.03432).

Each trainable variable W_l is one unit, with gradient g_l and step dW_l. Norms are Frobenius norms. TensorFlow only.
"""

from tfopt._checks import check_keras_3

check_keras_3()

from tfopt.relative_trust.breakdown import (  # noqa: E402
    deep_relative_trust,
    largest_safe_step,
    relative_gradient_breakdown,
    relative_perturbation,
)
from tfopt.relative_trust.profile import BreakdownProfile, breakdown_profile  # noqa: E402
from tfopt.relative_trust.step import StepBreakdown, StepMeter  # noqa: E402

__all__ = [
    "BreakdownProfile",
    "StepBreakdown",
    "StepMeter",
    "breakdown_profile",
    "deep_relative_trust",
    "largest_safe_step",
    "relative_gradient_breakdown",
    "relative_perturbation",
]
