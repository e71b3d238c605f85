"""The rounding errors of gradients, from the same gradients at weights that differ in the last bit.

A variable that cannot change the loss (a bias before batch normalisation, the bias of attention's keys) has a gradient
of exactly 0 in theory. What is computed is rounding, and any quotient with it is a quotient of two rounding errors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfopt.relative_trust.breakdown import norms_of

MARGIN = 10.0  # A gradient below this many rounding errors counts as rounding.
SMALL = 1e-4  # A gradient whose entries are below this share of the largest may be rounding.
NUM_ENTRIES = 6  # Rounding errors of fewer entries can be equal by chance, and are drawn again.
NEAR_ROUNDING = 100.0  # Only gradients below this many times the largest rounding error are drawn again.
SHARP = 1e3  # A whole gradient this many times above its rounding errors needs no further look.
FAR = 64  # Units in the last place of a move that is long beside rounding, and short beside a step.
LONGEST = 2**28  # Units in the last place after which weights that change no gradient are given up.
TINY = 2.0**-20  # The size of a zero, whose own last place would be far too small.

Gradient = Callable[[list[np.ndarray]], list[np.ndarray]]


def is_small(gradient: Sequence[np.ndarray]) -> np.ndarray:
    """Return which parts of a gradient are not zero, but have entries far smaller than those of the largest part."""
    sizes = norms_of("gradient", gradient) / np.sqrt([part.size for part in gradient])
    return (sizes > 0) & (sizes < SMALL * np.max(sizes))


def is_rounding(norms: Any, errors: Any) -> Any:
    """Return which gradients of these norms, unless they are 0, cannot be told from their rounding errors."""
    return (norms > 0) & (norms < MARGIN * errors)


def rounding_errors(
    gradient_at: Gradient,
    weights: Sequence[np.ndarray],
    gradient: Sequence[np.ndarray],
    suspects: np.ndarray,
    epsilon: float,
) -> np.ndarray:
    """Return estimates of the norms of the rounding errors of gradients, 0 if no suspect is found to be rounding."""
    # The weights move by a few units in the last place, up or down at random, again and again in the same direction. A
    # gradient responds to that as to rounding; rounding itself is drawn again. Differences between two moved gradients
    # count: a ReLU whose input is exactly 0 switches at the first move, and then no more.
    norms, sizes = norms_of("gradient", gradient), np.array([part.size for part in gradient])
    errors = np.zeros(len(norms))
    if not suspects.any() or not np.isfinite(norms).all():
        return errors
    ray = _Ray(gradient_at, weights, epsilon)
    near, count = ray.first_response(gradient, epsilon * float(np.linalg.norm(norms)) / 4), 1
    first = _distances(near, gradient)
    is_few = norms / np.sqrt(sizes) < NEAR_ROUNDING * np.max(first / np.sqrt(sizes))
    is_open = suspects & (is_rounding(norms, first) | (is_few & (sizes < NUM_ENTRIES)))
    while is_open.any():
        count += 1
        further = ray.at(count)
        errors, near = np.maximum(errors, _distances(further, near)), further
        is_open = suspects & ~is_rounding(norms, errors) & is_few & (sizes * (count - 1) < NUM_ENTRIES)
    if np.linalg.norm(norms) > SHARP * np.linalg.norm(errors):
        return errors
    # Near a minimum all gradients are rounding. Other causes are random numbers, which differ at the same weights, and
    # ReLUs whose inputs are exactly 0 up to rounding, which a longer move switches for good.
    again, far = _distances(ray.at(0), gradient), _distances(ray.at(2 * FAR), ray.at(FAR))
    is_random = np.linalg.norm(again) > np.linalg.norm(errors) / MARGIN
    return np.zeros(len(norms)) if is_random else np.minimum(errors, far)


class _Ray:
    """Gradients at weights that have moved along one random direction, by one to two units in the last place each."""

    def __init__(self, gradient_at: Gradient, weights: Sequence[np.ndarray], epsilon: float) -> None:
        rng = np.random.default_rng(0)  # All ranks draw the same.
        self._gradient_at, self._weights, self._scale = gradient_at, weights, 1
        self._units = []
        for part in weights:
            unit = np.ldexp(epsilon, np.frexp(np.where(part == 0, TINY, part))[1] - 1)
            self._units.append(unit * rng.uniform(1.0, 2.0, part.shape) * rng.choice([-1.0, 1.0], part.shape))

    def at(self, count: int) -> list[np.ndarray]:
        """Return the gradient after `count` moves."""
        pairs = zip(self._weights, self._units, strict=True)
        return self._gradient_at([w + count * self._scale * unit for w, unit in pairs])

    def first_response(self, gradient: Sequence[np.ndarray], least: float) -> list[np.ndarray]:
        """Lengthen the move until the gradient changes by a norm of at least `least`, and return the gradient there."""
        # The last bits of biases alone move nothing: they are far below the last bits of the sums that they enter.
        while True:
            moved = self.at(1)
            if np.linalg.norm(_distances(moved, gradient)) >= least or self._scale >= LONGEST:
                return moved
            self._scale *= 16


def _distances(parts: Sequence[Any], others: Sequence[Any]) -> np.ndarray:
    return norms_of("changes", [a - b for a, b in zip(parts, others, strict=True)])
