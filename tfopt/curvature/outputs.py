"""A model's outputs as a function of earlier tensors, such as logits."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras

LOGARITHMS = ("Log", "Log1p", "Xlogy", "Xlog1py")
# Each of these operations combines an exponential with the logarithm of a sum of exponentials.
LOG_ENDINGS = ("LogSoftmax", "Softplus")
ENDINGS = ("Softmax", "Sigmoid", "Tanh", "Exp", *LOG_ENDINGS)
# The results of these operations depend only on shapes.
SHAPES = ("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike")
# These operations are (piecewise) linear: a split at their inputs gives the same matrix as a split at their results.
LINEAR = (
    *("AddV2", "Sub", "Neg", "Max", "Min", "Maximum", "Minimum", "SelectV2", "StopGradient", "Identity", "Cast"),
    *("ConcatV2", "ExpandDims", "Pack", "Reshape", "Squeeze", "StridedSlice", "Transpose"),
)
JOINS = ("ConcatV2", "Pack")
MOVES = (*JOINS, "Cast", "ExpandDims", "Identity", "Reshape", "Squeeze", "Transpose")


@dataclass(frozen=True)
class Ending:
    """The weightless operations at the end of an output, which start with exponentials."""

    sources: list[Any]  # The inputs of the exponentials: logits, or the logarithm of a mean
    is_logarithm: bool  # Whether the output is a logarithm of the exponentials' result, such as log-probabilities


class Outputs:
    """The outputs of a model as a function of the tensors from which the loss starts, in the graph of the trace.

    Args:
        y_pred: The result of the model: a tensor, or a nested structure of tensors.
        weights: The operations that yield the model's weights.
        splits: For each output, whether the loss starts from the sources of its ending, if it has one, in place of the
            output itself. None means True for all.

    Attributes:
        flat: The floating-point outputs; an output that occurs several times is listed several times.
        endings: An `Ending` for each of them; None for an output without one.
        tensors: The tensors from which the loss starts, each once.
    """

    def __init__(self, y_pred: Any, weights: Sequence[Any] = (), splits: Sequence[bool] | None = None) -> None:
        self._y_pred = y_pred
        self.flat = [output for output in keras.tree.flatten(y_pred) if output.dtype.is_floating]
        is_traced = bool(self.flat) and tf.is_symbolic_tensor(self.flat[0])
        network = _Network(self.flat[0].graph, weights) if is_traced else None
        self.endings = [network.ending(output) if network else None for output in self.flat]
        chosen = [True] * len(self.flat) if splits is None else splits
        found: list[Any] = []
        for output, ending, is_split in zip(self.flat, self.endings, chosen, strict=True):
            found += ending.sources if ending is not None and is_split else [output]
        self.tensors = _unique(found)

    def at(self, tensors: Sequence[Any]) -> Any:
        """Return the structure of `y_pred` for other `tensors`, with Keras's logits and mask, which losses read."""
        again = _Again({old.ref(): new for old, new in zip(self.tensors, tensors, strict=True)})
        return keras.tree.map_structure(again.output, self._y_pred)


def each_once(y_pred: Any, weights: Sequence[Any]) -> Any:
    """Return `y_pred` with each repeated tensor replaced by a copy of its own, so that each loss has its own."""
    # Copies are made of copies of their logits, and have the logits and masks that losses read.
    seen: set[Any] = set()

    def one(tensor: Any) -> Any:
        if tensor.ref() not in seen:
            seen.add(tensor.ref())
            return tensor
        single = Outputs(tensor, weights)
        return single.at([tf.identity(source) for source in single.tensors])

    return keras.tree.map_structure(one, y_pred)


