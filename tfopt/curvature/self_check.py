"""Check that a product agrees with finite differences, is symmetric, and is the same if it is computed again."""

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
    rounds_to_half,
    scopes_of,
    suspicious_layers,
)
from tfopt.curvature.probe import Batch, Probe

NUM_ROWS = 8  # with few rows, few activations cross a kink within a step
TURN_OFF = (
    "self_check=False, an argument of the operator and of the names that make operators (Convexity, gradient_noise, "
    "fit_noisy_quadratic, plan_batch_size), turns the check off"
)
# The errors of a model that needs its own dtype or number of rows.
REFUSALS = (TypeError, ValueError, RuntimeError, tf.errors.OpError)


def check_product(operator: Any) -> None:
    """Check an operator's product on a few rows, in float64 if the model allows it.

    First the graph is searched for operations that are known to have no second derivative, and all rows for targets
    with a wrong gradient. Then the derivatives that make up products (for the Hessian the gradient and its derivative,
    for Gauss-Newton those of the outputs and of the loss by the outputs) are compared with finite differences, along
    random directions, near the weights. Products at the weights must be finite, symmetric and repeatable.

    A difference counts only if differences at two step sizes, ahead and behind, agree with each other. In float32 steps
    must be large, and cross kinks: there differences only confirm, and a product that is not confirmed gives a warning.

    Args:
        operator: A `CurvatureOperator`.

    Raises:
        ValueError: The loss's gradient is wrong for the targets.
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
    # Move away from the weights, because weights of zero lie on a kink of ReLU.
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
    if scopes_of(graph, OF_SOME_ROWS) or is_in_functions(graph, SOFTMAX):
        _check_all_rows(operator, graph, rng)
    if doubtful:
        warnings.warn(
            f"{' and '.join(doubtful)} of {operator!r} could not be checked: finite differences do not agree with each "
            "other, or need steps that cross kinks. The cause is a loss with many kinks, or low precision. "
            f"{TURN_OFF}",
            stacklevel=5,
        )


def check_finite(operator: Any, products: list[Any], vectors: list[Any]) -> None:
    """Raise RuntimeError if a product over all rows is not finite, though the vector is finite."""
    # With entries beyond 1e6 the product may overflow legitimately.
    is_small = max(float(tf.reduce_max(tf.abs(part))) for part in vectors) <= 1e6
    if is_small and not np.isfinite(flat(products)).all():
        _raise_not_finite(operator, operator.product_graph(), "on all rows together")


def _raise_not_finite(operator: Any, graph: tf.Graph, where: str) -> None:
    raise RuntimeError(
        f"The products of {operator!r} are not finite at the model's weights, {where}. An example is the derivative of "
        f"a square root or a norm at zero. {_advice(operator, graph, SINGULAR)}"
    )


def _small(operator: Any) -> Any:
    # Use float64 and few rows, unless the model needs its own dtype or number of rows, or the loss compares pairs of
    # rows, of which few rows may have none.
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
    """Return the operator on the rows of `batch`, and whether its derivatives are finite there."""
    small = operator.on_rows_of(batch, dtype)
    found: list[Any] = []
    for subject in small.derivatives(small.values()):
        found += subject.differentiated(subject.point)
        found += [part for part, _ in subject.along(subject.point, subject.point)]
    return small, bool(np.isfinite(flat(found)).all())


def _spread(batch: Batch) -> Batch:
    """Return a few rows spread over a batch, because its first rows may all be padding, or of one class."""
    if batch.num_rows <= NUM_ROWS:
        return batch
    return batch.take(np.linspace(0, batch.num_rows - 1, NUM_ROWS).astype(int))


def _is_settled(operator: Any, graph: tf.Graph, small_graph: tf.Graph, name: str, verdict: Verdict) -> bool:
    is_smooth = verdict.is_fine or not scopes_of(graph, KINKED)
    if verdict.is_wrong and is_smooth and not rounds_to_half(small_graph):
        _raise_wrong(operator, graph, name, verdict)
    return verdict.is_right


def _raise_wrong(operator: Any, graph: tf.Graph, name: str, verdict: Verdict) -> None:
    computed, measured, error = verdict.errors[-1]
    raise RuntimeError(
        f"The products of {operator!r} are wrong: along a random direction, {name} has norm {computed:.4g}, finite "
        f"differences say {measured:.4g}, and their difference is {error:.0%} of that. An operation has no such "
        f"derivative, or a wrong one. {_advice(operator, graph, SUSPECTS)}"
    )


class _Sound:
    """Check that derivatives at the weights are finite, repeatable and, in `check_symmetric`, symmetric."""

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
                f"{operator!r} gives another product of the same vector the second time. Some part of the model draws "
                "random numbers in prediction: use keras.random with a SeedGenerator in place of tf.random. A "
                "measurement does not advance the state of a SeedGenerator"
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
        # Products are linear, so that any deviation from linearity estimates the rounding error.
        both = subject.along(subject.point, shifted(self._one, self._other, 1.0))[-1][0]
        rounding = np.linalg.norm((both - first - second) * (abs(one) + abs(other)))
        if abs(there - back) > 30 * rounding:
            raise RuntimeError(
                f"The products of {self._operator!r} are wrong: {subject.names[-1]} is not symmetric, u'Av = "
                f"{there:.4g} and v'Au = {back:.4g}. {_advice(self._operator, self._graph, SUSPECTS)}"
            )


def _check_all_rows(operator: Any, graph: tf.Graph, rng: np.random.Generator) -> None:
    """Check all rows at the weights, because derivatives may be wrong for some rows only."""
    compiled: dict[int, Any] = {}
    for index, batch in enumerate(operator.probe.batches):
        where = f"on batch {index}, of {batch.num_rows} rows"
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
    if found := ", ".join(describe(scopes_of(graph, SILENT))):
        raise RuntimeError(
            f"The products of {operator!r} would be wrong: TensorFlow silently returns 0 as the derivative of {found}. "
            f"{_advice(operator, graph, SILENT)}"
        )


def _advice(operator: Any, graph: tf.Graph, kinds: tuple[str, ...]) -> str:
    layers = suspicious_layers(operator.objective.model)
    found = [*describe(scopes_of(graph, kinds)), *layers]
    texts = ["The graph has no operation that is known to cause this."]
    if found:
        texts = [f"Possible causes, found in the graph and the model: {', '.join(found)}."]
    return " ".join([*texts, f"If the product is right nevertheless: {TURN_OFF}"])
