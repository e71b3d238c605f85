"""Gradient noise of any distribution of `tensorflow_probability`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfopt._checks import check_integer
from tfopt._lazy import tf
from tfopt.nqm._checks import check_kind
from tfopt.nqm.problem import NoisyQuadratic

LARGEST_SEED = 2**31 - 1


class UnitNoise:
    """Random numbers of mean 0 and variance 1: normal (None), or from a scalar distribution, scaled to variance 1."""

    def __init__(self, distribution: Any = None) -> None:
        self._distribution = distribution
        if distribution is None:
            return
        if isinstance(distribution, type) or not all(
            hasattr(distribution, name) for name in ("sample", "mean", "variance", "event_shape", "batch_shape")
        ):
            raise TypeError(
                "`noise` must be a distribution of tensorflow_probability, or None for the normal one. Received: "
                f"{distribution!r}"
            )
        if tuple(distribution.event_shape) or tuple(distribution.batch_shape):
            raise ValueError(
                "`noise` must be one scalar distribution. Received batch shape "
                f"{tuple(distribution.batch_shape)} and event shape {tuple(distribution.event_shape)}"
            )
        mean, variance = float(distribution.mean()), float(distribution.variance())
        if not np.isfinite(variance) or variance <= 0:
            raise ValueError(f"`noise` must have a finite variance > 0. Received: variance {variance:g}")
        if not abs(mean) <= 1e-6 * np.sqrt(variance):
            raise ValueError(f"`noise` must have mean 0. Received: mean {mean:g}")
        self._scale = 1.0 / np.sqrt(variance)

    def sample(self, shape: Any, seed: tf.Tensor, dtype: Any = "float64") -> tf.Tensor:
        """Return random numbers of a shape and dtype, as a function of `seed`, two integers."""
        if self._distribution is None:
            return tf.random.stateless_normal(shape, seed, dtype=dtype)
        return tf.cast(self._distribution.sample(shape, seed=seed), dtype) * tf.constant(self._scale, dtype)


def noise_batches(
    problem: NoisyQuadratic, batch_size: int, num_batches: int | None = None, *, noise: Any = None, seed: int = 0
) -> tf.data.Dataset:
    """Return the training data of `tfopt.models.noisy_quadratic`: batches of noise, and targets that are not used.

    Args:
        problem: The problem, whose multiplicities must be whole numbers, since each direction gets its own column.
        batch_size: Number of rows in a batch, >= 1.
        num_batches: Number of batches, >= 1; None (default) makes an endless data set.
        noise: Distribution of the noise, as `monte_carlo` takes it. None (default) is the normal distribution.
        seed: Seed, from 0 to 2^31 - 1. The batches depend on it alone, and are the same in every epoch. Default 0.

    Returns:
        A data set of pairs of float32 arrays, of shapes (batch_size, dim) and (batch_size, 1).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or a multiplicity is not a whole number.
    """
    rows = check_integer("batch_size", batch_size, minimum=1)
    check_kind("problem", problem, NoisyQuadratic)
    dim = len(problem.expanded().curvature)
    check_integer("seed", seed, minimum=0, maximum=LARGEST_SEED)
    source = UnitNoise(noise)
    numbers = tf.data.Dataset.counter()
    if num_batches is not None:
        numbers = numbers.take(check_integer("num_batches", num_batches, minimum=1))

    @tf.autograph.experimental.do_not_convert
    def draw(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        key = tf.stack([tf.constant(seed), tf.cast(number, tf.int32)])
        return source.sample((rows, dim), key, tf.float32), tf.zeros((rows, 1))

    return numbers.map(draw, num_parallel_calls=1).prefetch(2)
