"""The gradient of the loss of one batch, compiled, and refused where TensorFlow's gradient is wrong."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfopt._compiled import compiled
from tfopt.curvature.batch_loss import BatchLoss
from tfopt.curvature.known_operations import MissingDerivativeError
from tfopt.curvature.max_pooling import differentiated_once
from tfopt.curvature.softmax_targets import check_sums, note_targets, noted_targets, refusing_targets
from tfopt.curvature.zero_factors import check_factors, note_factors, noted_factors


class BatchGradient:
    """Compiled functions of the values of `variables` and of a batch: its loss, and the loss with its gradient."""

    def __init__(self, batch_loss: BatchLoss, variables: Sequence[Any]) -> None:
        self._batch_loss, self._variables = batch_loss, variables
        self._with_notes = _as_graph(self._trace_with_notes)
        self.loss = _as_graph(differentiated_once()(lambda values, batch: batch_loss.loss(values, batch, variables)))

    def __call__(self, values: Sequence[Any], batch: Any) -> tuple[Any, list[Any]]:
        """Return the loss of a batch, a scalar tensor, and its gradient, tensors shaped like the variables."""
        # Raises ValueError if TensorFlow's gradient is wrong, because targets of a categorical cross-entropy do not sum
        # to 1, or a factor of a cumulative product is zero.
        with refusing_targets():
            loss, gradient, sums, zeros = self._with_notes(values, batch)
        check_sums(sums)
        check_factors(zeros)
        return loss, gradient

    def trace(self, values: Sequence[Any], batch: Any) -> tuple[Any, list[Any]]:
        """Return the same as a call, inside the graph of the caller."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = self._batch_loss.loss(values, batch, self._variables)
        note_targets(loss)
        note_factors(loss)
        return loss, dense_gradients(tape, loss, list(values))

    @differentiated_once()
    def _trace_with_notes(self, values: Sequence[Any], batch: Any) -> tuple[Any, list[Any], list[Any], list[Any]]:
        loss, gradient = self.trace(values, batch)
        return loss, gradient, noted_targets(loss.graph), noted_factors(loss.graph)


def _as_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled function, which stays a graph under `tf.config.run_functions_eagerly`, as notes need one."""
    made = compiled(function)

    def call(*arguments: Any) -> Any:
        is_eager = tf.config.functions_run_eagerly()
        return (made.get_concrete_function(*arguments) if is_eager else made)(*arguments)

    return call


def dense_gradients(tape: tf.GradientTape, target: Any, sources: list[Any], output_gradients: Any = None) -> list[Any]:
    """Return dense gradients of `target` by `sources`, zero for unconnected sources, shaped like the sources."""
    # Raises MissingDerivativeError if TensorFlow has no second derivative of an operation inside a loop, and
    # RuntimeError if it has no derivative of another operation.
    zero = tf.UnconnectedGradients.ZERO
    try:
        gradients = tape.gradient(target, sources, output_gradients=output_gradients, unconnected_gradients=zero)
    except (LookupError, NotImplementedError, TypeError, ValueError, tf.errors.OpError) as error:
        if "duplicate function" in str(error):  # TensorFlow raises this when the error below occurs a second time
            raise MissingDerivativeError from error
        raise RuntimeError(
            f"TensorFlow cannot differentiate this model as often as needed: {type(error).__name__}: {error}. "
            "Remove the operation named there, or express it by other operations"
        ) from error
    return [
        tf.math.unsorted_segment_sum(g.values, g.indices, s.shape[0]) if isinstance(g, tf.IndexedSlices) else g
        for g, s in zip(gradients, sources, strict=True)
    ]
