"""The generalised Gauss-Newton matrix of a model's loss."""

import warnings
from typing import Any

import numpy as np

from tfopt.curvature.differences import DerivativesAt
from tfopt.curvature.gauss_newton_parts import GaussNewtonDerivatives, GaussNewtonParts
from tfopt.curvature.objective import Objective
from tfopt.curvature.operator import CurvatureOperator
from tfopt.curvature.self_check import TURN_OFF

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
    they were traced: make a new objective after such a change, or keep the value in a `keras.Variable`.

    Args:
        objective: An `Objective`; or a model, followed by further arguments of `Objective`.
        *data: Loss, x, y and sample weights after a model.
        self_check: Whether to check the first product against finite differences, and whether the loss has curvature
            and is convex in the outputs. Default True.
        max_memory: Bytes that the intermediate results of products may take, an integer >= 1. Batches are cut into
            smaller ones that fit, if that leaves the loss the same; else an error says so. Not counted are the model,
            the data, vectors, what compiling takes once, and a self-check of all rows. None (default) means batches
            as they are, and up to 2 GiB for `shared`. Models with loops (recurrent layers) are refused, because their
            graphs do not show sizes.
        **options: Options of `Objective` after a model.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the model or data cannot be measured; the message says why.
        RuntimeError: From the first product: it is wrong, or zero because the loss is linear in the outputs, as `mae`.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> objective = Objective(model, "mse", (np.array([[1.0, 0.0], [0.0, 3.0]]), np.zeros((2, 1))))
        >>> matrix = GaussNewtonOperator(objective)
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
        split = self.objective.batch_loss.split
        return "outputs" if split is None else split.name

    def _check_matrix(self, derivatives: Any) -> None:
        # Checks that the loss has curvature and is convex in the tensors from which it is split; warns if not.
        split, rows = self.objective.batch_loss.split, derivatives.first_batch.num_rows
        flat_ones = [] if split is None else split.is_flat
        if flat_ones and all(flat_ones):
            raise RuntimeError(
                f"{self!r} is zero, because the loss is linear in the model's outputs, {_LINEAR}. {TURN_OFF}"
            )
        if any(flat_ones):
            indices = ", ".join(str(index) for index, is_flat in enumerate(flat_ones) if is_flat)
            warnings.warn(
                f"{self!r} leaves out the outputs {indices} (from 0), because the loss is linear in them, {_LINEAR}",
                stacklevel=7,
            )
        if hidden := [] if split is None else split.hidden:
            warnings.warn(
                f"{self!r} may differ from the matrix of logits: it is split at the {self.split_at}. Exponentials and "
                "logarithms that cancel are not recognised in a branch, a loop, or a sum with a tensor. Received: "
                f"{', '.join(dict.fromkeys(hidden))}. For the Fisher matrix, let the model return logits, and use a "
                "loss of logits (from_logits=True)",
                stacklevel=7,
            )
        found = derivatives.halves_at(derivatives.objective.values()).row_curvatures(np.random.default_rng(2))
        scale = max(map(abs, found))
        if scale == 0.0 and flat_ones:
            warnings.warn(
                f"{self!r} is zero on {rows} rows, spread over the first batch: there the loss is linear in "
                "the model's outputs, or the rows have weight 0. HessianOperator needs no curvature in the outputs",
                stacklevel=7,
            )
        elif min(found) < -1e-3 * scale:
            warnings.warn(
                f"{self!r} may have negative eigenvalues: the loss is not convex in the {self.split_at} of single "
                "rows. HessianOperator needs no split. For a likelihood, let the model return natural parameters "
                f"(logits; the logarithm of a rate), and write the loss as a function of them. {TURN_OFF}",
                stacklevel=7,
            )

    def _trace_product(self, values: Any, batch: Any, vectors: Any) -> list[Any]:
        return GaussNewtonParts(self.objective).trace_product(values, batch, vectors)

    def _derivatives(self, objective: Objective) -> DerivativesAt:
        return GaussNewtonDerivatives(objective)
