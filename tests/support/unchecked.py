"""Operators, and what makes them, without the self-check, for tests of something else.

The check traces a model three times more, which is most of what a product costs. That it refuses what is wrong, and
takes what is right without a warning, is for `test_self_check.py` and for all tests that import these names from
`tfopt`, or ask for it with `self_check=True`.
"""

from functools import partial

from tfopt import curvature, planning


def _unchecked(function):
    made = partial(function, self_check=False)
    made.__name__ = function.__name__  # by which pytest names the case
    return made


HessianOperator = _unchecked(curvature.HessianOperator)
GaussNewtonOperator = _unchecked(curvature.GaussNewtonOperator)
gradient_noise = _unchecked(curvature.gradient_noise)
fit_noisy_quadratic = _unchecked(planning.fit_noisy_quadratic)
