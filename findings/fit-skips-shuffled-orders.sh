#!/usr/bin/env bash
# TensorFlow 2.21.0, Keras 3.15.1: the order of a shuffled tf.data.Dataset is drawn when an iterator is made, also by one
# that no row is taken from. `fit` makes two iterators per epoch if it knows the number of batches, and one if not.
#
# So the same seeded data in the same order of epochs reach the model in other orders once a `filter`, which drops nothing,
# hides the number of batches. A callback that looks at a data set, `iter(data)` and no more, changes all later epochs.
# Two runs are comparable only if both know the number of batches, and nothing else has touched the data set.
#
# Seen: of the orders that the data set itself serves, `fit` trains on numbers 0, 2, 4 and 6, and behind `filter` on
# 0, 1, 2 and 3; after `iter(data)` the first order served is number 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import tensorflow as tf


def make():
    keras.utils.set_random_seed(1)
    return tf.data.Dataset.range(6).shuffle(6)


def serve(data, count):
    return [[int(row) for row in data.as_numpy_iterator()] for _ in range(count)]


class Watching(keras.Model):
    """Notes the rows of each step, which is a whole epoch."""

    def __init__(self):
        super().__init__()
        self.built, self.rows = True, []

    def train_step(self, batch):
        self.rows.append(batch.numpy().tolist())
        return {"loss": 0.0}


def rows_of_fit(data):
    model = Watching()
    model.compile(run_eagerly=True)
    model.fit(data.batch(6), epochs=4, verbose=0)
    return model.rows


orders = serve(make(), 8)
known = [orders.index(rows) for rows in rows_of_fit(make())]
unknown = [orders.index(rows) for rows in rows_of_fit(make().filter(lambda row: True))]
print("orders of fit:", known, "behind filter:", unknown)
assert known == [0, 2, 4, 6] and unknown == [0, 1, 2, 3]
touched = make()
iter(touched)
print("first order after iter(data):", orders.index(serve(touched, 1)[0]))
assert serve(touched, 1) == orders[2:3]
PYTHON
