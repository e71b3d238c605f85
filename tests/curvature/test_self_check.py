"""What is refused before a wrong product is handed out, and what is right and must not be refused."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from applied import Applied

from tfopt import models
from tfopt.callbacks import Convexity
from tfopt.curvature import GaussNewtonOperator, HessianOperator, Objective, gradient_noise
from tfopt.planning import fit_noisy_quadratic
from tfopt.relative_trust import StepMeter

pytestmark = pytest.mark.self_checked

BOTH = pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])


@keras.saving.register_keras_serializable(package="tests")
class Stopped(keras.layers.Layer):
    """The square, of which the second derivative is lost."""

    def call(self, inputs):
        @tf.custom_gradient
        def square(x):
            return x * x, lambda upstream: 2 * upstream * tf.stop_gradient(x)

        return square(inputs)


@BOTH
def test_a_wrong_second_derivative_is_found_by_differences(operator):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), Stopped(), keras.layers.Dense(1)])
    x, y = np.random.default_rng(0).normal(size=(6, 3)).astype("float32"), np.ones((6, 1))
    if operator is HessianOperator:
        with pytest.raises(
            RuntimeError, match="finite differences say .* no such derivative, or a wrong.*StopGradient"
        ):
            HessianOperator(model, "mse", x, y).to_dense()
    else:  # which needs first derivatives only
        GaussNewtonOperator(model, "mse", x, y).to_dense()


MASKS = {
    "added": lambda z, m, far: z + (1 - keras.ops.cast(m, "float32")) * far,
    "chosen": lambda z, m, far: keras.ops.where(m, z, far),
    "softmax": lambda z, m, far: keras.layers.Softmax()(z + (1 - keras.ops.cast(m, "float32")) * far),
    "one class": lambda z, m, far: z + np.array([0, 0, far], "float32"),
}


def masked_data(share):
    rng = np.random.default_rng(0)
    x, y, mask = rng.normal(size=(6, 2)).astype("float32"), rng.integers(0, 2, 6), rng.random((6, 3)) > share
    mask[np.arange(6), y] = True
    return x, y, mask


@pytest.mark.parametrize(
    ("kind", "far", "share", "start"),
    [
        ("added", -1e9, 0.4, "glorot_uniform"),
        ("added", float(np.finfo("float32").min), 0.4, "glorot_uniform"),
        ("chosen", -1e9, 0.9, "zeros"),
        ("softmax", -1e9, 0.4, "glorot_uniform"),
        ("one class", -1e30, 0.4, "glorot_uniform"),
    ],
)
def test_logits_may_be_masked_by_large_numbers(kind, far, share, start):
    """Gauss-Newton of masked logits is J' (diag(p) - p p') J / N, with p over the legal classes."""
    x, y, mask = masked_data(share)
    inputs, legal = keras.Input((2,)), keras.Input((3,), dtype="bool")
    logits = keras.layers.Dense(3, kernel_initializer=start)
    z = logits(inputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=kind != "softmax")
    model = keras.Model([inputs, legal], MASKS[kind](z, legal, far))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = GaussNewtonOperator(model, loss, [x, mask], y).to_dense()
    mask = np.tile([True, True, False], (6, 1)) if kind == "one class" else mask
    p = np.where(mask, np.exp(x.astype("float64") @ logits.kernel.numpy()), 0.0)
    p /= p.sum(1, keepdims=True)
    expected = np.zeros((9, 9))
    for row, of_row in zip(x, p, strict=True):
        jacobian = np.concatenate([np.kron(row[:, None], np.eye(3)), np.eye(3)]).T
        expected += jacobian.T @ (np.diag(of_row) - np.outer(of_row, of_row)) @ jacobian / 6
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("far", [-1e9, -1e30])
def test_a_wrong_second_derivative_of_a_masked_loss_is_found(far):
    x, y, mask = masked_data(0.4)
    inputs, legal = keras.Input((2,)), keras.Input((3,), dtype="bool")
    model = keras.Model([inputs, legal], MASKS["added"](keras.layers.Dense(3)(inputs), legal, far))

    def loss(y, z):
        p = tf.nn.softmax(z)
        wrong = tf.stop_gradient(p - tf.one_hot(tf.cast(y[:, 0], tf.int32), 3, dtype=p.dtype)) * z
        return tf.reduce_sum(tf.where(z > -1e4, wrong + 0.01 * z**2, 0), -1)

    with pytest.raises(RuntimeError, match="the loss by the outputs.* finite differences say"):
        GaussNewtonOperator(model, loss, [x, mask], y[:, None]).to_dense()


class Noise(keras.layers.Layer):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def call(self, inputs):
        return inputs * (1.0 + self.draw(tf.shape(inputs)))


def test_randomness_is_held_still_or_refused():
    x, y = np.random.default_rng(0).normal(size=(6, 3)).astype("float32"), np.ones((6, 1))
    seed = keras.random.SeedGenerator(1)
    noise = Noise(lambda shape: keras.random.normal(shape, seed=seed))
    model = keras.Sequential([
        keras.Input((3,)),
        keras.layers.Dense(4, activation="tanh"),
        noise,
        keras.layers.Dense(1),
    ])
    matrix = HessianOperator(model, "mse", x, y).to_dense()
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    layers = [keras.layers.Dense(4, activation="tanh"), Noise(tf.random.normal), keras.layers.Dense(1)]
    with pytest.raises(RuntimeError, match="another product of the same vector the second time.*random"):
        HessianOperator(keras.Sequential([keras.Input((3,)), *layers]), "mse", x, y).to_dense()


@pytest.mark.parametrize(
    "build", [lambda: models.resnet((8, 8, 2), 8, 3, width=4), lambda: models.mlp(6, (16,) * 25, 3)]
)
def test_deep_and_kinked_models_pass_the_check(build):
    """Kinks make differences unreliable; a warning, which would fail this test, would say so."""
    model = build()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, *model.input_shape[1:])).astype("float32"), rng.integers(0, 3, 20)
    matrix = HessianOperator(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), x, y)
    assert np.isfinite(matrix @ np.ones(matrix.shape[0])).all()


# --- losses that compare rows


def by_differences(model, loss, x, y, vector, step=1e-5):
    """Product of the Hessian and a vector, by central differences of plain gradients."""
    values = [variable.numpy() for variable in model.trainable_variables]
    ends = np.cumsum([value.size for value in values])[:-1]
    found = []
    for sign in (1.0, -1.0):
        for variable, value, part in zip(model.trainable_variables, values, np.split(vector, ends), strict=True):
            variable.assign(value + sign * step * part.reshape(value.shape))
        with tf.GradientTape() as tape:
            value = loss(y, model(x))
        parts = tape.gradient(value, [variable.value for variable in model.trainable_variables])
        found.append(np.concatenate([part.numpy().ravel() for part in parts]))
    for variable, value in zip(model.trainable_variables, values, strict=True):
        variable.assign(value)
    return (found[0] - found[1]) / (2.0 * step)


def supervised_contrast(y_true, y_pred):
    """Mean over the pairs of one class; not a number where there are none."""
    y_true = tf.reshape(y_true, [-1])
    same = tf.eye(tf.shape(y_pred)[0], dtype=y_pred.dtype)
    pairs = tf.cast(y_true[:, None] == y_true, y_pred.dtype) - same
    logits = tf.matmul(y_pred, y_pred, transpose_b=True) - 9.0 * same
    return -tf.reduce_sum(pairs * tf.nn.log_softmax(logits), axis=-1) / tf.reduce_sum(pairs, axis=-1)


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("circle", HessianOperator),
        ("supervised contrast", HessianOperator),
        ("supervised contrast", GaussNewtonOperator),
    ],
)
def test_losses_of_pairs_are_checked_on_rows_that_have_some(name, operator):
    """Eight rows from all over the batch have no two of one class."""
    keras.config.set_dtype_policy("float64")
    x, y = np.random.default_rng(0).normal(size=(16, 3)), np.arange(16) // 2
    chosen = np.linspace(0, 15, 8).astype(int)
    assert len(set(y[chosen])) == 8
    layers = [keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(3), keras.layers.UnitNormalization()]
    model = keras.Sequential([keras.Input((3,)), *layers])
    loss = keras.losses.Circle(gamma=8.0, dtype="float64") if name == "circle" else supervised_contrast
    vector = np.random.default_rng(1).normal(size=model.count_params())
    if operator is HessianOperator:
        whole = loss if name == "circle" else lambda y, z: tf.reduce_mean(loss(y, z))
        found = operator(model, loss, x, y) @ vector
        np.testing.assert_allclose(found, by_differences(model, whole, x, y, vector), rtol=1e-4, atol=1e-5)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*may have negative eigenvalues")  # which is true of such losses
            assert np.isfinite(operator(model, loss, x, y) @ vector).all()


@BOTH
def test_what_is_not_finite_says_on_which_rows(operator):
    x, y = make_data()
    x[20] = 0.0  # in none of the first rows
    function = lambda x: tf.norm(x, axis=-1, keepdims=True)  # noqa: E731
    text = refused(operator, make_applied(function), "mse", x, y)
    assert "not finite at the model's weights, on all rows together" in text
    text = refused(operator, make_applied(function), "mse", np.zeros_like(x), y)
    assert "not finite at the model's weights, on 24 rows of the first batch, of 24." in text


# --- the whole family of wrong derivatives


def make_data(num_rows=24):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num_rows, 3)).astype("float32"), rng.uniform(0.1, 0.9, (num_rows, 2)).astype("float32")


def make_applied(function, *, zero_column=False):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, activation="tanh"), Applied(function), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    if zero_column:  # so that one of the factors is exactly zero
        kernel = model.layers[0].kernel
        kernel.assign(kernel.numpy() * [1, 0, 1, 1])
    return model


@tf.custom_gradient
def reversed_gradient(x):
    return tf.identity(x), lambda upstream: -upstream


@tf.custom_gradient
def clipped_gradient(x):
    return tf.identity(x), lambda upstream: tf.clip_by_value(upstream, -1e-3, 1e-3)


def rounded(x):
    return x + tf.stop_gradient(tf.round(4 * x) / 4 - x)


def passed_through_numpy(x):
    return x + tf.ensure_shape(tf.numpy_function(np.sin, [x], x.dtype), (None, 4))


def in_segments(product):
    return lambda x: tf.ensure_shape(tf.transpose(product(tf.transpose(x), tf.constant([0, 0, 1, 1]))), (None, 2))


def focal(stop):
    def loss(y_true, y_pred):
        p = keras.ops.sigmoid(y_pred)
        entropy = keras.ops.binary_crossentropy(y_true, y_pred, from_logits=True)
        return keras.ops.mean(stop((y_true * (1 - p) + (1 - y_true) * p) ** 2) * entropy, -1)

    return loss


def cumulative(y_true, y_pred):
    return keras.ops.mean((keras.ops.cumprod(y_pred, -1) - y_true) ** 2, -1)


FUNCTIONS = {
    "gradient reversal": (reversed_gradient, "CustomGradient (in "),
    "clipped gradient": (clipped_gradient, "CustomGradient (in "),
    "straight through": (rounded, "StopGradient (in "),
    "numpy_function": (passed_through_numpy, "PyFunc (in "),
    "fake quantisation": (tf.quantization.fake_quant_with_min_max_args, "FakeQuantWithMinMaxArgsGradient"),
    "quantisation": (lambda x: tf.quantization.quantize_and_dequantize_v2(x, -1.0, 1.0), "cannot differentiate"),
    "sqrt": (lambda x: tf.sqrt(tf.abs(x)), "Sqrt (in "),
    "prod": (lambda x: keras.ops.prod(x, -1, keepdims=True), "Prod (in "),
    "cumprod": (lambda x: keras.ops.cumprod(x, -1), "Cumprod (in "),
    "unsorted_segment_prod": (
        in_segments(lambda x, segments: tf.math.unsorted_segment_prod(x, segments, 2)),
        "UnsortedSegmentProd (in ",
    ),
    "segment_prod": (in_segments(tf.math.segment_prod), "SegmentProd (in "),
}
PRODUCTS = [name for name in FUNCTIONS if "prod" in name]


def refused(operator, model, loss, x, y, sample_weight=None):
    matrix = operator(model, loss, x, y, sample_weight)
    with pytest.raises(RuntimeError) as caught:
        matrix @ np.ones(matrix.shape[0], "float32")
    assert not any(word in str(caught.value).lower() for word in ("resiz", "interpolation"))
    return str(caught.value)


# What differs between the operators is in which derivative an error is found, not how its cause is named.
NAMED = [
    *((name, HessianOperator) for name in FUNCTIONS if name not in (*PRODUCTS, "clipped gradient")),
    *((name, GaussNewtonOperator) for name in ("clipped gradient", "straight through", "quantisation")),
]


@pytest.mark.parametrize(("name", "operator"), NAMED)
def test_operations_with_wrong_derivatives_are_refused_by_name(name, operator):
    x, y = make_data()
    x[20] = 0.0  # where a square root has no derivative, in none of the first rows
    function, words = FUNCTIONS[name]
    assert words in refused(operator, make_applied(function), "mse", x, y)


@pytest.mark.parametrize(
    ("name", "place", "operator"),
    [
        ("prod", "column", HessianOperator),
        ("cumprod", "row", HessianOperator),
        ("cumprod", "row", GaussNewtonOperator),
        ("segment_prod", "row", HessianOperator),
        ("unsorted_segment_prod", "row", HessianOperator),
    ],
)
def test_products_with_a_factor_of_zero_are_refused(name, place, operator):
    """The factor is zero at the weights themselves: by a column of the kernel, or in one row of the data."""
    function, words = FUNCTIONS[name]
    x, y = make_data()
    if place == "row":
        x[20] = 0.0  # as biases are zero, all factors are
    assert words in refused(operator, make_applied(function, zero_column=place == "column"), "mse", x, y)


@BOTH
def test_losses_with_a_factor_of_zero_are_refused(operator):
    x, y = make_data()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    operator(model, cumulative, x, y) @ np.ones(8, "float32")
    x[20] = 0.0
    assert "Cumprod (in compile_loss" in refused(operator, model, cumulative, x, y)


@BOTH
def test_products_without_a_zero_are_right(operator):
    """All kinds side by side: each by itself would be refused, or asymmetric, as well in the company of others."""
    every = make_applied(lambda x: tf.concat([FUNCTIONS[name][0](x) for name in PRODUCTS], -1))
    matrix = operator(every, "mse", *make_data())
    one, other = np.random.default_rng(1).normal(size=(2, matrix.shape[0]))
    assert one @ (matrix @ other) == pytest.approx(other @ (matrix @ one), rel=1e-4)


@BOTH
def test_a_loss_with_stopped_weights_is_refused(operator):
    x, y = make_data()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert "StopGradient (in compile_loss" in refused(operator, model, focal(keras.ops.stop_gradient), x, y)
    matrix = operator(model, focal(lambda weight: weight), x, y).to_dense()
    np.testing.assert_allclose(
        matrix, operator(model, keras.losses.BinaryFocalCrossentropy(from_logits=True), x, y).to_dense(), atol=1e-6
    )


class StoppedPenalty(keras.regularizers.Regularizer):
    def __call__(self, weight):
        return keras.ops.sum(keras.ops.stop_gradient(weight) * weight)


@BOTH
def test_layers_that_stop_gradients_are_named(operator):
    x, y = make_data()
    dense = keras.layers.Dense
    renorm = keras.layers.BatchNormalization(renorm=True, name="norm")
    model = keras.Sequential([keras.Input((3,)), dense(3, "tanh"), renorm, dense(2)])
    assert "norm (BatchNormalization, renorm=True)" in refused(operator, model, "mse", x, y)
    model = keras.Sequential([keras.Input((3,)), dense(2, kernel_regularizer=StoppedPenalty())])
    assert "StopGradient" in refused(operator, model, "mse", x, y)


def ctc(y, z, unique=None):
    count = tf.fill([tf.shape(z)[0]], 2)
    y, unique = tf.cast(y, tf.int32), unique and unique(tf.cast(y, tf.int32))
    return tf.nn.ctc_loss(y, z, count, count + 3, unique=unique, logits_time_major=False, blank_index=0)


def ctc_with_index(y, z):
    return ctc(y, z, tf.nn.ctc_unique_labels)


@BOTH
def test_ctc_is_refused_by_name_whatever_came_before(operator):
    x, y = np.random.default_rng(0).normal(size=(3, 5, 2)).astype("float32"), np.array([[1, 2], [2, 1], [1, 3]])
    model = keras.Sequential([keras.Input((5, 2)), keras.layers.Dense(4)])
    for loss, self_check in ((ctc, False), (ctc_with_index, True), (keras.losses.CTC(), True)):
        with pytest.raises(RuntimeError, match="TensorFlow has no second derivative of an operation in a loop"):
            operator(model, loss, x, y, self_check=self_check) @ np.ones(12)


# --- targets of the categorical cross-entropy


def own_entropy(y_true, y_pred):
    return tf.nn.softmax_cross_entropy_with_logits(y_true, y_pred)


def in_branch(y, z):
    return tf.cond(tf.size(y) > 0, lambda: own_entropy(y, z), lambda: tf.zeros_like(z[:, 0]))


def in_rows(y, z):
    return tf.map_fn(lambda row: own_entropy(*row), (y, z), fn_output_signature=z.dtype)


def in_loop_in_branch(y, z):
    start = tf.constant(0), tf.zeros_like(z[:, 0])
    _, total = tf.cond(
        tf.size(y) > 0,
        lambda: tf.while_loop(lambda n, _: n < 2, lambda n, total: (n + 1, total + own_entropy(y, z)), start),
        lambda: start,
    )
    return total / 2


@tf.function
def in_function(y, z):
    return own_entropy(y, z) if tf.size(y) > 0 else tf.zeros_like(z[:, 0])


LOSSES = {
    "in a branch": (None, in_branch),
    "in rows": (None, in_rows),
    "in a loop in a branch": (None, in_loop_in_branch),
    "in a function": (None, in_function),
    "softmax": ("softmax", keras.losses.CategoricalCrossentropy()),
    "logits": (None, keras.losses.CategoricalCrossentropy(from_logits=True)),
    "smoothed": ("softmax", keras.losses.CategoricalCrossentropy(label_smoothing=0.1)),
    "own": (None, own_entropy),
}


def measure(kind, model, loss, x, y, weight):
    if kind == "noise":
        return gradient_noise(model, loss, x, y, weight)
    if kind == "step":
        before = [weights.copy() for weights in model.get_weights()]
        return StepMeter(model, loss, x, y, weight).measure(before, [0.9 * weights for weights in before])
    operator = {"hessian": HessianOperator, "gauss_newton": GaussNewtonOperator}[kind]
    matrix = operator(model, loss, x, y, weight, batch_size=12)
    return matrix @ np.ones(matrix.shape[0], "float32")


# Every loss for one kind of measurement, and every other kind for some of the losses: hidden in graphs, and not.
MEASURED = [
    *((name, "hessian") for name in LOSSES if name != "in rows"),
    *((name, "gauss_newton") for name in ("in a branch", "softmax")),
    *((name, "noise") for name in ("in rows", "logits")),
    *((name, "step") for name in ("in a function", "softmax")),
]


@pytest.mark.parametrize(("name", "kind"), MEASURED)
def test_targets_that_do_not_sum_to_one(name, kind):
    """TensorFlow's gradient, softmax(z) - y, is wrong for them, and its derivative is that gradient's."""
    keras.utils.set_random_seed(0)
    activation, loss = LOSSES[name]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, activation=activation)])
    x, _ = make_data()
    y = np.random.default_rng(1).dirichlet(np.ones(3), 24).astype("float32")
    weight = np.ones(24, "float32")
    if not name.startswith("in "):  # else the last line shows enough, as what is hidden takes long to trace
        measure(kind, model, loss, x, y, None)
    y[20] = 0.0  # padding
    with pytest.raises(ValueError, match="`y` must have rows that sum to 1.*Received: 1 of .* the first one sums to 0"):
        measure(kind, model, loss, x, y, weight)
    weight[20] = 0.0
    measure(kind, model, loss, x, y, weight)
    y[20], y[3] = y[0], 2 * y[3]
    with pytest.raises(ValueError, match="`y` must have rows that sum to 1"):
        measure(kind, model, loss, x, y, None)


def test_tensorflow_is_wrong_for_targets_that_do_not_sum_to_one():
    """The gradient of -sum_k y_k log softmax(z)_k is sum(y) softmax(z) - y, by NumPy."""
    z, y = tf.constant([[0.3, -0.2, 0.5]], tf.float64), np.array([[0.2, 0.1, 0.2]])
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = own_entropy(y, z)
    softmax = np.exp(z) / np.exp(z).sum()
    np.testing.assert_allclose(tape.gradient(loss, z), softmax - y, atol=1e-12)
    steps = 1e-6 * np.eye(3)
    measured = [-(y * (np.log(np.exp(z + s) / np.exp(z + s).sum()) - np.log(softmax))).sum() / 1e-6 for s in steps]
    np.testing.assert_allclose(measured, (y.sum() * softmax - y)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["noise", "step"])
def test_gradients_of_cumulative_products_of_zero(kind):
    """The derivative of x_0 x_1 by x_1 is x_0, and TensorFlow says 0 where x_1 is zero."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, kernel_initializer="identity")])
    x = np.random.default_rng(0).uniform(0.5, 1.0, (6, 3)).astype("float32")

    def loss(y, z):
        return tf.reduce_sum(y * tf.math.cumprod(z, axis=-1), axis=-1)

    weight = np.ones(6, "float32")
    gradient = gradient_noise(model, loss, x, np.ones_like(x)).gradient[9:]
    true = np.stack([1 + x[:, 1] * (1 + x[:, 2]), x[:, 0] * (1 + x[:, 2]), x[:, 0] * x[:, 1]], axis=1).mean(0)
    np.testing.assert_allclose(gradient, true, rtol=1e-5)
    x[4, 1] = 0.0
    with pytest.raises(ValueError, match="must not take the cumulative product .*Received: 1 of them"):
        measure(kind, model, loss, x, np.ones_like(x), weight)
    weight[4] = 0.0
    measure(kind, model, loss, x, np.ones_like(x), weight)


