"""The effect of one step on the gradient, and whether the descent lemma certifies that the loss falls."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfopt import _plotting
from tfopt._checks import as_items, as_numbers, check_integer
from tfopt._record import Record
from tfopt._variables import unique_paths
from tfopt.curvature.objective import as_objective
from tfopt.relative_trust.breakdown import deep_relative_trust, largest_of, norms_of, ratios_of, relative_perturbation

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class StepBreakdown(Record):
    """The effect of a step dW on the gradient, on a probe.

    Attributes:
        paths: Paths of the variables.
        relative_perturbation: |dW_l| / |W_l|, of shape (number of variables,).
        relative_gradient_breakdown: |g_l(W + dW) - g_l(W)| / |g_l(W)|, of the same shape.
        cosine: Cosine of the angle between -g_l and dW_l, of the same shape; NaN where one of them is zero.
        total_cosine: Cosine of the angle between -g and dW over all variables together; NaN if one of them is zero.
        deep_relative_trust: The largest breakdown that the paper's model expects.
        loss_before: L(W).
        loss_after: L(W + dW).
        descent_bound: Right-hand side of the descent lemma (Lemma 1): L(W + dW) - L(W) is at most the sum over l of
            |dW_l| (max_t |g_l(W + t dW) - g_l(W)| - |g_l(W)| cosine_l), with t on a grid in (0, 1]. It is a theorem, up
            to the grid; a negative bound certifies that the loss falls.
        batch_norm: How batch normalisation was computed, "batch" or "moving".
        precision: How layers were computed: "model", "float32" or "bfloat16", as `HessianOperator.precision` says.
    """

    paths: tuple[str, ...] = field(repr=False)
    relative_perturbation: np.ndarray = field(repr=False)
    relative_gradient_breakdown: np.ndarray = field(repr=False)
    cosine: np.ndarray = field(repr=False)
    total_cosine: float
    deep_relative_trust: float
    loss_before: float
    loss_after: float
    descent_bound: float
    batch_norm: str
    precision: str = "model"

    @property
    def loss_change(self) -> float:
        """L(W + dW) - L(W)."""
        return self.loss_after - self.loss_before

    @property
    def largest_perturbation(self) -> float:
        """The largest relative perturbation of a variable that is not zero; 0 if all are zero."""
        return largest_of(self.relative_perturbation)

    @property
    def largest_breakdown(self) -> float:
        """The largest relative gradient breakdown of a variable whose gradient was not zero; 0 if there is none."""
        return largest_of(self.relative_gradient_breakdown)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with one row for each variable.

        Returns:
            The columns `relative_perturbation`, `relative_gradient_breakdown` and `cosine`, indexed by path.
        """
        names = ("relative_perturbation", "relative_gradient_breakdown", "cosine")
        return _plotting.make_dataframe({name: getattr(self, name) for name in names}, index=self.paths)


class StepMeter:
    """A meter for steps of the variables of an objective.

    Args:
        objective: An `Objective`; or a model, followed by further arguments of `Objective`.
        *data: Loss, x, y and sample weights after a model.
        num_points: Number of points t = 1 / k, 2 / k, ..., 1 of the descent lemma's grid, an integer >= 1. Each point
            takes one gradient. Default 4.
        **options: Options of `Objective` after a model.

    Attributes:
        objective: The `Objective`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the model or data cannot be measured; the message says why.

    Example:
        >>> import keras
        >>> from tfopt.curvature import Objective
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.set_weights([np.array([[2.0]])])
        >>> meter = StepMeter(Objective(model, "mse", (np.ones((1, 1)), np.zeros((1, 1)))))
        >>> before = meter.weights()
        >>> model.set_weights([np.array([[1.5]])])
        >>> step = meter.measure(before)
        >>> step.loss_change, step.largest_perturbation, step.largest_breakdown, step.descent_bound
        (-1.75, 0.25, 0.25, -1.5)
    """

    def __init__(self, objective: Any, *data: Any, num_points: int = 4, **options: Any) -> None:
        self.num_points = check_integer("num_points", num_points, minimum=1)
        self.objective = as_objective(objective, *data, **options)

    def weights(self) -> list[Any]:
        """Return the current weights, to pass to `measure` after a step.

        Returns:
            A list of tensors, one for each variable.
        """
        return self.objective.values()

    def measure(self, before: Sequence[Any], after: Sequence[Any] | None = None) -> StepBreakdown:
        """Measure a step.

        Args:
            before: The weights W before the step, one array for each variable.
            after: The weights W + dW. None (default) means the model's current weights.

        Returns:
            The effect of the step.

        Raises:
            TypeError: An argument does not hold arrays of numbers.
            ValueError: The arrays have other shapes than the model's weights.
        """
        start = self._arrays("before", before)
        end = self._arrays("after", self.weights() if after is None else after)
        step = [b - a for a, b in zip(start, end, strict=True)]
        loss_before, gradient = self._at(start)
        largest = np.zeros(len(step))
        for point in range(1, self.num_points + 1):
            fraction = point / self.num_points
            loss_after, moved = self._at([w + fraction * d for w, d in zip(start, step, strict=True)])
            changes = [m - g for m, g in zip(moved, gradient, strict=True)]
            largest = np.maximum(largest, norms_of("changes", changes))
        norms, lengths = norms_of("gradient", gradient), norms_of("step", step)
        # These are |g_l| |dW_l| cosine_l = -g_l'dW_l, which are defined even if a cosine is not.
        gains = -np.array([np.sum(g * d) for g, d in zip(gradient, step, strict=True)])
        perturbations = relative_perturbation(start, step)
        total = np.linalg.norm(norms) * np.linalg.norm(lengths)
        return StepBreakdown(
            paths=tuple(unique_paths(self.objective.variables)),
            relative_perturbation=perturbations,
            relative_gradient_breakdown=ratios_of(norms_of("changes", changes), norms),
            cosine=np.divide(gains, norms * lengths, out=np.full(len(step), np.nan), where=norms * lengths > 0),
            total_cosine=float(gains.sum() / total) if total > 0 else float("nan"),
            deep_relative_trust=deep_relative_trust(perturbations),
            loss_before=loss_before,
            loss_after=loss_after,
            descent_bound=float(np.sum(lengths * largest - gains)),
            batch_norm=self.objective.batch_norm,
            precision=self.objective.precision,
        )

    def _arrays(self, name: str, weights: Sequence[Any]) -> list[np.ndarray]:
        parts = as_items(name, weights, "hold one array for each variable")
        arrays = [as_numbers(name, part, "one array of numbers for each variable") for part in parts]
        shapes, expected = [part.shape for part in arrays], [tuple(v.shape) for v in self.objective.variables]
        if shapes != expected:
            raise ValueError(f"`{name}` must have the shapes {expected}. Received: {shapes}")
        return arrays

    def loss_and_gradient(self, weights: Sequence[Any]) -> tuple[float, list[np.ndarray]]:
        """Return the loss and its gradient at any weights.

        Args:
            weights: One array for each variable.

        Returns:
            The loss, and its gradient as a list of float64 arrays.

        Raises:
            TypeError: `weights` does not hold arrays of numbers.
            ValueError: The arrays have other shapes than the model's weights.
        """
        return self._at(self._arrays("weights", weights))

    def _at(self, arrays: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
        values = [tf.constant(part, dtype) for part, dtype in zip(arrays, self.objective.dtypes, strict=True)]
        loss, gradient = self.objective.loss_and_gradient(values)
        return loss, [np.asarray(part, np.float64) for part in gradient]
