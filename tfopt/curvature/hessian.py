"""The Hessian of a model's loss."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.curvature.differences import Derivatives, flat, inner
from tfopt.curvature.operator import CurvatureOperator
from tfopt.curvature.probe_loss import dense_gradients
from tfopt.curvature.split import SplitFunction


class HessianOperator(CurvatureOperator):
    """The Hessian of the loss on a probe, regularisation included, as a function v -> Hv.

    Hv = d/dw (g(w)' v), with g the gradient: reverse mode over reverse mode, at about the cost of two gradients
    (Pearlmutter, "Fast exact multiplication by the Hessian", 1994). H is symmetric; its eigenvalues have either sign.

    As in a `tf.function`, Python values that the model and the loss read (`model.beta = 2.0`) stay as they were when
    they were traced: make a new operator after such a change, or keep the value in a `keras.Variable`.

    Args:
        model: A Keras model with its variables, compiled or not.
        loss: As `compile` takes it. None (default) means the loss that the model was compiled with.
        x: The data: a `tfopt.curvature.Probe`, or what `Probe` takes as its `x`.
        y: As `Probe` takes it.
        sample_weight: As `Probe` takes it.
        batch_size: As `Probe` takes it.
        class_weight: Not supported, as in `Probe`.
        batch_norm: "batch" (default) normalises by each batch's own statistics, "moving" by the moving averages.
            Dropout is off in both.
        variables: The variables of the wanted block: a variable, a layer, or a list of these. None (default) means
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

    def check_matrix(self, small: CurvatureOperator) -> None:
        """Do nothing: a Hessian does not depend on where the loss is split from the model."""

    def derivatives(self, values: list[Any]) -> list[Derivatives]:
        """Return a list of one: the gradient and the product on the first batch, at `values`."""
        batch, count = self.probe.batches[0].tensors, len(values)
        if self._checks is None:
            traced = SplitFunction(self._trace, (values, batch), values)
            self._checks = traced, traced.first_outputs(1 + count)
        traced, gradient = self._checks

        def differentiated(point: list[Any]) -> list[np.ndarray]:
            loss, *gradients = gradient((point, batch), point)
            return [flat([loss]), flat(gradients)]

        def along(point: list[Any], direction: list[Any]) -> list[tuple[np.ndarray, float]]:
            _, *found = traced((point, batch), direction)
            return [inner(found[:count], direction), (flat(found[count:]), 0.0)]

        names = ("the gradient of the loss", "the product of the Hessian and a vector")
        return [Derivatives(names, values, differentiated, along, is_symmetric=True)]

    def _trace_product(self, values: Any, batch: Any, vectors: Any) -> list[Any]:
        return self._trace(values, batch, vectors)[1 + len(values) :]

    def _trace(self, values: Any, batch: Any, vectors: Any) -> list[Any]:
        """Return the loss, the gradient and the product Hv in one list."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss, gradients = self.probe_loss.trace(values, batch)
        return [loss, *gradients, *dense_gradients(tape, gradients, values, vectors)]
