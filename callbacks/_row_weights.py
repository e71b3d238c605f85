"""The weights that a `fit` gives its rows, for the probe."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import class_weight_to_sample_weights, make_class_weight_map_fn
from tfopt.callbacks._running_fit import RunningFit
from tfopt.callbacks._step_count import has_keras_train_step
from tfopt.curvature.batch import Batch
from tfopt.curvature.probe import Probe


def weigh_as_fit_does(name: str, probe: Probe, running: RunningFit, model: Any) -> Probe:
    """Return the probe with the weights of `fit(class_weight=...)`; `probe` itself if it has weights, or `fit` none."""
    if any(batch.sample_weight is not None for batch in probe.batches):
        return probe
    if running.class_weight is not None:
        return _weigh(name, probe, running)
    if has_row_weights(running, model):
        raise ValueError(
            f"{name} would measure another loss than `fit` minimises: `fit` weights its rows by `sample_weight`, and "
            "the rows of `data` have no weights. Pass data=(x, y, sample_weight), or a data set that "
            "has weights; weights of 1 measure the unweighted loss"
        )
    return probe


def _weigh(name: str, probe: Probe, running: RunningFit) -> Probe:
    is_data_set = type(getattr(running.epoch_iterator, "data_adapter", None)).__name__ == "TFDatasetAdapter"
    made = []
    for batch in probe.batches:
        if batch.y is None or isinstance(batch.y, dict | list | tuple):
            raise ValueError(
                f"{name} cannot apply the class_weight of `fit` to `data`, which must have one array of targets. "
                f"Received: {'none' if batch.y is None else f'a {type(batch.y).__name__} of them'}"
            )
        if is_data_set:  # Use the function of `fit`: the two differ for targets of several dimensions.
            weights = make_class_weight_map_fn(running.class_weight)(batch.x, batch.y)[2]
        else:
            weights = tf.constant(class_weight_to_sample_weights(batch.y, running.class_weight))
        made.append(Batch(batch.x, batch.y, weights, batch.num_rows))
    return Probe.from_batches(made)


def has_row_weights(running: RunningFit, model: Any) -> bool:
    """Return whether `fit` was given weights of rows other than 1, by `sample_weight` or in a data set."""
    if running.given.get("sample_weight") is not None:
        leaves = tf.nest.flatten(running.given.get("sample_weight"))
        return any(leaf is not None and not np.all(np.asarray(leaf) == 1) for leaf in leaves)
    if not has_keras_train_step(model):
        return False  # The model decides what the third part of its data means.
    spec = getattr(_keras.distributed_dataset(running.epoch_iterator, None), "element_spec", None)
    return (
        isinstance(spec, tuple)
        and len(spec) == 3
        and any(isinstance(leaf, tf.TensorSpec) for leaf in tf.nest.flatten(spec[2]))
    )
