"""Cumulative products for which TensorFlow's gradient is wrong."""

from typing import Any

import tensorflow as tf

KEY = "tfopt_zero_factors"


def note_factors(loss: Any) -> None:
    """Note in the graph of a loss whether factors of its cumulative products are zero.

    TensorFlow divides products by the factor, and takes the derivative by a factor of zero for zero. Products that have
    no weight in the loss do not count.

    Args:
        loss: A tensor of the graph that is being traced.
    """
    operations = [op for op in loss.graph.get_operations() if op.type == "Cumprod" and op.inputs[0].dtype.is_floating]
    weights = tf.gradients(loss, [op.outputs[0] for op in operations]) if operations else []
    for operation, weight in zip(operations, weights, strict=True):
        if weight is not None:
            axis = operation.inputs[1]
            is_counted = tf.reduce_any(tf.not_equal(weight, 0), axis=axis, keepdims=True)
            is_zero = is_counted & tf.equal(operation.inputs[0], 0)
            tf.compat.v1.add_to_collection(KEY, tf.math.count_nonzero(is_zero))


def noted_factors(graph: tf.Graph) -> list[Any]:
    """Return what has been noted in a graph.

    Args:
        graph: The graph.

    Returns:
        A tensor for each cumulative product: how many of its factors are zero.
    """
    return list(graph.get_collection(KEY))


def check_factors(counts: list[Any]) -> None:
    """Check that no factor of a cumulative product is zero.

    Args:
        counts: The values of `noted_factors`.

    Raises:
        ValueError: One is.
    """
    count = sum(int(found) for found in counts)
    if count:
        raise ValueError(
            "`model` and `loss` must not take the cumulative product (cumprod) of factors that are exactly zero: "
            f"TensorFlow takes the derivative by them for zero. Received: {count:,} of them in a batch. Add a small "
            "number to the factors, or multiply slices in place of cumprod"
        )
