"""Targets for which TensorFlow's gradient of the softmax cross-entropy is wrong."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph

KEY = "tfopt_softmax_targets"
TOLERANCE = 5e-3  # of the sum, for targets that were rounded
MARK = re.compile(re.escape(f"[{KEY}]") + r" \[(\d+)\] \[(\d+)\] \[([^\]]*)\]")


class TargetsError(ValueError):
    """Targets for which TensorFlow's gradient is wrong."""

    def __init__(self, count: int, num_rows: int, first: float) -> None:
        super().__init__(
            "`y` must have rows that sum to 1 for a categorical cross-entropy: for others the gradient that TensorFlow "
            f"computes, softmax(z) - y, is not that of the loss. Received: {count:,} of {num_rows:,} rows that do not, "
            f"the first one sums to {first:.4g}. Divide each row by its sum, which belongs into `sample_weight`; give "
            "rows that do not count the weight 0"
        )


def note_targets(loss: Any) -> None:
    """Note in the graph of a loss which targets of softmax cross-entropies do not sum to 1.

    TensorFlow takes softmax(z) - t for the gradient by the logits, which is right only where t sums to 1: otherwise it
    is sum(t) softmax(z) - t. Rows that have no weight in the loss do not count. `with_check` looks at the
    cross-entropies in functions that the graph calls.

    Args:
        loss: A tensor of the graph that is being traced.
    """
    operations = [op for op in loss.graph.get_operations() if op.type == "SoftmaxCrossEntropyWithLogits"]
    weights = tf.gradients(loss, [op.outputs[0] for op in operations]) if operations else []
    for operation, weight in zip(operations, weights, strict=True):
        if weight is not None:
            sums = tf.cast(tf.reduce_sum(operation.inputs[1], axis=-1), tf.float64)
            counted = tf.where(tf.not_equal(weight, 0), sums, tf.ones_like(sums))
            tf.compat.v1.add_to_collection(KEY, tf.reshape(counted, [-1]))


def noted_targets(graph: tf.Graph) -> list[Any]:
    """Return what has been noted in a graph.

    Args:
        graph: The graph.

    Returns:
        A tensor of the sums that count for each softmax cross-entropy.
    """
    return list(graph.get_collection(KEY))


def check_sums(sums: list[Any]) -> None:
    """Check sums of targets.

    Args:
        sums: The values of `noted_targets`.

    Raises:
        TargetsError: One of them is not 1.
    """
    for values in sums:
        array = values.numpy()
        is_wrong = ~(abs(array - 1.0) <= TOLERANCE)
        if is_wrong.any():
            raise TargetsError(int(is_wrong.sum()), array.size, array[is_wrong][0])


def with_check(cross_entropy: Callable[..., Any], logits: Any, targets: Any, name: Any = None) -> tuple[Any, Any]:
    """Compute a softmax cross-entropy, whose gradient checks the targets where `note_targets` does not see them.

    Branches, loops and functions are graphs of their own, and only know when they run which targets they get.

    Args:
        cross_entropy: TensorFlow's operation.
        logits: Its logits.
        targets: Its targets.
        name: Its name.

    Returns:
        What the operation returns.
    """
    loss, backprop = cross_entropy(logits, targets, name=name)
    if isinstance(getattr(tf.compat.v1.get_default_graph(), "outer_graph", None), FuncGraph):
        loss = _checked(loss, targets)
    return loss, backprop


@contextlib.contextmanager
def refusing_targets() -> Iterator[None]:
    """Within this context a gradient that finds wrong targets raises the error of `check_sums`.

    Yields:
        Nothing.

    Raises:
        TargetsError: Targets do not sum to 1.
        InvalidArgumentError: Another error of TensorFlow's.
    """
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
