"""A model and its loss, traced once into a graph that never runs, to check them before any computation."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt._keras import FuncGraph
from tfopt.curvature.replica import paths_by_handle


class DryRun:
    """A graph that never runs, with placeholders for data and weights.

    Attributes:
        graph: The graph, a `tf.Graph`.
        batch: A placeholder for each tensor of the batch (inputs, targets, weights); None stays None.
        values: A placeholder for each variable, of its dtype unless `dtype` is given.
        y_pred: The outputs of the model. Set by the caller after tracing.
        loss: The loss; None before, or if the model computes its own. Set by the caller.
        start: Number of operations in the graph before those of the loss. Set by the caller.
    """

    def __init__(self, batch: Any, variables: Sequence[Any], dtype: str | None) -> None:
        self.graph = FuncGraph("never_run")
        with self.graph.as_default():
            self.batch = keras.tree.map_structure(
                lambda leaf: None if leaf is None else tf.compat.v1.placeholder(leaf.dtype, leaf.shape), batch
            )
            self.values = [tf.compat.v1.placeholder(dtype or v.dtype, v.shape) for v in variables]
        self.y_pred: Any = None
        self.loss: Any = None
        self.start = 0


def weights_in(graph: Any, values: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """Return the operations of a graph that yield weights: symbolic `values`, and reads of `variables`."""
    handles = paths_by_handle(variables)
    read = [inside.op for outside, inside in graph.captures if id(outside) in handles]
    return [*(value.op for value in values if tf.is_symbolic_tensor(value)), *read]
