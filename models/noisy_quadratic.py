"""The noisy quadratic model as a Keras model, for any Keras optimizer."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfopt._checks import check_integer
from tfopt.nqm.problem import NoisyQuadratic


@keras.saving.register_keras_serializable(package="tfopt")
class NoisyQuadraticLayer(keras.layers.Layer):
    """1/2 sum_i h_i theta_i^2 + sum_i sqrt(c_i) x_i theta_i for each row x; theta are the weights.

    Args:
        curvature: h, shape `(dim,)`.
        noise_scale: sqrt(c), shape `(dim,)`.
        initial_scale: sqrt(E theta_i(0)^2), shape `(dim,)`.
        seed: Seed of the initial signs; None for random signs.
        **kwargs: Arguments of the base class.
    """

    def __init__(
        self, curvature: Any, noise_scale: Any, initial_scale: Any, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._parts = tuple(np.asarray(part, np.float64) for part in (curvature, noise_scale, initial_scale))
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        """Create theta for inputs of shape `(rows, dim)`."""
        signs = np.where(np.random.default_rng(self.seed).random(input_shape[-1]) < 0.5, -1.0, 1.0)
        self.theta = self.add_weight(
            name="theta",
            shape=(input_shape[-1],),
            initializer=lambda shape, dtype: ops.convert_to_tensor(signs * self._parts[2], dtype),
        )

    def call(self, inputs: Any) -> Any:
        """Return losses, shape `(rows, 1)`, for noise of mean 0 and variance 1, shape `(rows, dim)`."""
        curvature, noise_scale = (ops.convert_to_tensor(part, inputs.dtype) for part in self._parts[:2])
        theta = ops.convert_to_tensor(self.theta)
        mean = 0.5 * ops.sum(curvature * theta * theta)
        return mean + ops.matmul(inputs, (noise_scale * theta)[:, None])

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        names = ("curvature", "noise_scale", "initial_scale")
        own = {name: part.tolist() for name, part in zip(names, self._parts, strict=True)}
        return {**super().get_config(), **own, "seed": self.seed}


@keras.saving.register_keras_serializable(package="tfopt")
def output_as_loss(y_true: Any, y_pred: Any) -> Any:
    """A Keras loss for models whose output is the loss of each row.

    Args:
        y_true: Not used.
        y_pred: Losses, shape `(rows, 1)`.

    Returns:
        The losses, shape `(rows,)`.
    """
    return ops.squeeze(y_pred, axis=-1)


def noisy_quadratic(problem: NoisyQuadratic, *, seed: int | None = None, name: str = "noisy_quadratic") -> keras.Model:
    """Build a model whose loss is that of a noisy quadratic, and whose gradient contains its noise.

    The input is noise of mean 0 and variance 1, as `tfopt.nqm.noise_batches` makes it. The output is the loss of each
    row: compile the model with `loss=output_as_loss`. The gradient of a batch of B rows is then h_i theta_i plus noise
    of variance c_i / B. On average, SGD and momentum follow `tfopt.nqm.expected_loss`. For an input of zeros the output
    is the loss without noise.

    Args:
        problem: The problem. Each direction counts as often as its multiplicity, a whole number.
        seed: Seed of the random signs of the initial weights, which are +- sqrt(E theta_i(0)^2); an integer >= 0. None
            (default) for unseeded signs.
        name: Name of the model.

    Returns:
        An uncompiled, built `keras.Model`.

    Raises:
        TypeError: `problem` is not a `NoisyQuadratic`, or `seed` not an integer.
        ValueError: A multiplicity is not a whole number, or `seed` is negative.

    Example:
        >>> from tfopt.nqm import NoisyQuadratic, noise_batches
        >>> problem = NoisyQuadratic.power_law(100)
        >>> model = noisy_quadratic(problem, seed=0)
        >>> model.compile("sgd", loss=output_as_loss)
        >>> history = model.fit(noise_batches(problem, batch_size=8, num_batches=10), shuffle=False, verbose=0)

    References:
        Zhang et al.: Which algorithmic choices matter at which batch sizes? Insights from a noisy quadratic model.
        NeurIPS 2019, arXiv:1907.04164.
    """
    if not isinstance(problem, NoisyQuadratic):
        raise TypeError(f"`problem` must be a tfopt.nqm.NoisyQuadratic. Received: {problem!r}")
    if seed is not None:
        check_integer("seed", seed, minimum=0)
    whole = problem.expanded()
    inputs = keras.Input((len(whole.curvature),), name="noise")
    layer = NoisyQuadraticLayer(
        whole.curvature, np.sqrt(whole.noise_variance), np.sqrt(whole.initial_second_moment), seed, name="quadratic"
    )
    return keras.Model(inputs, layer(inputs), name=name)
