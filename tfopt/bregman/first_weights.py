"""The weights that training begins with: drawn by an initializer, or learnt, or set, perhaps for other units."""

import functools
import math
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.bregman.compilation import compiled
from tfopt.bregman.engine import Problem, Weights
from tfopt.bregman.network import Architecture
from tfopt.bregman.rows import Chunk, Rows
from tfopt.communicator import Communicator

__all__ = ["are_drawn", "choose_first_weights", "match_outputs"]

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

# Sizes of kernels, for rows of unit 1, that initializers draw: from widths and deviations of 0.01 to 1.
_SMALLEST_DRAWN, _LARGEST_DRAWN = 0.01, 100.0
# Of the pre-activations of most units of a first layer that can learn: standard deviations, and means over them.
_SMALLEST_SPREAD, _LARGEST_SPREAD, _LARGEST_MEAN = 0.3, 2.0, 3.0
_WORSE, _HOPELESS = math.log(1.2), math.log(10.0)


def choose_first_weights(problem: Problem, rows: Rows) -> Weights:
    """Choose the weights that training begins with.

    Args:
        problem: What is trained. All ranks begin with the weights of rank 0.
        rows: Standardised rows of this process.

    Returns:
        The weights, for standardised rows.
    """
    chain, ranks = problem.chain, problem.communicator
    given, (first, last) = chain.read_weights(), are_drawn(chain.layers)
    if ranks.size > 1:
        flags, *flat = ranks.broadcast(
            [tf.constant([float(first), float(last)]), *tf.nest.flatten(given)], name="weights"
        )
        given, (first, last) = list(zip(flat[::2], flat[1::2], strict=True)), (flags.numpy() > 0).tolist()
    weights: Weights = rows.standardisation.to_training(given, (first, last))
    is_used = problem.settings.initialization != "gaussian"  # which draws the outputs of the first layer instead
    if not first and is_used and len(given) > 1:
        weights = _choose_reading(weights, rows.standardisation.to_training(given, (True, last)), problem, rows)
    if problem.loss.is_quadratic and not last:
        weights = match_outputs(weights, chain.architecture, rows, ranks)
    return weights


def _choose_reading(as_given: Weights, for_unit_rows: Weights, problem: Problem, rows: Rows) -> Weights:
    # A first layer that an origin or a unit far off leaves nothing to learn with is read as if it were drawn; one that
    # is worse for it may be of another task, and is kept. Where the model predicts, it has been trained.
    varies = ~rows.standardisation.is_constant
    loss_of_reading = _badness(*as_given[0], varies) - _badness(*for_unit_rows[0], varies)
    if loss_of_reading < _WORSE or _predicts(as_given, problem, rows):
        return as_given
    is_hopeless = loss_of_reading > _HOPELESS
    what_is_done = "Its weights are " + (
        "read as for inputs of mean 0 and standard deviation 1" if is_hopeless else "kept"
    )
    warnings.warn(
        f"The first Dense layer, {problem.chain.layers[0].name!r}, was not made for the unit or the origin of these "
        "inputs: its outputs vary too little from row to row, or too much, and the model predicts no better than a "
        f"constant. {what_is_done}. If they are not trained, build the model anew, or standardise the inputs",
        stacklevel=7,  # the call of `fit`
    )
    return for_unit_rows if is_hopeless else as_given


def _predicts(weights: Weights, problem: Problem, rows: Rows) -> bool:
    kernel, bias = weights[-1]
    constant = [*weights[:-1], (tf.zeros_like(kernel), tf.zeros_like(bias))]
    found, limit = (problem.evaluation(rows, each, with_metrics=False)[0] for each in (weights, constant))
    return found < limit


def _badness(kernel: Any, bias: Any, varies: np.ndarray) -> float:
    # How many times, as a logarithm, the pre-activations on rows of unit 1 are too large, too small or too far from 0.
    spreads = np.sqrt(np.sum(kernel.numpy()[varies].astype(np.float64) ** 2, axis=0))
    spread = float(np.median(spreads))
    if spread == 0.0:
        return 0.0  # as good in any unit
    means = np.abs(bias.numpy().astype(np.float64)) / np.maximum(spreads, np.finfo(np.float64).tiny)
    factors = spread / _LARGEST_SPREAD, _SMALLEST_SPREAD / spread, float(np.median(means)) / _LARGEST_MEAN, 1.0
    return math.log(max(factors))


def are_drawn(layers: Any) -> tuple[bool, bool]:
    """Find out whether the first and the last layer are meant for rows of unit 1, as initializers are.

    A kernel that its initializer draws again has not been trained, loaded or set. A kernel that was copied, or drawn
    from a `SeedGenerator`, is not drawn again. But training moves biases: where a layer's bias is as its initializer
    makes it, and the kernel has the size of a drawn one, the layer has not been trained. For a layer without a bias,
    the biases of all others tell.

    Args:
        layers: The built Dense layers of a network.

    Returns:
        Whether the kernel of the first layer is meant for such rows, and that of the last layer.
    """
    with_bias = [layer for layer in layers if layer.use_bias]
    return tuple(_is_drawn(layer, [layer] if layer.use_bias else with_bias) for layer in (layers[0], layers[-1]))  # type: ignore[return-value]


def _is_drawn(layer: Any, with_bias: list[Any]) -> bool:
    if _is_drawn_again(layer.kernel_initializer, layer.kernel):
        return True
    is_untouched = all(_is_drawn_again(other.bias_initializer, other.bias) for other in with_bias)
    # What the layer makes of rows of unit 1 has this root mean square.
    size = float(np.sqrt(np.mean(np.sum(layer.kernel.numpy().astype(np.float64) ** 2, axis=0))))
    return bool(with_bias) and is_untouched and _SMALLEST_DRAWN <= size <= _LARGEST_DRAWN


def _is_drawn_again(initializer: Any, variable: Any) -> bool:
    # False for initializers that cannot be asked again: functions, or those with a `SeedGenerator`.
    if not isinstance(initializer, _REPEATABLE) or not isinstance(getattr(initializer, "seed", 0), int):
        return False
    drawn = keras.ops.convert_to_numpy(initializer(variable.shape, dtype=variable.dtype))
    return bool(np.allclose(variable.numpy(), drawn, rtol=1e-5, atol=0.0))


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
