"""One compiled objective for the callbacks of a `fit` that measure the same loss on the same data."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfopt.callbacks._model_state import is_same, state_of
from tfopt.communicator import Communicator
from tfopt.curvature import Objective, Probe


class SharedObjective(NamedTuple):
    """An objective, and the objects on which its compiled functions depend; see `state_of`."""

    objective: Objective
    state: tuple[Any, ...]


def share_objective(
    model: Any, loss: Any, probe: Any, batch_norm: str, ranks: Communicator, known: Sequence[SharedObjective | None]
) -> SharedObjective:
    """Return one of the `known` objectives if it is the same function of the model in its present state, or make it."""
    state = (probe, loss, batch_norm, ranks, *state_of(model))
    for one in known:
        if one is not None and is_same(one.state, state):
            return one
    return SharedObjective(Objective(model, loss, probe, batch_norm=batch_norm, communicator=ranks), state)


def share_probe(probe: Probe, others: Sequence[Probe], communicator: Communicator) -> Probe:
    """Return the first of the `others` with the same data as `probe` on all ranks; `probe` if there is none."""
    equal = {index for index, other in enumerate(others) if has_same_data(probe, other)}
    agreed = set.intersection(*communicator.allgather_object(equal, "equal probes"))
    return others[min(agreed)] if agreed else probe


def has_same_data(first: Probe, second: Probe) -> bool:
    """Return whether two probes have the same batches, of the same dtypes."""
    if first is second:
        return True
    pairs = [[batch.tensors for batch in probe.batches] for probe in (first, second)]
    if first.num_rows != second.num_rows or _structure(pairs[0]) != _structure(pairs[1]):
        return False
    leaves = (tf.nest.flatten(part) for part in pairs)
    return all(a is b or np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


def _structure(batches: Any) -> str:
    return repr(tf.nest.map_structure(lambda leaf: None if leaf is None else (leaf.dtype.name, *leaf.shape), batches))