# --- what can only be computed in float32


class Fixed(keras.layers.Layer):
    """A matrix of float32 that is no Keras variable: the model cannot be computed in float64."""

    def __init__(self):
        super().__init__()
        self.matrix = tf.Variable(np.eye(3, dtype="float32"))

    def call(self, inputs):
        return inputs @ self.matrix


def many_kinks(x):
    """As kinks in their thousands make it: smooth for steps of 1%, and linear for tiny ones."""
    return tf.reduce_mean(tf.nn.relu(x[..., None] - tf.cast(tf.linspace(-2.0, 2.0, 20_001), x.dtype)), -1)


@pytest.mark.parametrize(("operator", "seed"), [(HessianOperator, 0), (GaussNewtonOperator, 1)])
def test_right_products_in_float32_are_not_refused(seed, operator):
    keras.utils.set_random_seed(seed)
    conv = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.MaxPooling2D(), keras.layers.Flatten()]
    rng = np.random.default_rng(seed)
    for shape, layers in (((3,), [keras.layers.Dense(4), Applied(many_kinks)]), ((8, 8, 3), conv)):
        x, y = rng.normal(size=(16, *shape)).astype("float32"), rng.normal(size=(16, 2)).astype("float32")
        model = keras.Sequential([keras.Input(shape), Fixed(), *layers, keras.layers.Dense(2)])
        vector = rng.normal(size=model.count_params()).astype("float32")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*could not be checked.*self_check=False, an argument")
            checked = operator(model, "mse", x, y) @ vector
        np.testing.assert_array_equal(checked, operator(model, "mse", x, y, self_check=False) @ vector)


