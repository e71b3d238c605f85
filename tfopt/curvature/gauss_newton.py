"""The generalised Gauss-Newton matrix of a model's loss."""

from typing import Any

import tensorflow as tf

from tfopt.curvature.operator import CurvatureOperator
from tfopt.curvature.probe_loss import compiled, dense_gradients


class GaussNewtonOperator(CurvatureOperator):
    """The generalised Gauss-Newton matrix of the loss on a probe, as a function v -> Gv.

    G = J' L J + R, with J the Jacobian of the outputs by the weights, L the Hessian of the loss by the outputs, and R
    the Hessian of the regularisers (Schraudolph, "Fast curvature matrix-vector products", 2002). Positive semi-definite
    where the loss is convex in the outputs. Of a model that ends in softmax or sigmoid, the outputs are the logits: for
    Keras's cross-entropies G is then the Fisher matrix. For `mse` over k outputs it is that of a Gaussian of variance
    k / 2.

    J v is computed as the derivative of u -> J' u, in reverse mode twice.

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
        >>> matrix = GaussNewtonOperator(model, "mse", np.array([[1.0, 0.0], [0.0, 3.0]]), np.zeros((2, 1)))
        >>> matrix.to_dense().round(3).tolist()
        [[1.0, 0.0], [0.0, 9.0]]
    """

    def _set_up(self, *args: Any) -> None:
        super()._set_up(*args)
        self._outputs = compiled(lambda v, x: self.objective.outputs(v, x, self.variables))
        self._moved = compiled(self._trace_moved)

    def quantity(self, values: list[Any]) -> list[Any]:
        """Return the outputs on the first batch.

        Args:
            values: One tensor for each variable.

        Returns:
            A list of tensors.
        """
        return list(self._outputs(values, self.probe.batches[0].x))

    def claim(self, values: list[Any], vectors: list[Any]) -> list[Any]:
        """Return the product of the Jacobian and vectors on the first batch.

        Args:
            values: One tensor for each variable.
            vectors: One tensor for each variable.

        Returns:
            A list of tensors shaped like the outputs.
        """
        return list(self._moved(values, vectors, self.probe.batches[0].x))

    def _trace_moved(self, values: Any, vectors: Any, x: Any) -> list[Any]:
        return self._trace_jacobian(values, vectors, x)[2]

    def _trace_jacobian(self, values: Any, vectors: Any, x: Any) -> tuple[Any, list[Any], list[Any]]:
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as inner:
            inner.watch(values)
            outputs = self.objective.outputs(values, x, self.variables)
        zeros = [tf.zeros_like(output) for output in outputs]
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(zeros)
            pulled_back = dense_gradients(inner, outputs, values, zeros)
        return inner, outputs, dense_gradients(outer, pulled_back, zeros, vectors)

    def _trace_product(self, values: Any, batch: Any, vectors: Any) -> list[Any]:
        tape, outputs, moved = self._trace_jacobian(values, vectors, batch[0])
        products = dense_gradients(tape, outputs, values, self._curve(outputs, moved, batch))
        if all(variable.regularizer is None for variable in self.variables):
            return products
        return [a + b for a, b in zip(products, self._curve_regularization(values, vectors), strict=True)]

    def _curve(self, outputs: Any, moved: Any, batch: Any) -> list[Any]:
        """Return the product of the Hessian of the loss by the outputs and a move of the outputs."""
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(outputs)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(outputs)
                loss = self.objective.loss_of_outputs(outputs, batch)
            gradients = dense_gradients(inner, loss, outputs)
        return dense_gradients(outer, gradients, outputs, moved)

    def _curve_regularization(self, values: Any, vectors: Any) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(values)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(values)
                loss = self.objective.regularization(values, self.variables)
            gradients = dense_gradients(inner, loss, values)
        return dense_gradients(outer, gradients, values, vectors)
