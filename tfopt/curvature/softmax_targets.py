"""Targets for which TensorFlow's gradient of the softmax cross-entropy is wrong."""

from typing import Any

import tensorflow as tf

KEY = "tfopt_softmax_targets"
TOLERANCE = 5e-3  # of the sum, for targets that were rounded


def note_targets(loss: Any) -> None:
    """Note in the graph of a loss which targets of softmax cross-entropies do not sum to 1.

    TensorFlow takes softmax(z) - t for the gradient by the logits, which is right only where t sums to 1: otherwise it
    is sum(t) softmax(z) - t. Rows that have no weight in the loss do not count.

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
        ValueError: One of them is not 1.
    """
    for values in sums:
        array = values.numpy()
        is_wrong = ~(abs(array - 1.0) <= TOLERANCE)
        if is_wrong.any():
            raise ValueError(
                "`y` must have rows that sum to 1 for a categorical cross-entropy: for others the gradient that "
                "TensorFlow computes, softmax(z) - y, is not that of the loss. Received: "
                f"{is_wrong.sum():,} of {array.size:,} rows that do not, the first one sums to "
                f"{array[is_wrong][0]:.4g}. Divide each row by its sum, which belongs into `sample_weight`; give rows "
                "that do not count the weight 0"
            )
