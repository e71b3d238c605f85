"""Sets whether products are checked where nothing is said: the check traces a model three times more.

That it refuses what is wrong, and takes what is right without a warning, is for `test_self_check.py`, for tests with
the marker `self_checked`, and for those that pass `self_check=True`.
"""

from tfopt import curvature, planning
from tfopt.callbacks import Convexity

FUNCTIONS = (
    curvature.HessianOperator.__init__,
    curvature.GaussNewtonOperator.__init__,
    curvature.gradient_noise,
    planning.fit_noisy_quadratic,
    Convexity.__init__,
)


def set_self_check(value):
    for function in FUNCTIONS:
        assert "self_check" in function.__kwdefaults__, function
        function.__kwdefaults__["self_check"] = value
