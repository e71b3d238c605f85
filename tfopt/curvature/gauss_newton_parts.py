"""The parts of a Gauss-Newton matrix: products with J, its transpose, L and R, in a graph."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._variables import flatten
from tfopt.curvature.batch import Batch
from tfopt.curvature.batch_gradient import dense_gradients
from tfopt.curvature.differences import FAR, NUM_DIRECTIONS, Derivatives, DerivativesAt, inner, random_like
from tfopt.curvature.objective import Objective
from tfopt.curvature.parts import Parts
from tfopt.curvature.softmax_targets import note_targets
from tfopt.curvature.split import SplitFunction

MOST_ROWS = 16  # number of single rows on which the convexity of the loss is checked


class GaussNewtonParts:
    """The graphs of the parts of the Gauss-Newton matrix of an objective."""

    def __init__(self, objective: Objective) -> None:
        self._loss, self._variables = objective.batch_loss, objective.variables
        self.is_regularized = any(variable.regularizer is not None for variable in objective.variables)

    def trace_product(self, values: Any, batch: Any, vectors: Any) -> list[Any]:
        """Return the product of the matrix of one batch and `vectors`."""
        tape, outputs, _, moved = self._trace_jacobian(values, vectors, batch[0])
        _, _, curved = self._curve_loss(outputs, moved, batch)
        products = dense_gradients(tape, outputs, values, curved)
        if not self.is_regularized:
            return products
        _, _, added = self._curve_regularization(values, vectors)
        return [a + b for a, b in zip(products, added, strict=True)]

    def trace_halves(self, values: Any, moves: Any, batch: Any, vectors: Any) -> list[Any]:
        """Return the parts of products at the outputs plus `moves`, in one list, in the order of the comments below."""
        # First outputs, loss, gradient of the loss by the outputs, and gradient of the regularisers, if there are some.
        # Then the products with J', J, L and R. `vectors` joins the vectors for J (and R), for J' and for L.
        first, second = len(values), len(values) + len(moves)
        rest = (vectors[first:second], vectors[second:])
        _, outputs, pulled, moved = self._trace_jacobian(values, vectors[:first], batch[0], rest[0])
        added = [output + move for output, move in zip(outputs, moves, strict=True)]
        loss, gradients, curved = self._curve_loss(added, rest[1], batch)
        penalties, curved_penalties = [], []  # type: list[Any], list[Any]
        if self.is_regularized:
            _, penalties, curved_penalties = self._curve_regularization(values, vectors[:first])
        return [*outputs, loss, *gradients, *penalties, *pulled, *moved, *curved, *curved_penalties]

    def _trace_jacobian(
        self, values: Any, vectors: Any, x: Any, pulled: Any = None
    ) -> tuple[Any, list[Any], list[Any], list[Any]]:
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as inner_tape:
            inner_tape.watch(values)
            outputs = self._loss.outputs(values, x, self._variables)
        pulled = [tf.zeros_like(output) for output in outputs] if pulled is None else pulled
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(pulled)
            pulled_back = dense_gradients(inner_tape, outputs, values, pulled)
        return inner_tape, outputs, pulled_back, dense_gradients(outer, pulled_back, pulled, vectors)

    def _curve_loss(self, outputs: list[Any], moved: list[Any], batch: Any) -> tuple[Any, list[Any], list[Any]]:
        loss, *rest = _curve(lambda at: self._loss.loss_of_outputs(at, batch), outputs, moved)
        note_targets(loss)
        return (loss, *rest)

    def _curve_regularization(self, values: list[Any], vectors: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        return _curve(lambda at: self._loss.regularization(at, self._variables), values, vectors)


def _curve(function: Callable[[Any], Any], point: list[Any], vectors: list[Any]) -> tuple[Any, list[Any], list[Any]]:
    """Return a function's value, its gradient, and the product of its Hessian with `vectors`."""
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(point)
        with tf.GradientTape(watch_accessed_variables=False) as inner_tape:
            inner_tape.watch(point)
            value = function(point)
        gradients = dense_gradients(inner_tape, value, point)
    return value, gradients, dense_gradients(outer, gradients, point, vectors)


