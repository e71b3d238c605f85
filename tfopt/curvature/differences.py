"""Compare derivatives with finite differences."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.curvature.parts import Parts

NUM_DIRECTIONS = 3
WIDE = 1e-3  # a step that changes results computed in float32
PERIOD = 65_537  # a prime, so that no two rows of a matrix are equal
FAR = 1e3  # entries from here on may be offsets that stand for -inf, and say nothing about other entries


@dataclass(frozen=True)
class Stage:
    """Two step sizes, and the tolerances for the differences at them."""

    steps: tuple[float, float]  # The larger and the smaller step, relative to the point
    agreement: float  # How well central differences at both steps must agree to count, relative to the derivative
    # How well differences ahead and behind must agree, relative to the derivative; they disagree at a kink.
    sides: float
    limit: float  # The relative error above which a derivative counts as wrong
    is_fine: bool  # Whether steps are so small that few kinks are crossed
    # Whether to take derivatives at both ends of the smaller step, where the quantities are needed in any case, and not
    # at the point, where a derivative may be wrong though it is right all around.
    is_at_ends: bool = False


FINE = Stage((1e-6, 2.5e-7), 1e-3, 1e-2, 5e-3, True, is_at_ends=True)
# This stage detects a single wrong row in a large batch.
STRICT = Stage((1e-6, 2.5e-7), 1e-5, 1e-4, 1e-4, True)
# These stages are for results in float32, whose rounding errors exceed the effect of small steps.
COARSE = tuple(Stage((step, step / 4), 0.05, 0.2, 0.1, False) for step in (1e-4, 1e-3, 1e-2))


@dataclass(frozen=True)
class Derivatives:
    """Derivatives that make up products, each with the quantity whose derivative it must be."""

    names: Sequence[str]  # A noun for each derivative
    point: list[Any]  # Where the derivatives are taken, a list of tensors
    # Takes a point; returns the differentiated quantities, a vector for each name.
    differentiated: Callable[[list[Any]], list[Parts]]
    # Takes a point and a direction; returns for each name the derivative along it, a vector, and its expected size
    # if no terms cancel by chance.
    along: Callable[[list[Any], list[Any]], list[tuple[Parts, float]]]
    is_symmetric: bool = False  # Whether the last derivative is a symmetric matrix times the direction


class DerivativesAt(ABC):
    """The derivatives that make up products of a matrix, on the first batch of an objective; compiled once."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self._traced: Any = None  # a `SplitFunction`, made at the first weights

    @abstractmethod
    def at(self, values: list[Any]) -> list[Derivatives]:
        """Return the derivatives at the weights `values`."""

    @property
    def graph(self) -> tf.Graph:
        """The compiled graph."""
        return self._traced.graph

    def over(self, probe: Any) -> "DerivativesAt":
        """Return the same derivatives on the first batch of another probe, with the compiled functions."""
        other = copy.copy(self)
        other.objective = self.objective.over(probe)
        return other


@dataclass
class Verdict:
    """The result of comparing one derivative with differences."""

    # Weight of the confirmations; a single number may be right along a direction by chance, so it counts 1 and an array
    # 2.
    confirmations: int = 0
    # Directions with a certain disagreement: norm of the derivative, norm of the difference, relative error.
    errors: list[tuple[float, float, float]] = field(default_factory=list)
    is_fine: bool = True  # Whether the steps were so small that kinks do not matter

    @property
    def is_right(self) -> bool:
        """Whether differences confirm the derivative."""
        return self.confirmations >= 2

    @property
    def is_wrong(self) -> bool:
        """Whether the derivative is wrong along two directions, and not confirmed."""
        return not self.is_right and len(self.errors) >= 2


def compare(subject: Derivatives, rng: np.random.Generator, stages: Sequence[Stage]) -> dict[str, Verdict]:
    """Compare derivatives with central differences along random directions, stage by stage; a verdict for each name."""
    verdicts = {name: Verdict() for name in subject.names}
    for stage in stages:
        for _ in range(NUM_DIRECTIONS):
            undecided = [n for n, verdict in enumerate(verdicts.values()) if not (verdict.is_right or verdict.is_wrong)]
            if not undecided:
                return verdicts
            line = _Line(subject, random_like(subject.point, rng), stage)
            for n in undecided:
                verdicts[subject.names[n]].is_fine = stage.is_fine
                _judge(verdicts[subject.names[n]], line, n, stage)
    return verdicts


