"""Find cumulative products with factors of zero, for which TensorFlow's gradient is wrong."""

from typing import Any

import tensorflow as tf

KEY = "tfopt_zero_factors"


def note_factors(loss: Any) -> None:
    """Add to the graph of a loss a count of the zero factors of each cumulative product with a weight in it."""
    # TensorFlow computes the gradient by division, and returns 0 as the derivative by a factor of zero.
    operations = [op for op in loss.graph.get_operations() if op.type == "Cumprod" and op.inputs[0].dtype.is_floating]
    weights = tf.gradients(loss, [op.outputs[0] for op in operations]) if operations else []
    for operation, weight in zip(operations, weights, strict=True):
        if weight is not None:
            axis = operation.inputs[1]
            is_counted = tf.reduce_any(tf.not_equal(weight, 0), axis=axis, keepdims=True)
            is_zero = is_counted & tf.equal(operation.inputs[0], 0)
            tf.compat.v1.add_to_collection(KEY, tf.math.count_nonzero(is_zero))


def noted_factors(graph: tf.Graph) -> list[Any]:
    """Return from a graph the number of zero factors of each cumulative product, a list of scalar tensors."""
    return list(graph.get_collection(KEY))


def check_factors(counts: list[Any]) -> None:
    """Raise ValueError unless all `counts` of `noted_factors` are zero."""
    count = sum(int(found) for found in counts)
    if count:
        raise ValueError(
            "`model` and `loss` must not take the cumulative product (cumprod) of factors that are exactly zero: "
            "TensorFlow returns 0 as the derivative by such a factor. "
            f"Received: {count:,} of them in a batch. Add a small "
            "number to the factors, or multiply slices in place of cumprod"
        )
