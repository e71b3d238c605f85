"""Decide which final operations of a model's outputs belong to the loss."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfopt.curvature.cancellation import cancelled, hidden_in, last
from tfopt.curvature.outputs import ENDINGS, SHAPES, Outputs

# The results of these operations have no derivative: they are piecewise constant in their inputs.
CONSTANT_IN_PIECES = (
    *SHAPES,
    *("Sign", "Round", "Rint", "Floor", "Ceil", "ArgMax", "ArgMin", "StopGradient"),
    *("Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual", "IsFinite", "IsNan"),
)


class Split:
    """For each output, whether the loss is split from it before its ending, or at the output itself.

    An ending (softmax, sigmoid, exp, or the logarithm of one) belongs to the loss if exponential and logarithm cancel:
    the loss takes the logarithm of the output or of its distance from a bound, or the output is a logarithm and the
    loss is linear in it or takes its exponential. Then the loss is a function of natural parameters, in which
    likelihoods are convex. The logarithm of another function of the output, such as the square of an error, cancels
    nothing. Nor does a logarithm whose only weight is the output, as in p log p, which is convex in p.

    Args:
        outputs: The outputs.
        loss: The loss, in the same graph.
        start: Number of operations of the graph before those of the loss.
        targets: The targets of the rows, tensors in the same graph.

    Attributes:
        before_ending: For each floating-point output, whether the loss is split from it before its ending.
        is_flat: For each floating-point output, whether the loss is (piecewise) linear there.
        hidden: Names of branches, loops and logarithms in which something might cancel.
    """

    def __init__(self, outputs: Outputs, loss: Any, start: int, targets: Sequence[Any] = ()) -> None:
        operations = loss.graph.get_operations()[start:]
        read = {tensor.ref() for operation in operations for tensor in operation.inputs}
        own = {output.ref() for output in outputs.flat}
        gradients = tf.gradients(loss, outputs.flat) if outputs.flat else []
        self.before_ending, self.is_flat, self.hidden = [], [], []  # type: list[bool], list[bool], list[str]
        for output, ending, gradient in zip(outputs.flat, outputs.endings, gradients, strict=True):
            is_linear = gradient is None or not _depends(gradient, output)
            is_logarithm = ending is not None and ending.is_logarithm
            found, unseen = cancelled(operations, output, is_logarithm)
            found = [result for result in found if _is_natural(loss, result, output, targets)]
            is_before = False
            if ending is None:
                before = hidden_in(last(output).op, ENDINGS)
                self.hidden += [before] if found and before else []
            else:
                sources = {source.ref() for source in ending.sources}
                past = sources - own
                # Keras may compute the loss directly from the logits of an output.
                is_linear &= not sources & own & read
                is_before = bool(past & read) or bool(found) or (is_logarithm and is_linear and gradient is not None)
                self.hidden += [] if is_before else unseen
            self.before_ending.append(is_before)
            self.is_flat.append(is_linear and not is_before)

    @property
    def name(self) -> str:
        """The position of the split: "logits", "outputs" or "logits and outputs"."""
        kinds = {"logits" if is_before else "outputs" for is_before in self.before_ending}
        return " and ".join(sorted(kinds))


def _is_natural(loss: Any, result: Any, output: Any, targets: Sequence[Any]) -> bool:
    """Return whether a logarithm or exponential in a loss has a weight that is not the output alone."""
    (weight,) = tf.gradients(loss, [result])
    if weight is None or not _depends(weight, output):
        return weight is not None
    return any(_depends(weight, target, ()) for target in targets)


def _depends(result: Any, tensor: Any, stopped: Sequence[str] = CONSTANT_IN_PIECES) -> bool:
    """Return whether a result depends on a tensor, by default in a differentiable way."""
    waiting, seen = [result], set()  # type: list[Any], set[Any]
    while waiting:
        at = waiting.pop()
        if at.ref() == tensor.ref():
            return True
        if at.ref() not in seen and at.op.type not in stopped:
            seen.add(at.ref())
            waiting += at.op.inputs
    return False
