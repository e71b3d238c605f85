"""Checks that a model and its loss can be measured."""

import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras
from tfopt._variables import trained_variables
from tfopt.curvature.replica import paths_by_handle

# Operations that write to state outside the graph: variables, tf.random.Generator, tables, queues and stacks.
_CHANGES = re.compile(
    "^Assign|^ResourceScatter|^ResourceStridedSliceAssign|^ResourceCountUpTo|^Resource(Sparse)?Apply|^Rng(ReadAndSkip|Skip)"
    "|^Stateful(Uniform|StandardNormal|TruncatedNormal|RandomBinomial)|^LookupTable(Insert|Remove|Import)"
    "|^Queue(Enqueue|Dequeue|Close)|^Stack(Push|Pop)|^(Unstage|Stage|MapStage|MapUnstage)"
)


class NotBuiltError(ValueError):
    """The variables of a model do not exist yet."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"`model` must have its variables: give it a keras.Input, or call it on data. Received: {found}"
        )
        _keras.is_explained.set(self, True)


class SetsWeightsError(ValueError):
    """A model sets its trainable variables when it is called."""

    def __init__(self, path: str) -> None:
        super().__init__(
            "`model` must not set its trainable variables while it trains: the loss would be that of other weights "
            f"than the measured ones. Received: an assignment to {path}, as in SpectralNormalization. Use "
            "batch_norm='moving', which calls the model as `predict` does and sets no variable"
        )


def check_model(model: Any) -> None:
    """Raise TypeError, NotBuiltError or ValueError if a model, its dtypes or Keras's backend cannot be measured."""
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
    """Raise ValueError if the graph of a model and its loss changes state outside the graph."""
    # Keras's scopes protect its variables, but not variables, tables and queues of TensorFlow.
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    changing = [node for node in nodes if _CHANGES.search(node.op)]
    if changing:
        raise ValueError(
            "`model` and `loss` must not change a tf.Variable, a table or a queue while they predict, because a "
            f"measurement must not change any state. Received: {changing[0].op} in {changing[0].name!r}. Keep the "
            "state in a keras.Variable (self.add_weight), whose changes are undone, or change it only in `train_step`"
        )


def check_keeps_weights(variables: Sequence[Any], before: Sequence[Any], after: Sequence[Any]) -> None:
    """Raise SetsWeightsError if a call set a trainable variable, as spectral normalisation does in training."""
    # `before` and `after` hold a value for each variable; None for a variable without a replaced value.
    for variable, old, new in zip(variables, before, after, strict=True):
        if old is not new:
            raise SetsWeightsError(variable.path)


def refuse_rounding(model: Any) -> None:
    """Raise ValueError, with all names, if layers of a model round their inputs or results."""
    # Layers that only store their weights as integers round no intermediate result, and have derivatives.
    rounding = [
        f"{layer.path} ({layer.quantization_mode})"
        for layer in _keras.flatten_layers(model)()
        if layer.quantization_mode == "float8"
        or (layer.quantization_mode and getattr(layer, "inputs_quantizer", None) is not None)
    ]
    if rounding:
        raise ValueError(
            "`model` must not round what its layers compute: rounding has no second derivative. Received: the "
            f"quantised layers {', '.join(rounding)}. Measure the model as it was before `quantize`; "
            "tfopt.curvature.gradient_noise and tfopt.relative_trust need only first derivatives, and accept this model"
        )


def check_reads_outputs_only(variables: Sequence[Any], loss: Any, num_before: int) -> None:
    """Raise ValueError if an operation of a loss, after the first `num_before` ones of its graph, reads a weight."""
    if tf.executing_eagerly():
        return
    paths = paths_by_handle(variables)
    inner = {inside.name: paths[id(outside)] for outside, inside in loss.graph.captures if id(outside) in paths}
    for operation in loss.graph.get_operations()[num_before:]:
        for tensor in operation.inputs:
            if tensor.name in inner:
                raise ValueError(
                    "`loss` must be a function of the model's outputs. Received: a loss that reads "
                    f"{inner[tensor.name]}, such as a penalty on a weight. Make it a regularizer of the layer, "
                    "or use HessianOperator"
                )


def check_targets(y: Any, y_pred: Any) -> None:
    """Raise ValueError unless the targets `y` exist and have a row for each row of the outputs."""
    if y is None:
        raise ValueError("`y` must be given: the loss compares the model's outputs to it")
    for target, output in zip(keras.tree.flatten(y), keras.tree.flatten(y_pred), strict=False):
        rows = [tensor.shape[0] for tensor in (target, output) if tensor.shape.rank]
        if None not in rows and len(set(rows)) > 1:
            raise ValueError(
                "`y` must have a row for each row of the model's output. "
                f"Received: {tuple(target.shape)} for outputs of shape {tuple(output.shape)}"
            )


def has_batch_norm(model: Any) -> bool:
    """Return whether a model normalises by the statistics of batches."""
    kind = keras.layers.BatchNormalization  # a frozen layer uses its moving averages
    return any(isinstance(layer, kind) and layer.trainable for layer in _keras.flatten_layers(model)())
