"""Fromage: the Frobenius matched gradient descent of Bernstein, Vahdat, Yue and Liu."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from tfopt import _keras, numerics
from tfopt._checks import check_learning_rate, check_number
from tfopt.numerics import Tensor
from tfopt.optimizers import _fused
from tfopt.optimizers.base import Optimizer
from tfopt.optimizers.trust_ratio import is_defined, rate_where, trust_ratio


@keras.saving.register_keras_serializable(package="tfopt")
class Fromage(Optimizer):
    r"""Optimizer that changes every variable by the same relative amount in each step.

    For a variable :math:`w` with gradient :math:`g` and learning rate :math:`\eta` (Algorithm 1 of the paper):

        w <- (w - eta * (|w| / |g|) * g) / sqrt(1 + eta^2)      where |w| > 0 and |g| > 0
        w <- (w - eta * g) / sqrt(1 + eta^2)                    otherwise

    The norms are Frobenius norms of one variable. Biases and normalisation scales are treated like kernels. The
    division by sqrt(1 + eta^2) keeps norms from growing: if the gradient is orthogonal to the weights, as in layers
    followed by a normalisation, |w| stays constant.

    In practice:

    * The learning rate is a relative change per step and needs little tuning. Start with 0.01.
    * The length of the gradient has no effect, so clipping and loss scaling change nothing. The exception is a variable
      that is all zero, such as a new bias: its first step is a plain gradient step. With targets in large units (1e5)
      this step can make the loss explode. Standardise the targets.
    * At a fixed learning rate the weights do not converge: they keep moving around a minimum by a relative amount of
      about eta per step. Lower the rate on a plateau (`keras.callbacks.ReduceLROnPlateau`) or with a schedule.
    * `weight_decay` is Keras's decoupled decay. It shrinks the weights before the step, which works against a constant
      relative step. Fromage does not need it, because it bounds the norms.
    * If an entry of a gradient is infinite or NaN, its whole variable becomes NaN, so the loss shows it at once
      (`keras.callbacks.TerminateOnNaN`). Under mixed float16 precision Keras skips such steps.

    Args:
        learning_rate: Relative size of a step: a number >= 0, a `LearningRateSchedule`, or a callable. Default 0.01.
        p_bound: None (default), or a number > 0. After each step, the norm of a variable is limited to `p_bound` times
            its norm at the time when the optimizer was built. Variables that were zero then, such as biases, have no
            limit (with a limit of 0 they could never move).
        **kwargs: Arguments of `keras.optimizers.Optimizer`: `weight_decay`, `clipnorm`, `use_ema`,
            `gradient_accumulation_steps`, `name` and others.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> model.compile(optimizer=Fromage(), loss="mse")

    References:
        Bernstein, Vahdat, Yue, Liu: On the distance between two neural networks and the stability of learning. NeurIPS
        2020, arXiv:2002.03432.
    """

    def __init__(self, learning_rate: Any = 0.01, p_bound: float | None = None, **kwargs: Any) -> None:
        if p_bound is not None:
            p_bound = check_number("p_bound", p_bound, minimum=0.0, exclusive_minimum=True)
        super().__init__(learning_rate=check_learning_rate(learning_rate), **kwargs)
        self._p_bound = p_bound
        self._initial_norms: Sequence[Any] = ()

    @property
    def p_bound(self) -> float | None:
        """The limit of each norm as a multiple of its initial value; read-only, because it determines the state."""
        return self._p_bound

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state, and store the initial norm of each variable if `p_bound` is set.

        Args:
            variables: The model's trainable variables.
        """
        if self.built:
            return
        super().build(variables)
        if self.p_bound is not None:
            self._initial_norms = tuple(self._add_initial_norm(variable) for variable in variables)

    def _add_initial_norm(self, variable: Any) -> Any:
        initial_norm = _value_now(numerics.norm, variable)
        return self.add_scalar(
            variable, "initial_norm", lambda shape, dtype: ops.convert_to_tensor(initial_norm, dtype=dtype)
        )

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        """Take one step on one variable.

        Args:
            gradient: The gradient, dense or sparse.
            variable: The variable, changed in place.
            learning_rate: Scalar tensor.
        """
        gradient = numerics.densify(gradient, variable.shape)
        learning_rate = ops.cast(learning_rate, numerics.accumulation_dtype(variable.dtype))
        if _fused.is_available(variable, gradient):
            self._fused_step(gradient, variable, learning_rate)
        else:
            self._plain_step(gradient, variable, learning_rate)

    def _plain_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        w = ops.cast(variable, learning_rate.dtype)
        g = ops.cast(gradient, learning_rate.dtype)
        weight_norm, gradient_norm = numerics.norm(w), numerics.norm(g)
        defined = is_defined(weight_norm, gradient_norm)
        length, denominator = rate_where(defined, learning_rate * weight_norm, gradient_norm, learning_rate)
        stepped = (w - length * (g / denominator)) / ops.sqrt(1.0 + ops.square(learning_rate))
        self.assign(variable, ops.cast(self._capped(stepped, variable), variable.dtype))

    def _fused_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        weight_square, gradient_square = _fused.sum_of_squares(variable), _fused.sum_of_squares(gradient)
        rate = learning_rate * trust_ratio(ops.sqrt(weight_square), ops.sqrt(gradient_square))
        eta_square = ops.square(learning_rate)
        # This is sqrt(1 + eta^2) - 1 in a form without cancellation for small eta.
        shrinkage = eta_square / (1.0 + ops.sqrt(1.0 + eta_square))
        ops.cond(
            _fused.is_safe(rate, weight_square, gradient_square),
            lambda: _fused.shrunk_descent(variable, gradient, rate, shrinkage),
            lambda: self._plain_step(gradient, variable, learning_rate),
        )
        if self.p_bound is not None:
            self.assign(variable, self._capped(ops.convert_to_tensor(variable), variable))

    def _capped(self, weights: Tensor, variable: Any) -> Tensor:
        """Return the new weights of a variable, scaled down to its norm limit if their norm exceeds it."""
        if self.p_bound is None:
            return weights
        limit = self.p_bound * ops.convert_to_tensor(self._initial_norms[_keras.variable_index(self)(variable)])
        norm = numerics.norm(weights)
        exceeds = ops.logical_and(ops.greater(limit, 0.0), ops.greater(norm, limit))
        return weights * ops.where(exceeds, limit / ops.where(exceeds, norm, ops.ones_like(norm)), ops.ones_like(norm))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments needed to build this optimizer again.

        Returns:
            A dictionary for `from_config`.
        """
        return {**super().get_config(), "p_bound": self.p_bound}


def _value_now(function: Callable[[Any], Tensor], variable: Any) -> float:
    """Return a scalar function of a variable as a float at once, even while TensorFlow traces the first step."""
    if keras.backend.backend() != "tensorflow":
        return float(ops.convert_to_numpy(function(variable)))
    import tensorflow as tf

    with tf.init_scope():
        return float(function(variable))
