"""Check that a product agrees with finite differences, is symmetric, and is the same if it is computed again."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.curvature.batch import Batch
from tfopt.curvature.differences import (
    COARSE,
    FINE,
    STRICT,
    Derivatives,
    DerivativesAt,
    Verdict,
    compare,
    random_like,
    shifted,
)
from tfopt.curvature.known_operations import (
    KINKED,
    OF_SOME_ROWS,
    SILENT,
    SINGULAR,
    SOFTMAX,
    SUSPECTS,
    describe,
    is_in_functions,
    rounds_to_half,
    scopes_of,
    suspicious_layers,
)
from tfopt.curvature.objective import Objective
from tfopt.curvature.parts import Parts
from tfopt.curvature.probe import Probe

NUM_ROWS = 8  # with few rows, few activations cross a kink within a step
TURN_OFF = (
    "self_check=False, an argument of the operator and of the names that make operators (Convexity, gradient_noise, "
    "fit_noisy_quadratic, plan_batch_size), turns the check off"
)
# The errors of a model that needs its own dtype or number of rows.
REFUSALS = (TypeError, ValueError, RuntimeError, tf.errors.OpError)
NOT_FINITE = " at the model's weights, {}. An example is the derivative of a square root or a norm at zero"
# A function that returns the derivatives that make up products, on the first batch of an objective.
MakeDerivatives = Callable[[Objective], DerivativesAt]


class SelfCheck:
    """The check of a matrix's first product: its `name`, its objective, and the graph of its product on a batch."""

    def __init__(self, name: str, objective: Objective, graph: tf.Graph) -> None:
        self._name, self._objective, self._graph = name, objective, graph
        self.is_general = False  # whether a check without doubt was made, whose verdict does not depend on the rows

    def __call__(self, make_derivatives: MakeDerivatives, check_matrix: Callable[[DerivativesAt], None]) -> None:
        """Check products on a few rows, in float64 if the model allows it.

        The derivatives that make up products (for the Hessian the gradient and its derivative, for Gauss-Newton those
        of the outputs and of the loss by the outputs) are compared with finite differences, along random directions,
        near the weights. Products at the weights must be finite, symmetric and repeatable.

        A difference counts only if differences at two step sizes, ahead and behind, agree with each other. In float32
        steps must be large, and cross kinks: there differences only confirm, and a product that is not confirmed gives
        a warning. `check_matrix` takes the derivatives of a few rows, and checks what only this kind of matrix needs.
        """
        rng = np.random.default_rng(0)
        small, sound = self._few_rows(make_derivatives, rng)
        where = f"on {small.objective.num_rows} rows of the first batch, of {self._first_batch.num_rows}"
        for subject in sound:
            subject.check_repeatable(where)
        check_matrix(small)
        # Move away from the weights, because weights of zero lie on a kink of ReLU.
        nudged = sound[0].moved(0.01)
        stages = (FINE, *COARSE) if nudged[0].dtype == tf.float64 else COARSE
        doubtful = [
            name
            for subject in small.at(nudged)
            for name, verdict in compare(subject, rng, stages).items()
            if not self._is_settled(small.graph, name, verdict)
        ]
        for subject in sound:
            subject.check_symmetric()
        depends_on_rows = bool(scopes_of(self._graph, OF_SOME_ROWS)) or is_in_functions(self._graph, SOFTMAX)
        if depends_on_rows:
            self._check_all_rows(make_derivatives, rng)
        if doubtful:
            warnings.warn(
                f"{' and '.join(doubtful)} of {self._name} could not be checked: finite differences do not agree with "
                "each other, or need steps that cross kinks. The cause is a loss with many kinks, or low precision. "
                f"{TURN_OFF}",
                stacklevel=6,
            )
        self.is_general = not (doubtful or depends_on_rows)

    def refuse_operations(self) -> None:
        """Raise RuntimeError if the graph has operations that are known to have no second derivative."""
        if found := ", ".join(describe(scopes_of(self._graph, SILENT))):
            raise RuntimeError(
                f"The products of {self._name} would be wrong: TensorFlow silently returns 0 as the derivative of "
                f"{found}. {self._advice(SILENT)}"
            )

    def check_finite(self, products: list[Any], vectors: list[Any]) -> None:
        """Raise RuntimeError if a product over all rows is not finite, though the vector is finite."""
        # With entries beyond 1e6 the product may overflow legitimately.
        is_small = all(bool((np.abs(part) <= 1e6).all()) for part in vectors)
        if is_small and not Parts(products).is_finite:
            self.refuse("are not finite", SINGULAR, NOT_FINITE.format("on all rows together"))

    def refuse(self, fault: str, kinds: tuple[str, ...], details: str) -> None:
        """Raise RuntimeError: products have a fault, perhaps because of operations of some kinds in the graph."""
        raise RuntimeError(f"The products of {self._name} {fault}{details}. {self._advice(kinds)}")

    def refuse_randomness(self) -> None:
        """Raise RuntimeError: products are random."""
        raise RuntimeError(
            f"{self._name} gives another product of the same vector the second time. Some part of the model draws "
            "random numbers in prediction: use keras.random with a SeedGenerator in place of tf.random. A "
            "measurement does not advance the state of a SeedGenerator"
        )

    @property
    def _first_batch(self) -> Batch:
        return self._objective.probe.batches[0]

    def _few_rows(
        self, make_derivatives: MakeDerivatives, rng: np.random.Generator
    ) -> tuple[DerivativesAt, list["_Sound"]]:
        # Use float64 and few rows, unless the model needs its own dtype or number of rows, or the loss compares pairs
        # of rows, of which few rows may have none.
        for dtype in ("float64", None):
            found = None
            for rows in (_spread(self._first_batch), self._first_batch):
                try:
                    found = self._on(rows, dtype, make_derivatives, rng)
                except REFUSALS:
                    continue
                if all(subject.is_finite for subject in found[1]) and any(subject.is_live for subject in found[1]):
                    return found
            if found is not None:
                return found
        return self._on(self._first_batch, None, make_derivatives, rng)

    def _on(
        self, rows: Batch, dtype: str | None, make_derivatives: MakeDerivatives, rng: np.random.Generator
    ) -> tuple[DerivativesAt, list["_Sound"]]:
        """Return the derivatives on some rows, and those at the weights."""
        small = make_derivatives(self._objective.on_rows(rows, dtype))
        return small, [_Sound(subject, self, rng) for subject in small.at(small.objective.values())]

    def _is_settled(self, small_graph: tf.Graph, name: str, verdict: Verdict) -> bool:
        is_smooth = verdict.is_fine or not scopes_of(self._graph, KINKED)
        if verdict.is_wrong and is_smooth and not rounds_to_half(small_graph):
            self._refuse_wrong(name, verdict)
        return verdict.is_right

    def _refuse_wrong(self, name: str, verdict: Verdict) -> None:
        computed, measured, error = verdict.errors[-1]
        self.refuse(
            "are wrong",
            SUSPECTS,
            f": along a random direction, {name} has norm {computed:.4g}, finite differences say {measured:.4g}, and "
            f"their difference is {error:.0%} of that. An operation has no such derivative, or a wrong one",
        )

    def _check_all_rows(self, make_derivatives: MakeDerivatives, rng: np.random.Generator) -> None:
        """Check all rows at the weights, because derivatives may be wrong for some rows only."""
        known: dict[int, DerivativesAt] = {}
        for index, batch in enumerate(self._objective.probe.batches):
            where = f"on batch {index}, of {batch.num_rows} rows"
            if batch.num_rows in known:
                whole = known[batch.num_rows].over(Probe.from_batches([batch]))
            else:
                whole = known[batch.num_rows] = self._on_whole(batch, make_derivatives, rng)
            values = whole.objective.values()
            for subject in whole.at(values):
                sound = _Sound(subject, self, rng)
                sound.check_repeatable(where)
                sound.check_symmetric()
                stages = (STRICT,) if values[0].dtype == tf.float64 else ()
                for name, verdict in compare(subject, rng, stages).items():
                    if verdict.is_wrong:
                        self._refuse_wrong(name, verdict)

    def _on_whole(self, batch: Batch, make_derivatives: MakeDerivatives, rng: np.random.Generator) -> DerivativesAt:
        try:
            return self._on(batch, "float64", make_derivatives, rng)[0]
        except REFUSALS:
            return self._on(batch, None, make_derivatives, rng)[0]

    def _advice(self, kinds: tuple[str, ...]) -> str:
        found = [*describe(scopes_of(self._graph, kinds)), *suspicious_layers(self._objective.model)]
        texts = ["The graph has no operation that is known to cause this."]
        if found:
            texts = [f"Possible causes, found in the graph and the model: {', '.join(found)}."]
        return " ".join([*texts, f"If the product is right nevertheless: {TURN_OFF}"])


