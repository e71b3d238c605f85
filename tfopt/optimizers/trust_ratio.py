"""The trust ratio that layer-wise optimizers share: the length of a step depends on the norm of the layer."""

import re
from collections.abc import Sequence

from keras import ops

from tfopt._naming import path_of
from tfopt.numerics import Tensor


def is_defined(weight_norm: Tensor, update_norm: Tensor) -> Tensor:
    """Return a scalar boolean: no norm (scalars |w|, |u|) is 0; True for NaN, which then makes the step NaN."""
    return ops.not_equal(ops.sign(weight_norm) * ops.sign(update_norm), 0.0)  # NaN is not equal to 0


def trust_ratio(weight_norm: Tensor, update_norm: Tensor) -> Tensor:
    """Return |w| / |u|, or 1 where either norm is zero.

    Args:
        weight_norm: Scalar tensor |w|.
        update_norm: Scalar tensor |u|, the norm of the update before scaling.

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
    """Scale an update to the length that the trust ratio gives, without overflow in intermediate results.

    The step `learning_rate * ratio * update` is computed as `length * (update / denominator)`, because the ratio can
    overflow even if the step does not.

    Args:
        update: Tensor u, the direction of the step.
        learning_rate: Scalar tensor, the rate of the plain step where the ratio is not defined.
        trusted_length: Scalar tensor, learning rate times trust coefficient times |w|.
        denominator: Scalar tensor, the divisor of `update`.
        defined: Scalar boolean tensor from `is_defined`.

    Returns:
        A tensor shaped like `update`: `trusted_length * update / denominator` where `defined`, otherwise
        `learning_rate * update`.
    """
    length = ops.where(defined, trusted_length, learning_rate)
    return length * (update / ops.where(defined, denominator, ops.ones_like(denominator)))


def matches(variable: object, patterns: Sequence[str] | str) -> bool:
    """Return whether regular expressions, or the word "vectors", select a variable.

    Args:
        variable: A `keras.Variable`.
        patterns: Regular expressions, searched for in the path of the variable; or "vectors", which selects all
            variables of rank <= 1: biases, and the scales and offsets of normalisation layers.

    Returns:
        Whether the variable is selected.
    """
    if isinstance(patterns, str):
        return len(variable.shape) <= 1  # type: ignore[attr-defined]
    path = path_of(variable).removesuffix(":0")  # names of TensorFlow end in ":0", which "bias$" would not match
    return any(re.search(pattern, path) for pattern in patterns)
