"""The contract: one case is an optimizer in some setting with one feature of Keras, compared with its equations.

All combinations of tfopt's classes, execution and dtype occur. The other factors are spread over these cases so that
every pair of values of any two factors occurs, but those of the guide's optimizer and of a setting that is not the
first of its class: what Keras does around a step is the same for all settings of a class, and the guide's optimizer has
no more of its own than a step. Such a setting occurs eagerly, where the fused kernels serve it, and under XLA, which
traces the plain step as a graph does. The guide's optimizer occurs in every execution.
"""

import functools
import itertools
import pickle
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from optimizer_table import CLASSES
from prescribed_gradients import SHAPES, make_data, make_gradients, make_model, mean_of_outputs

EPOCHS = 3  # in each of the two fits, before and after the round trip
EXECUTIONS = ("eager", "graph", "xla")
IN_FULL = CLASSES[:2]  # of tfopt; the third is the guide's
DTYPES = ("float32", "float16", "bfloat16", "mixed_float16")
FUSED = ("float32", "mixed_float16")  # variables of float32, which the fused kernels serve outside XLA
GRADIENTS = ("dense", "sparse")
FEATURES = ("plain", "schedule", "plateau", "clipping", "ema", "accumulation", "frozen")
ROUND_TRIPS = ("none", "keras", "weights", "checkpoint", "pickle")
# The expected weights are rounded to the variable's type after each step, so half precision needs tolerances little
# larger than float32: a few weights are rounded in the other direction.
TOLERANCES = {"float32": 1e-5, "mixed_float16": 1e-5, "float16": 5e-4, "bfloat16": 2e-3}
# Keras clips and averages in the variable's type in each step.
KERAS_TOLERANCES = {**TOLERANCES, "float16": 1e-2, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    optimizer: str
    execution: str
    dtype: str
    gradient: str
    feature: str
    round_trip: str

    def __str__(self):
        return "-".join(self.values())

    def values(self):
        return (self.optimizer, self.execution, self.dtype, self.gradient, self.feature, self.round_trip)


def combinations_of(values, size):
    return set(itertools.combinations(enumerate(values), size))


def make_cases(optimizers):
    """One case for each class in full x execution x dtype, and for each other setting x execution that says more.

    Each case takes those values of the other factors that add the most new pairs, and among those the most new triples.
    """
    seen, cases = set(), []

    def gain(values):
        return [len(combinations_of(values, size) - seen) for size in (2, 3)]

    def add_best_of(*factors):
        best = max(itertools.product(*factors), key=gain)
        seen.update(combinations_of(best, 2), combinations_of(best, 3))
        cases.append(Case(*best))

    for optimizer, execution, dtype in itertools.product(IN_FULL, EXECUTIONS, DTYPES):
        add_best_of([optimizer], [execution], [dtype], GRADIENTS, FEATURES, ROUND_TRIPS)
    for optimizer, execution in itertools.product(optimizers, EXECUTIONS):
        if optimizer not in IN_FULL and (optimizer in CLASSES or execution != "graph"):
            dtypes = FUSED if execution == "eager" else DTYPES
            add_best_of([optimizer], [execution], dtypes, GRADIENTS, FEATURES, ROUND_TRIPS)
    return cases


def tolerance_of(case):
    tolerances = KERAS_TOLERANCES if case.feature in ("clipping", "ema") else TOLERANCES
    return tolerances[case.dtype]


def missing_pairs(cases):
    factors = (IN_FULL, EXECUTIONS, DTYPES, GRADIENTS, FEATURES, ROUND_TRIPS)
    wanted = {
        ((i, a), (j, b))
        for i, j in itertools.combinations(range(len(factors)), 2)
        for a, b in itertools.product(factors[i], factors[j])
    }
    return wanted - set().union(*(combinations_of(case.values(), 2) for case in cases))


def make_optimizer(row, case):
    rate = row.learning_rate
    features = {
        "schedule": lambda: {"learning_rate": keras.optimizers.schedules.ExponentialDecay(rate, 5, 0.5)},
        "clipping": lambda: {"global_clipnorm": 0.7},
        "ema": lambda: {"use_ema": True, "ema_momentum": 0.8},
        "accumulation": lambda: {"gradient_accumulation_steps": 2},
    }
    return row.make(**features.get(case.feature, dict)())


def compile_model(model, optimizer, case):
    model.get_layer("weight_kernel").trainable = case.feature != "frozen"
    model.compile(
        optimizer,
        mean_of_outputs,
        jit_compile=case.execution == "xla",
        run_eagerly=case.execution == "eager",
    )
    return model


@functools.cache
def make_batches(sparse):
    """Batches of one row."""
    data = make_data()[1]
    inputs = {name: values.astype("int32" if name == "rows" else "float32") for name, values in data.items()}
    if not sparse:
        del inputs["rows"], inputs["factors"]
    return tf.data.Dataset.from_tensor_slices((inputs, np.zeros(len(inputs["bias"]), "float32"))).batch(1)


def run(row, case, folder):
    """The weights after a fit, a round trip and another fit, by name."""
    keras.config.set_dtype_policy(case.dtype)
    weights, _ = make_data()
    sparse = case.gradient == "sparse"

    def fresh():
        model = compile_model(make_model(sparse, weights), make_optimizer(row, case), case)
        if case.round_trip != "none":  # there `fit` builds the optimizer, for which it traces a second time
            model.optimizer.build(model.trainable_variables)
        return model

    def fit(model):
        plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.1, patience=1, min_delta=1e9, min_lr=0)
        callbacks = [plateau] if case.feature == "plateau" else []
        model.fit(make_batches(sparse), epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)

    model = fresh()
    fit(model)
    model = ROUND_TRIP[case.round_trip](model, fresh, folder)
    fit(model)
    found = {v.path.split("/")[-2].removeprefix("weight_"): v for v in model.variables}
    names = [*SHAPES, *["table"] * sparse]
    return {name: keras.ops.convert_to_numpy(keras.ops.cast(found[name].value, "float64")) for name in names}


