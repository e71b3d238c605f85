"""The other callbacks and the data of the `fit` that calls a callback, which Keras does not pass to it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras
from tfopt.callbacks._call_stack import fits_in, list_with
from tfopt.callbacks._optimizers_of import compiled_optimizer_of
from tfopt.curvature.batch import map_arrays
from tfopt.datasets import EpochBatches

LOGGERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.History,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)


@dataclass(frozen=True)
class RunningFit:
    """The `fit` that is calling a callback."""

    callbacks: list[keras.callbacks.Callback]  # In their order, with Keras's own (History, progress bar).
    given: dict[str, Any] = field(default_factory=dict)  # The local variables of `fit`; empty in other loops.

    @property
    def epoch_iterator(self) -> Any:
        """What serves the batches of the training data; None where Keras does not show it."""
        return self.given.get("epoch_iterator")

    @property
    def class_weight(self) -> dict[int, float] | None:
        """The weights of classes that were given to `fit`, if any."""
        return self.given.get("class_weight")

    @property
    def validation(self) -> Any:
        """The inputs of validation arrays, or the validation data set; None without validation."""
        return self.given.get("val_x")


def has_call(model: Any) -> bool:
    """Return whether a model has a `call`; some models have only a `train_step` that calls their parts."""
    missing = (keras.Model.call, keras.layers.Layer.call)
    return "call" in vars(model) or getattr(type(model), "call", None) not in missing


def check_has_call(name: str, model: Any) -> None:
    """Raise ValueError if the callback `name` cannot measure a model, which has no outputs to compare with targets."""
    if not has_call(model):
        raise ValueError(
            f"{name} cannot measure {type(model).__name__}, which has a train_step and no call(): nothing says what "
            "its loss compares with the targets. Add a method call(inputs) that returns the outputs for `loss`; or "
            "measure one part of the model in a callback of your own, with "
            "tfopt.curvature.HessianOperator(model.part, loss, x, y)"
        )


def is_stopped(model: Any) -> bool:
    """Return whether a callback has stopped the training of a model; loops other than `fit` may leave this open."""
    return bool(getattr(model, "stop_training", False))


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
    optimizer = compiled_optimizer_of(model)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)


def build_on(model: Any, x: Any) -> None:
    """Build a model that waits for its first batch on the inputs `x`, which uses up no shuffle of the training data."""
    if not model.built:
        floats = keras.config.floatx()
        model(map_arrays(lambda leaf: tf.cast(leaf, floats) if leaf.dtype.is_floating else leaf, x))


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


def batch_size_of(running: RunningFit, num_ranks: int) -> int | None:
    """Return the rows in a batch of one rank of the training data; None where Keras does not know it."""
    batches = epoch_batches_of(running)
    if isinstance(batches, EpochBatches):
        return batches.batch_size // num_ranks
    size = getattr(getattr(running.epoch_iterator, "data_adapter", None), "batch_size", None)
    return None if size is None else int(size)


def come_last(callback: keras.callbacks.Callback) -> None:
    """Move a callback behind all others, while its `set_model` is being called."""
    if (found := list_with(callback)) is not None:
        # Make another list, because Keras is iterating over the old one.
        found.callbacks = [*(other for other in found.callbacks if other is not callback), callback]


def come_before_loggers(callback: keras.callbacks.Callback) -> None:
    """Move a callback that writes into `logs` before Keras's loggers, while its `on_train_begin` is being called."""
    if (found := list_with(callback)) is not None:
        here = found.callbacks.index(callback)
        first = next((i for i, c in enumerate(found.callbacks[:here]) if isinstance(c, LOGGERS)), here)
        # The callbacks in between move up by one, so an iteration over this list goes on with the next callback.
        found.callbacks.insert(first, found.callbacks.pop(here))


class _Last(keras.callbacks.Callback):
    """Stands behind all other callbacks for the beginning of one batch, and acts then."""

    def __init__(self, found: Any, act: Callable[[], None]) -> None:
        super().__init__()
        self._found, self._act = found, act

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Make another list, because Keras is iterating over the old one.
        self._found.callbacks = [other for other in self._found.callbacks if other is not self]
        self._act()


def act_after_batch_begin(callback: keras.callbacks.Callback, act: Callable[[], None]) -> None:
    """Call `act` after all callbacks have acted, while `on_train_batch_begin` of a callback is being called."""
    if (found := list_with(callback)) is not None:
        found.callbacks.append(_Last(found, act))  # Keras's iteration over this list ends with it.
    else:
        act()


def find_running_fit(callback: keras.callbacks.Callback) -> RunningFit:
    """Search the call stack for Keras's callbacks and the data of `fit`; without a `fit`, return only this callback."""
    found = list_with(callback)
    if found is None:
        return RunningFit([callback])
    given: dict[str, Any] = next(fits_in(), {})
    return RunningFit(list(found.callbacks), {name: given[name] for name in _keras.LOCALS_OF_FIT if name in given})
