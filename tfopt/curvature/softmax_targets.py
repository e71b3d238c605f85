"""Find targets for which TensorFlow's gradient of the softmax cross-entropy is wrong."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfopt._keras import FuncGraph

KEY = "tfopt_softmax_targets"
TOLERANCE = 5e-3  # allowed deviation of the sum from 1, for targets that were rounded
MARK = re.compile(re.escape(f"[{KEY}]") + r" \[(\d+)\] \[(\d+)\] \[([^\]]*)\]")


class TargetsError(ValueError):
    """Targets do not sum to 1, so that TensorFlow's gradient is wrong."""

    def __init__(self, count: int, num_rows: int, first: float) -> None:
        super().__init__(
            "`y` must have rows that sum to 1 for a categorical cross-entropy: for others the gradient that TensorFlow "
            f"computes, softmax(z) - y, is not that of the loss. Received: {count:,} of {num_rows:,} rows that do not, "
            f"the first one sums to {first:.4g}. Divide each row by its sum, and pass the sums as `sample_weight`; "
            "pass the weight 0 for rows that should not count"
        )


def note_targets(loss: Any) -> None:
    """Add to the graph of a loss the target sums of its softmax cross-entropies, 1 for rows without weight."""
    # TensorFlow's gradient by the logits, softmax(z) - t, is right only for sum(t) = 1. In general it must be
    # sum(t) softmax(z) - t.
    # `with_check` handles cross-entropies in functions that the graph calls.
    operations = [op for op in loss.graph.get_operations() if op.type == "SoftmaxCrossEntropyWithLogits"]
    weights = tf.gradients(loss, [op.outputs[0] for op in operations]) if operations else []
    for operation, weight in zip(operations, weights, strict=True):
        if weight is not None:
            sums = tf.cast(tf.reduce_sum(operation.inputs[1], axis=-1), tf.float64)
            counted = tf.where(tf.not_equal(weight, 0), sums, tf.ones_like(sums))
            tf.compat.v1.add_to_collection(KEY, tf.reshape(counted, [-1]))


def noted_targets(graph: tf.Graph) -> list[Any]:
    """Return from a graph a tensor of target sums for each softmax cross-entropy."""
    return list(graph.get_collection(KEY))


def check_sums(sums: list[Any]) -> None:
    """Raise TargetsError unless all values of `noted_targets` are 1 within the tolerance."""
    for values in sums:
        array = values.numpy()
        is_wrong = ~(abs(array - 1.0) <= TOLERANCE)
        if is_wrong.any():
            raise TargetsError(int(is_wrong.sum()), array.size, array[is_wrong][0])


def with_check(cross_entropy: Callable[..., Any], logits: Any, targets: Any, name: Any = None) -> tuple[Any, Any]:
    """Compute a softmax cross-entropy whose gradient checks its targets, if the graph is that of a function."""
    # `note_targets` cannot see targets in branches, loops and functions, whose graphs get them only when they run.
    loss, backprop = cross_entropy(logits, targets, name=name)
    if isinstance(getattr(tf.compat.v1.get_default_graph(), "outer_graph", None), FuncGraph):
        loss = _checked(loss, targets)
    return loss, backprop


@contextlib.contextmanager
def refusing_targets() -> Iterator[None]:
    """Within this context a gradient that finds wrong targets raises the TargetsError of `check_sums`."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = MARK.search(error.message)
        if found is None:
            raise
        raise TargetsError(int(found[1]), int(found[2]), float(found[3])) from None


@tf.custom_gradient
def _checked(loss: Any, targets: Any) -> tuple[Any, Callable[[Any], tuple[Any, None]]]:
    def gradient(weight: Any) -> tuple[Any, None]:
        sums = tf.cast(tf.reduce_sum(targets, axis=-1), tf.float64)
        is_wrong = tf.not_equal(weight, 0) & ~(abs(sums - 1.0) <= TOLERANCE)
        count = tf.math.count_nonzero(is_wrong)
        first = tf.gather(tf.reshape(sums, [-1]), tf.argmax(tf.reshape(is_wrong, [-1]), output_type=tf.int32))
        with tf.control_dependencies([tf.debugging.Assert(count == 0, [KEY, count, tf.size(sums), first])]):
            return tf.identity(weight), None

    return tf.identity(loss), gradient
