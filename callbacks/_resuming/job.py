"""The properties that a resumed training must share with the training that it continues."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._row_checksum import checksum_of
from tfopt.callbacks._object_graph import is_of_a_library
from tfopt.callbacks._resuming.dataset_order import description_of, sources_of, stages_of
from tfopt.callbacks._resuming.layer_arguments import layer_arguments, own_attributes, shorten, trainable_flags
from tfopt.callbacks._resuming.optimizer_arguments import arguments_of, describe
from tfopt.callbacks._running_fit import RunningFit
from tfopt.datasets import EpochBatches

_MOST = 6  # Largest number of differences in a message.


def setup_of(model: Any) -> dict[str, str]:
    """Return what a script decides about a built model (layers, trainable flags, loss, optimizers), as text by name."""
    return {**arguments_of(model), **_loss_arguments(model), **trainable_flags(model), **layer_arguments(model)}


def arguments_of_job(model: Any, running: RunningFit, order: str) -> dict[str, str]:
    """Return what a script decides about a training, with the source of the order of rows, as text by name."""
    return {**data_of(running), **setup_of(model), **own_attributes(model), "order of rows": order}


def data_of(running: RunningFit) -> dict[str, str]:
    """Return properties that identify the training data of a `fit`, as text by name."""
    adapter: Any = getattr(running.epoch_iterator, "data_adapter", None)
    found: dict[str, Any] = {"number of batches": getattr(running.epoch_iterator, "num_batches", None)}
    kind = type(adapter).__name__
    if kind == "ArrayDataAdapter":
        found |= {"batch_size": _keras.array_batch_size(adapter), "number of rows": _keras.array_num_samples(adapter)}
        parts = keras.utils.unpack_x_y_sample_weight(_keras.array_inputs(adapter))
        for name, part in zip(("x", "y", "sample_weight"), parts, strict=True):
            found[f"checksum of {name}"] = None if part is None else checksum_of(part)
    elif kind == "PyDatasetAdapter":
        found |= _py_dataset_arguments(getattr(adapter.py_dataset, "in_its_own_order", adapter.py_dataset))
    elif kind == "TFDatasetAdapter" and isinstance(dataset := _keras.dataset(adapter), tf.data.Dataset):
        found |= {"batches": str(dataset.element_spec), "data set": description_of(dataset) or None}
        if not _writes_files(dataset):
            sources = list(sources_of(dataset))
            found["checksum of the first batches"] = [checksum_of(list(source.take(2))) for source in sources]
    if running.class_weight is not None:
        found["class_weight"] = {int(label): float(weight) for label, weight in running.class_weight.items()}
    return {name: shorten(describe(value)) for name, value in found.items() if value is not None}


def changed_by_training(model: Any, began: dict[str, str]) -> dict[str, str]:
    """Return the arguments that training has changed since it began, without another `compile`, as text by name."""
    now = {**arguments_of(model), **_loss_arguments(model), **layer_arguments(model), **own_attributes(model)}
    return {name: text for name, text in now.items() if began.get(name) != text}


def differences(
    there: dict[str, str], here: dict[str, str], changed: dict[str, str], is_living: bool = False
) -> list[str]:
    """Return texts with both values of the first 6 differences between two trainings, and the number of the others."""
    # The values in `changed` were current when the checkpoint was saved, so the other training may have them too. If
    # the other training has the same objects (`is_living`), such values can be anything.
    names = [*there, *(name for name in here if name not in there)]
    differing = [name for name in names if there.get(name) != here.get(name)]
    differing = [
        name for name in differing if name not in changed or not (is_living or here.get(name) == changed[name])
    ]
    # An attribute that has become no plain value, such as a list that collects arrays, cannot be compared.
    differing = [name for name in differing if "'s attribute " not in name or (name in there and name in here)]
    texts = [f"{name} was {there.get(name)}, is {here.get(name)}" for name in differing]
    return texts if len(texts) <= _MOST else [*texts[:_MOST], f"and {len(texts) - _MOST} more"]


def _py_dataset_arguments(data: Any) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(data, name, None) for name in ("batch_size", "seed", "shuffle", "num_rows")}
    found = {name: value for name, value in found.items() if isinstance(value, bool | int | float | str)}
    if isinstance(data, EpochBatches):
        return {**found, **{f"checksum of {name}": value for name, value in data.checksums.items()}}
    with _drawing_nothing():
        checksums = [_checksum_of_first_batch(data) for _ in range(2)]
    if checksums[0] == checksums[1]:  # Otherwise the data draw random numbers.
        found["checksum of the first batch"] = checksums[0]
    return found


def _checksum_of_first_batch(data: Any) -> int:
    if hasattr(data, "start_at"):
        data.start_at(0)
    checksum = checksum_of(data[0])
    random.random()
    np.random.random()  # noqa: NPY002
    return checksum


@contextmanager
def _drawing_nothing() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _writes_files(dataset: Any) -> bool:
    # A cache file that was read in part blocks the next reader.
    for stage in stages_of(dataset):
        kind, filename = type(stage).__name__, _keras.cache_filename(stage, None)
        if "Snapshot" in kind or "Save" in kind:
            return True
        if "Cache" in kind and filename is not None and bytes(filename.numpy()):
            return True
    return False


def _loss_arguments(model: Any) -> dict[str, str]:
    compiled = _keras.compile_loss(model, None)
    weights = _keras.user_loss_weights(compiled, None)
    given = {**_losses("loss", getattr(model, "loss", None)), "loss_weights": weights}
    return {name: shorten(describe(value)) for name, value in given.items() if value is not None}


def _losses(name: str, loss: Any) -> dict[str, Any]:
    """Return losses by name, with one entry for each attribute of a user's loss, because its calls may change it."""
    if isinstance(loss, dict | list | tuple):
        items = loss.items() if isinstance(loss, dict) else enumerate(loss)
        return {key: value for index, item in items for key, value in _losses(f"{name}[{index!r}]", item).items()}
    if not isinstance(loss, keras.losses.Loss):
        return {name: loss}
    # Compare the attributes, because Keras leaves arguments such as Huber's delta out of the config. For losses of the
    # user, also compare the code.
    held = {
        **{key: value for key, value in vars(loss).items() if not key.startswith("_")},
        **_keras.loss_options(loss, {}),
    }
    if is_of_a_library(type(loss).__module__):
        return {name: f"{type(loss).__name__} {describe(held)}"}
    keras_own = vars(keras.losses.Loss())
    held |= {key: value for key, value in vars(loss).items() if key not in keras_own}
    attributes = {f"{name}'s attribute {key}": value for key, value in held.items() if key != "name"}
    return {name: f"{type(loss).__name__} {describe(type(loss).call)}", **attributes}
