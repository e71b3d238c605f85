"""TensorFlow's fused CPU kernels: one operation where the plain update takes several passes over memory.

Used where they exist (CPU, float32 and float64, dense gradients, no `tf.distribute`, not inside XLA, which fuses by
itself), chosen while the step is traced. Everything here must give what the plain update gives, to rounding.
"""

import math
from typing import Any

import keras
from keras import ops

from tfopt.numerics import Tensor, is_inside_xla

# Sums of squares outside these bounds may have lost entries to underflow, or come close to overflow, in float32; and
# the proximal kernel divides by its rate, so that a denormal one gives NaN.
_SMALLEST, _LARGEST = 1e-26, 1e30

# In a smaller variable the branch that guards the kernels costs more than they save.
_SMALLEST_SIZE = 2**14


def is_available(variable: Any, gradient: Any) -> bool:
    """Tell whether a variable can be updated by TensorFlow's fused kernels, here and now.

    Args:
        variable: The variable as `update_step` receives it.
        gradient: Its gradient.

    Returns:
        Whether this is a large enough `tf.Variable` in float32 or float64, on a CPU, outside XLA and `tf.distribute`.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    if not isinstance(variable, tf.Variable) or variable.dtype not in (tf.float32, tf.float64):
        return False
    if math.prod(variable.shape) < _SMALLEST_SIZE:
        return False
    if tf.distribute.has_strategy() or "CPU" not in variable.device or gradient.dtype != variable.dtype:
        return False
    return not is_inside_xla()


def sum_of_squares(x: Tensor) -> Tensor:
    """Return the sum of squares by the one kernel that squares and adds in a single pass.

    Args:
        x: Tensor in float32 or float64.

    Returns:
        A scalar tensor.
    """
    import tensorflow as tf

    return 2.0 * tf.nn.l2_loss(x)


def is_safe(rate: Tensor, *sums: Tensor) -> Tensor:
    """Tell whether the fused kernel gives the right answer for these numbers.

    Args:
        rate: Scalar tensor, the factor of the gradient in the step.
        *sums: Scalar tensors, the sums of squares that the rate was made of.

    Returns:
        A scalar boolean tensor, False for zeros and NaN.
    """
    values = ops.stack([rate, *sums])
    return ops.all(ops.logical_and(ops.greater(values, _SMALLEST), ops.less(values, _LARGEST)))


def shrunk_descent(variable: Any, gradient: Tensor, rate: Tensor, shrinkage: Tensor) -> None:
    """Assign w <- (w - rate * g) / (1 + shrinkage).

    The proximal gradient step of (l2 / 2) |w|^2, with l2 = shrinkage / rate, is exactly that.

    Args:
        variable: The `tf.Variable` w.
        gradient: Tensor g.
        rate: Scalar tensor, neither zero nor denormal.
        shrinkage: Scalar tensor.
    """
    import tensorflow as tf

    tf.raw_ops.ResourceApplyProximalGradientDescent(
        var=variable.handle,
        alpha=rate,
        l1=tf.zeros((), variable.dtype),
        l2=shrinkage / rate,
        delta=gradient,
    )


def momentum_descent(
    variable: Any, velocity: Any, gradient: Tensor, rate: Tensor, momentum: float, nesterov: bool
) -> None:
    """Assign m <- momentum * m - rate * g, then w <- w + m, or with Nesterov w <- w + momentum * m - rate * g.

    Args:
        variable: The `tf.Variable` w.
        velocity: The `keras.Variable` m, or None for plain descent.
        gradient: Tensor g.
        rate: Scalar tensor.
        momentum: The decay of m.
        nesterov: Whether to look one step ahead.
    """
    import tensorflow as tf

    if velocity is None:
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
        return
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle,
        accum=velocity.value.handle,
        lr=rate,
        grad=gradient,
        momentum=tf.constant(momentum, variable.dtype),
        use_nesterov=nesterov,
    )
