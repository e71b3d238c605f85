"""Is a product what finite differences say, symmetric, and the same when it is computed again?"""

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.curvature.differences import COARSE, FINE, STRICT, Derivatives, Verdict, compare, flat, random_like, shifted
from tfopt.curvature.known_operations import (
    KINKED,
    OF_SOME_ROWS,
    SILENT,
    SINGULAR,
    SOFTMAX,
    SUSPECTS,
    describe,
    is_in_functions,
    places,
    rounds_to_half,
    suspicious_layers,
)
from tfopt.curvature.probe import Batch, Probe

NUM_ROWS = 8  # few, so that few activations cross a kink within a step
TURN_OFF = (
    "self_check=False, an argument of the operator and of what makes operators (Convexity, gradient_noise, "
    "fit_noisy_quadratic, plan_batch_size), turns the check off"
)
# What a model raises that insists on its own dtype or number of rows.
REFUSALS = (TypeError, ValueError, RuntimeError, tf.errors.OpError)


def check_product(operator: Any) -> None:
    """Check an operator's product on a few rows, in float64 where the model allows it.

    Operations that are known to have no second derivative are looked for first, in the graph, and targets for which the
    gradient is wrong, in all rows. Then the derivatives on which products rest - for the Hessian the gradient and its
    derivative, for Gauss-Newton those of the outputs and of the loss by the outputs - are compared with finite
    differences of what they are derivatives of, along random directions, near the weights. Products at the weights must
    be finite, symmetric, and the same when they are computed again.

    Differences decide where those at two step sizes, ahead and behind, agree with each other. In float32 they need
    large steps, which measure kinks too: there they only confirm, and a product that they do not confirm is a warning.

    Args:
        operator: A `CurvatureOperator`.

    Raises:
        ValueError: Targets do not fit the loss's gradient.
        RuntimeError: The product is wrong, or random.
    """
    graph = operator.product_graph()
    _refuse_operations(operator, graph)
    operator.check_targets()
    small = _small(operator)
    rng = np.random.default_rng(0)
    values = small.values()
    where = f"on {small.num_rows} rows of the first batch, of {operator.probe.batches[0].num_rows}"
    sound = [_Sound(subject, operator, graph, rng, where) for subject in small.derivatives(values)]
    operator.check_matrix(small)
    # Not at the weights themselves: what starts from zeros lies on a kink of ReLU.
    nudged = shifted(values, random_like(values, rng), 0.01)
    stages = (FINE, *COARSE) if values[0].dtype == tf.float64 else COARSE
    doubtful = [
        name
        for subject in small.derivatives(nudged)
        for name, verdict in compare(subject, rng, stages).items()
        if not _is_settled(operator, graph, small.checks_graph, name, verdict)
    ]
    for subject in sound:
        subject.check_symmetric()
    if places(graph, OF_SOME_ROWS) or is_in_functions(graph, SOFTMAX):
        _check_all_rows(operator, graph, rng)
    if doubtful:
        warnings.warn(
            f"{' and '.join(doubtful)} of {operator!r} could not be checked: finite differences do not agree with each "
            "other, or were only possible with steps that cross kinks. That is so where the loss has many kinks, or is "
            f"computed in low precision. {TURN_OFF}",
            stacklevel=5,
        )


def check_finite(operator: Any, products: list[Any], vectors: list[Any]) -> None:
    """Check that a product over all rows is finite, where the vector is.

    Args:
        operator: A `CurvatureOperator`.
        products: The product.
        vectors: The vector.

    Raises:
        RuntimeError: It is not.
    """
    # A vector may be so large that the product overflows.
    is_small = max(float(tf.reduce_max(tf.abs(part))) for part in vectors) <= 1e6
    if is_small and not np.isfinite(flat(products)).all():
        _raise_not_finite(operator, operator.product_graph(), "on all rows together")


def _raise_not_finite(operator: Any, graph: tf.Graph, where: str) -> None:
    raise RuntimeError(
        f"The products of {operator!r} are not finite at the model's weights, {where}, as derivatives of a square root "
        f"or a norm are at zero. {_advice(operator, graph, SINGULAR)}"
    )


def _small(operator: Any) -> Any:
    # In float64 and on few rows, unless something in the model insists on its own dtype or number of rows, or the loss
    # is of pairs of rows, which few rows may lack.
    batch = operator.probe.batches[0]
    for dtype in ("float64", None):
        found = None
        for rows in (_spread(batch), batch):
            try:
                found, is_finite = _running(operator, rows, dtype)
            except REFUSALS:
                continue
            if is_finite:
                return found
        if found is not None:
            return found
    return _running(operator, batch, None)[0]


def _running(operator: Any, batch: Batch, dtype: str | None) -> tuple[Any, bool]:
    """Return the operator on some rows, and whether derivatives and their quantities are finite there."""
    small = operator.on_rows_of(batch, dtype)
    found: list[Any] = []
    for subject in small.derivatives(small.values()):
        found += subject.quantities(subject.point)
        found += [part for part, _ in subject.along(subject.point, subject.point)]
    return small, bool(np.isfinite(flat(found)).all())


