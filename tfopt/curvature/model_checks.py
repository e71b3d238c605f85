"""Which models can be measured."""

import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt._trained_variables import trained_variables

# Operations that write to what outlives a graph: variables, states of tf.random.Generator, tables, queues and stacks.
_CHANGES = re.compile(
    "^Assign|^ResourceScatter|^ResourceStridedSliceAssign|^ResourceCountUpTo|^Resource(Sparse)?Apply|^Rng(ReadAndSkip|Skip)"
    "|^Stateful(Uniform|StandardNormal|TruncatedNormal|RandomBinomial)|^LookupTable(Insert|Remove|Import)"
    "|^Queue(Enqueue|Dequeue|Close)|^Stack(Push|Pop)|^(Unstage|Stage|MapStage|MapUnstage)"
)


class NotBuiltError(ValueError):
    """A model whose variables do not exist yet."""

    _keras_call_info_injected = True  # Keras passes it on as it is, from within a call of a layer

    def __init__(self, found: str) -> None:
        super().__init__(
            f"`model` must have its variables: give it a keras.Input, or call it on data. Received: {found}"
        )


class SetsWeightsError(ValueError):
    """A model that sets its trainable variables when it is called."""

    def __init__(self, path: str) -> None:
        super().__init__(
            "`model` must not set its trainable variables while it trains: the loss would be that of other weights "
            f"than those that are measured. Received: an assignment to {path}, as in SpectralNormalization. With "
            "batch_norm='moving' it is measured as in `predict`, which sets nothing"
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


def check_changes_nothing(graph: Any) -> None:
    """Check that nothing that outlives it is changed by what a model and its loss compute.

    Keras's variables are held still by its scopes; variables, tables and queues of TensorFlow's own are not.

    Args:
        graph: The graph in which model and loss were traced.

    Raises:
        ValueError: Something changes.
    """
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    changing = [node for node in nodes if _CHANGES.search(node.op)]
    if changing:
        raise ValueError(
            "`model` and `loss` must not change a tf.Variable, a table or a queue while they predict, because a "
            f"measurement leaves everything as it is. Received: {changing[0].op} in {changing[0].name!r}. Keep the "
            "state in a keras.Variable (self.add_weight), which is held still, or change it in the training step only"
        )


def check_keeps_weights(variables: Sequence[Any], before: Sequence[Any], after: Sequence[Any]) -> None:
    """Check that a model does not set the weights that are measured, as spectral normalisation does in training.

    Args:
        variables: The trainable variables.
        before: Their values before the model was called; None for those of the variables themselves.
        after: The same afterwards.

    Raises:
        SetsWeightsError: It sets one.
    """
    for variable, old, new in zip(variables, before, after, strict=True):
        if old is not new:
            raise SetsWeightsError(variable.path)


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


def check_reads_outputs_only(variables: Sequence[Any], loss: Any, num_before: int) -> None:
    """Check that no operation of a loss takes a weight.

    Args:
        variables: The weights.
        loss: The loss, in the graph that is being traced.
        num_before: How many operations the graph had before those of the loss.

    Raises:
        ValueError: One does.
    """
    if tf.executing_eagerly():
        return
    paths = {id(variable.value.handle): variable.path for variable in variables}
    inner = {inside.name: paths[id(outside)] for outside, inside in loss.graph.captures if id(outside) in paths}
    for operation in loss.graph.get_operations()[num_before:]:
        for tensor in operation.inputs:
            if tensor.name in inner:
                raise ValueError(
                    f"`loss` must be a function of the model's outputs. Received: one that reads {inner[tensor.name]}, "
                    "such as a penalty on a weight. Make it a regularizer of the layer, or use HessianOperator"
                )


def check_targets(y: Any, y_pred: Any) -> None:
    """Check that there is a target for each row of the outputs.

    Args:
        y: Targets, a nested structure of tensors; or None.
        y_pred: Outputs, a nested structure of tensors.

    Raises:
        ValueError: There is none, or there are more or fewer rows.
    """
    if y is None:
        raise ValueError("`y` must be given: the loss compares the model's outputs to it")
    for target, output in zip(keras.tree.flatten(y), keras.tree.flatten(y_pred), strict=False):
        rows = [tensor.shape[0] for tensor in (target, output) if tensor.shape.rank]
        if None not in rows and len(set(rows)) > 1:
            raise ValueError(
                "`y` must have a row for each row of the model's output. "
                f"Received: {tuple(target.shape)} for outputs of shape {tuple(output.shape)}"
            )
