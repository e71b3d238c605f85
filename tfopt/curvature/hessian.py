"""The Hessian of a model's loss."""

import functools
from typing import Any

import tensorflow as tf

from tfopt.curvature.batch_gradient import dense_gradients
from tfopt.curvature.differences import Derivatives, DerivativesAt, inner
from tfopt.curvature.objective import Objective
from tfopt.curvature.operator import CurvatureOperator
from tfopt.curvature.parts import Parts
from tfopt.curvature.split import SplitFunction


class HessianOperator(CurvatureOperator):
    """The Hessian of the loss on a probe, regularisation included, as a function v -> Hv.

    Hv = d/dw (g(w)' v), with g the gradient: reverse mode over reverse mode, at about the cost of two gradients
    (Pearlmutter, "Fast exact multiplication by the Hessian", 1994). H is symmetric; its eigenvalues have either sign.

    As in a `tf.function`, Python values that the model and the loss read (`model.beta = 2.0`) stay as they were when
    they were traced: make a new objective after such a change, or keep the value in a `keras.Variable`.

    Args:
        objective: An `Objective`; or a model, followed by further arguments of `Objective`.
        *data: Loss, x, y and sample weights after a model.
        self_check: Whether to check the first product against finite differences. Default True.
        max_memory: Bytes that the intermediate results of products may take, an integer >= 1. Batches are cut into
            smaller ones that fit, if that leaves the loss the same; else an error says so. Not counted are the model,
            the data, vectors, what compiling takes once, and a self-check of all rows. None (default) means batches
            as they are, and up to 2 GiB for `shared`. Models with loops (recurrent layers) are refused, because their
            graphs do not show sizes.
        **options: Options of `Objective` after a model.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the model or data cannot be measured; the message says why.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> objective = Objective(model, "mse", (np.array([[1.0, 0.0], [0.0, 3.0]]), np.zeros((2, 1))))
        >>> hessian = HessianOperator(objective)
        >>> hessian.to_dense().round(3).tolist()
        [[1.0, 0.0], [0.0, 9.0]]
    """

    _is_kept = True

    def _trace_product(self, values: Any, batch: Any, vectors: Any) -> list[Any]:
        return trace(self.objective, values, batch, vectors)[1 + len(values) :]

    def _derivatives(self, objective: Objective) -> DerivativesAt:
        return _HessianDerivatives(objective)

    def _check_matrix(self, derivatives: Any) -> None:
        """Check nothing: a Hessian does not depend on where the loss is split from the model."""


class _HessianDerivatives(DerivativesAt):
    """The gradient of the loss and the product of the Hessian."""

    def at(self, values: list[Any]) -> list[Derivatives]:
        """Return a list of one: the gradient and the product at `values`."""
        batch, count = self.objective.probe.batches[0].tensors, len(values)
        if self._traced is None:
            # One function computes everything. That takes less time than to compile one for the gradient alone.
            self._traced = SplitFunction(functools.partial(trace, self.objective), (values, batch), values, rewrites=0)
        latest: list[Any] = [None, None]  # the last point, and the quantities there

        def run(point: list[Any], direction: list[Any]) -> list[Any]:
            loss, *found = self._traced((point, batch), direction)
            latest[:] = point, [Parts([loss]), Parts(found[:count])]
            return found[count:]

        def along(point: list[Any], direction: list[Any]) -> list[tuple[Parts, float]]:
            product = run(point, direction)
            return [inner(latest[1][1], direction), (Parts(product), 0.0)]

        def differentiated(point: list[Any]) -> list[Parts]:
            if latest[0] is not point:
                run(point, point)
            return list(latest[1])

        names = ("the gradient of the loss", "the product of the Hessian and a vector")
        return [Derivatives(names, values, differentiated, along, is_symmetric=True)]


def trace(objective: Objective, values: Any, batch: Any, vectors: Any) -> list[Any]:
    """Return the loss of a batch, its gradient and the product Hv in one list, in a graph."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        loss, gradients = objective.batch_gradient.trace(values, batch)
    return [loss, *gradients, *dense_gradients(tape, gradients, values, vectors)]
