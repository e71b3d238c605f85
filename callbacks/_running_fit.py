"""The other callbacks and the data of the `fit` that calls a callback, which Keras does not pass to it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import keras
from keras.callbacks import CallbackList

from tfopt import _keras

LOGGERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.History,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)


@dataclass(frozen=True)
class RunningFit:
    """The `fit` that is calling a callback, and its arguments as they were given."""

    callbacks: list[keras.callbacks.Callback]  # In their order, with Keras's own (History, progress bar).
    epoch_iterator: Any = None  # It serves the batches of the training data; None where Keras does not show it.
    class_weight: dict[int, float] | None = None
    sample_weight: Any = None
    validation: Any = None  # The inputs of validation arrays, or the validation data set.
    validation_steps: int | None = None
    initial_epoch: int = 0


def has_call(model: Any) -> bool:
    """Return whether a model has a `call`; some models have only a `train_step` that calls their parts."""
    missing = (keras.Model.call, keras.layers.Layer.call)
    return "call" in vars(model) or getattr(type(model), "call", None) not in missing


def build_model(model: Any, running: RunningFit) -> None:
    """Build a model that waits for its first batch, and its optimizer; ValueError without data that show the shapes."""
    if not model.built:
        iterator = running.epoch_iterator
        if iterator is None:
            raise ValueError(
                "The model has no variables yet: give it a keras.Input, or call model.build(input_shape), before "
                "training begins"
            )
        batches = epoch_batches_of(running)
        epoch = getattr(batches, "epoch", 0)
        _keras.symbolic_build(model)(iterator=iterator)
        iterator.reset()
        if batches is not None:
            batches.start_at(epoch)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def reset_given_metrics(model: Any) -> None:
    """Reset the metric objects given to `compile`; Keras does so too, but not before they have seen a batch."""
    compiled = _keras.compile_metrics(model, None)
    given = (_keras.user_metrics(compiled), _keras.user_weighted_metrics(compiled)) if compiled is not None else ()
    for metric in keras.tree.flatten(given):
        if isinstance(metric, keras.Metric):
            metric.reset_state()


def epoch_batches_of(running: RunningFit) -> Any:
    """Return the `keras.utils.PyDataset` of a `fit` if it has `start_at(epoch)`, as `EpochBatches` has; else None."""
    batches = getattr(getattr(running.epoch_iterator, "data_adapter", None), "py_dataset", None)
    batches = getattr(batches, "in_its_own_order", batches)
    return batches if hasattr(batches, "start_at") else None


def come_last(callback: keras.callbacks.Callback) -> None:
    """Move a callback behind all others, while its `set_model` is being called."""
    for frame in _callers():
        caller = frame.f_locals.get("self")
        if isinstance(caller, CallbackList) and callback in caller.callbacks:
            # Make another list, because Keras is iterating over the old one.
            caller.callbacks = [*(other for other in caller.callbacks if other is not callback), callback]
            return


def come_before_loggers(callback: keras.callbacks.Callback) -> None:
    """Move a callback that writes into `logs` before Keras's loggers, while its `on_train_begin` is being called."""
    for frame in _callers():
        caller = frame.f_locals.get("self")
        if isinstance(caller, CallbackList) and callback in caller.callbacks:
            here = caller.callbacks.index(callback)
            first = next((i for i, c in enumerate(caller.callbacks[:here]) if isinstance(c, LOGGERS)), here)
            # The callbacks in between move up by one, so an iteration over this list goes on with the next callback.
            caller.callbacks.insert(first, caller.callbacks.pop(here))
            return


def find_running_fit(callback: keras.callbacks.Callback) -> RunningFit:
    """Search the call stack for Keras's callbacks and the data of `fit`; without a `fit`, return only this callback."""
    callbacks: list[keras.callbacks.Callback] | None = None
    for frame in _callers():
        caller = frame.f_locals.get("self")
        if callbacks is None and isinstance(caller, CallbackList) and callback in caller.callbacks:
            callbacks = list(caller.callbacks)
        if callbacks is not None and frame.f_code.co_name == "fit" and "epoch_iterator" in frame.f_locals:
            names = ("epoch_iterator", "class_weight", "sample_weight", "validation_steps", "initial_epoch")
            given: dict[str, Any] = {name: frame.f_locals.get(name) for name in names}
            return RunningFit(callbacks, **given, validation=frame.f_locals.get("val_x"))
    return RunningFit(callbacks or [callback])


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
