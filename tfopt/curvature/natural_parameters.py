"""Where a loss is split from the outputs of a model: which of their endings belong to the loss."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfopt.curvature.outputs import LOGARITHMS, SHAPES, Outputs

EXPONENTIALS = (
    *("Exp", "Expm1", "Softmax", "LogSoftmax", "Sigmoid", "Softplus"),
    *("SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"),
)
# Operations whose results have no derivative: what depends on a tensor through them only is constant in pieces.
CONSTANT_IN_PIECES = (
    *SHAPES,
    *("Sign", "Round", "Rint", "Floor", "Ceil", "ArgMax", "ArgMin", "StopGradient"),
    *("Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual", "IsFinite", "IsNan"),
)


class Split:
    """Which outputs a loss is split from before their ending, and which ones at the outputs themselves.

    An ending (softmax, sigmoid, exp, or the logarithm of one) belongs to the loss where exponential and logarithm
    cancel: where the loss takes the logarithm of the output, or the output is a logarithm and the loss linear in it or
    takes its exponential. Then the loss is one of natural parameters, in which likelihoods are convex.

    Args:
        outputs: The outputs.
        loss: The loss, in the same graph.
        start: How many operations the graph had before those of the loss.

    Attributes:
        before_ending: For each output of floats, whether the loss is split from it before its ending.
        is_flat: For each output of floats, whether the loss has no curvature there: it is linear, perhaps in pieces.
    """

    def __init__(self, outputs: Outputs, loss: Any, start: int) -> None:
        operations = loss.graph.get_operations()[start:]
        read = {tensor.ref() for operation in operations for tensor in operation.inputs}
        own = {output.ref() for output in outputs.flat}
        gradients = tf.gradients(loss, outputs.flat) if outputs.flat else []
        self.before_ending, self.is_flat = [], []  # type: list[bool], list[bool]
        for output, ending, gradient in zip(outputs.flat, outputs.endings, gradients, strict=True):
            is_linear = gradient is None or not _depends(gradient, output)
            is_before = False
            if ending is not None:
                sources = {source.ref() for source in ending.sources}
                past = sources - own
                is_linear &= not sources & own & read  # Keras may have taken the loss of an output past it
                turned = EXPONENTIALS if ending.is_logarithm else LOGARITHMS
                stopped = LOGARITHMS if ending.is_logarithm else EXPONENTIALS
                is_before = bool(past & read) or _takes(operations, output, turned, stopped)
                is_before |= ending.is_logarithm and is_linear and gradient is not None
            self.before_ending.append(is_before)
            self.is_flat.append(is_linear and not is_before)

    @property
    def name(self) -> str:
        """Where the loss is split: "logits", "outputs" or "logits and outputs"."""
        kinds = {"logits" if is_before else "outputs" for is_before in self.before_ending}
        return " and ".join(sorted(kinds))


def _takes(operations: Sequence[Any], tensor: Any, wanted: Sequence[str], stopped: Sequence[str]) -> bool:
    """Return whether operations do something to a tensor, before they do something else."""
    reached = {tensor.ref()}
    for operation in operations:
        if any(part.ref() in reached for part in operation.inputs):
            if operation.type in wanted:
                return True
            if operation.type not in (*stopped, *SHAPES):
                reached.update(part.ref() for part in operation.outputs)
    return False


def _depends(result: Any, tensor: Any) -> bool:
    """Return whether a result depends on a tensor in a way that has a derivative."""
    waiting, seen = [result], set()  # type: list[Any], set[Any]
    while waiting:
        at = waiting.pop()
        if at.ref() == tensor.ref():
            return True
        if at.ref() not in seen and at.op.type not in CONSTANT_IN_PIECES:
            seen.add(at.ref())
            waiting += at.op.inputs
    return False
