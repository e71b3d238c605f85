"""The certificate against exact arithmetic: over dtypes, casts and scales no eigenvalue is below the modulus."""

from fractions import Fraction

import exact_networks
import keras
import numpy as np
import pytest

from tfopt.curvature import NotCoveredError, convexity_certificate

SLOPES = {"relu": 0.0, "leaky_relu": 0.2}
SHAPES = ((1, 1, 1), (2, 2, 1), (1, 2, 2), (1, 1, 1, 1))


def make(shape, activation="relu", l2=0.1, policy="float32", inputs="float32", **options):
    """A chain of Dense layers; with options for all of them."""
    options = {"use_bias": False, "kernel_regularizer": keras.regularizers.L2(l2), "dtype": policy} | options
    hidden = [keras.layers.Dense(units, activation=activation, **options) for units in shape[1:-1]]
    return keras.Sequential([keras.Input(shape[:1], dtype=inputs), *hidden, keras.layers.Dense(shape[-1], **options)])


class Networks:
    """Random networks: a few models, which get new weights and data."""

    def __init__(self, seed, num_models):
        self._rng = np.random.default_rng(seed)
        self._models = [self._model() for _ in range(num_models)]

    def _model(self):
        rng = self._rng
        choice = {
            "shape": SHAPES[rng.integers(len(SHAPES))],
            "activation": str(rng.choice(list(SLOPES))),
            "l2": float(rng.choice([1e-36, 1e-6, 0.1, 0.3, 1e10])),
            "policy": str(rng.choice(["float32", "float64"])),
            "inputs": str(rng.choice(["float32", "float32", "float64", "bool", "int32", "uint8"])),
        }
        return choice, make(**choice)

    def draw(self):
        rng = self._rng
        choice, model = self._models[rng.integers(len(self._models))]
        rows = int(rng.integers(1, 4))
        model.set_weights([self._numbers(weight.shape, 4) for weight in model.get_weights()])
        x = self._numbers((rows, choice["shape"][0]), 10)
        if choice["inputs"] == "uint8":
            x = rng.uniform(0, 255, x.shape)
        elif choice["inputs"] == "int32":
            x = np.clip(x, -1e9, 1e9)
        kind = "float32" if rng.random() < 0.6 else "float64"
        return choice, model, x.astype(kind), self._targets(model, x, rows).astype(kind)

    def _numbers(self, shape, spread):
        # Most nets have sizes near 1, where a certificate says something; some have sizes from 1e-25 to 1e20.
        rng = self._rng
        scale = 10.0 ** (rng.uniform(-25, 20) if rng.random() < 0.3 else rng.normal() * spread / 4)
        return (rng.normal(size=shape) * scale).astype(np.float32)

    def _targets(self, model, x, rows):
        # Near the outputs or far from them, so that the error is of any size.
        with np.errstate(over="ignore"):
            near = np.asarray(model(x.astype(np.float32)), np.float64)
        near = np.where(np.abs(near) < 1e30, near, 1.0)
        return near * (1 + self._rng.normal() * 10.0 ** self._rng.uniform(-12, 0)) + self._numbers((rows, 1), 10)


def seen(x, dtype):
    """What a network sees of its inputs: as they are, and rounded to float32 first."""
    for values in (x, x.astype(np.float32)):
        if dtype == "bool":
            yield (values != 0).astype(float)
        else:
            yield np.trunc(values) if "int" in dtype else values


def violations(seed, count, num_models):
    """How many moduli are positive, and what is wrong."""
    networks, positive, wrong = Networks(seed, num_models), 0, []
    for _ in range(count):
        choice, model, x, y = networks.draw()
        theta = convexity_certificate(model, "mse", x, y).theta_sharp
        positive += theta > 0
        if not np.isfinite(theta):
            continue
        slope = SLOPES[choice["activation"]]
        for x_seen, y_seen in zip(seen(x, choice["inputs"]), (y, y.astype(np.float32)), strict=True):
            for number in (np.float64, np.float32):
                matrix = exact_networks.hessian(
                    [exact_networks.exact(w) for w in model.get_weights()],
                    exact_networks.exact(x_seen),
                    exact_networks.exact(y_seen),
                    Fraction(float(number(slope))),
                    Fraction(float(number(choice["l2"]))),
                )
                if not exact_networks.is_bounded_below(matrix, theta):
                    wrong.append((choice, x, y, model.get_weights(), theta))
    return positive, wrong


