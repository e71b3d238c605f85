"""Record how `fit` calls the layers of a model, and which layers with user code draw random numbers then."""

import re
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras

# Each layer gets one warning only, although a measurement traces a model several times (check, each form of batch).
_warned: weakref.WeakSet[Any] = weakref.WeakSet()
_RANDOM = re.compile("Random|Multinomial|TruncatedNormal|Rng")


def has_own_code(model: keras.Model) -> bool:
    """Return whether a model has layers that are not Keras's, which may do anything if `training` is true."""
    return any(
        not re.match(r"keras\.(?!src\.applications)", type(layer).__module__) or isinstance(layer, keras.layers.Lambda)
        for layer in _keras.flatten_layers(model)()
    )


class CallsInFit:
    """The calls of a model's layers, recorded in a trace of training without the noise of Keras's layers.

    A layer that draws random numbers even then contains user code. A measurement calls such a layer without `training`,
    and all other layers as in training.

    Attributes:
        changed_shapes: A text for each layer that returns another shape without noise, with both shapes.
    """

    def __init__(self) -> None:
        self._training: dict[int, list[Any]] = {}
        self._shapes: dict[int, list[Any]] = {}  # of the results of each layer
        self.changed_shapes: list[str] = []
        self._made: list[tuple[Any, list[Any]]] = []
        self._within: list[set[int]] = []
        self._noisy: dict[int, Any] | None = None
        self._num_calls: Counter[int] = Counter()

    def start(self) -> None:
        """Start a measurement: the next call of each layer is its first one."""
        self._num_calls.clear()

    def call(self, function: Callable[..., Any], layer: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer through `function`: first record `training`, later pass the recorded one (False if noisy)."""
        if self._noisy is None:
            return self._record(function, layer, args, kwargs)
        given = kwargs.get("training")
        training = self._training_of(layer, given) if self._noisy else given
        result = function(layer, *args, **(kwargs if training is given else {**kwargs, "training": training}))
        if id(layer) in self._noisy and given:
            self._compare(layer, _shapes_of(result))
            if not any(result is arg for arg in args):
                self._warn(layer)  # a layer that only makes noise returns its input
        return result

    def finish(self, graph: tf.Graph) -> None:
        """End the trace of training in `graph`; warn of layers with weights that draw random numbers."""
        drawing = _drawing_functions(graph.as_graph_def().library.function)
        self._noisy = {
            id(layer): layer
            for layer, operations in self._made
            if any(_draws(operation.type, operation.node_def.attr.values(), drawing) for operation in operations)
        }
        self._made.clear()
        for layer in self._noisy.values():
            if layer.weights:
                self._warn(layer)

    def _compare(self, layer: Any, plain: list[tf.TensorShape]) -> None:
        drawn = self._shapes.get(id(layer), [])
        if not any(len(a) == len(plain) and all(map(tf.TensorShape.is_compatible_with, a, plain)) for a in drawn):
            pair = " and ".join(str(shapes[0]) for shapes in (*drawn[:1], plain) if shapes)
            self.changed_shapes.append(f"{layer.name}, with outputs of shape {pair} in training and without noise")

    def _warn(self, layer: Any) -> None:
        if layer not in _warned:
            warnings.warn(
                f"{layer.name} draws random numbers in training. A measurement has no noise: it calls this layer with "
                "training=False, and the layers inside it as in `fit`. If that changes more than the noise, move the "
                "random part to a separate layer",
                stacklevel=2,
            )
            _warned.add(layer)

    def _record(self, function: Callable[..., Any], layer: Any, args: Any, kwargs: Any) -> Any:
        training = kwargs.get("training")
        self._training.setdefault(id(layer), []).append(training)
        graph = tf.compat.v1.get_default_graph()
        num_before = len(graph.get_operations())
        self._within.append(set())
        try:
            result = function(layer, *args, **kwargs)
            self._shapes.setdefault(id(layer), []).append(_shapes_of(result))
            return result
        finally:
            made, within = graph.get_operations()[num_before:], self._within.pop()
            if training is not None and (tf.is_tensor(training) or training):
                self._made.append((layer, [operation for operation in made if id(operation) not in within]))
            if self._within:
                self._within[-1].update(map(id, made))

    def _training_of(self, layer: Any, given: Any) -> Any:
        calls = self._training.get(id(layer))
        if self._noisy and id(layer) in self._noisy:
            return False
        if calls is None:
            return given
        call = calls[min(self._num_calls[id(layer)], len(calls) - 1)]
        self._num_calls[id(layer)] += 1
        return given if call is None or tf.is_tensor(call) else call


def _shapes_of(result: Any) -> list[tf.TensorShape]:
    return [leaf.shape for leaf in keras.tree.flatten(result) if tf.is_tensor(leaf)]


def _drawing_functions(functions: Any) -> set[str]:
    """Return the names of the functions that draw random numbers, or call a function that does."""
    drawing: set[str] = set()
    while True:
        more = {
            function.signature.name
            for function in functions
            if any(_draws(node.op, node.attr.values(), drawing) for node in function.node_def)
        }
        if more == drawing:
            return drawing
        drawing = more


def _draws(kind: str, attributes: Any, drawing: set[str]) -> bool:
    if _RANDOM.search(kind) or kind in drawing:
        return True
    called = [function.name for value in attributes for function in (value.func, *value.list.func)]
    return not drawing.isdisjoint(called)
