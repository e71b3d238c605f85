"""A table of every exported callback, every optimizer and every way to run a step."""

import functools

import keras
import numpy as np

import tfopt.callbacks
from tfopt.callbacks import (
    AverageMetrics,
    BroadcastVariables,
    Convexity,
    GradientBreakdown,
    GradientNoiseScale,
    Measurement,
    ResumableCheckpoint,
    WarmupLearningRate,
    WeightNorms,
)
from tfopt.optimizers import LARS, Fromage

NUM_ROWS, BATCH_SIZE, EPOCHS = 28, 4, 3  # 7 steps in an epoch
STEPS = 7
RNG = np.random.default_rng(0)
X = RNG.normal(size=(NUM_ROWS, 4)).astype("float32")
Y = X[:, :2] ** 2

OPTIMIZERS = {"adam": lambda: keras.optimizers.Adam(0.01), "fromage": Fromage, "lars": LARS}
MODES = {"eager": {"run_eagerly": True}, "graph": {}, "steps_per_execution": {"steps_per_execution": 3}}

# Name -> function that makes the callback from the probe and a folder.
CALLBACKS = {
    "AverageMetrics": lambda probe, folder: AverageMetrics(),
    "BroadcastVariables": lambda probe, folder: BroadcastVariables(),
    "Convexity": lambda probe, folder: Convexity(probe, num_matvecs=4, log_dir=folder / "own"),
    "Convexity by steps": lambda probe, folder: Convexity(
        probe, every_n_steps=4, eigenvalues=False, log_name="convexity_by_steps"
    ),
    "GradientBreakdown": lambda probe, folder: GradientBreakdown(probe, num_points=2, log_dir=folder / "own"),
    "GradientBreakdown by steps": lambda probe, folder: GradientBreakdown(
        probe, num_points=1, every_n_steps=4, log_name="breakdown_by_steps"
    ),
    "GradientNoiseScale": lambda probe, folder: GradientNoiseScale(probe, group_size=4, log_dir=folder / "own"),
    "GradientNoiseScale by steps": lambda probe, folder: GradientNoiseScale(
        probe, group_size=4, every_n_steps=4, log_name="noise_by_steps"
    ),
    "ResumableCheckpoint": lambda probe, folder: ResumableCheckpoint(folder / "checkpoints"),
    "WarmupLearningRate": lambda probe, folder: WarmupLearningRate(epochs=1, initial_fraction=1.0),
    "WeightNorms": lambda probe, folder: WeightNorms(),
}
# The logs that the callbacks write in each epoch.
LOGGED = {
    "Convexity": ["convexity/loss", "convexity/curvature_along_gradient", "hessian/lambda_min", "convexity/seconds"],
    "GradientBreakdown": ["breakdown/relative_gradient_breakdown", "breakdown/descent_bound", "breakdown/seconds"],
    "GradientNoiseScale": ["gradient_noise/covariance_trace", "gradient_noise/seconds"],
    "WarmupLearningRate": ["learning_rate"],
    "WeightNorms": ["weight_norms/max", "weight_norms/min"],
}
# The names of callbacks that measure states of the model, or the steps between them.
MEASURING = [
    name
    for name in tfopt.callbacks.__all__
    if name in CALLBACKS and issubclass(getattr(tfopt.callbacks, name), Measurement | WeightNorms)
]
_STATES = {"epochs": [0, 7, 14, 21], "steps": [0, 4, 8, 12, 16, 20, 21], "steps of 3": [0, 6, 10, 13, 17, 20, 21]}


def expected_steps(name, mode):
    """The steps that a callback must have measured; None if it measures nothing."""
    if name.split()[0] not in MEASURING:
        return None
    in_threes = mode == "steps_per_execution"
    key = "epochs" if not name.endswith("by steps") else "steps of 3" if in_threes else "steps"
    if name.startswith("GradientBreakdown"):  # it measures the step that led to the state
        return [3 if in_threes else 1, *_STATES[key][1:]]
    return _STATES[key]


def _plain(optimizer):
    return optimizer


def make_model(optimizer, mode, wrap=_plain):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dense(6, kernel_regularizer="l2"),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("tanh"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(2),
    ])
    model.compile(wrap(OPTIMIZERS[optimizer]()), "mse", metrics=["mae"], jit_compile=False, **MODES[mode])
    return model


def variables_of(model):
    return [*model.variables, *model.optimizer.variables]


@functools.cache
def _traced_once(optimizer, mode, wrap):
    model = make_model(optimizer, mode, wrap)
    model.optimizer.build(model.trainable_variables)
    return model, [np.array(v) for v in variables_of(model)]


def model_at_its_start(optimizer, mode, wrap=_plain):
    """The same model for every callback, reset to its first values, because tracing takes longer than any callback."""
    model, initial = _traced_once(optimizer, mode, wrap)
    for variable, value in zip(variables_of(model), initial, strict=True):
        variable.assign(value)
    return model


def fit(model, callbacks, x=X, y=Y, batch_size=BATCH_SIZE):
    """Train; return the history and the values of all variables."""
    options = {"batch_size": batch_size, "epochs": EPOCHS, "verbose": 0, "shuffle": False}
    history = model.fit(x, y, callbacks=callbacks, **options).history
    return history, [np.array(v) for v in variables_of(model)]
