"""Runs the table of optimizers on the backend that KERAS_BACKEND names, and saves the results.

KERAS_BACKEND=torch python tests/support/run_on_backend.py /tmp/results.npz
"""

import sys

import keras
import numpy as np
from optimizer_table import TABLE, WAYS_TO_STEP
from trajectories import make_problem, run

from tfopt.optimizers import LARS, Fromage


def train_model(optimizer):
    keras.utils.set_random_seed(0)  # this imports TensorFlow if it is installed, and so does `fit`
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 6)).astype("float32")
    y = (x[:, :1] > 0).astype("float32")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)])
    model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
    return model.fit(x, y, batch_size=16, epochs=6, verbose=0).history["loss"]


def exclude_late(optimizer):
    """The outcome of late exclusions: outside TensorFlow, Keras matches names with the last part of a path."""
    variables = [keras.Variable([1.0, 2.0], name=name) for name in ("kernel", "bias")]
    optimizer.exclude_from_weight_decay(var_names=["bias$"])
    optimizer.build(variables)
    ends = []
    for request in ({"var_names": ["bias$"]}, {"var_list": variables[1:]}, {"var_names": ["kernel"]}):
        try:
            optimizer.exclude_from_weight_decay(**request)
            ends.append("accepted")
        except ValueError:
            ends.append("refused")
    return ends


def main(path):
    weights, gradients = make_problem()
    results = {}
    for name, row in TABLE.items():
        for dtype in ("float32", "bfloat16"):
            final = run(row.make(), weights, gradients, dtype, "eager")
            results |= {f"{name}/{dtype}/{index}": array for index, array in enumerate(final)}
    for optimizer in (Fromage(weight_decay=0.1), LARS(weight_decay=0.1)):
        results[f"exclusions of {type(optimizer).__name__}"] = np.array(exclude_late(optimizer))
    for label, scale in (("tiny gradient", 1e-30), ("ordinary gradient", 1.0)):
        scaled = [[scale * np.abs(g) + scale for g in gradients[0]]]
        results[label] = run(Fromage(), weights, scaled, "float32", "eager")[0]
    if keras.backend.backend() != "tensorflow":
        assert "tensorflow" not in sys.modules, "the optimizers imported TensorFlow"
    for name in WAYS_TO_STEP:
        row = TABLE[name]
        results[f"{name}/losses"] = train_model(row.make(learning_rate=min(0.1, row.learning_rate)))
    np.savez(path, **results)


if __name__ == "__main__":
    main(sys.argv[1])
