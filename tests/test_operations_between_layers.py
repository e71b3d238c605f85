"""Functions of keras.ops and operators on Keras's tensors are operations, not layers: they have no dtype policy."""

import keras
import numpy as np
import pytest

from tfopt.bregman import BregmanTrainer
from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale, ResumableCheckpoint, WeightNorms
from tfopt.curvature import (
    GaussNewtonOperator,
    HessianOperator,
    NotCoveredError,
    Objective,
    Probe,
    convexity_certificate,
    gradient_noise,
)
from tfopt.planning import fit_noisy_quadratic
from tfopt.relative_trust import breakdown_profile

Dense, ops = keras.layers.Dense, keras.ops
RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 4)).astype("float32")
Y = np.sin(X[:, :1])


class Twice(keras.Operation):
    """An operation of one's own."""

    def call(self, x):
        return 2.0 * x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Holder(keras.layers.Layer):
    """A layer that holds an operation, a metric and a list."""

    def __init__(self):
        super().__init__()
        self.operation, self.metric, self.parts = Twice(), keras.metrics.Mean(), [Dense(3), Twice()]

    def build(self, shape):
        self.parts[0].build(shape)

    def call(self, x):
        return self.operation(self.parts[0](x))


def functional(body, shape=(4,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, body(inputs))


def two_layers(between=lambda h: h, before=lambda x: x):
    """A model of two Dense layers with something before the first and something between them."""
    return lambda: functional(lambda x: Dense(1)(between(Dense(4, "relu")(before(x)))))


def images(before):
    return lambda: functional(lambda x: Dense(1)(keras.layers.Flatten()(before(x))), (8, 8, 3))


def nested():
    inner = functional(lambda x: Dense(3)(x / 255.0))
    return functional(lambda x: Dense(1)(ops.relu(inner(x))))


# What is in a model -> how to make it, and the name of the part that certificate and trainer refuse.
MODELS = {
    "divide": (two_layers(before=lambda x: x / 255.0), "TrueDivide", "TrueDivide"),
    "multiply": (two_layers(before=lambda x: x * 100.0), "Multiply", "Multiply"),
    "cast": (two_layers(before=lambda x: ops.cast(x, "float32")), "Cast", "Cast"),
    "slice": (two_layers(before=lambda x: x[:, :2]), "GetItem", "GetItem"),
    "matmul": (two_layers(before=lambda x: ops.matmul(x, np.eye(4, dtype="float32"))), "Matmul", "Matmul"),
    "preprocess": (images(keras.applications.mobilenet_v2.preprocess_input), "TrueDivide|Subtract", "Divide|Subtract"),
    "resize": (images(lambda x: ops.image.resize(x, (4, 4))), "Resize", "Resize"),
    "relu": (two_layers(ops.relu), "Relu", "Relu"),
    "own": (two_layers(Twice()), "Twice", "Twice"),
    "split": (two_layers(lambda h: ops.split(h, 2, axis=-1)[1]), "Split", "Split"),
    "sum": (two_layers(lambda h: h + h), "joins 2 tensors", "joins 2 inputs"),
    "squeeze": (lambda: functional(lambda x: ops.squeeze(Dense(1)(x), -1)), "Squeeze", "Squeeze"),
    "lambda": (two_layers(keras.layers.Lambda(lambda h: 2.0 * h)), "Lambda", "Lambda"),
    "wrapper": (
        lambda: functional(lambda x: keras.layers.Flatten()(keras.layers.TimeDistributed(Dense(1))(x)), (4, 1)),
        "TimeDistributed",
        "TimeDistributed",
    ),
    "recurrent": (
        lambda: functional(lambda x: Dense(1)(keras.layers.Bidirectional(keras.layers.SimpleRNN(2))(x)), (4, 1)),
        "Bidirectional",
        "Bidirectional",
    ),
    "holder": (two_layers(before=lambda x: Holder()(x)), "Holder", "Holder"),
    "nested": (nested, "Functional|Relu", "TrueDivide"),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_reads_chains_of_layers_refuses_the_part_by_its_name(name):
    make, in_certificate, in_training = MODELS[name]
    model = make()
    x = np.ones((3, *model.input_shape[1:]), "float32")
    with pytest.raises(NotCoveredError, match=in_certificate):
        convexity_certificate(model, "mse", x, np.ones((3, 1)))
    with pytest.raises(ValueError, match=in_training):
        BregmanTrainer(model, "mse")


def of_operations():
    """Operations before, between and after layers; of the class, of NumPy's kind, with one and two inputs."""
    x = keras.Input((4,))
    h = Dense(4, "tanh", name="a")(ops.cast(2.0 * (x / 2.0), "float32")) + x
    h = ops.relu(Dense(4, name="b")(h)[:, :3])
    h = ops.reshape(Twice()(h), (-1, 3, 1))
    h = keras.layers.TimeDistributed(Dense(2, name="c"))(h)
    return keras.Model(x, ops.squeeze(ops.expand_dims(Dense(1, name="d")(keras.layers.Flatten()(h)), -1), -1))


def of_layers():
    """The same network."""
    x = keras.Input((4,))
    h = keras.layers.Add()([Dense(4, "tanh", name="a")(x), x])
    h = keras.layers.Lambda(lambda t: t[:, :3])(Dense(4, name="b")(h))
    h = keras.layers.Rescaling(2.0)(keras.layers.ReLU()(h))
    h = keras.layers.TimeDistributed(Dense(2, name="c"))(keras.layers.Reshape((3, 1))(h))
    return keras.Model(x, Dense(1, name="d")(keras.layers.Flatten()(h)))


@pytest.fixture(scope="module")
def pair():
    keras.utils.set_random_seed(0)
    models = of_operations(), of_layers()
    models[1].set_weights(models[0].get_weights())
    return models


MEASUREMENTS = {
    "Hessian": lambda model: HessianOperator(model, "mse", X, Y).to_dense(),
    "Gauss-Newton": lambda model: GaussNewtonOperator(model, "mse", X, Y).to_dense(),
    "gradient noise": lambda model: gradient_noise(model, "mse", X, Y).covariance_trace.value,
    "breakdown": lambda model: (
        breakdown_profile(Objective(model, "mse", (X, Y)), [0.01, 0.1]).relative_gradient_breakdown
    ),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_are_those_of_the_same_network_made_of_layers(name, pair):
    found, expected = (np.asarray(MEASUREMENTS[name](model)) for model in pair)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_planning_takes_operations(pair):
    found = fit_noisy_quadratic(Objective(pair[0], "mse", (X, Y)), None, num_runs=4, num_matvecs=2)
    assert (found.curvature > 0).all()


def test_callbacks_log_what_they_log_of_the_same_network_made_of_layers(pair, tmp_path):
    logs = []
    for number, model in enumerate(pair):
        weights = model.get_weights()
        model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
        probe = Probe(X, Y)
        convexity = Convexity(probe, num_matvecs=4)
        callbacks = [convexity, GradientBreakdown(probe, num_points=1), GradientNoiseScale(probe, group_size=4)]
        callbacks += [WeightNorms(), ResumableCheckpoint(tmp_path / str(number))]
        history = model.fit(X, Y, batch_size=32, shuffle=False, verbose=0, callbacks=callbacks).history
        model.set_weights(weights)
        assert "joins" in convexity.certificate_refused or "not a layer" in convexity.certificate_refused
        logs.append({name: values[-1] for name, values in history.items() if not name.endswith("seconds")})
    assert logs[0] == pytest.approx(logs[1], rel=1e-3, abs=1e-6, nan_ok=True)


def test_convexity_logs_all_but_the_certificate_of_operations():
    model = MODELS["divide"][0]()
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    insisting = Convexity((X, Y), eigenvalues=False, self_check=False, certificate=True)
    with pytest.raises(NotCoveredError, match="the operation 'true_divide.*' .TrueDivide. is not a layer"):
        model.fit(X, Y, verbose=0, callbacks=[insisting])
    convexity = Convexity((X, Y), eigenvalues=False, self_check=False)
    history = model.fit(X, Y, verbose=0, callbacks=[convexity]).history
    assert np.isfinite(history["convexity/curvature_along_gradient"]).all()
    assert "'true_divide" in convexity.certificate_refused
