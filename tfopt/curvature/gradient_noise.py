"""The scatter of the gradients of single rows and of batches."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfopt._checks import as_items, check_flag, check_integer, check_number
from tfopt._record import Record
from tfopt.curvature.estimate import Estimate
from tfopt.curvature.groups import Groups, jackknife
from tfopt.curvature.hessian import HessianOperator
from tfopt.curvature.linear_map import as_vector
from tfopt.curvature.objective import as_objective


@dataclass(frozen=True)
class GradientNoise(Record):
    """The scatter of gradients over a probe.

    With g_i the gradient of group i of B rows, of M groups, and g their mean: C = B sum_i (g_i - g)(g_i - g)' / (M - 1)
    estimates the covariance of the gradient of a single row.

    Attributes:
        covariance_trace: tr C.
        hessian_covariance_trace: tr(H C), with H the Hessian on the probe; None unless it was requested.
        projections: d'C d for each direction d of norm 1, a list.
        squared_gradient_norm: |g|^2.
        noise_scale: The simple noise scale tr C / |G|^2, in rows (McCandlish et al., arXiv 1812.06162, equation 2.9).
            |G|^2 is the squared gradient norm of infinitely many rows, estimated as |g|^2 - tr C / N. The noise scale
            is infinite if this estimate is not positive, because the probe is then too small. Its standard error is NaN
            if the probe is too small.
        gradient: g, a vector of n entries.
        num_rows: Number of rows in all groups (N).
        group_size: B.
        batch_norm: How batch normalisation was computed: "batch" or "moving".
        precision: How layers were computed: "model", "float32" or "bfloat16", as in `HessianOperator.precision`.
    """

    covariance_trace: Estimate
    hessian_covariance_trace: Estimate | None
    projections: list[Estimate]
    squared_gradient_norm: float
    noise_scale: Estimate
    gradient: np.ndarray = field(repr=False)
    num_rows: int
    group_size: int
    batch_norm: str
    precision: str = "model"

    def batch_variance(self, batch_size: int, num_rows: int | None = None) -> float:
        """Return the mean squared distance between the gradients of a batch and of all rows: tr C / B (1 - B / N).

        Args:
            batch_size: Rows in a batch (B), an integer >= 1.
            num_rows: Number of rows from which batches are drawn without replacement (N). None (default) means
                infinitely many rows, or drawing with replacement.

        Returns:
            The variance; 0 if the batch is all rows.

        Raises:
            ValueError: `batch_size` is larger than `num_rows`.
        """
        check_integer("batch_size", batch_size, minimum=1)
        correction = 1.0
        if num_rows is not None:
            check_integer("num_rows", num_rows, minimum=1)
            if batch_size > num_rows:
                raise ValueError(f"`batch_size` must be at most `num_rows`. Received: {batch_size} of {num_rows}")
            correction = 1.0 - batch_size / num_rows
        return self.covariance_trace.value / batch_size * correction


def gradient_noise(
    objective: Any,
    *data: Any,
    group_size: int = 1,
    directions: Any = (),
    num_hessian_groups: int = 0,
    self_check: bool = True,
    seed: int = 0,
    **options: Any,
) -> GradientNoise:
    """Measure the scatter of gradients over a probe.

    Groups are consecutive rows of the probe, which must be in random order. Rows that do not fill a group are left out.
    Standard errors assume independent groups. They come from leaving out each group in turn (jackknife), and are NaN
    for two groups. Regularisation adds the same term to every gradient, and no scatter.

    Args:
        objective: An `Objective`; or a model, followed by further arguments of `Objective`. The groups of all ranks are
            combined.
        *data: Loss, x, y and sample weights after a model.
        group_size: Rows in a group (B), an integer >= 1. Default 1: gradients of single rows. These do not exist for a
            model that normalises by batch statistics, which needs larger groups.
        directions: Vectors of n entries, or lists of arrays shaped like the variables, of any norm but 0, on which to
            project gradients.
        num_hessian_groups: Number of groups from which to estimate tr(H C), with one Hessian product each; 0 (default)
            leaves tr(H C) out.
        self_check: Whether to check the first Hessian product, as `HessianOperator` does. Default True.
        seed: Seed of the choice of groups for tr(H C), an integer >= 0. Default 0.
        **options: Options of `Objective` after a model.

    Returns:
        The scatter.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; there are fewer than two groups; the loss is not a mean over rows
            (other reductions, masks, layers or losses that mix rows); `group_size` is 1 for a model that normalises by
            batch statistics; or TensorFlow's gradient is wrong, because targets of a categorical cross-entropy do not
            sum to 1.
        RuntimeError: Products with the Hessian are wrong, see `HessianOperator`.

    Example:
        >>> import keras
        >>> from tfopt.curvature import Objective
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.set_weights([np.zeros((1, 1))])
        >>> noise = gradient_noise(Objective(model, "mse", (np.array([[1.0], [1.0]]), np.array([[1.0], [2.0]]))))
        >>> noise.squared_gradient_norm, noise.covariance_trace.value
        (9.0, 2.0)
    """
    check_integer("num_hessian_groups", num_hessian_groups, minimum=0)
    check_flag("self_check", self_check)
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    groups = Groups(as_objective(objective, *data, **options), group_size)
    noise = noise_of(groups, directions)
    if not num_hessian_groups:
        return noise
    hessian = HessianOperator(groups.objective, self_check=self_check)
    draws = np.array(list(groups.curved(hessian, noise.gradient, num_hessian_groups, rng)))
    return replace(noise, hessian_covariance_trace=groups.variance_of_rows(draws))


def noise_of(groups: Groups, directions: Any = ()) -> GradientNoise:
    """Return the scatter of groups at the model's weights, without tr(H C); `directions` as in `gradient_noise`."""
    objective, size = groups.objective, groups.size
    units = _units(directions, sum(int(v.shape.num_elements()) for v in objective.values()))
    found = groups.scatter(units, groups.evaluations())
    covariance_trace = groups.variance_of_rows(found.squares)
    square, num_rows = float(found.mean @ found.mean), groups.count * size
    scale = quotient(covariance_trace.value, square - covariance_trace.value / num_rows)
    return GradientNoise(
        covariance_trace=covariance_trace,
        hessian_covariance_trace=None,
        projections=[groups.variance_of_rows(column) for column in found.projected],
        squared_gradient_norm=square,
        noise_scale=Estimate(scale, jackknife(found, size), groups.count),
        gradient=found.mean,
        num_rows=num_rows,
        group_size=size,
        batch_norm=objective.batch_norm,
        precision=objective.precision,
    )


