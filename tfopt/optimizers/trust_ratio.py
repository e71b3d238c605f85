"""The trust ratio that layer-wise optimizers share: the length of a step depends on the norm of the layer."""

from keras import ops

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


def rate_where(defined: Tensor, length: Tensor, denominator: Tensor, learning_rate: Tensor) -> tuple[Tensor, Tensor]:
    """Return numerator and denominator (scalars) of the rate of an update u: of the plain rate where not `defined`.

    Take the step as `numerator * (u / denominator)`, because the rate itself can overflow even if the step does not.

    Args:
        defined: Scalar boolean tensor from `is_defined`.
        length: Scalar tensor, learning rate times trust coefficient times |w|.
        denominator: Scalar tensor, the divisor of u.
        learning_rate: Scalar tensor, the rate of the plain step.

    Returns:
        Two scalar tensors: `length` and `denominator` where `defined`, otherwise `learning_rate` and 1.
    """
    return ops.where(defined, length, learning_rate), ops.where(defined, denominator, ops.ones_like(denominator))
