"""What is differentiated are the weights that training moves, in float, float8, LoRA and quantised layers."""

import keras
import numpy as np
import pytest

from tfopt.callbacks import Convexity, GradientBreakdown, WeightNorms
from tfopt.curvature import GaussNewtonOperator, HessianOperator, Objective, gradient_noise
from tfopt.planning import fit_noisy_quadratic
from tfopt.relative_trust import StepMeter, breakdown_profile

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 4)).astype("float32"), RNG.normal(size=(24, 2)).astype("float32")
NAMES = ["a/kernel", "a/bias", "b/kernel", "b/bias"]


class WithState(keras.layers.Layer):
    """Keeps the largest input that it has seen in a variable that its gradient overwrites."""

    def build(self, shape):
        self.largest = self.add_weight((), "ones", name="largest", overwrite_with_gradient=True)

    def call(self, x):
        return x * self.largest


def make_float8():
    model = keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dense(5, "tanh", name="a"),
        keras.layers.Dense(2, name="b"),
    ])
    for layer in model.layers:
        layer.quantize("float8")
    return model


def make_custom():
    hidden = keras.layers.Dense(5, "tanh", name="a")
    return keras.Sequential([keras.Input((4,)), hidden, WithState(), keras.layers.Dense(2, name="b")])


def names_of(paths):
    return [path.split("/", 1)[1] for path in paths]


@pytest.mark.parametrize("make", [make_float8, make_custom])
def test_variables_that_their_gradient_overwrites_are_no_weights(make):
    model, norms = make(), WeightNorms()
    assert len(model.trainable_variables) > 4
    noise = gradient_noise(model, "mse", X, Y, group_size=4)
    assert len(noise.gradient) == 5 * 5 + 6 * 2
    assert names_of(breakdown_profile(Objective(model, "mse", (X, Y)), [0.01]).paths) == NAMES
    meter = StepMeter(model, "mse", X, Y)
    step = meter.measure(meter.weights(), [1.01 * np.asarray(w) for w in meter.weights()])
    assert names_of(step.paths) == NAMES
    model.compile("sgd", "mse")
    breakdown = GradientBreakdown((X, Y))
    before = model.get_weights()
    model.fit(X, Y, verbose=0, callbacks=[norms, breakdown])
    assert len(before) == len(model.get_weights())
    assert names_of(norms.history["norms"][-1]) == NAMES
    for column in breakdown.to_dataframe().columns:
        assert not any(word in column for word in ("scale", "amax", "largest/"))


def test_operators_leave_them_out():
    model = make_custom()
    plain = keras.Sequential([keras.Input((4,)), model.layers[0], model.layers[2]])
    for kind in (HessianOperator, GaussNewtonOperator):
        matrix = kind(model, "mse", X, Y)
        assert names_of(v.path for v in matrix.variables) == NAMES
        expected = kind(plain, "mse", X, Y, self_check=False).to_dense()
        np.testing.assert_allclose(matrix.to_dense(), expected, rtol=1e-5, atol=1e-6)
        assert kind(model, "mse", X, Y, variables=model.layers[0]).shape == (25, 25)
    with pytest.raises(ValueError, match="`variables` must be trainable variables of the model, each once.*largest"):
        HessianOperator(model, "mse", X, Y, variables=model.layers[1].largest)
    with pytest.raises(ValueError, match=r"`variables` must be trainable.*Received: \[\]"):
        HessianOperator(model, "mse", X, Y, variables=model.layers[1])
    start = [0.9 * part for part in model.get_weights()]
    many = np.tile(X, (4, 1)), np.tile(Y, (4, 1))
    fit = fit_noisy_quadratic(Objective(model, "mse", many), None, initial_weights=start, num_runs=4, num_matvecs=4)
    assert (fit.num_parameters, fit.is_displaced) == (37, True)


def test_coarse_rounding_is_named_where_a_gradient_is_no_mean_over_rows():
    with pytest.raises(ValueError, match="must be a mean over rows.*the rounding of the float8 layers .*a, .*b, "):
        gradient_noise(make_float8(), lambda y, p: keras.ops.sum((y - p) ** 2), X, Y, group_size=4)


def make_quantized(mode):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.layers[0].quantize(mode)
    return model


@pytest.mark.parametrize("mode", ["float8", "int8"])
def test_models_that_round_have_no_second_derivative(mode):
    model = make_quantized(mode)
    message = rf"`model` must not round what its layers compute.*Received: the quantised layers .*dense.* \({mode}\)"
    for measure in (
        lambda: HessianOperator(model, "mse", X, Y),
        lambda: GaussNewtonOperator(model, "mse", X, Y, self_check=False),
        lambda: fit_noisy_quadratic(Objective(model, "mse", (np.tile(X, (4, 1)), np.tile(Y, (4, 1))))),
    ):
        with pytest.raises(ValueError, match=message):
            measure()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=message):
        model.fit(X, Y, verbose=0, callbacks=[Convexity((X, Y))])


def lora_gradient(vector, kernel):
    """Of the mean squared error of x (K + A B) + b, as a function of b, A and B of rank 1."""
    bias, a, b = vector[:2], vector[2:6][:, None], vector[6:][None]
    x = X.astype(np.float64)
    error = 2.0 * (x @ (kernel + a @ b) + bias - Y) / Y.size
    return np.concatenate([error.sum(axis=0), (x.T @ error @ b.T).ravel(), ((x @ a).T @ error).ravel()])


@pytest.mark.parametrize("quantized", [False, True])
def test_lora_moves_what_it_has_added(quantized):
    """In float layers, and where the kernel alone is kept in 8 bits: these round nothing on the way."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    (layer,) = model.layers
    if quantized:
        if not hasattr(keras.quantizers, "Int8QuantizationConfig"):
            pytest.skip("This version of Keras always rounds inputs too")
        layer.quantize(config=keras.quantizers.Int8QuantizationConfig(activation_quantizer=None))
    kernel = np.asarray(layer._kernel.value, np.float64)
    if quantized:
        kernel = kernel / np.asarray(layer.kernel_scale.value, np.float64)
    layer.enable_lora(1)
    layer.lora_kernel_b.assign([[0.5, -0.3]])
    values = np.concatenate([np.asarray(v.value, np.float64).ravel() for v in (layer.bias, layer.lora_kernel_a)])
    values = np.append(values, [0.5, -0.3])
    step = 1e-5
    columns = [lora_gradient(values + d, kernel) - lora_gradient(values - d, kernel) for d in step * np.eye(8)]
    expected = np.array(columns).T / (2 * step)
    matrix = HessianOperator(model, "mse", X, Y)
    assert [tuple(v.shape) for v in matrix.variables] == [(2,), (4, 1), (1, 2)]
    np.testing.assert_allclose(matrix.to_dense(), expected, rtol=1e-4, atol=1e-5)
    gradient = gradient_noise(model, "mse", X, Y).gradient
    np.testing.assert_allclose(gradient, lora_gradient(values, kernel), rtol=1e-4, atol=1e-5)
