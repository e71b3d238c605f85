"""What the step of a running `fit` changes and draws, read from its graph before it is run."""

import inspect
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import auto_control_deps_utils, op_def_registry


def trace_step(model: Any, epoch_iterator: Any, name: str = "train_function") -> Any:
    """Trace the step that `fit` is about to run, which makes every variable that it makes; nothing is computed.

    `fit` takes this trace for its first step.

    Args:
        model: The model that is being trained.
        epoch_iterator: What hands out the batches of `fit`, or None.
        name: The model's attribute that runs the step.

    Returns:
        The graph; None where Keras runs the step without one, or spreads it over devices.
    """
    dataset = getattr(epoch_iterator, "_distributed_dataset", None)
    function = getattr(model, name, None)
    if not isinstance(dataset, tf.data.Dataset) or not inspect.isfunction(function) or model.run_eagerly:
        return None
    names = inspect.getclosurevars(function).nonlocals
    traceable = next((value for value in names.values() if hasattr(value, "get_concrete_function")), None)
    return traceable and traceable.get_concrete_function(tf.data.IteratorSpec(dataset.element_spec)).graph


def graphs_of(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the data sets that a data set is made of, each with the graph of each function that it maps.

    Args:
        dataset: A `tf.data.Dataset`.

    Yields:
        Pairs of data set and graph.
    """
    for function in getattr(dataset, "_functions", list)():
        if hasattr(function.function, "graph"):  # which tf.data's debug mode does without
            yield dataset, function.function.graph
    for source in getattr(dataset, "_inputs", list)():
        yield from graphs_of(source)


def changed_variables(graph: Any) -> list[Any]:
    """Return the variables that a graph reads and changes; those that it only changes have no effect on it.

    Args:
        graph: The graph of a function.

    Returns:
        TensorFlow's variables.
    """
    read_only = set(auto_control_deps_utils.get_read_only_resource_input_indices_graph(graph))
    captured = {id(inside): id(outside) for outside, inside in graph.captures}
    changed = {captured.get(id(tensor)) for place, tensor in enumerate(graph.inputs) if place not in read_only}
    return [variable for variable in graph.variables if id(variable.handle) in changed]


def has_unseeded_shuffle(graph: Any) -> bool:
    """Return whether a function makes data sets that are shuffled in another order in each run.

    Args:
        graph: The graph of the function.

    Returns:
        Whether one has no seed, or one that is not known before the function runs.
    """
    shuffles = [op for op in graph.get_operations() if op.type.startswith("Shuffle") and "Dataset" in op.type]
    # The first four inputs are the source, the size of the buffer, and two seeds; two zeros mean that there is none.
    return any(not any(tf.get_static_value(seed) for seed in op.inputs[2:4]) for op in shuffles)


def random_operations(graph: Any) -> dict[str, bool]:
    """Return the operations that draw from a state hidden in TensorFlow's kernels, which nobody can save.

    Args:
        graph: The graph of a function.

    Returns:
        Whether all of a kind have a seed, by their kind, such as "RandomUniform".
    """
    found: dict[str, bool] = {}
    for node in _nodes(graph):
        kind = op_def_registry.get(node.op)
        if kind is not None and kind.is_stateful and {"seed", "seed2"} <= node.attr.keys():
            has_seed = bool(node.attr["seed"].i or node.attr["seed2"].i)
            found[node.op] = found.get(node.op, True) and has_seed
    return found


def python_calls(graph: Any) -> set[str]:
    """Return by which of TensorFlow's functions a graph calls Python, in which any state can be.

    Args:
        graph: The graph of a function.

    Returns:
        Their names. `tf.numpy_function(..., stateful=False)`, which promises that there is none, does not count.
    """
    names = {"PyFunc": "tf.numpy_function or from_generator", "EagerPyFunc": "tf.py_function"}
    return {names[node.op] for node in _nodes(graph) if node.op in names}


def _nodes(graph: Any) -> list[Any]:
    definition = graph.as_graph_def()
    return [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
