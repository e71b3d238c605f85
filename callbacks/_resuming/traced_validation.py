"""The graph of the validation step of a running `fit`: callbacks decide by its metrics."""

from collections.abc import Mapping
from typing import Any

from tfopt import _keras
from tfopt._keras import TFEpochIterator
from tfopt.callbacks._resuming.traced_step import trace_step


def trace_validation(model: Any, given: Mapping[str, Any]) -> Any:
    """Return the graph of the validation step of a `fit` with these local variables; None without data or graph."""
    # `fit` uses this trace, and the iterator over its validation data that is made here.
    if given.get("validation_data") is None or model.run_eagerly:
        return None
    if _keras.eval_epoch_iterator(model, None) is None:
        iterator = TFEpochIterator(
            x=given["val_x"],
            y=given["val_y"],
            sample_weight=given["val_sample_weight"],
            batch_size=given["validation_batch_size"] or given["batch_size"],
            distribute_strategy=model.distribute_strategy,
            steps_per_execution=model.steps_per_execution,
            steps_per_epoch=given["validation_steps"],
            shuffle=False,
        )
        _keras.eval_epoch_iterator.set(model, iterator)
    model.make_test_function()
    return trace_step(model, _keras.eval_epoch_iterator(model), "test_function")
