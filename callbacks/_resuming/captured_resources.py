"""The TensorFlow objects other than variables that a training step uses: iterators, tables, queues."""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras import auto_control_deps_utils

# These operations write variables that the step does not read, so the step does not depend on these variables.
# The variables that a step reads are in `graph.variables`.
_WRITING = ("Assign", "ResourceScatter", "ResourceStridedSliceAssign")
# TensorFlow does not mark these operations as read-only.
_READING = frozenset({"LookupTableExportV2", "LookupTableFindV2", "LookupTableSizeV2"})


def changed_resources(graph: Any) -> set[str]:
    """Return the types of operations with which a graph changes outside objects other than variables and summaries."""
    variables = {id(variable.handle) for variable in graph.variables}
    captured = {id(inside): outside for outside, inside in graph.captures}
    read_only = set(auto_control_deps_utils.get_read_only_resource_input_indices_graph(graph))
    kinds: set[str] = set()
    for index, inside in enumerate(graph.inputs):
        outside = captured.get(id(inside))
        if getattr(outside, "dtype", None) != tf.resource or index in read_only or id(outside) in variables:
            continue
        kinds.update(_users_of(graph, index))
    return {kind for kind in kinds if "Summary" not in kind and kind not in _READING and not kind.startswith(_WRITING)}


def _users_of(graph: Any, index: int) -> Iterator[str]:
    """Yield the types of operations that take input number `index` of a graph, also in functions that it calls."""
    inside = graph.inputs[index]
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
            if _keras.is_function(graph)(name):
                yield _keras.get_function(graph)(name).graph
                break
            graph = getattr(graph, "outer_graph", None)