def _spread(batch: Batch) -> Batch:
    """Return a few rows spread over a batch, because its first rows may all be padding, or of one class."""
    if batch.num_rows <= NUM_ROWS:
        return batch
    return batch.take(np.linspace(0, batch.num_rows - 1, NUM_ROWS).astype(int))


class _Sound:
    """Derivatives at the weights along two random directions, and checks of these."""

    def __init__(self, subject: Derivatives, check: SelfCheck, rng: np.random.Generator) -> None:
        self._subject, self._check = subject, check
        self._one, self._other = random_like(subject.point, rng), random_like(subject.point, rng)
        self._first = self._along(self._one)
        self._second: list[Parts] = []

    @property
    def is_finite(self) -> bool:
        """Whether the derivatives and what they differentiate are finite."""
        return all(part.is_finite for part in (*self._first, *self._quantities))

    @property
    def is_live(self) -> bool:
        """Whether some derivative is not zero."""
        return any(part.any() for part in self._first)

    def moved(self, step: float) -> list[Any]:
        """Return the point moved along the first direction."""
        return shifted(self._subject.point, self._one, step)

    def check_repeatable(self, where: str) -> None:
        """Refuse derivatives that are not finite, or differ the second time."""
        if not all(part.is_finite for part in self._first):
            self._check.refuse("are not finite", SINGULAR, NOT_FINITE.format(where))
        if not self._subject.is_symmetric:
            self._refuse_change(self._first, self._along(self._one))
            return
        # Another direction also serves `check_symmetric`. There the product itself is computed again if need be.
        once = self._quantities
        self._second = self._along(self._other)
        self._refuse_change(once, self._quantities)

    def check_symmetric(self) -> None:
        """Refuse a matrix that is not symmetric; comes after `check_repeatable`."""
        subject = self._subject
        if not subject.is_symmetric:
            return
        first, second = self._first[-1], self._second[-1]
        one, other = Parts(self._one), Parts(self._other)
        there, back = first @ other, second @ one
        if abs(there - back) <= 1e-4 * max((first * other).length, (second * one).length):
            return
        self._refuse_change(self._first, self._along(self._one))
        # Products are linear, so that any deviation from linearity estimates the rounding error.
        both = self._along(shifted(self._one, self._other, 1.0))[-1]
        rounding = ((both - first - second) * (abs(one) + abs(other))).length
        if abs(there - back) > 30 * rounding:
            details = f": {subject.names[-1]} is not symmetric, u'Av = {there:.4g} and v'Au = {back:.4g}"
            self._check.refuse("are wrong", SUSPECTS, details)

    def _along(self, direction: list[Any]) -> list[Parts]:
        found = self._subject.along(self._subject.point, direction)
        self._quantities = self._subject.differentiated(self._subject.point)
        return [part for part, _ in found]

    def _refuse_change(self, once: list[Parts], again: list[Parts]) -> None:
        change = [(before - after).length for before, after in zip(once, again, strict=True)]
        if math.hypot(*change) > 1e-6 * math.hypot(*(before.length for before in once)):
            self._check.refuse_randomness()
