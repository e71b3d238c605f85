"""The Hessian of a model's loss."""

from typing import Any

import tensorflow as tf

from tfopt.curvature.operator import CurvatureOperator
from tfopt.curvature.probe_loss import dense_gradients


class HessianOperator(CurvatureOperator):
    """The Hessian of the loss on a probe, regularisation included, as a function v -> Hv.

    Hv = d/dw (g(w)' v), with g the gradient: reverse mode over reverse mode, at about the cost of two gradients
    (Pearlmutter, "Fast exact multiplication by the Hessian", 1994). Symmetric; its eigenvalues have either sign.

    Args:
        model: A Keras model with its variables, compiled or not.
        loss: As `compile` takes it. None (default) means the one that the model was compiled with.
        x: The data: a `tfopt.curvature.Probe`, or what `Probe` takes as its `x`.
        y: As `Probe` takes it.
        sample_weight: As `Probe` takes it.
        batch_size: As `Probe` takes it.
        class_weight: As `Probe` takes it: not at all.
        batch_norm: "batch" (default) normalises by each batch's own statistics, "moving" by the moving averages.
            Dropout is off in both.
        variables: The variables whose block is wanted: a variable, a layer, or a list of these. None (default) means
            all trainable variables.
        self_check: Whether to check the first product against finite differences. Default True.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the model or data cannot be measured; the message says why.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> hessian = HessianOperator(model, "mse", np.array([[1.0, 0.0], [0.0, 3.0]]), np.zeros((2, 1)))
        >>> hessian.to_dense().round(3).tolist()
        [[1.0, 0.0], [0.0, 9.0]]
    """

    def quantity(self, values: list[Any]) -> list[Any]:
        """Return the gradient on the first batch.

        Args:
            values: One tensor for each variable.

        Returns:
            A list of tensors.
        """
        return list(self.probe_loss.loss_and_gradient_of(values, self.probe.batches[0].tensors)[1])

    def claim(self, values: list[Any], vectors: list[Any]) -> list[Any]:
        """Return the product on the first batch.

        Args:
            values: One tensor for each variable.
            vectors: One tensor for each variable.

        Returns:
            A list of tensors.
        """
        return self._product_of(0, values, vectors)

    def _trace_product(self, values: Any, batch: Any, vectors: Any) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            _, gradients = self.probe_loss.trace(values, batch)
        return dense_gradients(tape, gradients, values, vectors)
