"""The graph of the validation step of a running `fit`: callbacks decide by its metrics."""

import sys
from types import FrameType
from typing import Any

from keras.src.backend.tensorflow.trainer import TFEpochIterator
from tfopt.callbacks._traced_step import trace_step


def trace_validation(model: Any) -> Any:
    """Return the graph of the validation step of the calling `fit`, without running it; None without data or graph."""
    # `fit` uses this trace, and the iterator over its validation data that is made here.
    given = _locals_of_fit(model)
    if given.get("validation_data") is None or model.run_eagerly:
        return None
    if getattr(model, "_eval_epoch_iterator", None) is None:
        model._eval_epoch_iterator = TFEpochIterator(
            x=given["val_x"],
            y=given["val_y"],
            sample_weight=given["val_sample_weight"],
            batch_size=given["validation_batch_size"] or given["batch_size"],
            distribute_strategy=model.distribute_strategy,
            steps_per_execution=model.steps_per_execution,
            steps_per_epoch=given["validation_steps"],
            shuffle=False,
        )
    model.make_test_function()
    return trace_step(model, model._eval_epoch_iterator, "test_function")


def _locals_of_fit(model: Any) -> dict[str, Any]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "fit" and "val_x" in frame.f_locals and frame.f_locals.get("self") is model:
            return frame.f_locals
        frame = frame.f_back
    return {}
