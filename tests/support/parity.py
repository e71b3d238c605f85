"""The same training in one process and on several ranks, which differ only in the rows of each process."""

import keras
import numpy as np

from tfopt.datasets import EpochBatches
from tfopt.optimizers import LARS, Fromage

NUM_ROWS, GLOBAL_BATCH, EPOCHS = 60, 12, 2  # 12 rows divide by 2 and by 3 ranks
VOCABULARY = 10_000  # in float64 and float32 the table is too large to be averaged as a dense one by default
OPTIMIZERS = {
    "sgd": lambda **kwargs: keras.optimizers.SGD(**{"learning_rate": 0.05, **kwargs}, momentum=0.9),
    "adam": lambda **kwargs: keras.optimizers.Adam(**{"learning_rate": 0.01, **kwargs}),
    "fromage": lambda **kwargs: Fromage(**{"learning_rate": 0.01, **kwargs}),
    "lars": lambda **kwargs: LARS(**{"learning_rate": 0.5, **kwargs}, weight_decay=1e-3),
}
EXECUTIONS = {"eager": {"run_eagerly": True}, "many_steps": {"steps_per_execution": 3}}
FEATURES = ("plain", "clipping", "accumulation", "overflow", "sparse", "schedule")
# SGD shows every wrong factor, which the others hide where they normalise gradients: it occurs with every feature. Each
# other optimizer occurs with two, since what is done for a feature does not depend on the optimizer.
OTHERS = ["adam-clipping", "adam-sparse", "fromage-plain", "fromage-overflow", "lars-accumulation", "lars-schedule"]
ON_THREE_RANKS = ["sgd-plain", "sgd-clipping", "sgd-accumulation", "sgd-overflow", "adam-sparse", "lars-schedule"]
# Mixtures of features and other executions occur with one optimizer each, on two ranks.
MIXTURES = ["lars-overflow_accumulation", "sgd-float32", "lars-eager", "sgd-many_steps"]
CASES = [*(f"sgd-{feature}" for feature in FEATURES), *OTHERS, *MIXTURES]


def cases(num_ranks):
    return CASES if num_ranks == 2 else ON_THREE_RANKS


def make_data(feature):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(NUM_ROWS, 4))
    y = np.tanh(x[:, :1] - x[:, 1:2]) + 0.1 * rng.normal(size=(NUM_ROWS, 1))
    if feature.startswith("overflow"):
        y[17] = 6e4  # one row, and so one rank, has gradients that overflow in half precision once per epoch
    if feature == "sparse":
        return [x, rng.permutation(VOCABULARY)[:NUM_ROWS, None].astype("int32")], y
    return x, y


def make_model(feature):
    inputs = [keras.Input((4,))]
    hidden = keras.layers.Dense(5, activation="tanh", kernel_initializer=keras.initializers.HeNormal(1))(inputs[0])
    if feature == "sparse":
        inputs.append(keras.Input((1,), dtype="int32"))
        table = keras.layers.Embedding(VOCABULARY, 5, embeddings_initializer=keras.initializers.RandomNormal(seed=2))
        hidden = keras.layers.Add()([hidden, keras.layers.Flatten()(table(inputs[1]))])
    output = keras.layers.Dense(1, kernel_initializer=keras.initializers.HeNormal(3), dtype=_output_dtype())(hidden)
    return keras.Model(inputs, output)


def _output_dtype():
    return "float64" if keras.config.floatx() == "float64" else "float32"


def make_optimizer(case):
    name, feature = case.split("-")
    rate = {"sgd": 0.05, "adam": 0.01, "fromage": 0.01, "lars": 0.5}[name]
    features = {
        "clipping": lambda: {"global_clipnorm": 0.3},
        "accumulation": lambda: {"gradient_accumulation_steps": 2},
        "overflow_accumulation": lambda: {"gradient_accumulation_steps": 2},
        "schedule": lambda: {"learning_rate": keras.optimizers.schedules.ExponentialDecay(rate, 3, 0.5)},
    }
    optimizer = OPTIMIZERS[name](**features.get(feature, dict)())
    if feature.startswith("overflow"):
        # The scale starts small and grows, so that the first overflow comes from the row and not from the scale.
        return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**8, dynamic_growth_steps=3)
    return optimizer


def set_precision(feature):
    if feature.startswith("overflow"):
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("mixed_float16")
    elif feature != "float32":
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")


def train(case, communicator, wrap=lambda optimizer: optimizer):
    """Train, and return everything that must not depend on the number of ranks."""
    feature = case.split("-")[1]
    set_precision(feature)
    try:
        x, y = make_data(feature)
        model = make_model(feature)
        model.compile(wrap(make_optimizer(case)), "mse", jit_compile=False, **EXECUTIONS.get(feature, {}))
        if feature != "plain":  # there `fit` builds the optimizer, for which it traces its step twice
            model.optimizer.build(model.trainable_variables)
        batches = EpochBatches(x, y, batch_size=GLOBAL_BATCH, seed=3, communicator=communicator)
        model.fit(batches, shuffle=False, epochs=EPOCHS, verbose=0)
        optimizer = model.optimizer
        result = {f"weight{place}": np.array(weight) for place, weight in enumerate(model.get_weights())}
        result["iterations"] = keras.ops.convert_to_numpy(optimizer.iterations)
        if feature.startswith("overflow"):
            result["scale"] = keras.ops.convert_to_numpy(optimizer.dynamic_scale)
        return result
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
