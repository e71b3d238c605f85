"""The mean over all ranks of gradients that an optimizer accumulates over several batches."""

from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt.communicator import Communicator
from tfopt.distributed.gradients import mean_gradients
from tfopt.numerics import densify


def mean_accumulated_gradients(
    gradients: list[Any],
    variables: list[Any],
    communicator: Communicator,
    compression: str | None,
    optimizer: Any,
    scaling: Any,
) -> list[Any]:
    """Return gradients with which `optimizer` accumulates locally and steps along the mean over all ranks.

    `scaling` is the `LossScaleOptimizer` around the optimizer, or None.
    """
    # Before a step, each rank sums its accumulated and its newest gradients, and the sums are averaged. The means
    # replace the newest gradients, and the accumulators are set to zero. Between steps, gradients are unchanged.
    # All ranks must agree each time whether a gradient is finite, because loss scaling skips the others.
    gradients = [tf.cast(densify(g, v.shape), g.dtype) for g, v in zip(gradients, variables, strict=True)]
    all_accumulators = _keras.accumulated_gradients(optimizer)
    accumulators = [all_accumulators[_keras.variable_index(optimizer)(v)] for v in variables]
    scale = tf.constant(1.0)
    is_finite = tf.constant(True)
    if scaling is not None:
        scale = tf.convert_to_tensor(scaling.dynamic_scale)
        overflow = tf.cast(tf.logical_not(scaling.check_finite(gradients)), tf.int32)
        (num_overflows,) = communicator.allreduce_sum([overflow], name="overflows")
        is_finite = tf.equal(num_overflows, 0)
    is_step = tf.equal(
        (tf.convert_to_tensor(_keras.iterations(optimizer)) + 1) % optimizer.gradient_accumulation_steps, 0
    )

    def mean_of_sums() -> list[Any]:
        sums = [g + tf.cast(scale, g.dtype) * tf.cast(a, g.dtype) for g, a in zip(gradients, accumulators, strict=True)]
        means = mean_gradients(sums, variables, communicator, compression)
        with tf.control_dependencies(means):
            for accumulator in accumulators:
                accumulator.assign(tf.zeros(accumulator.shape, accumulator.dtype))
            return [tf.identity(mean) for mean in means]

    def as_they_are() -> list[Any]:
        return [tf.where(is_finite, g, tf.constant(float("nan"), g.dtype)) for g in gradients]

    return list(tf.cond(tf.logical_and(is_step, is_finite), mean_of_sums, as_they_are))
