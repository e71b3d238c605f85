"""Models that take batches of one size only, such as those with stateful recurrent layers."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras


class BatchSizeError(ValueError):
    """A model takes the first batch of the data, and no batch with another number of such rows."""


def call_on_batch(function: Callable[[], Any], x: Any, known: Sequence[Any]) -> Any:
    """Return `function()`, which runs a model on inputs; `known` are the forms of inputs that the model takes."""
    # Raises BatchSizeError if only the number of rows can have made the model fail.
    try:
        return function()
    except Exception as error:
        shapes = [leaf.shape for leaf in tf.nest.flatten(x) if leaf is not None]
        taken = [form[0] for form in known[: len(shapes)] if form is not None]
        are_such_rows = [tuple(shape[1:]) for shape in shapes] == [shape[1:] for shape in taken]
        if not (are_such_rows and shapes and shapes[0][0] != taken[0][0]):
            raise
        size = taken[0][0]
        raise BatchSizeError(
            f"The model takes batches of {size} rows, and not of {shapes[0][0]}. A stateful recurrent layer, "
            f"keras.Input(batch_size={size}) or a shape in the model's code can be the cause. All batches and groups "
            f"must then have {size} rows: give `batch_size={size}` and a number of rows that it divides, and for "
            f"gradient noise also `group_size={size}`. Or measure a copy of the model that takes batches of any size, "
            "with the same weights (for plans of batch sizes there is no other way). The model raised: "
            f"{type(error).__name__}: {error}"
        ) from error


def advice_on_batch_size(model: Any, num_rows: int) -> str:
    """Return what to do about the size of the first batch of `num_rows` rows, which a model does not take; or ""."""
    fixed = sorted(_fixed_sizes(model))
    if not fixed or num_rows in fixed:
        return ""
    return (
        f" The model takes batches of {fixed[0]} rows, and the first batch of the data has {num_rows}: give "
        f"`batch_size={fixed[0]}` and a number of rows that it divides."
    )


def _fixed_sizes(model: Any) -> set[int]:
    """Return the batch sizes that the inputs and the stateful recurrent layers of a model name."""
    named = list(getattr(model, "inputs", None) or [])
    for layer in _keras.flatten_layers(model)():
        if getattr(layer, "stateful", False):
            named += keras.tree.flatten(getattr(layer, "states", None))
    return {int(one.shape[0]) for one in named if one is not None and len(one.shape) and one.shape[0]}
