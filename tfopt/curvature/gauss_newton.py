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

MOST_ROWS = 16  # number of single rows on which the convexity of the loss is checked
_LINEAR = (
    "perhaps piecewise, as `mae`. Gauss-Newton needs a loss with curvature in the outputs: use HessianOperator. For a "
    "likelihood, let the model return natural parameters (logits; the logarithm of a rate), and write the loss as a "
    "function of them"
)


class GaussNewtonOperator(CurvatureOperator):
    """The generalised Gauss-Newton matrix of the loss on a probe, as a function v -> Gv.

    G = J' L J + R, with J the Jacobian of the outputs by the weights, L the Hessian of the loss by the outputs, and R
    the Hessian of the regularisers (Schraudolph, "Fast curvature matrix-vector products", 2002). G is positive
    semi-definite if the loss is convex in the outputs; if it is not, the first product warns.

    A softmax, sigmoid or exp at the end of the model counts as part of the loss if the loss takes the logarithm of the
    outputs. The logarithm of one of these (log-probabilities) counts as part of the loss if the loss is linear in it or
    takes its exponential. The "outputs" in the equation are then the inputs of softmax, sigmoid or exp, such as logits.
    For cross-entropies G is the Fisher matrix: the same matrix as for a model that returns logits and a loss of logits.
    For `mse` over k outputs it is that of a Gaussian of variance k / 2. `split_at` tells where the loss begins.

    J v is computed as the derivative of u -> J' u, in reverse mode twice.

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
        self_check: Whether to check the first product against finite differences, and whether the loss has curvature
            and is convex in the outputs. Default True.
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
        """Where the loss is split from the model: "logits", "outputs", or "logits and outputs" for several outputs.

        "logits" stands for the inputs of a softmax, sigmoid or exp.
        """
        split = self.objective.split
        return "outputs" if split is None else split.name

    def check_matrix(self, small: CurvatureOperator) -> None:
        """Check that the loss has curvature and is convex in the tensors from which it is split; warn if not.

        Args:
            small: The same matrix over a few rows, with its derivatives compiled.

        Raises:
            RuntimeError: The loss is linear in all outputs, so that the matrix is zero.
        """
        flat_ones = [] if self.objective.split is None else self.objective.split.is_flat
        if flat_ones and all(flat_ones):
            raise RuntimeError(
                f"{self!r} is zero, because the loss is linear in the model's outputs, {_LINEAR}. {TURN_OFF}"
            )
        if any(flat_ones):
            indices = ", ".join(str(index) for index, is_flat in enumerate(flat_ones) if is_flat)
            warnings.warn(
                f"{self!r} leaves out the outputs {indices} (from 0), because the loss is linear in them, {_LINEAR}",
                stacklevel=6,
            )
        if hidden := [] if self.objective.split is None else self.objective.split.hidden:
            warnings.warn(
                f"{self!r} may differ from the matrix of logits: it is split at the {self.split_at}. Exponentials and "
                "logarithms that cancel are not recognised in a branch, a loop, or a sum with a tensor. Received: "
                f"{', '.join(dict.fromkeys(hidden))}. For the Fisher matrix, let the model return logits, and use a "
                "loss of logits (from_logits=True)",
                stacklevel=6,
            )
        found = _Halves(small, small.values()).row_curvatures(np.random.default_rng(2))
        scale = max(map(abs, found))
        if scale == 0.0 and flat_ones:
            warnings.warn(
                f"{self!r} is zero on {small.num_rows} rows, spread over the first batch: there the loss is linear in "
                "the model's outputs, or the rows have weight 0. HessianOperator needs no curvature in the outputs",
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
        """Return the derivatives that make up products on the first batch: J, L, and R if there are regularisers."""
        # A list of two `Derivatives`, or of three with regularisers.
        halves = _Halves(self, values)
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
        if not halves.is_regularized:
            return [jacobian, curvature]
        name = "the Hessian of the regularisers times a vector"
        return [jacobian, curvature, Derivatives((name,), values, halves.penalties, halves.penalties_along)]

    def _trace_product(self, values: Any, batch: Any, vectors: Any) -> list[Any]:
        tape, outputs, _, moved = self._trace_jacobian(values, vectors, batch[0])
        _, _, curved = self._curve_loss(outputs, moved, batch)
        products = dense_gradients(tape, outputs, values, curved)
        if not self._is_regularized():
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
    """Return a function's value, its gradient, and the product of its Hessian with `vectors`."""
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(point)
        with tf.GradientTape(watch_accessed_variables=False) as inner_tape:
            inner_tape.watch(point)
            value = function(point)
        gradients = dense_gradients(inner_tape, value, point)
    return value, gradients, dense_gradients(outer, gradients, point, vectors)


class _Halves:
    """The two halves of the matrix at some weights: as functions of the weights, and of the outputs."""

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

    def weights_along(self, values: list[Any], direction: list[Any]) -> list[tuple[np.ndarray, float]]:
        found = self._multiply(values, self._none, direction, self._pulled, self._none)
        return [(flat(found[5]) * flat(self._weights), 0.0), inner(found[4], direction)]

    def losses(self, outputs: list[Any]) -> list[np.ndarray]:
        _, loss, gradient, _ = self._compute(self._values, self._moves(outputs))
        return [flat(loss), flat(gradient)]

    def outputs_along(self, outputs: list[Any], direction: list[Any]) -> list[tuple[np.ndarray, float]]:
        found = self._multiply(self._values, self._moves(outputs), self._values, self._none, direction)
        return [inner(found[2], direction), (flat(found[6]), 0.0)]

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
                product = flat(self._multiply(self._values, self._none, self._values, self._none, direction)[6])
                found.append(float(product @ flat(direction)))
        return found

    def penalties(self, values: list[Any]) -> list[np.ndarray]:
        return [flat(self._compute(values, self._none)[3])]

    def penalties_along(self, values: list[Any], direction: list[Any]) -> list[tuple[np.ndarray, float]]:
        return [(flat(self._multiply(values, self._none, direction, self._none, self._none)[7]), 0.0)]

    def _moves(self, outputs: list[Any]) -> list[Any]:
        return [output - at for output, at in zip(outputs, self.point, strict=True)]


def _cut(tensors: list[Any], ends: np.ndarray) -> list[list[Any]]:
    return [tensors[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
