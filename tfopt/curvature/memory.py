"""An estimate of the memory that the results of a graph take."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# TensorFlow runs operations as soon as it can, and so keeps more results at once than the order of the graph needs.
MARGIN = 1.5
VIEWS = ("Reshape", "Identity", "ExpandDims", "Squeeze", "Placeholder", "Const")  # results that take no memory


def peak_bytes(graph: tf.Graph, outputs: Sequence[Any]) -> int:
    """Return an estimate of the largest memory of all results of a graph that are alive at once.

    Raises:
        ValueError: The graph does not show the memory of some results.
    """
    needed = ancestors(outputs)
    operations = [each for each in graph.get_operations() if each in needed]  # in the order of creation, inputs first
    for operation in operations:
        if _is_hidden(operation):
            raise ValueError(
                "`max_memory` needs a model whose results have sizes that its graph shows: loops (recurrent layers), "
                f"branches and sizes that depend on values do not. Received: {operation.name} ({operation.type}). "
                "Pass max_memory=None and smaller batches"
            )
    owners: dict[Any, Any] = {}  # of each result, the one whose memory it shares
    last_uses: dict[Any, int] = {}
    for index, operation in enumerate(operations):
        for tensor in operation.outputs:
            is_view = operation.type in VIEWS and operation.inputs
            owners[tensor.ref()] = owners[operation.inputs[0].ref()] if is_view else tensor.ref()
        last_uses |= {owners[tensor.ref()]: index for tensor in operation.inputs}
    last_uses |= {owners[tensor.ref()]: len(operations) for tensor in outputs}
    ending: dict[int, list[Any]] = {}
    for owner, index in last_uses.items():
        ending.setdefault(index, []).append(owner)
    peak = alive = 0
    for index, operation in enumerate(operations):
        if operation.type not in VIEWS:
            alive += sum(num_bytes(tensor) for tensor in operation.outputs if tensor.ref() in last_uses)
        peak = max(peak, alive)
        alive -= sum(num_bytes(each.deref()) for each in ending.get(index, ()) if each.deref().op.type not in VIEWS)
    return int(MARGIN * peak)


def num_bytes(tensor: Any) -> int:
    """Return the memory of a tensor; 0 if its shape is not known."""
    return (tensor.shape.num_elements() or 0) * tensor.dtype.size if tensor.shape.is_fully_defined() else 0


def ancestors(tensors: Sequence[Any]) -> set[Any]:
    """Return the operations that the tensors need, those that make them included."""
    found: set[Any] = set()
    waiting = [tensor.op for tensor in tensors]
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return found


def _is_hidden(operation: Any) -> bool:
    """Return whether an operation has results of unknown size, or calls functions with results of their own."""
    attributes = operation.node_def.attr.values()
    if any(each.HasField("func") or len(each.list.func) for each in attributes):
        return True
    return any(
        tensor.dtype == tf.variant or (tensor.dtype.is_floating and not tensor.shape.is_fully_defined())
        for tensor in operation.outputs
    )
