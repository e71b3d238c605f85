"""Relative sizes of a step and of a gradient's change, and the breakdown that deep relative trust expects."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt._checks import as_items, as_numbers, check_integer, check_number


def relative_perturbation(weights: Sequence[Any], step: Sequence[Any]) -> np.ndarray:
    """Return |dW_l| / |W_l| of each variable.

    Args:
        weights: One array for each variable.
        step: The change of each variable, of the same shapes.

    Returns:
        Ratios of shape (number of variables,), float64: 0 for a variable that does not move; NaN if a variable of zeros
        moves, because it has no size to compare with; infinity if a value is not finite.

    Raises:
        TypeError: An argument is no list of arrays of numbers.
        ValueError: The shapes differ.

    Example:
        >>> relative_perturbation([np.array([3.0, 4.0]), np.zeros(1)], [np.array([0.0, 0.5]), np.ones(1)]).tolist()
        [0.1, nan]
    """
    return ratios_of(norms_of("step", step), norms_of("weights", weights, step, "step"))


def relative_gradient_breakdown(gradient: Sequence[Any], moved_gradient: Sequence[Any]) -> np.ndarray:
    """Return |g_l(W + dW) - g_l(W)| / |g_l(W)| of each variable.

    Two gradients do not show whether they are rounding, as those of a bias before batch normalisation are. `StepMeter`
    and `breakdown_profile` find that out, and give NaN for such variables.

    Args:
        gradient: g(W), one array for each variable.
        moved_gradient: g(W + dW), of the same shapes.

    Returns:
        Ratios of shape (number of variables,), float64: 0 for a gradient that does not change; NaN if a gradient of
        zeros changes; infinity if a value is not finite.

    Raises:
        TypeError: An argument is no list of arrays of numbers.
        ValueError: The shapes differ.

    Example:
        >>> relative_gradient_breakdown([np.array([3.0, 4.0])], [np.array([3.0, 5.0])]).tolist()
        [0.2]
    """
    moved = [as_numbers("moved_gradient", part) for part in as_items("moved_gradient", moved_gradient, "hold arrays")]
    norms = norms_of("gradient", gradient, moved, "moved_gradient")
    changes = [after - np.asarray(before, np.float64) for before, after in zip(gradient, moved, strict=True)]
    return ratios_of(norms_of("moved_gradient", changes), norms)


def deep_relative_trust(relative_perturbations: Any) -> float:
    """Return prod_l (1 + |dW_l| / |W_l|) - 1, the largest breakdown that deep relative trust expects (Section 3).

    Args:
        relative_perturbations: Ratios of shape (number of variables,), >= 0; NaN are left out.

    Returns:
        The product minus 1; infinite where it overflows.

    Raises:
        TypeError: The ratios are not numbers.
        ValueError: A ratio is negative.

    Example:
        >>> round(deep_relative_trust([0.5, 1.0]), 6)
        2.0
    """
    ratios = as_numbers("relative_perturbations", relative_perturbations)
    if (ratios < 0).any():
        raise ValueError(f"`relative_perturbations` must be >= 0. Received: {ratios.min()}")
    with np.errstate(over="ignore"):
        return float(np.expm1(np.nansum(np.log1p(ratios))))


def largest_safe_step(depth: int, angle: float = 0.0) -> float:
    """Return (1 + cos theta)^(1 / L) - 1: smaller relative steps of every layer lower the loss, if the model holds.

    Under deep relative trust a step of relative size eta in each of L layers changes the gradient by at most
    (1 + eta)^L - 1. The loss falls as long as that is less than cos theta.

    Args:
        depth: Number of layers (L), an integer >= 1.
        angle: Angle theta between the step and the negative gradient in radians, in [0, pi / 2]. Default 0.

    Returns:
        The largest relative step.

    Raises:
        TypeError: `depth` is no integer, or `angle` no number.
        ValueError: An argument is out of its range.

    Example:
        >>> largest_safe_step(1), round(largest_safe_step(50), 4)
        (1.0, 0.014)
    """
    check_integer("depth", depth, minimum=1)
    check_number("angle", angle, minimum=0.0, maximum=math.pi / 2)
    return math.expm1(math.log1p(math.cos(angle)) / depth)


def norms_of(name: str, parts: Sequence[Any], like: Sequence[Any] | None = None, like_name: str = "") -> np.ndarray:
    """Return the Frobenius norms of arrays, float64; raise ValueError if their shapes differ from those of `like`."""
    arrays = [as_numbers(name, part) for part in as_items(name, parts, "hold arrays")]
    shapes = [array.shape for array in arrays]
    if like is not None and shapes != (others := [tuple(np.shape(part)) for part in like]):
        raise ValueError(f"`{name}` must have the shapes of `{like_name}`, {others}. Received: {shapes}")
    return np.array([np.linalg.norm(array) for array in arrays])


def ratios_of(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return quotients of norms: 0 for 0 / 0, NaN for other divisions by 0, infinity if a norm is not finite."""
    unknown = np.where(above > 0, np.nan, 0.0)
    with np.errstate(invalid="ignore"):
        ratios = np.divide(above, below, out=unknown, where=below > 0)
    return np.where(np.isfinite(above) & np.isfinite(below), ratios, np.inf)


def largest_of(ratios: np.ndarray) -> float:
    """Return the largest quotient that is not NaN; NaN if there is none."""
    known = ratios[~np.isnan(ratios)]
    return float(known.max()) if len(known) else math.nan
