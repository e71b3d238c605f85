"""A model and its loss, traced once into a graph that is never run, to look at before anything is computed."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


class DryRun:
    """A graph that is never run, with placeholders for data and weights.

    Args:
        batch: Inputs, targets and weights of rows: nested structures of tensors and None.
        variables: The variables of the weights.
        dtype: The dtype of the weights; None for that of each variable.

    Attributes:
        graph: The graph, a `tf.Graph`.
        batch: A placeholder for each tensor of the batch.
        values: A placeholder for each variable.
        y_pred: The outputs of the model. Set by who traces.
        loss: The loss. Set by who traces.
        start: How many operations came before those of the loss. Set by who traces.
    """

    def __init__(self, batch: Any, variables: Sequence[Any], dtype: str | None) -> None:
        self.graph = tf.__internal__.FuncGraph("never_run")
        with self.graph.as_default():
            self.batch = keras.tree.map_structure(
                lambda leaf: None if leaf is None else tf.compat.v1.placeholder(leaf.dtype, leaf.shape), batch
            )
            self.values = [tf.compat.v1.placeholder(dtype or v.dtype, v.shape) for v in variables]
        self.y_pred: Any = None
        self.loss: Any = None
        self.start = 0


def weights_in(graph: Any, values: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """Return the operations of a graph from which weights come.

    Args:
        graph: The graph.
        values: Tensors that stand for some of the weights.
        variables: The variables of all weights, which are read where no tensor stands for them.

    Returns:
        A list of operations.
    """
    handles = {id(variable._value.handle) for variable in variables}
    read = [inside.op for outside, inside in graph.captures if id(outside) in handles]
    return [*(value.op for value in values if tf.is_symbolic_tensor(value)), *read]
