"""Which models can be measured."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt._trained_variables import trained_variables

_CHANGES = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")


class NotBuiltError(ValueError):
    """A model whose variables do not exist yet."""

    _keras_call_info_injected = True  # Keras passes it on as it is, from within a call of a layer

    def __init__(self, found: str) -> None:
        super().__init__(
            f"`model` must have its variables: give it a keras.Input, or call it on data. Received: {found}"
        )


def check_model(model: Any) -> None:
    """Check that a model can be measured.

    Args:
        model: What came.

    Raises:
        TypeError: It is no Keras 3 model.
        NotBuiltError: It has no variables yet.
        ValueError: It has none that is trainable, or some of half precision; or the backend or the
            distribution of Keras is another one.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "tfopt.curvature works with the TensorFlow backend of Keras. "
            f"Received: the backend {keras.backend.backend()!r}"
        )
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras 3 model. Received: {model!r} of type {type(model).__name__}")
    if not model.built:
        raise NotBuiltError("a model that is not built")
    variables = trained_variables(model.trainable_variables)
    if not variables:
        raise ValueError("`model` must have trainable variables. Received: a model without any")
    half = [v for v in variables if tf.as_dtype(v.dtype).size < 4]
    if half:
        raise ValueError(
            "`model` must keep its weights in float32 or float64 (the policies 'mixed_float16' and 'mixed_bfloat16' "
            f"do). Received: {half[0].path} of dtype {half[0].dtype}"
        )
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is not None and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "`model` must not be spread over devices by tf.distribute. "
            f"Received: {type(strategy).__name__} of {strategy.num_replicas_in_sync} replicas"
        )


def check_changes_nothing(results: Sequence[Any]) -> None:
    """Check that no variable of TensorFlow's own changes where a model and its loss are computed.

    Keras's variables are held still by its scopes; a `tf.Variable` is not.

    Args:
        results: What was computed in the graph that is being traced.

    Raises:
        ValueError: One changes.
    """
    if tf.executing_eagerly():
        return
    graph = results[0].graph
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    changing = [node.name for node in nodes if node.op in _CHANGES or node.op.startswith("ResourceScatter")]
    if changing:
        raise ValueError(
            "`model` and `loss` must not change a tf.Variable while they predict, because a measurement leaves "
            f"everything as it is. Received: an assignment in {changing[0]!r}. Keep the state in a keras.Variable "
            "(self.add_weight), which is held still, or change it in the training step only"
        )


def refuse_rounding(model: Any) -> None:
    """Refuse models whose layers round what they compute.

    Args:
        model: A Keras model.

    Raises:
        ValueError: There is such a layer; the message names all.
    """
    # Layers that keep only their weights in integers round nothing on the way, and have derivatives.
    rounding = [
        f"{layer.path} ({layer.quantization_mode})"
        for layer in model._flatten_layers()
        if layer.quantization_mode == "float8"
        or (layer.quantization_mode and getattr(layer, "inputs_quantizer", None) is not None)
    ]
    if rounding:
        raise ValueError(
            "`model` must not round what its layers compute: rounding has no second derivative. Received: the "
            f"quantised layers {', '.join(rounding)}. Measure the model as it was before `quantize`; "
            "tfopt.curvature.gradient_noise and tfopt.relative_trust need first derivatives only, and take it as it is"
        )