def _spread(batch: Batch) -> Batch:
    """Return a few rows from all over a batch: its first ones may all be padding, or of one class."""
    if batch.num_rows <= NUM_ROWS:
        return batch
    return batch.take(np.linspace(0, batch.num_rows - 1, NUM_ROWS).astype(int))


def _is_settled(operator: Any, graph: tf.Graph, small_graph: tf.Graph, name: str, verdict: Verdict) -> bool:
    is_smooth = verdict.is_fine or not places(graph, KINKED)
    if verdict.is_wrong and is_smooth and not rounds_to_half(small_graph):
        _raise_wrong(operator, graph, name, verdict)
    return verdict.is_right


def _raise_wrong(operator: Any, graph: tf.Graph, name: str, verdict: Verdict) -> None:
    claimed, measured, error = verdict.errors[-1]
    raise RuntimeError(
        f"The products of {operator!r} are wrong: along a random direction, {name} has norm {claimed:.4g}, finite "
        f"differences say {measured:.4g}, and their difference is {error:.0%} of that. An operation has no such "
        f"derivative, or a wrong one. {_advice(operator, graph, SUSPECTS)}"
    )


class _Sound:
    """Derivatives at the weights themselves: finite, and the same when they are computed again."""

    def __init__(
        self, subject: Derivatives, operator: Any, graph: tf.Graph, rng: np.random.Generator, where: str
    ) -> None:
        self._subject, self._operator, self._graph = subject, operator, graph
        self._one, self._other = random_like(subject.point, rng), random_like(subject.point, rng)
        first, repeated = (subject.along(subject.point, self._one) for _ in range(2))
        once, again = (flat([part for part, _ in found]) for found in (first, repeated))
        if not np.isfinite(once).all():
            _raise_not_finite(operator, graph, where)
        if np.linalg.norm(once - again) > 1e-6 * np.linalg.norm(once):
            raise RuntimeError(
                f"{operator!r} gives another product of the same vector the second time. Something in the model is "
                "random while it predicts: use keras.random with a SeedGenerator, whose state a measurement holds "
                "still, in place of tf.random"
            )
        self._first = first[-1][0]

    def check_symmetric(self) -> None:
        subject, first = self._subject, self._first
        if not subject.is_symmetric:
            return
        second = subject.along(subject.point, self._other)[-1][0]
        one, other = flat(self._one), flat(self._other)
        there, back = float(first @ other), float(second @ one)
        if abs(there - back) <= 1e-4 * max(np.linalg.norm(first * other), np.linalg.norm(second * one)):
            return
        # Products are linear too: how far they are not is rounding.
        both = subject.along(subject.point, shifted(self._one, self._other, 1.0))[-1][0]
        rounding = np.linalg.norm((both - first - second) * (abs(one) + abs(other)))
        if abs(there - back) > 30 * rounding:
            raise RuntimeError(
                f"The products of {self._operator!r} are wrong: {subject.names[-1]} is not symmetric, u'Av = "
                f"{there:.4g} and v'Au = {back:.4g}. {_advice(self._operator, self._graph, SUSPECTS)}"
            )


def _check_all_rows(operator: Any, graph: tf.Graph, rng: np.random.Generator) -> None:
    """Check all rows at the weights, where derivatives may be wrong for some rows only."""
    compiled: dict[int, Any] = {}
    for place, batch in enumerate(operator.probe.batches):
        where = f"on batch {place}, of {batch.num_rows} rows"
        if batch.num_rows in compiled:
            small = compiled[batch.num_rows].over(Probe.of([batch]))
        else:
            small = compiled[batch.num_rows] = _of_whole(operator, batch)
        values = small.values()
        for subject in small.derivatives(values):
            _Sound(subject, operator, graph, rng, where).check_symmetric()
            stages = (STRICT,) if values[0].dtype == tf.float64 else ()
            for name, verdict in compare(subject, rng, stages).items():
                if verdict.is_wrong:
                    _raise_wrong(operator, graph, name, verdict)


def _of_whole(operator: Any, batch: Batch) -> Any:
    try:
        return _running(operator, batch, "float64")[0]
    except REFUSALS:
        return _running(operator, batch, None)[0]


def _refuse_operations(operator: Any, graph: tf.Graph) -> None:
    if found := ", ".join(describe(places(graph, SILENT))):
        raise RuntimeError(
            f"The products of {operator!r} would be wrong: TensorFlow takes the derivative of {found} for zero, "
            f"without a word. {_advice(operator, graph, SILENT)}"
        )


def _advice(operator: Any, graph: tf.Graph, kinds: tuple[str, ...]) -> str:
    layers = suspicious_layers(operator.objective.model)
    found = [*describe(places(graph, kinds)), *layers]
    texts = ["Nothing that is known to cause this was found in the graph."]
    if found:
        texts = [f"What can cause this, found in the graph and the model: {', '.join(found)}."]
    return " ".join([*texts, f"If you know better: {TURN_OFF}"])