class _Network:
    """Which operations of a graph depend on the weights, and which on the rows."""

    def __init__(self, graph: Any, weights: Sequence[Any]) -> None:
        captured = {inside.op for inside in graph.internal_captures}
        self._dependent, self._of_rows = set(weights), set()  # type: set[Any], set[Any]
        for operation in graph.get_operations():  # in the order of creation, inputs first
            inputs = {tensor.op for tensor in operation.inputs}
            if operation.type == "Placeholder" and operation not in captured and operation not in self._dependent:
                self._of_rows.add(operation)
            if operation.type not in SHAPES:
                if inputs & self._dependent:
                    self._dependent.add(operation)
                if inputs & self._of_rows:
                    self._of_rows.add(operation)
        self._known: dict[Any, Ending | None] = {}

    def ending(self, tensor: Any) -> Ending | None:
        """Return the ending of a tensor; None if a path from the weights to it contains no exponential."""
        if tensor.ref() not in self._known:
            self._known[tensor.ref()] = None  # during the search
            self._known[tensor.ref()] = self._find(tensor)
        return self._known[tensor.ref()]

    def _find(self, tensor: Any) -> Ending | None:
        logits = _keras.keras_logits(tensor, None)
        if logits is not None and tensor.ref() != logits.ref() and self._is_made_of(tensor, [logits]):
            return Ending([logits], False)
        heads, is_logarithm = self._heads(tensor)
        found: list[Any] = []
        for head in heads:
            # The head may be a logarithm, as in softmax(z) = exp(z - log(sum(exp(z)))).
            before = self.ending(head)
            found += before.sources if before is not None and before.is_logarithm else [head]
        sources = self._widened(tensor, _unique(found))
        return Ending(sources, is_logarithm) if sources else self._joined(tensor)

    def _joined(self, tensor: Any) -> Ending | None:
        """Return the ending of a tensor that joins tensors with an ending and tensors without; else None."""
        joint = tensor
        while joint.op.type in MOVES and joint.op.type not in JOINS:
            joint = joint.op.inputs[0]
        if joint.op.type not in JOINS:
            return None
        parts = [part for part in joint.op.inputs if part.op in self._dependent]
        endings = [self.ending(part) for part in parts]
        sources: list[Any] = []
        for part, ending in zip(parts, endings, strict=True):
            sources += [part] if ending is None else ending.sources
        if not any(endings) or not self._is_made_of(tensor, sources):
            return None
        return Ending(sources, all(ending.is_logarithm for ending in endings if ending is not None))

    def _heads(self, tensor: Any) -> tuple[list[Any], bool]:
        """Return the inputs of the last exponentials before a tensor, and whether a logarithm follows one of them."""
        heads: list[Any] = []
        waiting = [(tensor, False, False)]
        seen, is_logarithm = set(), False  # type: set[Any], bool
        while waiting:
            at, in_logarithm, is_negative = waiting.pop()
            operation, state = at.op, (at.op, in_logarithm, is_negative)
            if operation not in self._dependent or state in seen or not self._is_fixed(operation):
                continue
            seen.add(state)
            in_logarithm |= operation.type in LOGARITHMS
            is_negative |= operation.type in ("Neg", "Sub")
            # log(sigmoid(z)) is -softplus(-z). Softplus without a minus only makes numbers positive.
            if operation.type in ENDINGS and (operation.type != "Softplus" or is_negative):
                heads.append(operation.inputs[0])
                is_logarithm |= in_logarithm or operation.type in LOG_ENDINGS
            else:
                waiting += [(part, in_logarithm, is_negative) for part in operation.inputs]
        return heads, is_logarithm

    def _widened(self, tensor: Any, sources: list[Any]) -> list[Any]:
        """Move `sources` back through linear operations until they determine the tensor; return [] if they cannot."""
        is_wide = False
        while sources and not (self._is_made_of(tensor, sources) and not any(map(self._is_shifted, sources))):
            linear = [s for s in sources if self._is_linear(s.op)]
            if not linear:
                return []
            before = [part for part in linear[-1].op.inputs if part.op in self._dependent]
            rest = [source for source in sources if source.ref() != linear[-1].ref()]
            sources, is_wide = _unique([*rest, *before]), True
        for source in list(sources) if is_wide else []:
            rest = [other for other in sources if other.ref() != source.ref()]
            sources = rest if self._is_made_of(source, rest) else sources
        return sources

    def _is_shifted(self, tensor: Any) -> bool:
        """Return whether a tensor is linear in others and a stopped gradient, as z - stop_gradient(max(z))."""
        waiting, seen = [tensor], set()  # type: list[Any], set[Any]
        while waiting:
            operation = waiting.pop().op
            if operation in self._dependent and operation not in seen and self._is_linear(operation):
                if operation.type == "StopGradient":
                    return True
                seen.add(operation)
                waiting += operation.inputs
        return False

    def _is_linear(self, operation: Any) -> bool:
        return operation.type in LINEAR and self._is_fixed(operation)

    def _is_made_of(self, tensor: Any, sources: list[Any]) -> bool:
        ends = {source.ref() for source in sources}
        waiting, seen = [tensor], set()  # type: list[Any], set[Any]
        while waiting:
            at = waiting.pop()
            if at.ref() in ends or at.op in seen or at.op not in self._dependent:
                continue
            seen.add(at.op)
            if not self._is_fixed(at.op):
                return False
            waiting += at.op.inputs
        return True

    def _is_fixed(self, operation: Any) -> bool:
        """Return whether an operation reads no weight, and can be repeated with other inputs."""
        of_weights = any(t.op in self._dependent and t.op not in self._of_rows for t in operation.inputs)
        return bool(operation.inputs) and not of_weights and _can_be_repeated(operation)


