"""TensorFlow's fused CPU kernels: one operation where the plain update takes several passes over memory.

The optimizers use them on a CPU for dense gradients in float32 and float64, outside `tf.distribute` and outside XLA
(XLA fuses operations itself). The choice is made while the step is traced. Every function here must give the result of
the plain update, to rounding.
"""

import math
from typing import Any

import keras
from keras import ops

from tfopt import numerics
from tfopt.numerics import Tensor, is_inside_xla

# Below the first bound a float32 sum of squares may have lost entries to underflow; above the second it may be close to
# overflow. The same bounds hold for the rate: the proximal kernel divides by it, and a denormal rate gives NaN.
_SMALLEST, _LARGEST = 1e-26, 1e30

# In a smaller variable the branch around the kernels costs more time than the kernels save.
_SMALLEST_SIZE = 2**14


def is_available(variable: Any, gradient: Any) -> bool:
    """Return whether a variable and its gradient, as `update_step` receives them, can use the fused kernels now."""
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
    """Return the sum of squares of a float32 or float64 tensor as a scalar, in a single pass over memory."""
    import tensorflow as tf

    return 2.0 * tf.nn.l2_loss(x)


def norms(*tensors: Tensor) -> list[Tensor]:
    """Return the norms of float32 or float64 tensors as scalars, in one pass over memory each if none is extreme."""
    squares = [sum_of_squares(x) for x in tensors]

    def fast() -> list[Tensor]:
        return [ops.sqrt(square) for square in squares]

    return ops.cond(is_safe(*squares), fast, lambda: [numerics.norm(x) for x in tensors])


def is_safe(*values: Tensor) -> Tensor:
    """Return a scalar boolean: whether rates and sums of squares (scalars) suit the kernels; False for 0 and NaN."""
    stacked = ops.stack(values)
    return ops.all(ops.logical_and(ops.greater(stacked, _SMALLEST), ops.less(stacked, _LARGEST)))


def shrunk_descent(variable: Any, gradient: Tensor, rate: Tensor, shrinkage: Tensor) -> None:
    """Assign w <- (w - rate * g) / (1 + shrinkage) to a `tf.Variable`; scalar rate not zero and not denormal."""
    import tensorflow as tf

    # This assignment is the proximal gradient step of (l2 / 2) |w|^2 with l2 = shrinkage / rate.
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
    """Assign m <- momentum * m - rate * g; w <- w + m (Nesterov: w + momentum * m - rate * g); m may be None."""
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