def test_no_eigenvalue_is_below_the_modulus_in_exact_arithmetic():
    positive, wrong = violations(seed=0, count=80, num_models=16)
    assert not wrong
    assert 15 < positive < 65


def chain_with(weights, **options):
    """A chain of one unit in each layer."""
    model = make((1,) * (len(weights) + 1), **options)
    model.set_weights([np.full((1, 1), weight) for weight in weights])
    return model


def theta_of(model, x, y, loss="mse"):
    return convexity_certificate(model, loss, np.array([[x]]), np.array([[y]])).theta_sharp


def test_the_bound_is_attained_to_rounding():
    """Where the weights vanish the smallest eigenvalue is 2 l2 - 2 |x y|: above and far below it are both wrong."""
    rng = np.random.default_rng(5)
    model = chain_with([1e-30, 1e-30], l2=0.75)
    for _ in range(20):
        x, y = (np.float32(10.0 ** rng.uniform(-3, 3)) for _ in range(2))
        exact = 1.5 - 2 * float(x) * float(y)
        assert exact * (1 - 1e-13 * np.sign(exact)) - 1e-13 <= theta_of(model, x, y) <= exact


def test_errors_that_float32_cannot_hold():
    model = chain_with([1e-30, 1e-30], l2=1e-6)
    assert theta_of(model, np.float32(1e20), np.float32(1e-25)) == pytest.approx(2e-6 - 2e-5)
    coefficient = 2.866251904245665  # half a unit of float32 above which the residual is rounded down
    target = np.float32(2.8662519454956055)
    assert theta_of(chain_with([1e-30, 1e-30], l2=coefficient), np.float32(1), target) < 2 * coefficient - 2 * target


@pytest.mark.parametrize(
    ("inputs", "x", "radius"), [("bool", 0.01, 1.0), ("uint8", 1.9, 1.0), ("int32", -3.9, 3.0), ("uint8", 255, 255.0)]
)
def test_the_radius_is_that_of_what_the_network_sees(inputs, x, radius):
    model = chain_with([0.1, 0.1], inputs=inputs)
    found = convexity_certificate(model, "mse", np.array([[x]]), np.ones((1, 1)))
    assert found.input_radius == pytest.approx(radius, rel=1e-12)
    outputs = np.asarray(model(np.array([[x]])))
    assert found.mean_squared_error == pytest.approx(float((outputs[0, 0] - 1) ** 2))


@pytest.mark.parametrize(
    ("weights", "x", "y", "options"),
    [
        ([1e20] * 4, 1e20, 0.0, {}),  # the float32 loss is infinite
        ([1e120] * 4, 1e20, 0.0, {"policy": "float64"}),  # and the float64 one
        ([1.0, 1.0], 1e200, 1.0, {"policy": "float64", "inputs": "float64"}),
        ([0.0, 0.0], 1e200, 1.0, {}),  # infinite in float32
        ([0.0, 0.0, 0.0], 1.0, 1e200, {}),
    ],
)
def test_what_overflows_is_not_certified(weights, x, y, options):
    assert theta_of(chain_with(weights, l2=1.0, **options), x, y) < -1e100


def test_denormal_numbers_count_as_themselves_and_as_zero():
    assert theta_of(chain_with([1.0, 1.0], l2=1.0), np.float32(1e-40), np.float32(0)) == pytest.approx(2.0)
    found = convexity_certificate(chain_with([1e-40, 1e20]), "mse", np.ones((1, 1), np.float32), np.zeros((1, 1)))
    assert np.sqrt(found.mean_squared_error) >= 1e-20
    model = chain_with([1.0, 1.0], inputs="bool")
    assert convexity_certificate(model, "mse", np.full((1, 1), 1e-40, np.float32), np.zeros((1, 1))).input_radius >= 1


def test_coefficients_are_those_that_keras_multiplies_by():
    for coefficient in (0.3, 0.1, 1 / 3):
        rounded = float(np.float32(coefficient))
        for policy in ("float32", "float64"):
            model = chain_with([0.0], l2=coefficient, policy=policy)
            assert theta_of(model, 1.0, 0.0) == 2 * min(coefficient, rounded)
            assert float(keras.regularizers.L2(coefficient)(np.ones((1, 1)))) == pytest.approx(rounded, rel=1e-15)


