"""The weights and states of optimizers with which a training begins, which a script may set between two `fit`s."""

import zlib
from typing import Any

from tfopt.callbacks._optimizers_of import optimizers_of
from tfopt.callbacks._resuming.row_order import RowOrder
from tfopt.callbacks._resuming.training_state import key_of, read


def checksum_of_values(model: Any, variables: list[tuple[str, Any]], order: RowOrder) -> int:
    """Return a checksum of the values, the seeds of layers, and the seed of the order of rows if it is drawn anew."""
    # Two trainings with the same checksum and arguments end with the same weights.
    checksum = zlib.crc32(str(order.seed if order.is_drawn else None).encode())
    for _, variable in _among(variables, model, model.variables):
        checksum = zlib.crc32(read(variable).tobytes(), checksum)
    return checksum


def changed_values(model: Any, variables: list[tuple[str, Any]], saved: list[Any]) -> list[str]:
    """Return the names of weights and states of optimizers that differ from the `saved` values of all variables."""
    there = {key_of(variable): value for (_, variable), (_, value) in zip(variables, saved, strict=True)}
    return [
        name
        for name, variable in _among(variables, model, model.weights)
        if read(variable).tobytes() != there[key_of(variable)].tobytes()
    ]


def _among(variables: list[tuple[str, Any]], model: Any, chosen: list[Any]) -> list[tuple[str, Any]]:
    keys = {key_of(variable) for variable in chosen}
    keys |= {key_of(variable) for _, optimizer in optimizers_of(model) for variable in optimizer.variables}
    return [(name, variable) for name, variable in variables if key_of(variable) in keys]