class _Again:
    """Outputs computed again from replaced tensors."""

    def __init__(self, known: dict[Any, Any]) -> None:
        self._known, self._made = known, dict(known)
        self._replaced = set(known)  # with all dependent tensors, also if a tensor is replaced by itself

    def output(self, output: Any) -> Any:
        if not output.dtype.is_floating:
            return output
        rebuilt = self._tensor(output)
        if output.ref() in self._known:  # the copy may carry other logits and another mask
            rebuilt = tf.identity(rebuilt)
        rebuilt.set_shape(output.shape)
        logits, mask = _keras.keras_logits(output, None), _keras.keras_mask(output, None)
        if logits is not None and logits.ref() in self._made:
            _keras.keras_logits.set(rebuilt, self._made[logits.ref()])
        if mask is not None:
            _keras.keras_mask.set(rebuilt, mask)
        return rebuilt

    def _tensor(self, tensor: Any) -> Any:
        """Return a tensor computed again; the tensor itself if it depends on no replaced tensor."""
        for at in _inputs_first(tensor, self._made):
            results = at.op.outputs
            if any(part.ref() in self._replaced for part in at.op.inputs):
                self._replaced.update(result.ref() for result in at.op.outputs)
                results = repeat(at.op, [self._made[part.ref()] for part in at.op.inputs])
            self._made.update((old.ref(), new) for old, new in zip(at.op.outputs, results, strict=True))
        return self._made[tensor.ref()]


def _unique(tensors: list[Any]) -> list[Any]:
    return list({tensor.ref(): tensor for tensor in tensors}.values())


def _inputs_first(tensor: Any, made: dict[Any, Any]) -> Iterator[Any]:
    """Yield all tensors of which a tensor is made, then the tensor itself; skip tensors in `made` at their turn."""
    waiting: list[tuple[Any, bool]] = [(tensor, False)]
    while waiting:
        at, is_ready = waiting.pop()
        if at.ref() in made:
            continue
        if is_ready or not _can_be_repeated(at.op):
            yield at
            continue
        waiting.append((at, True))
        waiting += [(part, False) for part in at.op.inputs]


def repeat(operation: Any, inputs: Sequence[Any]) -> list[Any]:
    """Repeat an operation of a graph with other inputs of the same dtypes, and return its list of results."""
    left = iter(inputs)
    arguments = [_argument(operation, one, left) for one in operation.op_def.input_arg]
    function: Callable[..., Any] = getattr(tf.raw_ops, operation.type)
    names = [name for name in inspect.signature(function).parameters if name != "name"]
    attributes = _attributes(operation)
    # The functions in tf.raw_ops take inputs first, and rename some inputs and attributes.
    renamed = [name for name in attributes if name not in names]
    own = {name: name if name in attributes else renamed.pop(0) for name in names[len(arguments) :]}
    given = dict(zip(names, arguments, strict=False))
    made = function(**given, **{name: operation.get_attr(attribute) for name, attribute in own.items()})
    return list(made) if isinstance(made, list | tuple) else [made]


def _argument(operation: Any, argument: Any, left: Iterator[Any]) -> Any:
    if argument.number_attr:
        return [next(left) for _ in range(operation.get_attr(argument.number_attr))]
    if argument.type_list_attr:
        return [next(left) for _ in operation.get_attr(argument.type_list_attr)]
    return next(left)


def _attributes(operation: Any) -> list[str]:
    """Return the names of the attributes that do not follow from the inputs."""
    told = {
        name
        for one in operation.op_def.input_arg
        for name in (one.type_attr, one.number_attr, one.type_list_attr)
        if name
    }
    return [one.name for one in operation.op_def.attr if one.name not in told]


def _can_be_repeated(operation: Any) -> bool:
    if operation.op_def.is_stateful or "_gradient_op_type" in operation.node_def.attr:
        return False
    has_functions = any(one.type in ("func", "list(func)") for one in operation.op_def.attr)
    return bool(operation.inputs) and not has_functions and hasattr(tf.raw_ops, operation.type)