def tied(share):
    model = chain_with([1.0, 1.0, 1.0])
    share(*model.layers[:2])
    return model


def share_the_variable(first, second):
    second._tracker.unlock()
    second._kernel = first._kernel


def share_the_values(first, second):
    second.kernel._value = first.kernel._value


def compute_the_kernel(first, second):
    second._tracker.unlock()
    second._kernel = keras.ops.transpose(first.kernel)


def with_a_half_model():
    model = chain_with([1.0, 1.0])
    model.dtype_policy = keras.DTypePolicy("mixed_float16")
    return model


def with_a_patched_layer():
    model = chain_with([1.0, 1.0])
    layer = model.layers[0]
    original = layer.call
    layer.call = lambda inputs, training=None: 30 * original(inputs)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: chain_with([1.0, 1.0], policy="mixed_bfloat16"), "'dense.*dtype policy 'mixed_bfloat16'"),
        (lambda: chain_with([1.0], policy="mixed_float16"), "'dense.*dtype policy 'mixed_float16'"),
        (lambda: chain_with([1.0, 1.0], activation=keras.layers.ReLU(dtype="mixed_bfloat16")), "the activation of .*"),
        (with_a_half_model, "the model 'sequential.*dtype policy 'mixed_float16'"),
        (lambda: chain_with([1.0, 1.0], inputs="float16"), "takes inputs of dtype float16"),
        (lambda: tied(share_the_variable), "the layers 'dense.*' and 'dense.*' share a kernel"),
        (lambda: tied(share_the_values), "the layers 'dense.*' and 'dense.*' share a kernel"),
        (lambda: tied(compute_the_kernel), "the kernel of 'dense.*' is computed from other weights"),
        (with_a_patched_layer, "a `call` that replaces that of its class"),
        (lambda: chain_with([1.0, 1.0], l2=1e-46), "the coefficient 1e-46 is 0 in float32"),
        (lambda: chain_with([1.0, 1.0], l2=-0.0), "no penalty"),
        (lambda: chain_with([1.0, 1.0], l2=1e39), "the coefficient 1e.39 is inf in float32"),
        (lambda: chain_with([1.0, 1.0], activation=keras.layers.LeakyReLU(1 + 1e-9)), r"\(Dense\) is LeakyReLU"),
        (lambda: chain_with([1.0, 1.0], inputs="uint8"), "inputs of dtype uint8, and the data range from -1 to -1"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # by TensorFlow, of the coefficient
def test_what_another_function_is_trained_for_is_not_covered(model, message):
    with pytest.raises(NotCoveredError, match=message):
        theta_of(model(), -1.0, 1.0)


@pytest.mark.parametrize("dtype", ["float16", "mixed_bfloat16"])
@pytest.mark.parametrize("policy", ["float32", "float64"])
def test_losses_of_half_precision_are_not_covered(dtype, policy):
    with pytest.raises(NotCoveredError, match="the loss is computed in b?float16"):
        theta_of(chain_with([1.0, 1.0], policy=policy), 1.0, 1.0, keras.losses.MeanSquaredError(dtype=dtype))


@pytest.mark.parametrize(("shape", "outputs"), [((4,), 1), ((4, 1), 3), ((4, 3), 3), ((4, 3, 1), 3), ((4, 3), 1)])
def test_errors_are_those_of_keras(shape, outputs):
    rng = np.random.default_rng(0)
    model = keras.Sequential([
        keras.Input((2, 3, 2)),
        keras.layers.Flatten(data_format="channels_first"),
        keras.layers.Dense(4, activation="leaky_relu", kernel_regularizer="l2", use_bias=False),
        keras.layers.ReLU(negative_slope=0.5),
        keras.layers.Dense(outputs, kernel_regularizer="l2", use_bias=False),
    ])
    x, y = (rng.normal(size=size).astype(np.float32) for size in ((4, 2, 3, 2), shape))
    expected = float(keras.losses.MeanSquaredError()(y, model(x)))
    assert convexity_certificate(model, "mse", x, y).mean_squared_error == pytest.approx(expected, rel=1e-5)
