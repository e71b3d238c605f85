"""The bound is the one that a Kalman filter attains."""

import numpy as np
import pytest

from tfopt.nqm import NoisyQuadratic, information_bound


def test_the_bound_is_what_a_kalman_filter_attains():
    problem = NoisyQuadratic([1.0, 0.3, 0.01], [1.0, 2.0, 0.5], [1, 2, 3], [1.0, 0.5, 2.0])
    target, size = 0.05, 4.0
    steps = float(information_bound(problem, size, target))
    variance = problem.initial_second_moment.copy()
    losses = []
    for _ in range(int(np.ceil(steps))):
        gain = variance / (variance + problem.noise_variance / (size * problem.curvature**2))
        variance = (1 - gain) * variance
        losses.append(0.5 * np.sum(problem.multiplicity * problem.curvature * variance))
    assert losses[-1] <= target < losses[-2]


def test_the_bound_on_the_standard_problem():
    bound = information_bound(NoisyQuadratic.power_law(), [1.0, 1024.0], 0.01)
    assert np.ceil(bound[0]) == 495_017
    assert bound[1] == pytest.approx(bound[0] / 1024, rel=1e-14)
    assert bound[0] == pytest.approx(10_000 / (2 * 0.01), rel=0.011)  # d / (2 C B), which forgets what is known before


def test_the_bound_where_what_is_noisy_is_there_already():
    problem = NoisyQuadratic([1.0, 0.5], [1.0, 0.0], 1.0, [0.0, 1.0])
    assert information_bound(problem, [1, 8], 0.01).tolist() == [0.0, 0.0]


def test_the_bound_where_nothing_is_to_be_learnt():
    assert information_bound(NoisyQuadratic([1.0], [1.0]), 1, 0.5) == 0.0
    assert information_bound(NoisyQuadratic([1.0, 1.0], [0.0, 0.0]), 1, 0.1) == 0.0
    # One example tells a direction without noise; the other still needs some.
    both = information_bound(NoisyQuadratic([1.0, 1.0], [0.0, 1.0]), 1, 0.1)
    assert both == pytest.approx(float(information_bound(NoisyQuadratic([1.0], [1.0]), 1, 0.1)))
