"""LARS: layer-wise adaptive rate scaling, by You, Gitman and Ginsburg."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfopt import _keras, numerics
from tfopt._checks import check_choice, check_flag, check_learning_rate, check_number, check_patterns
from tfopt._variables import matches
from tfopt._weight_decay import takes_weight_decay
from tfopt.numerics import Tensor
from tfopt.optimizers import _fused
from tfopt.optimizers.base import Optimizer
from tfopt.optimizers.norm_floor import add_floor, floor_of
from tfopt.optimizers.trust_ratio import is_defined, rate_where


@keras.saving.register_keras_serializable(package="tfopt")
class LARS(Optimizer):
    r"""Momentum SGD with a separate learning rate for each variable, proportional to the norm of the variable.

    For a variable w with gradient g (Algorithm 1 of the paper; lambda is `weight_decay`, m is `momentum`):

        u     = g + lambda * w
        ratio = trust_coefficient * |w| / (|g| + lambda * |w| + epsilon)      1 where |g| = 0
        v    <- m * v + learning_rate * ratio * u
        w    <- w - v

    With `nesterov=True` the last line is w <- w - (m * v + learning_rate * ratio * u), with the new v.

    The norms are Frobenius norms of one variable. LARS was designed for very large batches, with a warm-up and a
    polynomial decay of the learning rate: see `tfopt.optimizers.schedules.PolynomialDecayWithWarmup`.

    A variable that starts at zero, such as a bias, has no norm that could set its rate. The paper's ratio is 1 there: a
    plain gradient step at a rate of 1 to 32, repeated by the momentum, which makes losses that are sums explode. Here
    the |w| before the fraction is at least `norm_floor` for variables that are all zero at their first step, and for
    other variables while they are all zero. Their steps are then short too, and do not depend on the length of the
    gradient. Measured: the loss of an autoencoder, summed over pixels and rows, does not rise; kernels and low-rank
    adapters that start at zero learn, also after a long warm-up. `norm_floor=0` is the paper's rule.

    A bias whose gradient is only rounding (before BatchNormalization, or of the keys of attention) takes such steps
    too, in random directions. The next layer removes it, apart from the lag of moving averages. Give such layers no
    bias, or exclude "vectors" from adaptation, to keep it near zero.

    Libraries differ in three ways, which are arguments here:

    * `denominator="sum"` divides by |g| + lambda * |w| + epsilon, as printed in the paper. `denominator="norm"` divides
      by |g + lambda * w| + epsilon, as TensorFlow's Model Garden and optax do (the ratio is 1 where that norm is 0).
    * `clip=True` is LARC: the rate of an adapted variable becomes min(ratio, learning_rate), so LARS can only reduce
      the rate of a variable. A variable whose ratio is 1 because a norm is zero keeps the plain learning rate.
    * By default all variables are adapted and decayed, as in the paper. Many recipes exclude biases and normalisation
      layers: `layer_adaptation_exclude="vectors", weight_decay_exclude="vectors"`.

    Variables that are excluded from adaptation take plain steps with the full learning rate. Learning rates for LARS
    are large, so these steps can be too long.

    If an entry of a gradient is infinite or NaN, its whole variable becomes NaN, so the loss shows it at once
    (`keras.callbacks.TerminateOnNaN`). In a variable excluded from adaptation only that entry becomes NaN. Under mixed
    float16 precision Keras skips such steps.

    Args:
        learning_rate: A number >= 0, a `LearningRateSchedule`, or a callable. The default 1.0 fits the default
            `trust_coefficient`: a step of 0.001 |w| before momentum. The paper's large-batch runs use 9 to 32.
        momentum: Number in [0, 1). Default 0.9. It cannot change later, because 0 needs no state.
        trust_coefficient: Number > 0, the relative length of a step at learning rate 1. Default 0.001.
        weight_decay: Number >= 0. It is coupled: part of the gradient and of the ratio, unlike Keras's `weight_decay`.
            Default 0.
        epsilon: Number >= 0, added to the denominator. Default 0.
        nesterov: Whether to use Nesterov's momentum. Default False.
        denominator: "sum" or "norm", see above. Default "sum".
        clip: Whether to clip the rate as in LARC, see above. Default False.
        layer_adaptation_exclude: None (default), a list of regular expressions searched for in `variable.path`, or
            "vectors" for all variables of rank <= 1, and variables of any rank that are called "bias", "gamma", "beta"
            or "scale": the biases and the parameters of normalisation in all layers of Keras. Excluded variables take
            plain momentum steps (ratio 1, not clipped).
        weight_decay_exclude: The same, for variables without weight decay. Default None.
        norm_floor: Number >= 0, the minimum norm used for a variable that started at zero, see above. Default 1. For
            targets in small units (1e-4), use their standard deviation; otherwise the loss stays far above their
            variance. 0 takes the paper's plain steps from zero. It cannot change later, because 0 needs no state.
        **kwargs: Arguments of `keras.optimizers.Optimizer`: `clipnorm`, `use_ema`, `gradient_accumulation_steps`,
            `name` and others.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or not a regular expression.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> model.compile(optimizer=LARS(weight_decay=1e-4, weight_decay_exclude="vectors"), loss="mse")

    References:
        You, Gitman, Ginsburg: Large batch training of convolutional networks. 2017, arXiv:1708.03888.
    """

    def __init__(
        self,
        learning_rate: Any = 1.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
        weight_decay: float = 0.0,
        epsilon: float = 0.0,
        nesterov: bool = False,
        denominator: str = "sum",
        clip: bool = False,
        layer_adaptation_exclude: Sequence[str] | str | None = None,
        weight_decay_exclude: Sequence[str] | str | None = None,
        norm_floor: float = 1.0,
        **kwargs: Any,
    ) -> None:
        momentum = check_number("momentum", momentum, minimum=0.0, maximum=1.0, exclusive_maximum=True)
        trust_coefficient = check_number("trust_coefficient", trust_coefficient, minimum=0.0, exclusive_minimum=True)
        weight_decay = check_number("weight_decay", 0.0 if weight_decay is None else weight_decay, minimum=0.0)
        epsilon = check_number("epsilon", epsilon, minimum=0.0)
        norm_floor = check_number("norm_floor", norm_floor, minimum=0.0)
        layer_adaptation_exclude = check_patterns("layer_adaptation_exclude", layer_adaptation_exclude)
        weight_decay_exclude = check_patterns("weight_decay_exclude", weight_decay_exclude)
        super().__init__(learning_rate=check_learning_rate(learning_rate), **kwargs)
        self._momentum = momentum
        self.trust_coefficient = trust_coefficient
        self.weight_decay = weight_decay
        self.epsilon = epsilon
        self.nesterov = check_flag("nesterov", nesterov)
        self.denominator = check_choice("denominator", denominator, ("sum", "norm"))
        self.clip = check_flag("clip", clip)
        self._layer_adaptation_exclude = layer_adaptation_exclude
        self._weight_decay_exclude = weight_decay_exclude
        self._norm_floor = norm_floor
        self._velocities: Sequence[Any] = ()
        self._floors: Sequence[Any] = ()
        self._is_adapted: Sequence[bool] = ()
        self._is_decayed: Sequence[bool] = ()

    @property
    def momentum(self) -> float:
        """The decay of the velocity; read-only, because it determines the state."""
        return self._momentum

    @property
    def norm_floor(self) -> float:
        """The minimum norm of a variable that started at zero; read-only, because it determines the state."""
        return self._norm_floor

    @property
    def layer_adaptation_exclude(self) -> Sequence[str] | str:
        """Which variables take plain momentum steps; read-only, because `build` reads it once."""
        return self._layer_adaptation_exclude

    @property
    def weight_decay_exclude(self) -> Sequence[str] | str:
        """Which variables do not decay; read-only, because `build` reads it once."""
        return self._weight_decay_exclude

    def build(self, variables: Sequence[Any]) -> None:
        """Create the velocities and floors, and decide which variables are adapted and decayed.

        Args:
            variables: The model's trainable variables.
        """
        if self.built:
            return
        super().build(variables)
        # This cannot be done in `update_step`: on TensorFlow it receives a variable without a path.
        self._is_adapted = tuple(not matches(v, self.layer_adaptation_exclude) for v in variables)
        self._is_decayed = tuple(self._takes_weight_decay(v) for v in variables)
        if self.momentum:
            self._velocities = tuple(self.add_slot(variable, "velocity") for variable in variables)
        if self.norm_floor:
            self._floors = tuple(
                add_floor(self, v) if is_adapted else None
                for v, is_adapted in zip(variables, self._is_adapted, strict=True)
            )

    def _takes_weight_decay(self, variable: Any) -> bool:
        return takes_weight_decay(self, variable) and not matches(variable, self.weight_decay_exclude)

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Do nothing: here the decay is part of the gradient, so Keras must not also apply its decoupled decay."""

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        """Take one step on one variable.

        Args:
            gradient: The gradient, dense or sparse.
            variable: The variable, changed in place.
            learning_rate: Scalar tensor.
        """
        index = _keras.variable_index(self)(variable)
        gradient = numerics.densify(gradient, variable.shape)
        learning_rate = ops.cast(learning_rate, numerics.accumulation_dtype(variable.dtype))
        is_fused = _fused.is_available(variable, gradient)
        update, length, denominator = self._update_and_rate(gradient, variable, learning_rate, index, is_fused)
        velocity = self._velocities[index] if self.momentum else None

        def descend() -> None:
            self._descend(variable, velocity, length * (update / denominator))

        if is_fused:
            rate = length / denominator
            arguments = variable, velocity, update, rate, self.momentum, self.nesterov
            ops.cond(_fused.is_safe(rate), lambda: _fused.momentum_descent(*arguments), descend)
        else:
            descend()

    def _update_and_rate(
        self, gradient: Tensor, variable: Any, learning_rate: Tensor, index: int, is_fused: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return u, shaped like the variable, and the numerator and denominator of its rate (scalars)."""
        # The rate itself can overflow even if the step does not.
        w, g = ops.cast(variable, learning_rate.dtype), ops.cast(gradient, learning_rate.dtype)
        decay = self.weight_decay if self._is_decayed[index] else 0.0
        update = g + decay * w if decay else g
        if not self._is_adapted[index]:
            return update, learning_rate, ops.ones_like(learning_rate)
        divisor = g if self.denominator == "sum" else update
        weight_norm, divisor_norm = _fused.norms(w, divisor) if is_fused else map(numerics.norm, (w, divisor))
        floor = floor_of(self, self._floors[index], self.norm_floor, weight_norm) if self.norm_floor else 0.0
        denominator = divisor_norm + self.epsilon
        if self.denominator == "sum":
            denominator = denominator + decay * weight_norm
        length = self.trust_coefficient * ops.maximum(weight_norm, floor)
        # With `clip`, this is min(ratio, learning_rate) with both sides multiplied by the denominator.
        length = ops.minimum(length, learning_rate * denominator) if self.clip else learning_rate * length
        defined = is_defined(ops.maximum(weight_norm, floor), divisor_norm)
        return update, *rate_where(defined, length, denominator, learning_rate)

    def _descend(self, variable: Any, velocity: Any, step: Tensor) -> None:
        """Move the variable by -step, through the velocity if there is one; it is stored as -v, as in Keras's SGD."""
        change = -step
        if velocity is not None:
            m = self.momentum * ops.convert_to_tensor(velocity) - step
            self.assign(velocity, m)
            change = self.momentum * m - step if self.nesterov else m
        self.assign(variable, ops.cast(ops.cast(variable, step.dtype) + change, variable.dtype))

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "LARS":
        """Build an optimizer from its configuration.

        Args:
            config: The result of `get_config`. A configuration without `norm_floor` is older than that argument. It
                means `norm_floor=0`, the rule at that time: its saved state has no floors.
            custom_objects: The user's own classes by name, such as the class of a learning rate schedule; None for
                none.

        Returns:
            The optimizer.
        """
        return super().from_config({"norm_floor": 0.0, **config}, custom_objects=custom_objects)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments needed to build this optimizer again.

        Returns:
            A dictionary for `from_config`.
        """
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "trust_coefficient": self.trust_coefficient,
            "weight_decay": self.weight_decay,
            "epsilon": self.epsilon,
            "nesterov": self.nesterov,
            "denominator": self.denominator,
            "clip": self.clip,
            "layer_adaptation_exclude": _as_argument(self.layer_adaptation_exclude),
            "weight_decay_exclude": _as_argument(self.weight_decay_exclude),
            "norm_floor": self.norm_floor,
        }


def _as_argument(patterns: Sequence[str] | str) -> list[str] | str:
    return patterns if isinstance(patterns, str) else list(patterns)
