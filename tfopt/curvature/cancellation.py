"""Find exponentials and logarithms of a loss that cancel the last operation of a model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.curvature.outputs import JOINS, LOGARITHMS, MOVES, SHAPES

EXPONENTIALS = (
    *("Exp", "Expm1", "Softmax", "LogSoftmax", "SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"),
)
SECOND_ARGUMENTS = ("Xlogy", "Xlog1py")  # these take the logarithm of their second argument
SHIFTED_BY_ONE = ("Log1p", "Xlog1py")
# After these operations no exponential or logarithm cancels.
CURVED = (
    *("Square", "SquaredDifference", "Pow", "Sqrt", "Rsqrt", "Abs", "Tanh", "Sigmoid", "Softplus", "Erf"),
    *("Cosh", "Sinh", "Sin", "Cos", "Atan", "Asinh"),
)
CHOICES = (*JOINS, "SelectV2", "Maximum", "Minimum", "ClipByValue")
STACKS = ("TensorListStack", "TensorListGetItem", "TensorListFromTensor")  # loops pass their tensors on in stacks
NEAR = 0.02  # the largest offset that still counts as protection against a logarithm of zero

Affine = tuple[float, float]  # (a, b) of a p + b, where p is an output


def cancelled(operations: Sequence[Any], output: Any, is_logarithm: bool) -> tuple[list[Any], list[str]]:
    """Return the logarithms or exponentials of a loss that cancel an output's ending, and scopes that may hide more."""
    # For an output p it is a logarithm of a p + b that vanishes at a bound of p: of p and 1 - p for a probability, of p
    # for a rate, of 1 + p for a tanh. For the logarithm of an output it is any exponential of it, shifted or scaled.
    # `operations` are those of the loss, in the order of creation. The scopes are those of branches and loops.
    wanted = EXPONENTIALS if is_logarithm else LOGARITHMS
    bounds = (-1.0, 1.0) if last(output).op.type == "Tanh" else (0.0, 1.0)
    known: dict[Any, Affine | None] = {output.ref(): (1.0, 0.0)}
    found: list[Any] = []
    unseen: list[str] = []
    for operation in operations:
        parts = [known.get(part.ref(), "constant") for part in operation.inputs]
        if all(part == "constant" for part in parts) or operation.type in SHAPES:
            continue
        made = None
        if operation.type in wanted:
            at = parts[operation.type in SECOND_ARGUMENTS]
            if isinstance(at, tuple) and (is_logarithm or _vanishes(operation, at, bounds)):
                found.append(operation.outputs[0])
        elif hidden := hidden_in(operation, wanted):
            unseen.append(hidden)
        elif operation.type not in (*CURVED, *LOGARITHMS, *EXPONENTIALS):
            made = _followed(operation, parts, is_logarithm)
        for result in operation.outputs:
            if result.dtype.is_floating or result.dtype == tf.variant:  # other types only choose
                known[result.ref()] = made
    return found, unseen


def _vanishes(operation: Any, at: Affine, bounds: tuple[float, float]) -> bool:
    slope, offset = at
    offset += 1.0 if operation.type in SHIFTED_BY_ONE else 0.0
    return any(abs(slope * bound + offset) <= NEAR * abs(slope) for bound in bounds)


def _followed(operation: Any, parts: list[Any], is_logarithm: bool) -> Affine | None:
    """Return (a, b) of the operation's result, a p + b; None if the result does not have this form."""
    affine = [part for part in parts if isinstance(part, tuple)]
    if operation.type in CHOICES:  # one affine part is enough
        return affine[0] if affine else None
    if len(affine) + parts.count("constant") < len(parts):
        return None
    if len(affine) == 1 and len(parts) == 2:
        return _with_another(operation, parts, affine[0], is_logarithm)
    if operation.type in ("Mul", "MatMul", "BatchMatMulV2", "Einsum") and len(affine) > 1:
        return None
    slope, offset = affine[0]
    return (-slope, -offset) if operation.type == "Neg" else (slope, offset)


def _with_another(operation: Any, parts: list[Any], at: Affine, is_logarithm: bool) -> Affine | None:
    """Return (a, b) of the result for inputs a p + b and a tensor without p; None if it is not affine."""
    slope, offset = at
    index = parts.index("constant")
    number = _number(operation.inputs[index])
    if operation.type in ("AddV2", "Add", "Sub"):
        if operation.type == "Sub" and index == 0:
            slope, offset = -slope, -offset
        if is_logarithm:
            return slope, offset
        if number is None:  # for example, targets
            return None
        return slope, offset - number if operation.type == "Sub" and index == 1 else offset + number
    if operation.type in ("Mul", "RealDiv") and number and not (operation.type == "RealDiv" and index == 0):
        scale = number if operation.type == "Mul" else 1.0 / number
        return slope * scale, offset * scale
    return slope, offset  # weights and masks do not move a zero


def _number(tensor: Any) -> float | None:
    """Return the value of a constant tensor whose entries are all equal; None for any other tensor."""
    value = tf.get_static_value(tensor)
    if value is None or not np.size(value) or np.ptp(value):
        return None
    return float(np.ravel(value)[0])


def last(tensor: Any) -> Any:
    """Return the tensor from which `tensor` was cast, reshaped, moved or stacked (the first one, if several)."""
    while tensor.op.type in (*MOVES, *STACKS) and tensor.op.inputs:
        tensor = tensor.op.inputs[0]
    return tensor


def hidden_in(operation: Any, kinds: Sequence[str]) -> str:
    """Return the name of a branch or loop that contains operations of some types; "" for any other operation."""
    called = _called(operation.node_def)
    if not called:
        return ""
    functions = {function.signature.name: function for function in operation.graph.as_graph_def().library.function}
    waiting, seen = called, set()  # type: list[str], set[str]
    while waiting:
        name = waiting.pop()
        if name not in seen and name in functions:
            seen.add(name)
            nodes = functions[name].node_def
            if any(node.op in kinds for node in nodes):
                return str(operation.name)
            waiting += [one for node in nodes for one in _called(node)]
    return ""


def _called(node: Any) -> list[str]:
    functions = (one for value in node.attr.values() for one in (value.func, *value.list.func))
    return [function.name for function in functions if function.name]
