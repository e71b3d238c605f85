"""Variables that the step of a running `fit` changes, and random numbers that it draws, read from its graph."""

import inspect
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras import auto_control_deps_utils, op_def_registry
from tfopt.callbacks._resuming.dataset_order import stages_of


def trace_step(model: Any, epoch_iterator: Any, name: str = "train_function") -> Any:
    """Return the graph of the next step of `fit`, without running it; None without a graph, or with several devices."""
    # Tracing makes every variable that the step makes. `fit` uses this trace for its first step.
    dataset = _keras.distributed_dataset(epoch_iterator, None)
    traceable = find_traceable(getattr(model, name, None))
    if not isinstance(dataset, tf.data.Dataset) or traceable is None or model.run_eagerly:
        return None
    return traceable.get_concrete_function(tf.data.IteratorSpec(dataset.element_spec)).graph


def find_traceable(function: Any) -> Any:
    """Return the `tf.function` inside a step function of Keras; None if there is none."""
    if not inspect.isfunction(function):
        return None
    names = inspect.getclosurevars(function).nonlocals
    return next((value for value in names.values() if hasattr(value, "get_concrete_function")), None)


def graphs_of(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """Yield pairs of data set and graph, for each function that a data set and its sources map."""
    for stage in stages_of(dataset):
        for function in _keras.dataset_functions(stage, list)():
            if hasattr(function.function, "graph"):  # tf.data's debug mode has no graph.
                yield stage, function.function.graph


def changed_variables(graph: Any) -> list[Any]:
    """Return the variables that a graph reads and changes; variables that it only changes do not affect it."""
    read_only = set(auto_control_deps_utils.get_read_only_resource_input_indices_graph(graph))
    captured = {id(inside): id(outside) for outside, inside in graph.captures}
    changed = {captured.get(id(tensor)) for place, tensor in enumerate(graph.inputs) if place not in read_only}
    return [variable for variable in graph.variables if id(variable.handle) in changed]


def has_unseeded_shuffle(graph: Any) -> bool:
    """Return whether a function makes a shuffled data set without a seed, or with one not known before it runs."""
    shuffles = [op for op in graph.get_operations() if op.type.startswith("Shuffle") and "Dataset" in op.type]
    # The first four inputs are the source, the buffer size and two seeds. Two zeros mean that there is no seed.
    return any(not any(tf.get_static_value(seed) for seed in op.inputs[2:4]) for op in shuffles)


def random_operations(graph: Any) -> dict[str, bool]:
    """Return the operations that draw from hidden states of TensorFlow's kernels: kind -> whether all have a seed."""
    found: dict[str, bool] = {}
    for node in _nodes(graph):
        kind = op_def_registry.get(node.op)
        if kind is not None and kind.is_stateful and {"seed", "seed2"} <= node.attr.keys():
            has_seed = bool(node.attr["seed"].i or node.attr["seed2"].i)
            found[node.op] = found.get(node.op, True) and has_seed
    return found


def python_calls(graph: Any) -> set[str]:
    """Return the names of the TensorFlow functions by which a graph calls Python, which may have any state."""
    # `tf.numpy_function(..., stateful=False)` promises to have no state, so it is not in this table.
    names = {"PyFunc": "tf.numpy_function or from_generator", "EagerPyFunc": "tf.py_function"}
    return {names[node.op] for node in _nodes(graph) if node.op in names}


def _nodes(graph: Any) -> list[Any]:
    definition = graph.as_graph_def()
    return [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
