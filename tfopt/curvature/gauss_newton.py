"""The generalised Gauss-Newton matrix of a model's loss."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.curvature.differences import FAR, NUM_DIRECTIONS, Derivatives, flat, inner, random_like
from tfopt.curvature.operator import CurvatureOperator
from tfopt.curvature.probe_loss import dense_gradients
from tfopt.curvature.self_check import TURN_OFF
from tfopt.curvature.softmax_targets import note_targets
from tfopt.curvature.split import SplitFunction

MOST_ROWS = 16  # on which the loss is looked at, one by one
_LINEAR = (
    "perhaps in pieces, as `mae`. Gauss-Newton needs a loss that is curved in them: use HessianOperator, or, for a "
    "likelihood, let the model return natural parameters (logits; the logarithm of a rate), and write the loss as a "
    "function of them"
)


class GaussNewtonOperator(CurvatureOperator):
    """The generalised Gauss-Newton matrix of the loss on a probe, as a function v -> Gv.

    G = J' L J + R, with J the Jacobian of the outputs by the weights, L the Hessian of the loss by the outputs, and R
    the Hessian of the regularisers (Schraudolph, "Fast curvature matrix-vector products", 2002). Positive semi-definite
    where the loss is convex in the outputs; where it is not, the first product warns.

    Softmax, sigmoid or exp at the end of the model counts as part of the loss where the loss takes the logarithm of the
    outputs; so does their logarithm (log-probabilities) where the loss is linear in it or takes its exponential.
    "Outputs" are then what they are computed from, such as logits: for cross-entropies G is the Fisher matrix, that of
    the same model with logits and a loss of logits. For `mse` over k outputs it is that of a Gaussian of variance
    k / 2. `split_at` says which.

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
        self_check: Whether to check the first product against finite differences, and whether the loss is curved and
            convex in the outputs. Default True.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the model or data cannot be measured; the message says why.
        RuntimeError: From the first product: it is wrong, or zero because the loss is linear in the outputs, as `mae`.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> matrix = GaussNewtonOperator(model, "mse", np.array([[1.0, 0.0], [0.0, 3.0]]), np.zeros((2, 1)))
        >>> matrix.to_dense().round(3).tolist()
        [[1.0, 0.0], [0.0, 9.0]]
    """

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, split at the {self.split_at}>"

    @property
    def split_at(self) -> str:
        """Where the loss is split from the model: "logits", "outputs", or "logits and outputs" where there are several.

        "logits" stands for whatever softmax, sigmoid or exp is taken of.
        """
        split = self.objective.split
        return "outputs" if split is None else split.name

    def check_matrix(self, small: CurvatureOperator) -> None:
        """Check that the loss is curved and convex in what it is split from.

        Args:
            small: The same matrix over a few rows, whose derivatives have been compiled.

        Raises:
            RuntimeError: It is linear in all outputs, so that the matrix is zero.
        """
        flat_ones = [] if self.objective.split is None else self.objective.split.is_flat
        if flat_ones and all(flat_ones):
            raise RuntimeError(
                f"{self!r} is zero, because the loss is linear in the model's outputs, {_LINEAR}. {TURN_OFF}"
            )
        if any(flat_ones):
            places = ", ".join(str(place) for place, is_flat in enumerate(flat_ones) if is_flat)
            warnings.warn(
                f"{self!r} leaves out the outputs {places} (from 0), because the loss is linear in them, {_LINEAR}",
                stacklevel=6,
            )
        if hidden := [] if self.objective.split is None else self.objective.split.hidden:
            warnings.warn(
                f"{self!r} may be another matrix than that of logits: it is split at the {self.split_at}, and in "
                "a branch or a loop, or in a sum with a tensor, exponentials and logarithms are not seen to cancel. "
                f"Received: {', '.join(dict.fromkeys(hidden))}. For the Fisher matrix, let the model return logits, "
                "and take the loss of them (from_logits=True)",
                stacklevel=6,
            )
        found = _Halves(small, small.values()).row_curvatures(np.random.default_rng(2))
        scale = max(map(abs, found))
        if scale == 0.0 and flat_ones:
            warnings.warn(
                f"{self!r} is zero on {small.num_rows} rows from all over the first batch: there the loss is linear in "
                "the model's outputs, or rows have no weight. HessianOperator needs no loss that is curved in them",
                stacklevel=6,
            )
        elif min(found) < -1e-3 * scale:
            warnings.warn(
                f"{self!r} may have negative eigenvalues: the loss is not convex in the {self.split_at} of single "
                "rows. HessianOperator needs no split. For a likelihood, let the model return natural parameters "
                f"(logits; the logarithm of a rate), and write the loss as a function of them. {TURN_OFF}",
                stacklevel=6,
            )

    def derivatives(self, values: list[Any]) -> list[Derivatives]:
        """Return the Jacobian of the outputs, and the derivatives of the loss by them, on the first batch.

        Args:
            values: Where they are taken, one tensor for each variable.

        Returns:
            A list of two, and one more for regularisers.
        """
        halves = _Halves(self, values)
        jacobian = Derivatives(
            ("the Jacobian of the outputs times a vector", "the Jacobian transposed, times a vector"),
            values,
            halves.outputs,
            halves.along_weights,
        )
        curvature = Derivatives(
            ("the gradient of the loss by the outputs", "the Hessian of the loss by the outputs, times a vector"),
            halves.point,
            halves.losses,
            halves.along_outputs,
            is_symmetric=True,
        )
        if not halves.is_regularized:
            return [jacobian, curvature]
        name = "the Hessian of the regularisers times a vector"
        return [jacobian, curvature, Derivatives((name,), values, halves.penalties, halves.along_penalties)]

    def _trace_product(self, values: Any, batch: Any, vectors: Any) -> list[Any]:
        tape, outputs, _, moved = self._trace_jacobian(values, vectors, batch[0])
        _, _, curved = self._curve_loss(outputs, moved, batch)
        products = dense_gradients(tape, outputs, values, curved)
        if not self._is_regularized():
            return products
        _, _, added = self._curve_regularization(values, vectors)
        return [a + b for a, b in zip(products, added, strict=True)]

    def trace_halves(self, values: Any, moves: Any, batch: Any, vectors: Any) -> list[Any]:
        """Return what products are made of, in one list.

        Args:
            values: One tensor for each variable.
            moves: What is added to the outputs before the loss is computed from them.
            batch: The inputs, targets and weights of the rows.
            vectors: For the Jacobian, for its transpose, and for the Hessian of the loss by the outputs, in one list.

        Returns:
            The outputs, the loss, its gradient by the outputs, the gradient of the regularisers if there are some; then
            the products with the transposed Jacobian, the Jacobian, the Hessian by the outputs and of the regularisers.
        """
        first, second = len(values), len(values) + len(moves)
        rest = (vectors[first:second], vectors[second:])
        _, outputs, pulled, moved = self._trace_jacobian(values, vectors[:first], batch[0], rest[0])
        added = [output + move for output, move in zip(outputs, moves, strict=True)]
        loss, gradients, curved = self._curve_loss(added, rest[1], batch)
        penalties, curved_penalties = [], []  # type: list[Any], list[Any]
        if self._is_regularized():
            _, penalties, curved_penalties = self._curve_regularization(values, vectors[:first])
        return [*outputs, loss, *gradients, *penalties, *pulled, *moved, *curved, *curved_penalties]

    def _trace_jacobian(
        self, values: Any, vectors: Any, x: Any, pulled: Any = None
    ) -> tuple[Any, list[Any], list[Any], list[Any]]:
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as inner_tape:
            inner_tape.watch(values)
            outputs = self.objective.outputs(values, x, self.variables)
        pulled = [tf.zeros_like(output) for output in outputs] if pulled is None else pulled
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(pulled)
            pulled_back = dense_gradients(inner_tape, outputs, values, pulled)
        return inner_tape, outputs, pulled_back, dense_gradients(outer, pulled_back, pulled, vectors)

    def _curve_loss(self, outputs: list[Any], moved: list[Any], batch: Any) -> tuple[Any, list[Any], list[Any]]:
        loss, *rest = _curve(lambda at: self.objective.loss_of_outputs(at, batch), outputs, moved)
        note_targets(loss)
        return (loss, *rest)

    def _curve_regularization(self, values: list[Any], vectors: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        return _curve(lambda at: self.objective.regularization(at, self.variables), values, vectors)

    def _is_regularized(self) -> bool:
        return any(variable.regularizer is not None for variable in self.variables)


def _curve(function: Callable[[Any], Any], point: list[Any], vectors: list[Any]) -> tuple[Any, list[Any], list[Any]]:
    """Return a function's value, its gradient, and the product of its Hessian and vectors."""
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(point)
        with tf.GradientTape(watch_accessed_variables=False) as inner_tape:
            inner_tape.watch(point)
            value = function(point)
        gradients = dense_gradients(inner_tape, value, point)
    return value, gradients, dense_gradients(outer, gradients, point, vectors)


