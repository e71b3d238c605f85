"""What a training step uses of TensorFlow's objects that are no variables: iterators, tables, queues."""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import auto_control_deps_utils

# Of variables that a step only writes, and so have no effect on it; those that it reads are among the graph's.
_WRITING = ("Assign", "ResourceScatter", "ResourceStridedSliceAssign")
_READING = frozenset({"LookupTableExportV2", "LookupTableFindV2", "LookupTableSizeV2"})  # which TensorFlow does not say


def changed_resources(graph: Any) -> set[str]:
    """Return by which operations a graph changes objects from outside that are no variables.

    Args:
        graph: The graph of a function.

    Returns:
        Names such as "IteratorGetNext". Those that write summaries, and so change no number, are left out.
    """
    variables = {id(variable.handle) for variable in graph.variables}
    captured = {id(inside): outside for outside, inside in graph.captures}
    read_only = set(auto_control_deps_utils.get_read_only_resource_input_indices_graph(graph))
    kinds: set[str] = set()
    for place, inside in enumerate(graph.inputs):
        outside = captured.get(id(inside))
        if getattr(outside, "dtype", None) != tf.resource or place in read_only or id(outside) in variables:
            continue
        kinds.update(_users_of(graph, place))
    return {kind for kind in kinds if "Summary" not in kind and kind not in _READING and not kind.startswith(_WRITING)}


def _users_of(graph: Any, place: int) -> Iterator[str]:
    """Yield the kinds of operations that take one of a graph's inputs, also in functions that it calls."""
    inside = graph.inputs[place]
    for operation in inside.consumers():
        called = list(_functions_of(graph, operation))
        if not called:
            yield operation.type
        arguments = list(operation.inputs)[-len(called[0].inputs) :] if called else []
        for function in called:
            for there, argument in enumerate(arguments):
                if argument is inside:
                    yield from _users_of(function, there)


def _functions_of(graph: Any, operation: Any) -> Iterator[Any]:
    names = [attribute.func.name for attribute in operation.node_def.attr.values() if attribute.HasField("func")]
    names += [item.name for attribute in operation.node_def.attr.values() for item in attribute.list.func]
    for name in names:
        while graph is not None:
            if graph._is_function(name):
                yield graph._get_function(name).graph
                break
            graph = getattr(graph, "outer_graph", None)
