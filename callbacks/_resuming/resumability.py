"""Which callbacks and data allow training to be resumed."""

import types
import warnings
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras
from tfopt._checkpoints.callback_states import STATE_OF, has_methods, refuse_overwriting_loggers
from tfopt._keras import context, data_adapters
from tfopt.callbacks._resuming.dataset_order import is_shuffled, why_lost
from tfopt.callbacks._resuming.row_order import shuffles_arrays, shuffles_batches, why_not_taken_over
from tfopt.callbacks._resuming.traced_step import (
    changed_variables,
    graphs_of,
    has_unseeded_shuffle,
    python_calls,
    random_operations,
)
from tfopt.callbacks._resuming.training_state import describe
from tfopt.callbacks._running_fit import RunningFit

_STATELESS = (
    keras.callbacks.History,
    keras.callbacks.LambdaCallback,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TerminateOnNaN,
)
_ADVICE = "Use tfopt.datasets.EpochBatches(x, y, batch_size=...), whose order follows from its seed and the epoch"


def check_callbacks(callbacks: list[Any]) -> None:
    """Raise ValueError for callbacks that would restore the model too, or overwrite the logs of earlier epochs."""
    refuse_overwriting_loggers(callbacks)
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                f"ResumableCheckpoint does not work together with {type(callback).__name__}: both would restore the "
                "model. ResumableCheckpoint does all that it does; leave it out"
            )


def check_averages(callbacks: list[Any], state: dict[str, Any], epochs: int | None) -> None:
    """Raise ValueError if averages replaced the weights after the last epoch, and more epochs are asked for."""
    swaps = any(isinstance(c, keras.callbacks.SwapEMAWeights) and c.swap_on_epoch for c in callbacks)
    if swaps and not state["stopped"] and state["planned"] == state["epochs"] < (epochs or 0):
        raise ValueError(
            f"SwapEMAWeights(swap_on_epoch=True) has put averages in the place of the weights after the last epoch, "
            f"{state['epochs']}, so training cannot go on from there to {epochs} epochs. Delete the folder to begin "
            "anew, with all epochs from the start"
        )


def unknown_among(callbacks: list[Any], stateless: tuple[type, ...]) -> list[Any]:
    """Return callbacks whose state is not known; a subclass of Keras's callbacks may have a state of its own."""
    return [
        callback
        for callback in callbacks
        if type(callback) not in (*_STATELESS, *STATE_OF)
        and not isinstance(callback, stateless)
        and not has_methods(callback)
    ]


def functions_in(callbacks: list[Any]) -> dict[str, Any]:
    """Return the functions in Keras's callbacks that call functions, by location."""
    kinds = (keras.callbacks.LambdaCallback, keras.callbacks.LearningRateScheduler)
    return {
        f"{type(callback).__name__} number {index}'s {name}": value
        for index, callback in enumerate(callbacks)
        if isinstance(callback, kinds)
        for name, value in vars(callback).items()
        if callable(value) and not isinstance(value, keras.Model)
    }


def check_data(epoch_iterator: Any, stateless: tuple[type, ...]) -> None:
    """Raise ValueError if the order of data depends on a state that cannot be saved; `stateless` classes have none."""
    adapter: Any = getattr(epoch_iterator, "data_adapter", None)
    kind = type(adapter).__name__
    if _keras.array_shuffle(adapter, False) and not shuffles_arrays(epoch_iterator):
        raise ValueError(
            "`fit` shuffles these arrays with a random number generator whose state cannot be saved: "
            f"{why_not_taken_over(epoch_iterator)}. {_ADVICE}, or fit(..., shuffle=False)"
        )
    if kind == "TFDatasetAdapter":
        _check_dataset(_keras.dataset(adapter), stateless)
    if kind == "PyDatasetAdapter":
        _check_py_dataset(adapter.py_dataset, stateless)
        if shuffles_batches(epoch_iterator) and context.global_seed() is not None:
            raise ValueError(
                f"`fit` shuffles the batches of {type(adapter.py_dataset).__name__} with Python's random numbers, in a "
                "thread, so that their state cannot be saved. The order stays Keras's, because tf.random has a seed. "
                "Use fit(..., shuffle=False); tfopt.datasets.EpochBatches shuffles rows itself"
            )
    if kind == "GeneratorDataAdapter":
        raise ValueError(f"`fit` reads from a generator, whose position cannot be saved. {_ADVICE}")
    if kind in ("TorchDataLoaderAdapter", "GrainDatasetAdapter"):
        _check_unknown(_keras.dataloader(adapter, None) or _keras.dataset(adapter, None), stateless)
    steps = getattr(epoch_iterator, "steps_per_epoch", None)
    goes_on = kind == "TFDatasetAdapter" or (kind == "ArrayDataAdapter" and not _keras.array_shuffle(adapter))
    if steps is not None and steps != adapter.num_batches and not goes_on:
        raise ValueError(
            "With `steps_per_epoch` an epoch goes on where the one before has ended. That position can be saved only "
            "for a tf.data.Dataset and for arrays with shuffle=False. Leave `steps_per_epoch` out"
        )
    moves = kind == "TFDatasetAdapter" and (steps is not None or is_shuffled(_keras.dataset(adapter)))
    if moves and not isinstance(_keras.distributed_dataset(epoch_iterator), tf.data.Dataset):
        raise ValueError(
            "The tf.data.Dataset is spread over devices, where its position cannot be saved. Leave "
            f"`steps_per_epoch` out, and use shuffle(..., reshuffle_each_iteration=False). {_ADVICE}"
        )