class _Halves:
    """The two halves of the matrix at some weights, as functions of the weights and of the outputs."""

    def __init__(self, operator: Any, values: list[Any]) -> None:
        self._values, self._batch = values, operator.probe.batches[0].tensors
        self._num_rows = operator.probe.batches[0].num_rows
        self.is_regularized = operator._is_regularized()
        if operator._checks is None:
            like = operator.objective.outputs(values, self._batch[0], operator.variables)  # for their shapes
            self._none = [tf.zeros_like(output) for output in like]
        else:
            self._none = operator._checks[2]
        num_outputs, num_values = len(self._none), len(values)
        parts = [num_outputs, 1, num_outputs, num_values * self.is_regularized]
        self._fixed_ends = np.cumsum(parts)
        self._ends = np.cumsum([*parts, num_values, num_outputs, num_outputs, num_values * self.is_regularized])
        if operator._checks is None:
            traced = SplitFunction(
                operator.trace_halves, (values, self._none, self._batch), [*values, *self._none, *self._none]
            )
            operator._checks = traced, traced.first_outputs(self._fixed_ends[-1]), self._none
        self._traced, self._fixed, _ = operator._checks
        self.point = self._compute(values, self._none)[0]
        # What is far out, as masked logits are, is not to drown the other outputs.
        self._weights = [FAR / tf.maximum(abs(part), FAR) for part in self.point]
        self._pulled = [
            a * b for a, b in zip(random_like(self._weights, np.random.default_rng(1)), self._weights, strict=True)
        ]

    def _compute(self, values: list[Any], moves: list[Any]) -> list[list[Any]]:
        vectors = [*values, *self._none, *self._none]
        return _cut(self._fixed((values, moves, self._batch), vectors), self._fixed_ends)

    def _multiply(self, values: list[Any], moves: list[Any], *vectors: list[Any]) -> list[list[Any]]:
        joined = [vector for part in vectors for vector in part]
        return _cut(self._traced((values, moves, self._batch), joined), self._ends)

    def outputs(self, values: list[Any]) -> list[np.ndarray]:
        found = flat(self._compute(values, self._none)[0])
        return [found * flat(self._weights), np.array([found @ flat(self._pulled)])]

    def along_weights(self, values: list[Any], direction: list[Any]) -> list[tuple[np.ndarray, float]]:
        found = self._multiply(values, self._none, direction, self._pulled, self._none)
        return [(flat(found[5]) * flat(self._weights), 0.0), inner(found[4], direction)]

    def losses(self, outputs: list[Any]) -> list[np.ndarray]:
        _, loss, gradient, _ = self._compute(self._values, self._moves(outputs))
        return [flat(loss), flat(gradient)]

    def along_outputs(self, outputs: list[Any], direction: list[Any]) -> list[tuple[np.ndarray, float]]:
        found = self._multiply(self._values, self._moves(outputs), self._values, self._none, direction)
        return [inner(found[2], direction), (flat(found[6]), 0.0)]

    def row_curvatures(self, rng: np.random.Generator) -> list[float]:
        """Return the curvature of the loss along random directions of the outputs of some single rows."""
        found: list[float] = []
        for row in np.unique(np.linspace(0, self._num_rows - 1, MOST_ROWS).astype(int)):
            for _ in range(NUM_DIRECTIONS):
                # Cubes, so that few entries count: negative curvature of one is not to drown in that of others.
                drawn = [rng.standard_normal(part.shape) ** 3 for part in self.point]
                for array in drawn:
                    if array.ndim and len(array) == self._num_rows:
                        array[np.arange(self._num_rows) != row] = 0.0
                direction = [tf.constant(array, part.dtype) for array, part in zip(drawn, self.point, strict=True)]
                product = flat(self._multiply(self._values, self._none, self._values, self._none, direction)[6])
                found.append(float(product @ flat(direction)))
        return found

    def penalties(self, values: list[Any]) -> list[np.ndarray]:
        return [flat(self._compute(values, self._none)[3])]

    def along_penalties(self, values: list[Any], direction: list[Any]) -> list[tuple[np.ndarray, float]]:
        return [(flat(self._multiply(values, self._none, direction, self._none, self._none)[7]), 0.0)]

    def _moves(self, outputs: list[Any]) -> list[Any]:
        return [output - at for output, at in zip(outputs, self.point, strict=True)]


def _cut(tensors: list[Any], ends: np.ndarray) -> list[list[Any]]:
    return [tensors[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