def quotient(covariance_trace: float, signal: float) -> float:
    """Return the noise scale tr C / |G|^2 for an estimate `signal` of |G|^2: infinity if it is not positive."""
    if math.isnan(covariance_trace) or math.isnan(signal):
        return math.nan
    return float(covariance_trace / signal) if signal > 0 else math.inf


def simple_noise_scale(small_squared_norm: float, big_squared_norm: float, small_size: int, big_size: int) -> float:
    """Return the noise scale from the mean squared norms of gradients of two batch sizes.

    E|G_B|^2 = |G|^2 + tr C / B, at two sizes, gives both unknowns (McCandlish et al., arXiv 1812.06162, appendix A.1):
    tr C = (|G_b|^2 - |G_B|^2) / (1/b - 1/B) and |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b).

    Args:
        small_squared_norm: Mean of |G_b|^2 over batches of the smaller size.
        big_squared_norm: Mean of |G_B|^2 over batches of the larger size.
        small_size: The smaller size (b), an integer >= 1.
        big_size: The larger size (B).

    Returns:
        tr C / |G|^2, in rows; infinity if the estimate of |G|^2 is not positive.

    Raises:
        TypeError: A size is not an integer, or a norm is not a number.
        ValueError: `big_size` is not above `small_size`, or a norm is negative or not finite.

    Example:
        >>> simple_noise_scale(3.0, 2.0, small_size=1, big_size=2)
        2.0
    """
    check_integer("small_size", small_size, minimum=1)
    check_integer("big_size", big_size, minimum=small_size + 1)
    check_number("small_squared_norm", small_squared_norm, minimum=0.0)
    check_number("big_squared_norm", big_squared_norm, minimum=0.0)
    covariance_trace = (small_squared_norm - big_squared_norm) / (1 / small_size - 1 / big_size)
    signal = (big_size * big_squared_norm - small_size * small_squared_norm) / (big_size - small_size)
    return quotient(covariance_trace, signal)


def _units(directions: Any, size: int) -> np.ndarray:
    listed = as_items("directions", directions, "hold vectors")
    units = np.empty((len(listed), size))
    for index, direction in enumerate(listed):
        vector = as_vector("directions", direction)
        if vector.shape != (size,):
            raise ValueError(f"`directions` must be vectors of {size} entries. Received: shape {vector.shape}")
        norm = np.linalg.norm(vector)
        if not (np.isfinite(norm) and norm > 0.0):
            raise ValueError(f"`directions` must be finite and not zero. Received: a vector of norm {norm}")
        units[index] = vector / norm
    return units