def _through_keras_file(model, fresh, folder):
    model.save(folder / "model.keras")
    loaded = keras.models.load_model(folder / "model.keras")
    loaded.run_eagerly = model.run_eagerly
    return loaded


def _through_weights(model, fresh, folder):
    model.save_weights(folder / "model.weights.h5")
    loaded = fresh()
    loaded.load_weights(folder / "model.weights.h5")
    return loaded


def _through_checkpoint(model, fresh, folder):
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(folder / "checkpoint")
    loaded = fresh()
    tf.train.Checkpoint(model=loaded, optimizer=loaded.optimizer).restore(path).assert_consumed()
    return loaded


ROUND_TRIP = {
    "none": lambda model, fresh, folder: model,
    "keras": _through_keras_file,
    "weights": _through_weights,
    "checkpoint": _through_checkpoint,
    "pickle": lambda model, fresh, folder: pickle.loads(pickle.dumps(model)),
}


def expect(row, case):
    """The weights from the equations, step by step, in float64."""
    compute_dtype = {"mixed_float16": "float16"}.get(case.dtype, case.dtype)
    variable_dtype = {"mixed_float16": "float32"}.get(case.dtype, case.dtype)
    weights, data = make_data()
    sparse = case.gradient == "sparse"
    steps = make_gradients(data, sparse, compute_dtype)
    names = [name for name in steps[0] if case.feature != "frozen" or name != "kernel"]

    def stored(arrays):
        """The values after rounding to the variable's type."""
        tensors = [keras.ops.cast(keras.ops.cast(a.astype("float32"), variable_dtype), "float64") for a in arrays]
        return [keras.ops.convert_to_numpy(tensor) for tensor in tensors] if variable_dtype != "float32" else arrays

    rounded = dict(zip(weights, stored([w.astype("float32").astype("float64") for w in weights.values()]), strict=True))
    current, oracle = [rounded[name] for name in names], row.make_oracle()
    averages, waiting, num_steps = None, None, 0
    for epoch in range(2 * EPOCHS):
        for step in steps:
            gradients = [step[name] for name in names]
            if case.feature == "clipping":
                total = np.sqrt(sum(np.sum(g**2) for g in gradients))
                gradients = [g * min(1.0, 0.7 / total) for g in gradients]
            rate = row.learning_rate
            if case.feature == "schedule":
                rate *= 0.5 ** (num_steps / 5)
            elif case.feature == "plateau":
                # The first epoch of each fit counts as an improvement, later ones do not: the rate falls after them.
                rate *= 0.1 ** sum(1 for earlier in range(epoch) if earlier % EPOCHS > 0)
            num_steps += 1
            if case.feature == "accumulation":
                if waiting is None:
                    waiting = gradients
                    continue
                gradients, waiting = [a + b for a, b in zip(waiting, gradients, strict=True)], None
                gradients = [g / 2 for g in stored(gradients)]
            current = stored(oracle.step(current, gradients, rate))
            if case.feature == "ema":
                old = current if averages is None else averages
                averages = stored([0.8 * a + 0.2 * c for a, c in zip(old, current, strict=True)])
        if case.feature == "ema" and (epoch + 1) % EPOCHS == 0:
            current = averages  # the end of `fit` puts the averages in place
    return {**{name: rounded[name] for name in steps[0]}, **dict(zip(names, current, strict=True))}