class GaussNewtonDerivatives(DerivativesAt):
    """The derivatives that make up products: J and L, and R if there are regularisers."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self.parts = GaussNewtonParts(objective)
        self.none: list[Any] = []  # zeros shaped like the outputs

    @property
    def first_batch(self) -> Batch:
        """The first batch."""
        return self.objective.probe.batches[0]

    def at(self, values: list[Any]) -> list[Derivatives]:
        """Return the derivatives at `values`: of J, of L, and of R if there are regularisers."""
        halves = self.halves_at(values)
        jacobian = Derivatives(
            ("the Jacobian of the outputs times a vector", "the Jacobian transposed, times a vector"),
            values,
            halves.outputs,
            halves.weights_along,
        )
        curvature = Derivatives(
            ("the gradient of the loss by the outputs", "the Hessian of the loss by the outputs, times a vector"),
            halves.point,
            halves.losses,
            halves.outputs_along,
            is_symmetric=True,
        )
        if not self.parts.is_regularized:
            return [jacobian, curvature]
        name = "the Hessian of the regularisers times a vector"
        return [jacobian, curvature, Derivatives((name,), values, halves.penalties, halves.penalties_along)]

    def halves_at(self, values: list[Any]) -> "_Halves":
        """Return the two halves of the matrix at the weights `values`, on the first batch."""
        if self._traced is None:
            batch = self.first_batch.tensors
            like = self.objective.batch_loss.outputs(values, batch[0], self.objective.variables)  # for their shapes
            self.none = [tf.zeros_like(output) for output in like]
            num_values, num_outputs = len(values), len(like)
            num_penalties = num_values * self.parts.is_regularized
            sizes = [num_outputs, 1, num_outputs, num_penalties]
            self._ends = np.cumsum([*sizes, num_values, num_outputs, num_outputs, num_penalties])
            self._traced = SplitFunction(
                self.parts.trace_halves, (values, self.none, batch), [*values, *self.none, *self.none]
            )
            self._fixed = self._traced.first_outputs(sum(sizes))
        return _Halves(self, values)

    def multiply(self, values: list[Any], moves: list[Any], *vectors: list[Any]) -> list[list[Any]]:
        """Return the results of `trace_halves`, a list for each kind."""
        joined = [vector for part in vectors for vector in part]
        return _cut(self._traced((values, moves, self.first_batch.tensors), joined), self._ends)

    def compute(self, values: list[Any], moves: list[Any]) -> list[list[Any]]:
        """Return the results of `trace_halves` that do not depend on vectors, a list for each kind."""
        vectors = [*values, *self.none, *self.none]
        return _cut(self._fixed((values, moves, self.first_batch.tensors), vectors), self._ends[:4])


class _Halves:
    """The two halves of the matrix at some weights: as functions of the weights, and of the outputs."""

    def __init__(self, parts: GaussNewtonDerivatives, values: list[Any]) -> None:
        self._compute, self._multiply, self._none = parts.compute, parts.multiply, parts.none
        self._values, self._num_rows = values, parts.first_batch.num_rows
        self.point = self._compute(values, self._none)[0]
        # What is far out, as masked logits are, is not to drown the other outputs.
        self._weights = [FAR / tf.maximum(abs(part), FAR) for part in self.point]
        self._pulled = [
            a * b for a, b in zip(random_like(self._weights, np.random.default_rng(1)), self._weights, strict=True)
        ]

    def outputs(self, values: list[Any]) -> list[Parts]:
        found = Parts(self._compute(values, self._none)[0])
        return [found * Parts(self._weights), Parts([found @ Parts(self._pulled)])]

    def weights_along(self, values: list[Any], direction: list[Any]) -> list[tuple[Parts, float]]:
        found = self._multiply(values, self._none, direction, self._pulled, self._none)
        return [(Parts(found[5]) * Parts(self._weights), 0.0), inner(Parts(found[4]), direction)]

    def losses(self, outputs: list[Any]) -> list[Parts]:
        _, loss, gradient, _ = self._compute(self._values, self._moves(outputs))
        return [Parts(loss), Parts(gradient)]

    def outputs_along(self, outputs: list[Any], direction: list[Any]) -> list[tuple[Parts, float]]:
        found = self._multiply(self._values, self._moves(outputs), self._values, self._none, direction)
        return [inner(Parts(found[2]), direction), (Parts(found[6]), 0.0)]

    def row_curvatures(self, rng: np.random.Generator) -> list[float]:
        """Return d'Ld for random directions d in the outputs of single rows, three for each of up to 16 rows."""
        found: list[float] = []
        for row in np.unique(np.linspace(0, self._num_rows - 1, MOST_ROWS).astype(int)):
            for _ in range(NUM_DIRECTIONS):
                # Cubes make a few entries dominate, so that others cannot hide the negative curvature of one.
                drawn = [rng.standard_normal(part.shape) ** 3 for part in self.point]
                for array in drawn:
                    if array.ndim and len(array) == self._num_rows:
                        array[np.arange(self._num_rows) != row] = 0.0
                direction = [tf.constant(array, part.dtype) for array, part in zip(drawn, self.point, strict=True)]
                product = flatten(self._multiply(self._values, self._none, self._values, self._none, direction)[6])
                found.append(float(product @ flatten(direction)))
        return found

    def penalties(self, values: list[Any]) -> list[Parts]:
        return [Parts(self._compute(values, self._none)[3])]

    def penalties_along(self, values: list[Any], direction: list[Any]) -> list[tuple[Parts, float]]:
        return [(Parts(self._multiply(values, self._none, direction, self._none, self._none)[7]), 0.0)]

    def _moves(self, outputs: list[Any]) -> list[Any]:
        return [output - at for output, at in zip(outputs, self.point, strict=True)]


def _cut(tensors: list[Any], ends: np.ndarray) -> list[list[Any]]:
    return [tensors[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
