"""Reads the event files of TensorBoard."""

from collections import defaultdict

import numpy as np
import tensorflow as tf


def read_scalars(folder):
    """The scalars in all event files in a folder and below: tag -> {step: value}."""
    found = defaultdict(dict)
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    found[value.tag][event.step] = float(np.asarray(tf.make_ndarray(value.tensor)))
    return dict(found)
