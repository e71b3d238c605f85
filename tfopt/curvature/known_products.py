"""Compiled products that later operators of the same function use again, of the same model or of an equal one.

Two losses are the same function if TensorFlow recorded the same operations for them. Their graphs show all that Python
code decided: values of attributes, frozen layers, shapes, dtypes. A graph does not show derivatives that Python code
defines (custom gradients), nor what the functions that it calls do. Such losses are not known again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.curvature.recently_used import RecentlyUsed
from tfopt.curvature.replica import paths_by_handle

_products = RecentlyUsed(8)


@dataclass
class KnownProduct:
    """A compiled product, and whether it has passed the self-check."""

    function: Any
    is_checked: bool = False


def known(key: Any) -> KnownProduct | None:
    """Return the product that was kept with this key, if there is one."""
    found: KnownProduct | None = _products.find(key)
    return found


def keep(key: Any, product: KnownProduct) -> None:
    """Keep a product."""
    _products.keep(key, product)


def reads_none(graph: Any, variables: Sequence[Any]) -> bool:
    """Return whether a graph reads none of the Keras variables, so that it serves equal models."""
    handles = paths_by_handle(variables)
    return not any(id(outside) in handles for outside, _ in graph.captures)


def fingerprint(results: Sequence[Any], weights: dict[int, Any], rows: Sequence[Any], variables: Sequence[Any]) -> Any:
    """Return a hashable value that is equal for equal functions; None if the graph does not show the whole function.

    Args:
        results: The results of the function, tensors of one graph.
        weights: The tensors that stand for variables, by the variable's index among `variables`.
        rows: The tensors that stand for inputs, targets and weights of rows.
        variables: All Keras variables of the model.

    Returns:
        The value. It contains what the function reads besides: constants by their value; variables of the model by
        their index, whether they are arguments or not; other resources themselves.
    """
    graph = results[0].graph
    labels = {tensor.op.name: f"variable {index}" for index, tensor in weights.items()}
    labels |= {tensor.op.name: f"rows {index}" for index, tensor in enumerate(rows)}
    places = {handle: index for index, handle in enumerate(paths_by_handle(variables))}
    resources: list[_Same] = []
    for outside, inside in graph.captures:
        labels[inside.op.name] = _label(outside, places, resources)
    digests = _digests(graph.as_graph_def(), [result.op.name for result in results], labels)
    if digests is None:
        return None
    return tuple(digests[result.op.name] + f":{result.value_index}" for result in results), tuple(resources)


def _label(tensor: Any, places: dict[int, int], resources: list["_Same"]) -> str:
    if id(tensor) in places:
        return f"variable {places[id(tensor)]}"
    if tensor.dtype in (tf.resource, tf.variant) or not hasattr(tensor, "numpy"):
        resources.append(_Same(tensor))
        return f"resource {len(resources)}"
    array = np.ascontiguousarray(tensor.numpy())
    content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    return f"{array.dtype.str} {array.shape} {hashlib.sha256(content).hexdigest()}"


def _digests(definition: Any, ends: list[str], labels: dict[str, str]) -> dict[str, str] | None:
    """Return for each operation that the ends need a digest of all that it computes, whatever the names are."""
    nodes = {node.name: node for node in definition.node}
    needed, waiting = set(), list(ends)  # type: set[str], list[str]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += [] if name in labels else [_producer(given) for given in nodes[name].input]
    found = dict(labels)
    for node in definition.node:  # in the order of creation, inputs first
        if node.name in labels or node.name not in needed:
            continue
        if "_gradient_op_type" in node.attr or any(value.HasField("func") for value in node.attr.values()):
            return None
        given = [f"{found[_producer(name)]} {name.removeprefix(_producer(name))}" for name in node.input]
        # Values are read in one graph, and are arguments in another.
        source = found.get(node.input[0], "") if len(node.input) == 1 else ""
        is_read = node.op == "Identity" or (node.op == "ReadVariableOp" and source.startswith("variable"))
        found[node.name] = source if source and is_read else _digest(node, given)
    return found


def _digest(node: Any, given: list[str]) -> str:
    digest = hashlib.sha256(f"{node.op} {node.device} {given}".encode())
    for name in sorted(set(node.attr) - {"_class", "_output_shapes"}):  # `_class` holds names
        digest.update(name.encode() + node.attr[name].SerializeToString(deterministic=True))
    return digest.hexdigest()


def _producer(given: str) -> str:
    return given.removeprefix("^").partition(":")[0]


class _Same:
    """Equal only for the same object, which it holds."""

    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._thing is self._thing

    def __hash__(self) -> int:
        return id(self._thing)