@BOTH
def test_wrong_products_in_float32_are_refused(operator):
    x, y = make_data()
    stopped = Applied(lambda x: x * tf.stop_gradient(x))
    model = keras.Sequential([
        keras.Input((3,)),
        Fixed(),
        keras.layers.Dense(4, "tanh"),
        stopped,
        keras.layers.Dense(2),
    ])
    assert "StopGradient (in " in refused(operator, model, "mse", x, y)


def test_losses_that_round_to_float32_are_not_refused():
    x, y = make_data()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])
    loss = lambda a, b: 1.0 + tf.reduce_mean(tf.cast(b - a, tf.float32) ** 2, -1)  # noqa: E731
    for operator in (GaussNewtonOperator, HessianOperator):
        expected = operator(model, "mse", x, y, self_check=False) @ np.ones(26, "float32")
        np.testing.assert_allclose(operator(model, loss, x, y) @ np.ones(26, "float32"), expected, rtol=1e-3, atol=1e-5)


@BOTH
def test_a_cast_to_half_precision_is_a_warning_at_most(operator):
    """Rounding makes the outputs constant along small steps, which says nothing about the derivative."""
    half = Applied(lambda x: tf.cast(tf.cast(x, tf.bfloat16), x.dtype))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), half, keras.layers.Dense(2)])
    with pytest.warns(UserWarning, match="casts to bfloat16 in its code"):
        matrix = operator(model, "mse", *make_data())
    assert matrix.precision == "bfloat16"
    assert "in bfloat16" in repr(matrix)
    with pytest.warns(UserWarning, match="could not be checked"):
        matrix @ np.ones(26, "float32")


