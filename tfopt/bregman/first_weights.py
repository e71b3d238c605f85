"""The initial weights of training: drawn by an initializer, learnt, or set, possibly for other units."""

import functools
import math
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt._compiled import compiled
from tfopt.bregman.engine import Problem, Weights
from tfopt.bregman.network import Architecture
from tfopt.bregman.rows import Chunk, Rows
from tfopt.communicator import Communicator

__all__ = ["REPEATABLE", "are_drawn", "choose_first_weights", "is_drawn_again", "match_outputs"]

# Keras initializers that draw the same numbers each time if their seed is an integer.
REPEATABLE = (
    keras.initializers.VarianceScaling,  # Base class of He's, Glorot's and LeCun's initializers.
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.Orthogonal,
    keras.initializers.Constant,
    keras.initializers.Zeros,
    keras.initializers.Ones,
    keras.initializers.Identity,
)

# The root mean square of a drawn kernel's outputs on rows of unit 1 lies in this range, for usual widths and deviations
# of 0.01 to 1.
_SMALLEST_DRAWN, _LARGEST_DRAWN = 0.01, 100.0
# In a first layer that can learn, the pre-activations of most units have a standard deviation in this range. Their mean
# is at most _LARGEST_MEAN standard deviations from 0.
_SMALLEST_SPREAD, _LARGEST_SPREAD, _LARGEST_MEAN = 0.3, 2.0, 3.0
# Logarithms of factors: how far a layer is outside these ranges, or further outside than in another reading.
_WORSE, _BAD, _HOPELESS = math.log(1.2), math.log(4.0), math.log(10.0)
# Losses as multiples of a constant's. Even a first layer of the wrong unit can predict a little better than a constant.
_HARDLY_BETTER, _USEFUL = 0.9, 0.5


def choose_first_weights(problem: Problem, rows: Rows) -> Weights:
    """Choose the initial weights, for standardised rows; all ranks start with the weights of rank 0."""
    chain, ranks = problem.chain, problem.communicator
    given, (first, last) = chain.read_weights(), are_drawn(chain.layers)
    if ranks.size > 1:
        flags, *flat = ranks.broadcast(
            [tf.constant([float(first), float(last)]), *tf.nest.flatten(given)], name="weights"
        )
        given, (first, last) = list(zip(flat[::2], flat[1::2], strict=True)), (flags.numpy() > 0).tolist()
    weights: Weights = rows.standardisation.to_training(given, (first, last))
    # A start with initialization="gaussian" draws the first layer's outputs.
    is_used = getattr(problem.settings, "initialization", "forward") == "forward"
    if not first and is_used and len(given) > 1:
        weights = _choose_reading(weights, rows.standardisation.to_training(given, (True, last)), problem, rows)
    if problem.loss.is_quadratic and not last:
        weights = _matched(weights, problem, rows)
    return weights


def _choose_reading(as_given: Weights, for_unit_rows: Weights, problem: Problem, rows: Rows) -> Weights:
    # If the origin or the unit of the inputs is so far off that the first layer cannot learn, read its weights as if an
    # initializer had drawn them. If it cannot learn then either, its weights were learnt in another unit or origin:
    # scale them. If the weights are only worse, they may come from another task: keep them. A model that predicts has
    # been trained: keep its weights too, even if its outputs have another unit than the targets.
    varies = ~rows.standardisation.is_constant
    found, if_reread = _badness(*as_given[0], varies), _badness(*for_unit_rows[0], varies)
    if found - if_reread < _WORSE and found < _BAD:
        return as_given
    constant = _loss_of_zeros(as_given, problem, rows)
    if _loss(as_given, problem, rows) < _HARDLY_BETTER * constant:
        return as_given
    weights, what_is_done = as_given, "kept"
    if found - if_reread > _HOPELESS:
        weights, what_is_done = for_unit_rows, "read as for inputs of mean 0 and standard deviation 1"
    if _badness(*weights[0], varies) > _HOPELESS:
        weights = [_with_unit_spread(*weights[0], varies), *weights[1:]]
        what_is_done = "scaled so that its outputs have a standard deviation of 1, and larger biases are set to 0"
    if problem.loss.is_quadratic and weights is not as_given:
        as_it_is, changed = (_loss(_matched(each, problem, rows), problem, rows) for each in (as_given, weights))
        if as_it_is < _USEFUL * min(constant, changed):
            weights, what_is_done = as_given, "kept"
    warnings.warn(
        f"The first Dense layer, {problem.chain.layers[0].name!r}, does not fit the unit or the origin of these "
        "inputs: its outputs vary too little or too much between rows, and the model predicts hardly better than a "
        f"constant. Its weights are {what_is_done}. If they were trained on inputs in another unit, convert these "
        "inputs to it. If they are not trained, build the model again, or standardise the inputs",
        stacklevel=7,  # The caller of `fit`.
    )
    return weights


def _matched(weights: Weights, problem: Problem, rows: Rows) -> Weights:
    return match_outputs(weights, problem.chain.architecture, rows, problem.communicator)