def check_validation(running: RunningFit, stateless: tuple[type, ...]) -> None:
    """Refuse validation data that differ after a restart if a callback decides by them; otherwise warn."""
    try:
        _check_validation_data(running, stateless)
    except ValueError as error:
        text = f"The validation data cannot be resumed: {error}"
        deciding = [type(callback).__name__ for callback in running.callbacks if _decides_by_validation(callback)]
        if deciding:
            raise ValueError(f"{text}. {', '.join(deciding)} would decide by other numbers") from error
        warnings.warn(f"{text}. After a restart, metrics with val_ will differ", stacklevel=3)


def _check_validation_data(running: RunningFit, stateless: tuple[type, ...]) -> None:
    data = running.validation
    if isinstance(data, tf.data.Dataset):
        _check_dataset(data, stateless, leaves_off=running.given.get("validation_steps") is not None)
    elif isinstance(data, keras.utils.PyDataset):
        _check_py_dataset(data, stateless)
    elif isinstance(data, types.GeneratorType):
        raise ValueError("they come from a generator, whose position cannot be saved. Use arrays")
    elif data_adapters.is_torch_dataloader(data) or data_adapters.is_grain_dataset(data):
        _check_unknown(data, stateless)


def _decides_by_validation(callback: Any) -> bool:
    monitored = str(getattr(callback, "monitor", ""))
    saves_always = isinstance(callback, keras.callbacks.ModelCheckpoint) and not callback.save_best_only
    return monitored.startswith("val_") and not saves_always


def _check_unknown(data: Any, stateless: tuple[type, ...]) -> None:
    if not isinstance(data, stateless):
        name = type(data).__name__
        raise ValueError(
            f"It is not known in which order {name} serves its batches after a restart. {_ADVICE}; or pass "
            f"stateless=[{name}] if it serves the same batches in each epoch"
        )


def _check_py_dataset(data: Any, stateless: tuple[type, ...]) -> None:
    name = type(data).__name__
    if not hasattr(data, "start_at") and not isinstance(data, stateless):
        raise ValueError(
            f"It is not known in which order {name} serves its batches after a restart. {_ADVICE}; or give {name} a "
            f"method start_at(epoch), called before each epoch; or pass stateless=[{name}] if it serves the same "
            "batches in each epoch"
        )


def _check_dataset(dataset: Any, stateless: tuple[type, ...], leaves_off: bool = False) -> None:
    if reason := why_lost(dataset, leaves_off):
        raise ValueError(
            f"The order in which the tf.data.Dataset is shuffled cannot be saved: {reason}. Seeds come from "
            "keras.utils.set_random_seed(...) before the data set is made, or shuffle(..., seed=...). Operations such "
            f"as cache and repeat go before `shuffle`. {_ADVICE}, or shuffle(..., seed=..., "
            "reshuffle_each_iteration=False)"
        )
    if isinstance(dataset, tf.data.Dataset) and dataset.options().deterministic is False:
        raise ValueError(
            "The tf.data.Dataset serves rows in the order in which they are ready, which differs in each run, because "
            "its options have deterministic=False. Remove that option"
        )
    for part, graph in graphs_of(dataset):
        if (calls := python_calls(graph)) and not isinstance(dataset, stateless):
            raise ValueError(
                f"The tf.data.Dataset calls Python by {', '.join(sorted(calls))}, which may have a state that cannot "
                f"be saved. {_ADVICE}, or TensorFlow's own functions, or tf.numpy_function(..., stateful=False); or "
                "pass stateless=[tf.data.Dataset] if it serves the same batches in each epoch"
            )
        if _keras.dataset_deterministic(part, None) == "false":
            raise ValueError(
                f"The tf.data.Dataset serves rows in the order in which they are ready, which differs in each run, "
                f"because a {type(part).__name__.strip('_')} has deterministic=False. Remove that argument"
            )
        if has_unseeded_shuffle(graph):
            raise ValueError(
                "A function in the tf.data.Dataset shuffles another data set without a seed, so that its order differs "
                "in each run. Use shuffle(..., seed=...) there"
            )
        is_parallel = "Parallel" in type(part).__name__
        drawn = {kind: has_seed for kind, has_seed in random_operations(graph).items() if is_parallel or not has_seed}
        if drawn:
            raise ValueError(
                f"A function in the tf.data.Dataset draws random numbers by TensorFlow's {', '.join(drawn)}, which "
                "differ in each run. Use tf.random's stateless functions with a seed that follows from the row, or "
                "layers inside the model"
            )
        if changed := changed_variables(graph):
            names = ", ".join(describe(variable) for variable in changed)
            raise ValueError(
                f"A function in the tf.data.Dataset changes a variable, whose state cannot be saved, because data are "
                f"prepared before they are needed: {names}. Put random layers inside the model, or use tf.random's "
                "stateless functions with a seed that follows from the row"
            )
