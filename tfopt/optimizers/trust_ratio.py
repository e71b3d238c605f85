"""The physics that layer-wise optimizers share: a step whose length is set by the size of the layer it moves."""

import re
from collections.abc import Sequence

from keras import ops

from tfopt._naming import path_of
from tfopt.numerics import Tensor


def is_defined(weight_norm: Tensor, update_norm: Tensor) -> Tensor:
    """Tell whether a trust ratio exists: neither the weights nor the update are all zero.

    Args:
        weight_norm: Scalar tensor |w|.
        update_norm: Scalar tensor |u|.

    Returns:
        A scalar boolean tensor. If either norm is NaN it is True, so that non-finite values make the whole step NaN.
    """
    return ops.not_equal(ops.sign(weight_norm) * ops.sign(update_norm), 0.0)  # NaN differs from 0


def trust_ratio(weight_norm: Tensor, update_norm: Tensor) -> Tensor:
    """Return |w| / |u|, or 1 where either norm is zero.

    Args:
        weight_norm: Scalar tensor |w|.
        update_norm: Scalar tensor |u|, the norm of the update before it is scaled.

    Returns:
        A scalar tensor.

    Example:
        >>> float(trust_ratio(ops.convert_to_tensor(6.0), ops.convert_to_tensor(3.0)))
        2.0
        >>> float(trust_ratio(ops.convert_to_tensor(0.0), ops.convert_to_tensor(3.0)))
        1.0
    """
    defined = is_defined(weight_norm, update_norm)
    safe = ops.where(defined, update_norm, ops.ones_like(update_norm))
    return ops.where(defined, weight_norm / safe, ops.ones_like(weight_norm))


def trusted_step(
    update: Tensor, learning_rate: Tensor, trusted_length: Tensor, denominator: Tensor, defined: Tensor
) -> Tensor:
    """Scale an update to a length that the layer can bear, without overflow on the way.

    Evaluates `learning_rate * ratio * update` as `length * (update / denominator)`: a ratio itself can overflow where
    the step that it stands for is harmless.

    Args:
        update: Tensor u, the direction to go in.
        learning_rate: Scalar tensor; the rate of the plain step taken where the ratio is not defined.
        trusted_length: Scalar tensor; learning rate times trust coefficient times |w|.
        denominator: Scalar tensor that `update` is divided by.
        defined: Scalar boolean tensor, from `is_defined`.

    Returns:
        The step, a tensor shaped like `update`: `trusted_length * update / denominator`, or `learning_rate * update`.
    """
    length = ops.where(defined, trusted_length, learning_rate)
    return length * (update / ops.where(defined, denominator, ops.ones_like(denominator)))


def matches(variable: object, patterns: Sequence[str] | str) -> bool:
    """Tell whether a variable is selected by its path or its rank.

    Args:
        variable: A `keras.Variable`.
        patterns: Regular expressions, searched for in the variable's path; or "vectors", which selects all variables of
            rank 1 and less: biases, and the scales and offsets of normalisation layers.

    Returns:
        Whether the variable is selected.
    """
    if isinstance(patterns, str):
        return len(variable.shape) <= 1  # type: ignore[attr-defined]
    path = path_of(variable).removesuffix(":0")  # of TensorFlow's names, so that "bias$" matches them too
    return any(re.search(pattern, path) for pattern in patterns)
