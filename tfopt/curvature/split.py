"""A function cut in two: what does not depend on a vector, computed once for many vectors, and the rest."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf


class SplitFunction:
    """A function of tensors, of which the part that does not depend on the last argument can be computed by itself.

    The function is traced once. When it is first cut, the operations that depend on the vectors become one function,
    all that these need of the others a second one; nothing that is not needed is computed. Loops (recurrent layers)
    hand over stacks of tensors that cannot be passed between functions: where they are in between, everything is
    computed anew for each vector.

    Args:
        function: Takes the fixed arguments and then the vectors; returns a list of tensors.
        fixed: Examples of the fixed arguments: nested structures of tensors and None.
        vectors: An example of the vectors, a list of tensors.

    Attributes:
        num_bytes: Size of what `prepare` computes and returns; 0 where the function cannot be cut.
        graph: The whole graph, a `tf.Graph`.
    """

    def __init__(self, function: Callable[..., list[Any]], fixed: tuple[Any, ...], vectors: list[Any]) -> None:
        arguments = (*fixed, vectors)
        flat = tf.nest.flatten(arguments)
        places = [place for place, leaf in enumerate(flat) if leaf is not None]

        def flat_function(*tensors: Any) -> list[Any]:
            leaves: list[Any] = [None] * len(flat)
            for place, tensor in zip(places, tensors, strict=True):
                leaves[place] = tensor
            return function(*tf.nest.pack_sequence_as(arguments, leaves))

        specs = [tf.TensorSpec(flat[place].shape, flat[place].dtype) for place in places]
        self._function = tf.compat.v1.wrap_function(flat_function, specs)
        self.graph = self._function.graph
        inputs, num_fixed = self._function.inputs[: len(places)], len(places) - len(vectors)
        self._fixed, self._vectors = inputs[:num_fixed], inputs[num_fixed:]
        self._outputs = tf.nest.flatten(self._function.structured_outputs)
        self._kept = _boundary(self.graph, self._vectors, self._outputs)
        # `prune` copies operations that are not needed, too. Lookups among them run, and want their texts.
        kept = {tensor.ref() for tensor in self._kept}
        texts = [place for place, tensor in enumerate(self._fixed) if tensor.dtype == tf.string]
        self._texts = [place for place in texts if self._fixed[place].ref() not in kept]

    @functools.cached_property
    def num_bytes(self) -> int:
        """Memory for what `prepare` returns, in bytes."""
        known = [tensor for tensor in self._kept if self._can_be_cut and tensor.shape.is_fully_defined()]
        return sum((tensor.shape.num_elements() or 0) * tensor.dtype.size for tensor in known)

    def __call__(self, fixed: tuple[Any, ...], vectors: list[Any]) -> list[Any]:
        """Compute everything.

        Args:
            fixed: The fixed arguments.
            vectors: The vectors.

        Returns:
            What the function returns.
        """
        return list(self._whole(*_leaves(fixed), *vectors))

    def prepare(self, *fixed: Any) -> list[Any]:
        """Compute what does not depend on the vectors.

        Args:
            *fixed: The fixed arguments.

        Returns:
            Tensors for `finish`.
        """
        leaves = _leaves(fixed)
        if not self._can_be_cut:
            return leaves
        return [*self._first_part(*leaves), *(leaves[place] for place in self._texts)]

    def finish(self, prepared: list[Any], vectors: list[Any]) -> list[Any]:
        """Compute the rest.

        Args:
            prepared: What `prepare` has returned.
            vectors: The vectors.

        Returns:
            What the function returns.
        """
        return list((self._second_part if self._can_be_cut else self._whole)(*prepared, *vectors))

    def first_outputs(self, count: int) -> Any:
        """Return a function that computes the first outputs only.

        Args:
            count: How many.

        Returns:
            A function of the fixed arguments and the vectors, which returns a list of tensors.
        """
        inputs = [*self._fixed, *self._vectors]
        first = _compiled(lambda *tensors: tf.nest.flatten(self._function(*tensors))[:count], inputs)
        return lambda fixed, vectors: list(first(*_leaves(fixed), *vectors))

    def pruned_to(self, tensors: list[Any]) -> Any:
        """Return a function that computes some tensors of the graph only, none of which may depend on the vectors.

        Args:
            tensors: The tensors.

        Returns:
            A function of the fixed arguments, which returns a list of tensors.
        """
        pruned = _compiled(self._function.prune(self._fixed, tensors), self._fixed)
        return lambda *fixed: list(pruned(*_leaves(fixed)))

    @functools.cached_property
    def _can_be_cut(self) -> bool:
        if any(tensor.dtype == tf.variant for tensor in self._kept):
            return False
        try:
            return self._second_part is not None
        except KeyError:  # TensorFlow loses its way where a branch only passes its input on
            return False

    @functools.cached_property
    def _whole(self) -> Any:
        return _compiled(self._function, [*self._fixed, *self._vectors])

    @functools.cached_property
    def _first_part(self) -> Any:
        return _compiled(self._function.prune(self._fixed, self._kept), self._fixed)

    @functools.cached_property
    def _second_part(self) -> Any:
        inputs = [*self._kept, *(self._fixed[place] for place in self._texts), *self._vectors]
        return _compiled(self._function.prune(inputs, self._outputs), inputs)


def _leaves(arguments: tuple[Any, ...]) -> list[Any]:
    return [leaf for leaf in tf.nest.flatten(arguments) if leaf is not None]


def _compiled(function: Any, inputs: list[Any]) -> Any:
    # A pruned function is slow to call by itself; inside a `tf.function` it is inlined. What is called is the concrete
    # function: to find it anew by the kinds of its many inputs takes a millisecond.
    made = tf.function(lambda *tensors: function(*tensors), autograph=False)
    made._omit_frequent_tracing_warning = True
    return made.get_concrete_function(*[tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in inputs])


def _boundary(graph: Any, vectors: list[Any], outputs: list[Any]) -> list[Any]:
    """Return the tensors that do not depend on the vectors and are needed to go on from there."""
    dependent = {vector.op for vector in vectors}
    needed: dict[Any, Any] = {}
    for operation in graph.get_operations():  # in the order in which they were made, inputs first
        if any(t.op in dependent for t in operation.inputs) or any(op in dependent for op in operation.control_inputs):
            dependent.add(operation)
    useful = _ancestors(outputs) & dependent
    wanted = [t for operation in graph.get_operations() if operation in useful for t in operation.inputs]
    for tensor in [*wanted, *outputs]:
        is_constant = tensor.op.type == "Const" and not tensor.op.control_inputs  # else it takes others with it
        if tensor.op not in dependent and not is_constant and tensor.dtype != tf.resource:
            needed[tensor.ref()] = tensor
    return list(needed.values())


def _ancestors(tensors: list[Any]) -> set[Any]:
    found: set[Any] = set()
    waiting = [tensor.op for tensor in tensors]
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return found