# --- where the check is turned off


def makers():
    x, y = np.random.default_rng(0).normal(size=(64, 3)).astype("float32"), np.ones((64, 4), "float32")
    layers = [keras.layers.Dense(4), Applied(FUNCTIONS["fake quantisation"][0]), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile("sgd", "mse")

    def convexity(**options):
        made = Convexity((x, y), eigenvalues=False, **options)
        model.fit(x, y, batch_size=64, verbose=0, callbacks=[made])

    def noise(**options):
        gradient_noise(model, "mse", x, y, group_size=8, num_hessian_groups=1, **options)

    def planning(**options):
        fit_noisy_quadratic(Objective(model, "mse", (x, y)), 1e9, num_runs=4, num_matvecs=2, **options)

    return {"convexity": convexity, "noise": noise, "planning": planning}


@pytest.mark.parametrize("name", ["convexity", "noise", "planning"])
def test_whatever_makes_operators_takes_self_check(name):
    run = makers()[name]
    with pytest.raises(RuntimeError, match=r"self_check=False, an argument of .*Convexity.*gradient_noise.*fit_noisy"):
        run()
    run(self_check=False)
    with pytest.raises(TypeError, match="`self_check` must be"):
        run(self_check=1)


# --- derivatives that are wrong for a few of many rows


def stopped_for_outliers(y, z):
    away = tf.abs(y - z)
    return tf.stop_gradient(tf.where(away > 10.0, 10.0 / away, tf.ones_like(away))) * (y - z) ** 2


def stopped_and_right(y, z):
    return tf.reduce_logsumexp(z * (1.0 + y), -1)  # which stops the gradient of the maximum


@BOTH
@pytest.mark.parametrize("loss", [stopped_for_outliers, stopped_and_right])
def test_derivatives_that_are_wrong_for_a_few_rows_are_found(operator, loss):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 3)).astype("float32"), np.eye(4, dtype="float32")[rng.integers(0, 4, 64)]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    if loss is stopped_for_outliers:
        assert np.isfinite(operator(model, loss, x, y) @ np.ones(16)).all()
    y[30:32] *= 40.0
    if loss is stopped_and_right:
        assert np.isfinite(operator(model, loss, x, y) @ np.ones(16)).all()
    else:
        with pytest.raises(RuntimeError, match=r"are wrong: .*finite differences say"):
            operator(model, loss, x, y) @ np.ones(16)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_the_unit_of_the_loss_does_not_matter(unit, operator):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 3)).astype("float32"), rng.normal(size=(24, 2)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])
    vector = rng.normal(size=26).astype("float32")
    plain = operator(model, "mse", x, y, self_check=False) @ vector
    scaled = operator(model, lambda y, p: unit * keras.ops.mean((y - p) ** 2, -1), x, y) @ vector
    np.testing.assert_allclose(scaled / unit, plain, rtol=1e-4, atol=1e-5 * abs(plain).max())

    def wrong(y, p):  # a second derivative of zero
        return unit * keras.ops.mean((p - y) * keras.ops.stop_gradient(p - y), -1)

    with pytest.raises(RuntimeError, match="wrong|linear in the model"):
        operator(model, wrong, x, y) @ vector