def _loss(weights: Weights, problem: Problem, rows: Rows) -> float:
    return problem.evaluation(rows, weights, with_metrics=False)[0]


def _loss_of_zeros(weights: Weights, problem: Problem, rows: Rows) -> float:
    # Return the loss of outputs of zero: for standardised targets, of their mean.
    kernel, bias = weights[-1]
    return _loss([*weights[:-1], (tf.zeros_like(kernel), tf.zeros_like(bias))], problem, rows)


def _with_unit_spread(kernel: Any, bias: Any, varies: np.ndarray) -> tuple[Any, Any]:
    # Scale a kernel so that pre-activations on rows of unit 1 have a standard deviation of 1 in the median unit. Set
    # biases to 0 that keep a unit on one side of its kink.
    spreads = _spreads(kernel, varies)
    scale = 1.0 / np.median(spreads)
    is_near = np.abs(bias.numpy()) <= _LARGEST_MEAN * scale * spreads
    return kernel * tf.cast(scale, kernel.dtype), bias * tf.cast(is_near, bias.dtype)


def _spreads(kernel: Any, varies: np.ndarray) -> np.ndarray:
    # Standard deviations of the pre-activations on rows of unit 1, of uncorrelated inputs.
    return np.sqrt(np.sum(kernel.numpy()[varies].astype(np.float64) ** 2, axis=0))


def _badness(kernel: Any, bias: Any, varies: np.ndarray) -> float:
    # Return the logarithm of the factor by which pre-activations on rows of unit 1 are too large, too small, or too far
    # from 0.
    spreads = _spreads(kernel, varies)
    spread = float(np.median(spreads))
    if spread == 0.0:
        return 0.0  # A kernel of zeros is equally good in any unit.
    means = np.abs(bias.numpy().astype(np.float64)) / np.maximum(spreads, np.finfo(np.float64).tiny)
    factors = spread / _LARGEST_SPREAD, _SMALLEST_SPREAD / spread, float(np.median(means)) / _LARGEST_MEAN, 1.0
    return math.log(max(factors))


def are_drawn(layers: Any) -> tuple[bool, bool]:
    """Return whether the kernels of the first and of the last layer are meant for rows of unit 1."""
    # A kernel is untrained if its initializer draws it again. A copied kernel, or one from a `SeedGenerator`, is not
    # drawn again. But training moves biases: if a layer's bias equals its initial value and its kernel has the size of
    # a drawn one, the layer is untrained. For a layer without a bias, look at the biases of all other layers.
    with_bias = [layer for layer in layers if layer.use_bias]
    return tuple(_is_drawn(layer, [layer] if layer.use_bias else with_bias) for layer in (layers[0], layers[-1]))  # type: ignore[return-value]


def _is_drawn(layer: Any, with_bias: list[Any]) -> bool:
    if is_drawn_again(layer.kernel_initializer, layer.kernel):
        return True
    is_untouched = all(is_drawn_again(other.bias_initializer, other.bias) for other in with_bias)
    # The root mean square of the layer's outputs on rows of unit 1.
    size = float(np.sqrt(np.mean(np.sum(layer.kernel.numpy().astype(np.float64) ** 2, axis=0))))
    return bool(with_bias) and is_untouched and _SMALLEST_DRAWN <= size <= _LARGEST_DRAWN


def is_drawn_again(initializer: Any, variable: Any) -> bool:
    """Return whether an initializer draws the values that a variable has; False if it cannot draw them twice."""
    # Functions, and initializers with a `SeedGenerator`, cannot draw the same numbers again.
    if not isinstance(initializer, REPEATABLE) or not isinstance(getattr(initializer, "seed", 0), int):
        return False
    drawn = keras.ops.convert_to_numpy(initializer(variable.shape, dtype=variable.dtype))
    return bool(np.allclose(variable.numpy(), drawn, rtol=1e-5, atol=0.0))


def match_outputs(weights: Any, architecture: Architecture, rows: Rows, communicator: Communicator) -> Any:
    """Scale and shift, by least squares, each output that predicts the targets worse than their mean does."""
    # Such outputs have another unit, or are random. `weights` and `rows` are standardised. Without a bias in the last
    # layer the outputs are scaled only.
    *below, (kernel, bias) = weights
    total: Any = tf.zeros((5, bias.shape[0]), tf.float64)
    for chunk in rows.all():  # A large bias would cost digits.
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
    # Return sums over rows of z, t, z z, z t and t t, for outputs z and targets t.
    def sum_up(chunk: Chunk, weights: Any) -> Any:
        outputs = architecture.forward(chunk.inputs, weights)[-1]
        z, t = (tf.cast(part * chunk.mask[:, None], tf.float64) for part in (outputs, chunk.targets))
        return tf.stack([tf.reduce_sum(part, axis=0) for part in (z, t, z * z, z * t, t * t)])

    return compiled(sum_up, by_xla=True)
