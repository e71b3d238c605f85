"""Gradients that are rounding have no relative change; tiny gradients that are true keep theirs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfopt.relative_trust import StepMeter, breakdown_profile

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 4)).astype("float32"), RNG.integers(0, 3, 32)
IMAGES, TOKENS = RNG.normal(size=(16, 5, 5, 2)).astype("float32"), RNG.integers(0, 11, (32, 6))
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(policy, bias, units=8):
    return [
        layers.Dense(units, use_bias=bias, dtype=policy),
        layers.BatchNormalization(dtype=policy),
        layers.Activation("tanh", dtype=policy),
    ]


def convolution(policy, bias):
    return [
        layers.Conv2D(3, 2, use_bias=bias, dtype=policy),
        layers.GroupNormalization(groups=-1, dtype=policy),
        layers.Flatten(dtype=policy),
    ]


def depthwise(policy, bias):
    return [
        layers.DepthwiseConv2D(2, use_bias=bias, dtype=policy),
        layers.BatchNormalization(dtype=policy),
        layers.Flatten(dtype=policy),
    ]


def contrast(policy, bias):
    """Layers whose outputs at the places of a sequence count only by their differences."""
    return [
        layers.Reshape((2, 2), dtype=policy),
        layers.Dense(3, use_bias=bias, dtype=policy),
        layers.Lambda(lambda z: z - keras.ops.mean(z, axis=1, keepdims=True), output_shape=(2, 3), dtype=policy),
        layers.Activation("sigmoid", dtype=policy),
        layers.Flatten(dtype=policy),
    ]


def rounded(policy, bias):
    """A network of float64 whose code computes a part in float32."""
    first, *others = dense(policy, bias)
    narrow = layers.Lambda(lambda z: tf.cast(tf.cast(z, tf.float32), z.dtype), output_shape=(8,), dtype=policy)
    return [first, narrow, *others]


def made_of(parts, shape, policy):
    model = keras.Sequential([layers.Input(shape), *parts, layers.Dense(3, dtype=policy)])
    rng = np.random.default_rng(1)
    model.set_weights([w + 0.1 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


# Layers, data, and the place of the variable that cannot change the loss.
NETWORKS = {
    "dense": (dense, X),
    "one unit": (lambda policy, bias: dense(policy, bias, units=1), X),
    "two units": (lambda policy, bias: dense(policy, bias, units=2), X),
    "large offset": (lambda policy, bias: [layers.Rescaling(1.0, 100.0, dtype=policy), *dense(policy, bias)], X),
    "small inputs": (lambda policy, bias: [layers.Rescaling(1e-4, dtype=policy), *dense(policy, bias)], X),
    "instance": (convolution, IMAGES),
    "depthwise": (depthwise, IMAGES),
    "contrast": (contrast, X),
    "rounded": (rounded, X),
}
CASES = [(name, "float64" if name == "rounded" else "float32") for name in NETWORKS] + [
    ("dense", "float64"),
    ("dense", "mixed_float16"),
    ("one unit", "float64"),
    ("instance", "float64"),
    ("contrast", "float64"),
]


def changed(weights, seed=2, size=0.05):
    rng = np.random.default_rng(seed)
    return [w * (1 + size * rng.normal(size=w.shape)) for w in map(np.asarray, weights)]


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_a_bias_that_cannot_matter_changes_no_result(name, policy):
    """The twin without this bias is the same function."""
    make, x = NETWORKS[name]
    with_bias, twin = (made_of(make(policy, bias), x.shape[1:], policy) for bias in (True, False))
    place = [v.name for v in with_bias.trainable_variables].index("bias")
    lost = with_bias.trainable_variables[place].path
    twin.set_weights([v.numpy() for v in with_bias.weights if v.path != lost])
    meter, other = (StepMeter(model, LOSS, x, Y[: len(x)]) for model in (with_bias, twin))
    before = meter.weights()
    after = changed(before)
    step = meter.measure(before, after)
    expected = other.measure(*([w for i, w in enumerate(part) if i != place] for part in (before, after)))
    assert step.lost_in_rounding == (lost,)
    assert expected.lost_in_rounding == ()
    for field in ("relative_gradient_breakdown", "relative_perturbation", "cosine"):
        values = getattr(step, field)
        assert np.isnan(values[place]), field
        np.testing.assert_allclose(np.delete(values, place), getattr(expected, field), rtol=1e-2, err_msg=field)
    for field in ("largest_breakdown", "largest_perturbation", "deep_relative_trust", "descent_bound"):
        assert getattr(step, field) == pytest.approx(getattr(expected, field), rel=1e-2), field
    profile, known = (breakdown_profile(m.objective, [0.0, 0.02]) for m in (meter, other))
    assert (profile.lost_in_rounding, known.lost_in_rounding) == ((lost,), ())
    for field in ("loss", "deep_relative_trust", "largest_breakdown"):
        np.testing.assert_allclose(getattr(profile, field), getattr(known, field), rtol=1e-2, err_msg=field)


def attention(policy):
    tokens = layers.Input((6,), dtype="int32")
    states = layers.Embedding(11, 4, dtype=policy)(tokens)
    mixed = layers.MultiHeadAttention(2, 2, dtype=policy)(states, states)
    return keras.Model(tokens, layers.Dense(3, dtype=policy)(layers.GlobalAveragePooling1D(dtype=policy)(mixed)))


@pytest.mark.parametrize("policy", ["float32", "float64"])
def test_the_bias_of_keys_cannot_matter(policy):
    """Attention adds the same number to all scores of a query, which softmax ignores."""
    model, exact = attention(policy), attention("float64")
    rng = np.random.default_rng(1)
    model.set_weights([w + 0.3 * rng.normal(size=w.shape) for w in model.get_weights()])
    exact.set_weights(model.get_weights())
    meter, other = (StepMeter(each, LOSS, TOKENS, Y) for each in (model, exact))
    before = meter.weights()
    after = changed(before)
    step = meter.measure(before, after)
    gradient, moved = (other.loss_and_gradient(weights)[1] for weights in (before, after))
    expected = [np.linalg.norm(m - g) / np.linalg.norm(g) for g, m in zip(gradient, moved, strict=True)]
    place = next(i for i, path in enumerate(step.paths) if path.endswith("key/bias"))
    assert step.lost_in_rounding == (step.paths[place],)
    found = np.delete(step.relative_gradient_breakdown, place)
    np.testing.assert_allclose(found, np.delete(expected, place), rtol=1e-3)
    assert step.largest_breakdown == found.max()


def sigmoids(num_layers=9):
    return [layers.Dense(6, "sigmoid", kernel_initializer=keras.initializers.RandomNormal(0, 0.3, seed=i))
            for i in range(num_layers)]  # fmt: skip


class Unsettled(layers.Layer):
    """Noise that a measurement cannot switch off."""

    def call(self, x):
        return x + tf.random.normal(tf.shape(x), stddev=0.5)


def in_order(y, z):
    """A loss of the differences between neighbouring rows."""
    return keras.ops.mean(keras.ops.softplus(-(z[1:] - z[:-1]) * keras.ops.sign(y[1:] - y[:-1])))


def ties():
    """ReLUs whose inputs are exactly 0 in half of the rows: the last bit of a weight switches them."""
    first, last = layers.Dense(8, "relu", use_bias=False), layers.Dense(1, use_bias=False)
    model = keras.Sequential([layers.Input((2,)), first, last])
    signs = np.random.default_rng(3).choice([-1.0, 1.0], size=(1, 8))
    model.set_weights([np.concatenate([signs, -signs]), np.linspace(0.5, 1.5, 8)[:, None]])
    return model


EQUAL = np.repeat(np.random.default_rng(4).normal(size=(16, 1)), 2, axis=1).astype("float32")
PAIRS = np.concatenate([EQUAL, EQUAL * [1.0, 0.5]]).astype("float32")


def normalised():
    return [
        layers.Dense(8),
        layers.LayerNormalization(),
        layers.ReLU(),
        layers.Dense(8),
        layers.GroupNormalization(2),
        layers.ReLU(),
        layers.Dense(8, use_bias=False),
        layers.BatchNormalization(),
    ]


def network(*parts):
    return keras.Sequential([layers.Input((4,)), *parts])


# The model, the loss and the data.
TRUE = {
    "vanishing gradients": lambda: (network(*sigmoids(), layers.Dense(3)), LOSS, X, Y),
    "no bias that cannot matter": lambda: (network(*normalised(), layers.Dense(3)), LOSS, X, Y),
    "order of rows": lambda: (
        network(layers.Dense(8, "tanh"), layers.Dense(1, use_bias=False)),
        in_order,
        X,
        Y[:, None].astype("float32"),
    ),
    "noise": lambda: (network(Unsettled(), layers.Dense(8, "relu"), layers.Dense(3)), LOSS, X, Y),
    "ties": lambda: (ties(), "mse", PAIRS, np.ones((32, 1), "float32")),
}


@pytest.mark.parametrize("name", TRUE)
def test_true_gradients_keep_their_values(name):
    model, loss, x, y = TRUE[name]()
    meter = StepMeter(model, loss, x, y)
    before = meter.weights()
    step = meter.measure(before, changed(before, size=0.3))
    assert step.lost_in_rounding == ()
    _, gradient = meter.loss_and_gradient(before)
    assert (np.isfinite(step.relative_gradient_breakdown)).all()
    if name == "vanishing gradients":
        norms = [np.linalg.norm(part) for part in gradient]
        assert min(norms) < 1e-5 * max(norms)
    if name != "noise":
        _, moved = meter.loss_and_gradient(changed(before, size=0.3))
        expected = [np.linalg.norm(m - g) / np.linalg.norm(g) for g, m in zip(gradient, moved, strict=True)]
        np.testing.assert_allclose(step.relative_gradient_breakdown, expected, rtol=1e-4)
        assert step.largest_breakdown > 0.1  # else nothing was suspected
    assert breakdown_profile(meter.objective, [0.1]).lost_in_rounding == ()


@pytest.mark.parametrize(
    ("dtype", "distance", "is_lost"),
    [("float32", 0.0, True), ("float32", 1e-3, False), ("float64", 1e-10, False), ("float64", 0.0, True)],
)
def test_all_gradients_are_rounding_at_a_minimum(dtype, distance, is_lost):
    model = keras.Sequential([layers.Input((4,)), layers.Dense(8, dtype=dtype), layers.Dense(2, dtype=dtype)])
    exact = model.get_weights()
    y = (X.astype("float64") @ exact[0] + exact[1]) @ exact[2] + exact[3]
    meter = StepMeter(model, "mse", X, y)
    before = changed(exact, size=distance)
    step = meter.measure(before, changed(before, seed=5, size=0.1))
    assert step.lost_in_rounding == (step.paths if is_lost else ())
    assert np.isnan([step.largest_breakdown, step.total_cosine]).tolist() == [is_lost] * 2
    # The weights move by a known share of their size, even if their gradient is not known.
    assert step.largest_perturbation == pytest.approx(0.1, rel=0.5)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-3])
def test_biases_alone(size):
    """The last bits of small biases do not change the sums that they enter."""
    model = made_of(dense("float32", True), (4,), "float32")
    biases = [v for v in model.trainable_variables if v.name in ("bias", "beta")]
    meter = StepMeter(model, LOSS, X, Y, variables=biases)
    rng = np.random.default_rng(1)
    before = [size * rng.normal(size=v.shape) for v in biases]
    step = meter.measure(before, [w + 0.1 * rng.normal(size=w.shape) for w in before])
    assert step.lost_in_rounding == (biases[0].path,)
    assert breakdown_profile(meter.objective, [0.1]).lost_in_rounding == (biases[0].path,)


def test_a_gradient_of_zero_is_not_lost_in_rounding():
    """Below a last layer of zeros nothing has a gradient, until that layer moves."""
    model = keras.Sequential([layers.Input((4,)), layers.Dense(8, "tanh"), layers.Dense(3, kernel_initializer="zeros")])
    meter = StepMeter(model, LOSS, X, Y)
    before = meter.weights()
    after = [np.asarray(part, np.float64) + 0.01 * RNG.normal(size=part.shape) for part in before]
    step = meter.measure(before, after)
    assert not step.lost_in_rounding
    assert np.isfinite(step.relative_perturbation[0])
