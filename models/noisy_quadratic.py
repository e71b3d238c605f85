"""The noisy quadratic model as a Keras model, on which any Keras optimizer can be run."""

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
        curvature: h, of shape (dim,).
        noise_scale: sqrt(c), of shape (dim,).
        initial_scale: sqrt(E theta_i(0)^2), of shape (dim,).
        seed: Seed of the initial signs, or None.
        **kwargs: Of the base class.
    """

    def __init__(
        self, curvature: Any, noise_scale: Any, initial_scale: Any, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._parts = tuple(np.asarray(part, np.float64) for part in (curvature, noise_scale, initial_scale))
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        """Make theta.

        Args:
            input_shape: (rows, dim).
        """
        signs = np.where(np.random.default_rng(self.seed).random(input_shape[-1]) < 0.5, -1.0, 1.0)
        self.theta = self.add_weight(
            name="theta",
            shape=(input_shape[-1],),
            initializer=lambda shape, dtype: ops.convert_to_tensor(signs * self._parts[2], dtype),
        )

    def call(self, inputs: Any) -> Any:
        """Return one loss for each row.

        Args:
            inputs: Noise of mean 0 and variance 1, of shape (rows, dim).

        Returns:
            Losses, of shape (rows, 1).
        """
        curvature, noise_scale = (ops.convert_to_tensor(part, inputs.dtype) for part in self._parts[:2])
        theta = ops.convert_to_tensor(self.theta)
        mean = 0.5 * ops.sum(curvature * theta * theta)
        return mean + ops.matmul(inputs, (noise_scale * theta)[:, None])

    def get_config(self) -> dict[str, Any]:
        """Return what the layer is made of.

        Returns:
            The constructor's arguments.
        """
        names = ("curvature", "noise_scale", "initial_scale")
        own = {name: part.tolist() for name, part in zip(names, self._parts, strict=True)}
        return {**super().get_config(), **own, "seed": self.seed}


@keras.saving.register_keras_serializable(package="tfopt")
def output_as_loss(y_true: Any, y_pred: Any) -> Any:
    """A Keras loss for models whose output is the loss of each row.

    Args:
        y_true: Not used.
        y_pred: Losses, of shape (rows, 1).

    Returns:
        The losses, of shape (rows,).
    """
    return ops.squeeze(y_pred, axis=-1)


def noisy_quadratic(problem: NoisyQuadratic, *, seed: int | None = None, name: str = "noisy_quadratic") -> keras.Model:
    """Build a model whose loss is a noisy quadratic's, and whose gradient carries its noise.

    Its input is noise of mean 0 and variance 1, as `tfopt.nqm.noise_batches` makes it, and its output the loss of each
    row: compile it with `loss=output_as_loss`. The gradient of a batch of B rows is then h_i theta_i plus noise of
    variance c_i / B. SGD and momentum follow `tfopt.nqm.expected_loss` in the mean. On zeros the output is the loss
    without noise.

    Args:
        problem: The problem, whose directions are counted one by one.
        seed: Makes the initial weights reproducible: +- sqrt(E theta_i(0)^2), with random signs.
        name: Name of the model.

    Returns:
        An uncompiled, built `keras.Model`.

    Raises:
        TypeError: `problem` is no `NoisyQuadratic`, or `seed` no integer.
        ValueError: A multiplicity is not a whole number.

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
