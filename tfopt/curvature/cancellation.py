"""Find exponentials and logarithms of a loss that cancel the last operation of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
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

PRODUCTS = ("Mul", "MatMul", "BatchMatMulV2", "Einsum")

# What a tensor can be that is neither a constant nor a `_Form`.
CURVE = "curve"  # some function of the output
SHIFTED = "shifted"  # that, or p, plus something unknown, such as targets
UNCLEAR = "unclear"  # p times a mask plus something unknown, which may be 1 where the mask is 0


@dataclass(frozen=True)
class _Form:
    """What is made of outputs by sums with numbers and products: a p + b, 1 - p q."""

    values: tuple[float, ...]  # where each output is at one of its bounds
    mask: Any = None  # the last constant tensor by which it was multiplied

    def plus(self, number: float) -> "_Form":
        return _Form(tuple(value + number for value in self.values), self.mask)

    def times(self, *numbers: float, mask: Any = None) -> "_Form":
        made = {value * number for value in self.values for number in numbers}
        return _Form(tuple(sorted(made)), self.mask if mask is None else mask)

    def vanishes(self, shift: float) -> bool:
        spread = max(self.values) - min(self.values)
        return any(abs(value + shift) <= NEAR * spread for value in self.values)


def cancelled(operations: Sequence[Any], output: Any, is_logarithm: bool) -> tuple[list[Any], list[str]]:
    """Return the logarithms or exponentials of a loss that cancel an output's ending, and scopes that may hide more."""
    # For an output p it is a logarithm of a p + b that vanishes at a bound of p: of p and 1 - p for a probability, of p
    # for a rate, of 1 + p for a tanh; and of products with such factors. For the logarithm of an output it is any
    # exponential of it, shifted or scaled. `operations` are those of the loss, in the order of creation. The scopes are
    # those of branches and loops, and of logarithms that may cancel or not.
    wanted = EXPONENTIALS if is_logarithm else LOGARITHMS
    bounds = (-1.0, 1.0) if last(output).op.type == "Tanh" else (0.0, 1.0)
    known: dict[Any, Any] = {output.ref(): _Form(bounds)}
    found: list[Any] = []
    unseen: list[str] = []
    for operation in operations:
        parts = [known.get(part.ref(), "constant") for part in operation.inputs]
        if all(part == "constant" for part in parts) or operation.type in SHAPES:
            continue
        made: Any = CURVE
        if operation.type in wanted:
            at = parts[operation.type in SECOND_ARGUMENTS]
            shift = 1.0 if operation.type in SHIFTED_BY_ONE else 0.0
            if isinstance(at, _Form) and (is_logarithm or at.vanishes(shift)):
                found.append(operation.outputs[0])
            unseen += [operation.name] if at == UNCLEAR else []
        elif hidden := hidden_in(operation, wanted):
            unseen.append(hidden)
        elif operation.type == "Pow":
            made = _power(operation, parts, is_logarithm)
        elif operation.type not in (*CURVED, *LOGARITHMS, *EXPONENTIALS):
            made = _followed(operation, parts, is_logarithm)
        for result in operation.outputs:
            if result.dtype.is_floating or result.dtype == tf.variant:  # other types only choose
                known[result.ref()] = made
    return found, unseen


def _power(operation: Any, parts: list[Any], is_logarithm: bool) -> Any:
    """Return p where it is raised to targets or masks, as in a likelihood; a number makes it a curve."""
    is_product = parts[1] == "constant" and _number(operation.inputs[1]) is None and not is_logarithm
    return parts[0] if is_product and isinstance(parts[0], _Form) else CURVE


def _followed(operation: Any, parts: list[Any], is_logarithm: bool) -> Any:
    """Return what an operation makes of its inputs: a form, or one of the words for others."""
    forms = [part for part in parts if isinstance(part, _Form)]
    if operation.type in CHOICES:  # one of its pieces is enough
        return forms[0] if forms else _worst(parts)
    if not forms:
        return _sum_with_constant(operation, parts)
    if operation.type in PRODUCTS and parts.count("constant") < len(parts) - 1:
        return CURVE if is_logarithm else _product(operation, parts, forms)
    others = [part for part in parts if part != "constant" and not isinstance(part, _Form)]
    if others:
        # A divisor moves no zero, unless it is of the kind of the dividend, as in a ratio of sums.
        is_divided = operation.type == "RealDiv" and others == [CURVE] and parts[1] == CURVE
        return forms[0] if is_divided and not is_logarithm else _worst(others)
    if len(forms) == 1 and len(parts) == 2:
        return _with_constant(operation, parts, forms[0], is_logarithm)
    return forms[0].times(-1.0) if operation.type == "Neg" else forms[0]


def _worst(parts: list[Any]) -> str:
    return next((kind for kind in (UNCLEAR, SHIFTED) if kind in parts), CURVE)


def _sum_with_constant(operation: Any, parts: list[Any]) -> str:
    """Return what an operation makes of parts none of which is a form."""
    is_sum = operation.type in ("AddV2", "Add", "Sub") and "constant" in parts
    is_shifted = is_sum and _number(operation.inputs[parts.index("constant")]) is None
    return SHIFTED if is_shifted and UNCLEAR not in parts else _worst(parts)


def _product(operation: Any, parts: list[Any], forms: list[_Form]) -> Any:
    """Return what an operation makes of factors of which several depend on the output: none moves another's zero."""
    if operation.inputs[0].ref() == operation.inputs[-1].ref():
        return CURVE  # a square
    made = forms[0]
    for other in forms[1:]:
        made = made.times(*other.values, mask=other.mask)
    return made


def _with_constant(operation: Any, parts: list[Any], form: _Form, is_logarithm: bool) -> Any:
    """Return what an operation makes of a form and a tensor that does not depend on the output."""
    place = parts.index("constant")
    constant = operation.inputs[place]
    number = _number(constant)
    if operation.type in ("AddV2", "Add", "Sub"):
        if operation.type == "Sub" and place == 0:
            form = form.times(-1.0)
        if is_logarithm:
            return form
        if number is None:
            number = _where_one(constant, form.mask)
        if number is None:  # targets, say
            return SHIFTED if form.mask is None else UNCLEAR
        return form.plus(-number if operation.type == "Sub" and place == 1 else number)
    if operation.type in ("Mul", "RealDiv") and number and not (operation.type == "RealDiv" and place == 0):
        return form.times(number if operation.type == "Mul" else 1.0 / number)
    return form.times(1.0, mask=constant) if operation.type == "Mul" else form  # weights and masks move no zero


def _where_one(tensor: Any, mask: Any) -> float | None:
    """Return what a mask m, or 1 - m, is where the mask is one; None for another tensor."""
    if mask is None:
        return None
    if last(tensor).ref() == last(mask).ref():
        return 1.0
    value, where = tf.get_static_value(tensor), tf.get_static_value(mask)
    if value is not None and where is not None and np.shape(value) == np.shape(where):
        chosen = value[where == 1]
        return float(chosen[0]) if chosen.size and not np.ptp(chosen) else None
    operation = last(tensor).op
    is_complement = operation.type == "Sub" and _number(operation.inputs[0]) == 1.0
    return 0.0 if is_complement and last(operation.inputs[1]).ref() == last(mask).ref() else None


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