class _Line:
    """The derivatives along a direction, and the differentiated quantities, each computed on first access."""

    def __init__(self, subject: Derivatives, direction: list[Any], stage: Stage) -> None:
        self._subject, self._direction = subject, direction
        self._found: dict[float, list[Parts]] = {}
        places = (stage.steps[1], -stage.steps[1]) if stage.is_at_ends else (0.0,)
        self._derivatives = [self._along(place) for place in places]

    def derivative(self, n: int) -> tuple[Parts, float]:
        """Return a derivative along the direction, and its expected size."""
        first, *more = (derivatives[n] for derivatives in self._derivatives)
        return ((first[0] + more[0][0]).times(0.5), (first[1] + more[0][1]) / 2) if more else first

    def at(self, step: float, n: int) -> Parts:
        """Return a quantity at a step from the point."""
        if step not in self._found:
            self._found[step] = self._subject.differentiated(self._place(step))
        return self._found[step][n]

    def slope(self, step: float, n: int) -> Parts:
        return (self.at(step, n) - self.at(-step, n)).times(0.5 / step)

    def kink(self, step: float, n: int) -> Parts:
        """Return the difference between the slopes ahead and behind."""
        return (self.at(step, n) - self.at(0.0, n).times(2.0) + self.at(-step, n)).times(1.0 / step)

    def _along(self, step: float) -> list[tuple[Parts, float]]:
        place = self._place(step)
        derivatives = self._subject.along(place, self._direction)
        # The quantities were perhaps computed with the derivatives.
        self._found[step] = self._subject.differentiated(place)
        return derivatives

    def _place(self, step: float) -> list[Any]:
        return shifted(self._subject.point, self._direction, step) if step else self._subject.point


def _judge(verdict: Verdict, line: _Line, n: int, stage: Stage) -> None:
    computed, size = line.derivative(n)
    far, near = stage.steps
    measured = line.slope(near, n)
    if not (computed.is_finite and measured.is_finite):
        return
    scale = max(measured.length, computed.length, size)
    error = (computed - measured).length
    if scale <= 1e-9 * line.at(near, n).length or error <= stage.limit * scale or scale == 0.0:
        # The derivative agrees, or nothing depends on the point in this direction.
        is_sure = computed.size > 2 or error <= 1e-3 * stage.limit * scale
        verdict.confirmations += 2 if is_sure else 1
        return
    if not measured.any() and line.slope(WIDE, n).any():
        return  # the step was smaller than the rounding of an operation in float32
    agree = (line.slope(far, n) - measured).length <= stage.agreement * scale
    if agree and line.kink(near, n).length <= stage.sides * scale:
        verdict.errors.append((computed.length, measured.length, error / scale))


def random_like(point: list[Any], rng: np.random.Generator) -> list[Any]:
    """Return a random direction: in each tensor of the size of its entries, or of the others' if it is zero."""
    # Entries that are far out, such as the -1e9 of masked logits, have their own size.
    arrays = [np.asarray(part) for part in point]
    far = [np.minimum(np.abs(part), 1e30) if _has_far(part) else None for part in arrays]
    near = [part if large is None else large[large < FAR] for part, large in zip(arrays, far, strict=True)]
    sizes = [Parts([part]).length / math.sqrt(part.size or 1) for part in near]
    usual = float(np.mean([size for size in sizes if size > 0.0] or [0.01]))
    scales = [
        size or usual if large is None else np.where(large < FAR, size or usual, large)
        for large, size in zip(far, sizes, strict=True)
    ]
    return [tf.constant(_drawn(rng, part.shape, scale), part.dtype) for part, scale in zip(point, scales, strict=True)]


def _has_far(array: np.ndarray) -> bool:
    return bool(array.size and not max(array.max(), -array.min()) < FAR)


def _drawn(rng: np.random.Generator, shape: Sequence[int], scale: Any) -> np.ndarray:
    """Return normal numbers, which repeat in large arrays, because drawing them takes longer than a product."""
    if math.prod(shape) <= PERIOD:
        return scale * rng.standard_normal(shape)
    period = rng.standard_normal(PERIOD)
    return scale * np.resize(period, shape) if np.ndim(scale) else np.resize(scale * period, shape)


def shifted(point: list[Any], direction: list[Any], step: float) -> list[Any]:
    """Return point + step * direction, a list of tensors."""
    return [p + tf.constant(step, p.dtype) * d for p, d in zip(point, direction, strict=True)]


def inner(gradient: Parts, direction: Sequence[Any]) -> tuple[Parts, float]:
    """Return the product of a gradient and a direction, of one entry, and its expected size without cancellation."""
    products = gradient * Parts(direction)
    return Parts([products.sum()]), products.length
