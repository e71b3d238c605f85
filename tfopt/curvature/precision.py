"""In which precision a model is measured: never in half."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

HALF = ("float16", "bfloat16")


def computes_in_half(layer: Any) -> bool:
    """Return whether a layer computes in half precision where nothing is measured."""
    return _own_policy(layer).compute_dtype in HALF


def policy_to_measure(layer: Any, dtype: str | None) -> Any:
    """Return the dtype policy of a layer while it is measured.

    Half precision becomes float32: the derivatives of a loss, which training scales, underflow in float16, and products
    that are rounded to three digits are those of no symmetric matrix.

    Args:
        layer: The layer.
        dtype: The dtype in which all layers compute; None for their own.

    Returns:
        The policy. Layers that do not compute with floats keep their own.
    """
    own = _own_policy(layer)
    wanted = dtype or ("float32" if own.compute_dtype in HALF else None)
    if wanted is None or not tf.as_dtype(own.compute_dtype).is_floating:
        return own
    # Not a new policy: that of a quantised layer says more than dtypes.
    made = object.__new__(type(own))
    made.__dict__.update(own.__dict__)
    made._compute_dtype, made._variable_dtype = wanted, dtype or own.variable_dtype
    return made


def loss_to_measure(loss: Any, dtype: str | None) -> Any:
    """Return a loss as it is while it is measured: of another dtype, and never of half precision.

    Args:
        loss: The loss.
        dtype: The dtype; None for its own.

    Returns:
        The loss itself, or a copy of it.
    """
    dtype = dtype or ("float32" if getattr(loss, "dtype", None) in HALF else None)
    if dtype is None:
        return loss
    # Not copy.copy, for which Keras builds the loss anew from what `get_config` says.
    copied = object.__new__(type(loss))
    copied.__dict__.update(loss.__dict__)
    copied._dtype_policy, copied._dtype = keras.DTypePolicy(dtype), dtype
    return copied


def rounded_to(graph: Any, values: Sequence[Any]) -> str | None:
    """Return the half precision to which a model or its loss casts by itself, whatever the policies say.

    Args:
        graph: The graph in which model and loss were traced.
        values: The weights in it.

    Returns:
        "bfloat16"; None where everything that depends on weights is computed in more.

    Raises:
        ValueError: It is float16: derivatives would underflow without a word.
    """
    dependent = {value.op for value in values}
    found = None
    for operation in graph.get_operations():  # in the order in which they were made, inputs first
        if operation not in dependent and any(tensor.op in dependent for tensor in operation.inputs):
            dependent.add(operation)
            dtypes = {tensor.dtype for tensor in operation.outputs}
            if tf.float16 in dtypes:
                raise ValueError(
                    "`model` and `loss` must leave their precision to dtype policies, which are float32 while float16 "
                    "is measured: derivatives in float16 would underflow. Received: a cast to float16 in "
                    f"{operation.name!r}. Cast to self.compute_dtype, or not at all"
                )
            if tf.bfloat16 in dtypes:
                found = "bfloat16"
    return found


def _own_policy(layer: Any) -> Any:
    policy = vars(layer)["_dtype_policy"]
    is_map = isinstance(policy, keras.dtype_policies.DTypePolicyMap)
    return policy[layer.path] if is_map and layer.path else policy
