"""A function cut in two: the part that does not depend on a vector, computed once for many vectors, and the rest."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfopt._compiled import compiled, rewritten
from tfopt.curvature.memory import ancestors, num_bytes, peak_bytes


class SplitFunction:
    """A function of tensors whose operations that do not depend on the last argument can be computed separately.

    The function is traced once. The first cut makes two functions: the operations that depend on the vectors, and the
    other operations that these need; operations that are not needed are dropped. Loops (recurrent layers) use stacks of
    tensors, which functions cannot pass to each other. If such a stack crosses the cut, every vector recomputes all.

    Args:
        function: Takes the fixed arguments and then the vectors; returns a list of tensors.
        fixed: Examples of the fixed arguments: nested structures of tensors and None.
        vectors: An example of the vectors, a list of tensors.
        rewrites: How often TensorFlow rewrites the graph before it runs: 1 (default), or 0 for a function that runs a
            few times.

    Attributes:
        num_bytes: Size of the result of `prepare` in bytes; 0 if the function cannot be cut.
        graph: The whole graph, a `tf.Graph`.
    """

    def __init__(
        self, function: Callable[..., list[Any]], fixed: tuple[Any, ...], vectors: list[Any], rewrites: int = 1
    ) -> None:
        arguments = (*fixed, vectors)
        flat = tf.nest.flatten(arguments)
        indices = [index for index, leaf in enumerate(flat) if leaf is not None]

        waiting = [function]  # emptied after the trace: compiled products outlive the model that `function` holds

        def flat_function(*tensors: Any) -> list[Any]:
            leaves: list[Any] = [None] * len(flat)
            for index, tensor in zip(indices, tensors, strict=True):
                leaves[index] = tensor
            return waiting[0](*tf.nest.pack_sequence_as(arguments, leaves))

        specs = [tf.TensorSpec(flat[index].shape, flat[index].dtype) for index in indices]
        self._function = tf.compat.v1.wrap_function(flat_function, specs)
        waiting.clear()
        self.graph = self._function.graph
        inputs, num_fixed = self._function.inputs[: len(indices)], len(indices) - len(vectors)
        self._fixed, self._vectors = inputs[:num_fixed], inputs[num_fixed:]
        self._outputs = tf.nest.flatten(self._function.structured_outputs)
        self._whole = rewritten(self._function, rewrites)

    @functools.cached_property
    def num_bytes(self) -> int:
        """Memory of the result of `prepare`, in bytes."""
        return sum(map(num_bytes, self._kept)) if self._can_be_cut else 0

    @functools.cached_property
    def peak_bytes(self) -> int:
        """An estimate of the memory that all results take at most while the function runs, in bytes."""
        return peak_bytes(self.graph, self._outputs)

    def __call__(self, fixed: tuple[Any, ...], vectors: list[Any]) -> list[Any]:
        """Compute everything."""
        return tf.nest.flatten(self._whole(*_leaves(fixed), *vectors))

    def prepare(self, *fixed: Any) -> list[Any]:
        """Compute all that does not depend on the vectors; returns tensors for `finish`."""
        leaves = _leaves(fixed)
        if not self._can_be_cut:
            return leaves
        return [*self._first_part(*leaves), *(leaves[index] for index in self._texts)]

    def finish(self, prepared: list[Any], vectors: list[Any]) -> list[Any]:
        """Compute the function's results from the result of `prepare` and the vectors."""
        return tf.nest.flatten((self._second_part if self._can_be_cut else self._whole)(*prepared, *vectors))

    def first_outputs(self, count: int) -> Any:
        """Return a function of (fixed arguments, vectors) that computes only the first `count` outputs."""
        inputs = [*self._fixed, *self._vectors]
        first = _compiled(lambda *tensors: tf.nest.flatten(self._function(*tensors))[:count], inputs)
        return lambda fixed, vectors: list(first(*_leaves(fixed), *vectors))

    def pruned_to(self, tensors: list[Any]) -> Any:
        """Return a function of the fixed arguments that computes only `tensors`, which do not depend on the vectors."""
        pruned = _compiled(self._function.prune(self._fixed, tensors), self._fixed)
        return lambda *fixed: list(pruned(*_leaves(fixed)))

    @functools.cached_property
    def _can_be_cut(self) -> bool:
        if any(tensor.dtype == tf.variant for tensor in self._kept):
            return False
        try:
            return self._second_part is not None
        except KeyError:  # `prune` fails on a branch that only returns its input
            return False

    @functools.cached_property
    def _kept(self) -> list[Any]:
        return _boundary(self.graph, self._vectors, self._outputs)

    @functools.cached_property
    def _texts(self) -> list[int]:
        # `prune` also copies operations that are not needed. Table lookups among them run, and need their strings.
        kept = {tensor.ref() for tensor in self._kept}
        texts = [index for index, tensor in enumerate(self._fixed) if tensor.dtype == tf.string]
        return [index for index in texts if self._fixed[index].ref() not in kept]

    @functools.cached_property
    def _first_part(self) -> Any:
        return _compiled(self._function.prune(self._fixed, self._kept), self._fixed)

    @functools.cached_property
    def _second_part(self) -> Any:
        inputs = [*self._kept, *(self._fixed[index] for index in self._texts), *self._vectors]
        return _compiled(self._function.prune(inputs, self._outputs), inputs)


def _leaves(arguments: tuple[Any, ...]) -> list[Any]:
    return [leaf for leaf in tf.nest.flatten(arguments) if leaf is not None]


def _compiled(function: Any, inputs: list[Any]) -> Any:
    # A direct call of a pruned function is slow; inside a `tf.function` it is inlined. The concrete function is called,
    # because a lookup by the specs of its many inputs takes a millisecond.
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in inputs]
    return rewritten(compiled(lambda *tensors: function(*tensors)).get_concrete_function(*specs), 1)


def _boundary(graph: Any, vectors: list[Any], outputs: list[Any]) -> list[Any]:
    """Return the tensors that do not depend on the vectors and that the outputs or dependent operations need."""
    dependent = {vector.op for vector in vectors}
    constants: set[Any] = set()
    needed: dict[Any, Any] = {}
    for operation in graph.get_operations():  # in the order of creation, inputs first
        if any(t.op in dependent for t in operation.inputs) or any(op in dependent for op in operation.control_inputs):
            dependent.add(operation)
        elif _is_constant(operation, constants):
            constants.add(operation)
    useful = ancestors(outputs) & dependent
    wanted = [t for operation in graph.get_operations() if operation in useful for t in operation.inputs]
    # On CPUs the derivative of a pooling is fast only in the function that pools.
    poolings = {tensor.op for tensor in wanted if tensor.op.type == "MaxPool" and tensor.op not in dependent}
    wanted += [tensor for operation in poolings for tensor in operation.inputs]
    copied = dependent | constants | poolings
    for tensor in [*wanted, *outputs]:
        if tensor.op not in copied and tensor.dtype != tf.resource:
            needed[tensor.ref()] = tensor
    return list(needed.values())


def _is_constant(operation: Any, constants: set[Any]) -> bool:
    """Return whether an operation is a constant, or fills a constant shape; both parts have a copy of these."""
    # TensorFlow then leaves out additions of zeros. Control inputs would pull in other operations.
    is_known = operation.type == "Const" or (
        operation.type == "Fill" and all(tensor.op in constants for tensor in operation.inputs)
    )
    return is_known and not operation.control_inputs
