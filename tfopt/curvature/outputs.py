"""What a model's loss starts from: logits where the model ends in softmax or sigmoid, its outputs else."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

ENDINGS = {"Softmax": tf.nn.softmax, "Sigmoid": tf.nn.sigmoid}
# Operations that only move entries or change their dtype, and how each is done again to other entries.
MOVES: dict[str, Callable[..., Any]] = {
    "Cast": lambda op, x: tf.cast(x, op.outputs[0].dtype),
    "ConcatV2": lambda op, *x: tf.concat(x, op.inputs[-1]),
    "ExpandDims": lambda op, x: tf.expand_dims(x, op.inputs[1]),
    "Identity": lambda op, x: x,
    "Pack": lambda op, *x: tf.stack(x, op.get_attr("axis")),
    "Reshape": lambda op, x: tf.reshape(x, op.inputs[1]),
    "Squeeze": lambda op, x: tf.squeeze(x, op.get_attr("squeeze_dims")),
    "Transpose": lambda op, x: tf.transpose(x, op.inputs[1]),
}


class Outputs:
    """The outputs of a model as a function of what the loss starts from, in the graph in which the model was traced.

    Args:
        y_pred: What the model has returned: a tensor, or a nested structure of tensors.

    Attributes:
        tensors: What the loss starts from, each once. Where softmax or sigmoid has made all entries of an output, its
            logits; else the output. An output that is not of floats has none.
    """

    def __init__(self, y_pred: Any) -> None:
        self._y_pred = y_pred
        found = [source for output in keras.tree.flatten(y_pred) for source in _sources(output)]
        self.tensors = list({source.ref(): source for source in found}.values())

    def at(self, tensors: Sequence[Any]) -> Any:
        """Return what the model would return for other tensors, with all that losses read: Keras's mask and logits.

        Args:
            tensors: One for each of `tensors`.

        Returns:
            The same structure as what the model has returned.
        """
        known = {old.ref(): new for old, new in zip(self.tensors, tensors, strict=True)}
        return keras.tree.map_structure(lambda output: _rebuilt(output, known), self._y_pred)


def _sources(output: Any) -> list[Any]:
    if not output.dtype.is_floating:
        return []
    if tf.executing_eagerly():  # nothing tells what the output was made from
        return [output]
    return _logits_behind(output, getattr(output, "_keras_logits", None)) or [output]


def _logits_behind(tensor: Any, logits: Any) -> list[Any]:
    """Return what softmax or sigmoid has made all entries of a tensor from; nothing where there are other entries.

    Args:
        tensor: The tensor.
        logits: What Keras says that they are; None where it does not say.

    Returns:
        A list of tensors.
    """
    if logits is not None and tensor.ref() == logits.ref():
        return [tensor]
    if tensor.op.type in ENDINGS:
        return [tensor.op.inputs[0]] if logits is None else _logits_behind(tensor.op.inputs[0], logits)
    parts = [_logits_behind(part, logits) for part in _moved_by(tensor.op)]
    return [source for part in parts for source in part] if all(parts) else []


def _moved_by(operation: Any) -> list[Any]:
    inputs = list(operation.inputs)
    if operation.type not in MOVES:
        return []
    return inputs if operation.type == "Pack" else inputs[:-1] if operation.type == "ConcatV2" else inputs[:1]


def _rebuilt(output: Any, known: dict[Any, Any]) -> Any:
    if not output.dtype.is_floating:
        return output
    rebuilt = _again(output, known)
    if output.ref() in known:  # Keras may have left logits on this tensor, and a mask of its own on the other
        rebuilt = tf.identity(rebuilt)
    rebuilt.set_shape(output.shape)
    logits, mask = getattr(output, "_keras_logits", None), getattr(output, "_keras_mask", None)
    if logits is not None and logits.ref() in known:
        rebuilt._keras_logits = known[logits.ref()]
    if mask is not None:
        rebuilt._keras_mask = mask
    return rebuilt


def _again(tensor: Any, known: dict[Any, Any]) -> Any:
    if tensor.ref() in known:
        return known[tensor.ref()]
    if tensor.op.type in ENDINGS:
        return ENDINGS[tensor.op.type](_again(tensor.op.inputs[0], known))
    return MOVES[tensor.op.type](tensor.op, *(_again(part, known) for part in _moved_by(tensor.op)))
