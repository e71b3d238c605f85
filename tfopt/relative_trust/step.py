"""The effect of one step on the gradient, and whether the descent lemma certifies that the loss falls."""

import itertools
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
from tfopt.relative_trust.rounding import MARGIN, is_rounding, is_small, rounding_errors

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class StepBreakdown(Record):
    """The effect of a step dW on the gradient, on a probe.

    A gradient that cannot be told from rounding has no relative change. Examples are a bias before batch
    normalisation and the bias of attention's keys, whose gradients are 0 in exact arithmetic, and every variable at a
    minimum. `lost_in_rounding` names these variables.

    Attributes:
        paths: Paths of the variables.
        relative_perturbation: |dW_l| / |W_l|, of shape (number of variables,); NaN for a variable that does not change
            the loss, because its gradient is lost in rounding all along the step and the gradient of others is not.
        relative_gradient_breakdown: |g_l(W + dW) - g_l(W)| / |g_l(W)|, of the same shape; NaN if g_l(W) is lost in
            rounding.
        cosine: Cosine of the angle between -g_l and dW_l, of the same shape; NaN where one of them is zero, or g_l is
            lost in rounding.
        total_cosine: Cosine of the angle between -g and dW over all variables together; NaN if one of them is zero, or
            g is lost in rounding.
        deep_relative_trust: The largest breakdown that the paper's model expects.
        loss_before: L(W).
        loss_after: L(W + dW).
        descent_bound: Right-hand side of the descent lemma (Lemma 1): L(W + dW) - L(W) is at most the sum over l of
            |dW_l| (max_t |g_l(W + t dW) - g_l(W)| - |g_l(W)| cosine_l), with t on a grid in (0, 1]. It is a theorem, up
            to the grid; a negative bound certifies that the loss falls.
        batch_norm: How batch normalisation was computed, "batch" or "moving".
        precision: How layers were computed: "model", "float32" or "bfloat16", as `HessianOperator.precision` says.
        lost_in_rounding: Paths of the variables whose gradient g_l(W) cannot be told from rounding: it is less than 10
            times as large as its changes if the last bits of the weights change.
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
    lost_in_rounding: tuple[str, ...] = ()

    @property
    def loss_change(self) -> float:
        """L(W + dW) - L(W)."""
        return self.loss_after - self.loss_before

    @property
    def largest_perturbation(self) -> float:
        """The largest relative perturbation of a variable for which it is known; NaN if there is none."""
        return largest_of(self.relative_perturbation)

    @property
    def largest_breakdown(self) -> float:
        """The largest relative gradient breakdown of a variable for which it is known; NaN if there is none."""
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
            takes one gradient. Default 4. The beginning of the step takes one more. Finding out what is rounding takes
            up to two; up to 17 near a minimum, and for variables of fewer than six entries or of zeros only.
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
        loss_after, changes, largest = self._follow(start, step, gradient)
        norms, lengths = norms_of("gradient", gradient), norms_of("step", step)
        # A gradient that keeps nine tenths of itself along the step is no rounding, unless the step is tiny.
        suspects = (largest > norms / MARGIN) | is_small(gradient)
        errors = rounding_errors(
            lambda weights: self._at(weights)[1], start, gradient, suspects, self.objective.batch_loss.epsilon
        )
        is_lost, is_known = is_rounding(norms, errors), not is_rounding(*map(np.linalg.norm, (norms, errors)))
        # These are |g_l| |dW_l| cosine_l = -g_l'dW_l, which are defined even if a cosine is not.
        gains = -np.array([np.sum(g * d) for g, d in zip(gradient, step, strict=True)])
        # A variable whose gradient stays rounding while the others' is known does not change the loss.
        is_idle = is_lost & (largest <= MARGIN * np.maximum(norms, errors)) & is_known
        perturbations = np.where(is_idle, np.nan, relative_perturbation(start, step))
        total, products = np.linalg.norm(norms) * np.linalg.norm(lengths), np.where(is_lost, 0.0, norms * lengths)
        paths = unique_paths(self.objective.variables)
        return StepBreakdown(
            paths=tuple(paths),
            relative_perturbation=perturbations,
            relative_gradient_breakdown=np.where(is_lost, np.nan, ratios_of(changes, norms)),
            cosine=np.divide(gains, products, out=np.full(len(step), np.nan), where=products > 0),
            total_cosine=float(gains.sum() / total) if total > 0 and is_known else float("nan"),
            deep_relative_trust=deep_relative_trust(perturbations),
            loss_before=loss_before,
            loss_after=loss_after,
            descent_bound=float(np.sum(lengths * largest - gains)),
            batch_norm=self.objective.batch_norm,
            precision=self.objective.precision,
            lost_in_rounding=tuple(itertools.compress(paths, is_lost)),
        )

    def _follow(
        self, start: list[np.ndarray], step: list[np.ndarray], gradient: list[np.ndarray]
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the loss after a step, the norms of the gradient's changes there, and their maxima on the grid."""
        largest = np.zeros(len(step))
        for point in range(1, self.num_points + 1):
            fraction = point / self.num_points
            loss_after, moved = self._at([w + fraction * d for w, d in zip(start, step, strict=True)])
            changes = norms_of("changes", [m - g for m, g in zip(moved, gradient, strict=True)])
            largest = np.maximum(largest, changes)
        return loss_after, changes, largest

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
