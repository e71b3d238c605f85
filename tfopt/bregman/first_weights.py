"""The weights that training begins with: drawn by an initializer, or learnt, or set, perhaps for other units."""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.bregman.compilation import compiled
from tfopt.bregman.network import Architecture
from tfopt.bregman.rows import Chunk, Rows
from tfopt.communicator import Communicator

__all__ = ["is_as_drawn", "match_outputs"]

# Of Keras's, which draw the same numbers each time from a seed that is an integer.
_REPEATABLE = (
    keras.initializers.VarianceScaling,  # He's, Glorot's and LeCun's too
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.Orthogonal,
    keras.initializers.Constant,
    keras.initializers.Zeros,
    keras.initializers.Ones,
    keras.initializers.Identity,
)


def is_as_drawn(layer: Any) -> bool:
    """Find out whether a layer's kernel is what its initializer draws: nothing has trained, loaded or set it.

    Args:
        layer: A built Dense layer.

    Returns:
        Whether it is. False for initializers that cannot be asked again: functions, or those with a `SeedGenerator`.
    """
    initializer = layer.kernel_initializer
    if not isinstance(initializer, _REPEATABLE) or not isinstance(getattr(initializer, "seed", 0), int):
        return False
    drawn = keras.ops.convert_to_numpy(initializer(layer.kernel.shape, dtype=layer.kernel.dtype))
    return bool(np.allclose(layer.kernel.numpy(), drawn, rtol=1e-5, atol=0.0))


def match_outputs(weights: Any, architecture: Architecture, rows: Rows, communicator: Communicator) -> Any:
    """Rescale and shift outputs that predict worse than the targets' mean does: they are in another unit, or random.

    Args:
        weights: As from `DenseChain.read_weights`, for standardised rows.
        architecture: The network.
        rows: Standardised rows of this process.
        communicator: The job's processes.

    Returns:
        The weights; of such outputs, those of the least squares of the targets by the output, and a constant if the
        last layer has a bias.
    """
    *below, (kernel, bias) = weights
    total: Any = tf.zeros((5, bias.shape[0]), tf.float64)
    for chunk in rows.all():  # without the bias, which may be far away, and would cost digits
        total += _make_sums(architecture)(chunk, [*below, (kernel, tf.zeros_like(bias))])
    (total,) = communicator.allreduce_sum([total], name="outputs and targets")
    z, t, zz, zt, tt = (total / rows.total_rows).numpy()
    offset = bias.numpy().astype(np.float64)
    loss = zz - 2 * zt + tt + 2 * offset * (z - t) + offset**2
    has_bias = architecture.uses_bias[-1]
    variance, covariance, floor = (zz - z * z, zt - z * t, tt - t * t) if has_bias else (zz, zt, tt)
    slope = np.divide(covariance, variance, out=np.zeros_like(variance), where=variance > 0)
    is_off = loss > floor
    kernel = tf.where(is_off, tf.cast(slope, kernel.dtype) * kernel, kernel)
    if has_bias:
        bias = tf.where(is_off, tf.cast(t - slope * z, bias.dtype), bias)
    return [*below, (kernel, bias)]


@functools.lru_cache(maxsize=64)
def _make_sums(architecture: Architecture) -> Any:
    # Over rows, of outputs z and targets t: z, t, z z, z t, t t.
    def sum_up(chunk: Chunk, weights: Any) -> Any:
        outputs = architecture.forward(chunk.inputs, weights)[-1]
        z, t = (tf.cast(part * chunk.mask[:, None], tf.float64) for part in (outputs, chunk.targets))
        return tf.stack([tf.reduce_sum(part, axis=0) for part in (z, t, z * z, z * t, t * t)])

    return compiled(sum_up)
