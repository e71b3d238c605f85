"""The precision of measurements: half precision is replaced by float32."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras

HALF = ("float16", "bfloat16")
# The distance from 1 to the next larger number.
EPSILON = {tf.float64: 2.0**-52, tf.float32: 2.0**-23, tf.float16: 2.0**-10, tf.bfloat16: 2.0**-7}


def computes_in_half(layer: Any) -> bool:
    """Return whether a layer computes in half precision outside measurements."""
    return _own_policy(layer).compute_dtype in HALF


def policy_to_measure(layer: Any, dtype: str | None) -> Any:
    """Return a layer's dtype policy for measurements: of `dtype`, or float32 for half precision if it is None."""
    # The derivatives of a loss underflow in float16 (training scales the loss). Products rounded to three digits belong
    # to no symmetric matrix. Layers that do not compute with floats keep their policy.
    own = _own_policy(layer)
    wanted = dtype or ("float32" if own.compute_dtype in HALF else None)
    if wanted is None or not tf.as_dtype(own.compute_dtype).is_floating:
        return own
    # Copy the policy, because the policy of a quantised layer holds more than dtypes.
    made = object.__new__(type(own))
    made.__dict__.update(own.__dict__)
    _keras.policy_compute_dtype.set(made, wanted)
    _keras.policy_variable_dtype.set(made, dtype or own.variable_dtype)
    return made


def loss_to_measure(loss: Any, dtype: str | None) -> Any:
    """Return a copy of a loss, in `dtype`; if `dtype` is None in float32 for half precision, else in its own."""
    dtype = dtype or ("float32" if getattr(loss, "dtype", None) in HALF else None)
    # Not copy.copy, for which Keras rebuilds the loss from its `get_config`.
    copied = object.__new__(type(loss))
    copied.__dict__.update(loss.__dict__)
    if dtype is not None:
        _keras.loss_dtype_policy.set(copied, keras.DTypePolicy(dtype))
        _keras.loss_dtype.set(copied, dtype)
    return copied


def rounded_to(graph: Any, values: Sequence[Any]) -> str | None:
    """Return "bfloat16" if model or loss cast values to it themselves, else None; ValueError for float16."""
    # Only tensors that depend on the weights `values` count.
    found = None
    for operation in _dependent_on(graph, values):
        dtypes = {tensor.dtype for tensor in operation.outputs}
        if tf.float16 in dtypes:
            raise ValueError(
                "`model` and `loss` must leave their precision to dtype policies, which measurements raise from "
                "float16 to float32: derivatives in float16 would underflow. Received: a cast to float16 in "
                f"{operation.name!r}. Cast to self.compute_dtype, or not at all"
            )
        if tf.bfloat16 in dtypes:
            found = "bfloat16"
    return found


def largest_epsilon(graph: Any, values: Sequence[Any]) -> float:
    """Return the largest machine epsilon of the floating-point tensors that depend on the weights `values`."""
    dtypes = {tensor.dtype for operation in _dependent_on(graph, values) for tensor in operation.outputs}
    return max((EPSILON.get(dtype, 0.0) for dtype in dtypes), default=0.0)


def _dependent_on(graph: Any, values: Sequence[Any]) -> Iterator[Any]:
    """Yield the operations of a graph that depend on weights."""
    dependent = {value.op for value in values}
    for operation in graph.get_operations():  # in the order of creation, inputs first
        if operation not in dependent and any(tensor.op in dependent for tensor in operation.inputs):
            dependent.add(operation)
            yield operation


def _own_policy(layer: Any) -> Any:
    policy = vars(layer)[_keras.layer_dtype_policy.name]
    is_map = isinstance(policy, keras.dtype_policies.DTypePolicyMap)
    return policy[layer.path] if is_map and layer.path else policy
