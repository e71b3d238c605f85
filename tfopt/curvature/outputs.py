"""What a model's loss starts from: logits where the model ends in softmax or sigmoid, its outputs else."""

import functools
from typing import Any

import keras
import tensorflow as tf

# Operations that only move entries or change their dtype, with the places of the inputs that they move.
MOVES = {
    "Cast": slice(1),
    "ConcatV2": slice(-1),
    "ExpandDims": slice(1),
    "Identity": slice(None),
    "Pack": slice(None),
    "Reshape": slice(1),
    "Squeeze": slice(None),
    "Transpose": slice(1),
}


class Outputs:
    """The outputs of a model in the graph in which it was traced, as the loss takes them.

    They are the tensors that the model has returned, with all that Keras has left on them: a mask, and logits.

    Args:
        y_pred: What the model has returned: a tensor, or a nested structure of tensors.

    Attributes:
        y_pred: The same.
    """

    def __init__(self, y_pred: Any) -> None:
        self.y_pred = y_pred

    @functools.cached_property
    def tensors(self) -> list[Any]:
        """The tensors that the loss is a function of, each once.

        Where all entries of an output come out of softmax or sigmoid, its logits; else the output itself. Outputs that
        are no floats are left out.
        """
        found: dict[Any, Any] = {}
        for output in keras.tree.flatten(self.y_pred):
            if output.dtype.is_floating:
                for tensor in _logits_of(output) or [output]:
                    found[tensor.ref()] = tensor
        return list(found.values())


def _logits_of(output: Any) -> list[Any]:
    """Return the logits of which softmax or sigmoid has made all entries of an output; none if there are others."""
    logits = getattr(output, "_keras_logits", None)  # the cross-entropies start from these, too
    if logits is not None:
        return [logits]
    operation = None if isinstance(output, tf.__internal__.EagerTensor) else output.op
    if operation is None:
        return []
    if operation.type in ("Softmax", "Sigmoid"):
        return [operation.inputs[0]]
    if operation.type not in MOVES:
        return []
    parts = [_logits_of(tensor) for tensor in list(operation.inputs)[MOVES[operation.type]]]
    return [tensor for part in parts for tensor in part] if all(parts) else []
