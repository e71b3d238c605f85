"""What is measured is what `fit` sees, in float32 or better, exactly derived; other threads see nothing of it."""

import functools
import threading
from contextlib import nullcontext

import curvature_oracles as oracles
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tfopt.curvature import GaussNewtonOperator, HessianOperator, extremal_eigenvalues


def mse(y_true, y_pred):
    return tf.reduce_mean((y_true - y_pred) ** 2)


def compute_in(dtype):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# --- training mode


def make_base(rate=0.0):
    inputs = keras.Input((3,))
    hidden = layers.BatchNormalization(momentum=1.0)(layers.Dense(2)(inputs))
    return keras.Model(inputs, layers.Activation("tanh")(layers.Dropout(rate)(layers.GaussianNoise(rate)(hidden))))


class Tuned(keras.Model):
    """Calls its base as it says, and forwards `training` to its head."""

    def __init__(self, how, rate=0.0):
        super().__init__()
        self.base, self.head, self.how = make_base(rate), layers.Dense(1), how

    def call(self, x, training=None):
        return self.head(self.how(self.base, x, training))


class Silent(Tuned):
    def call(self, x):
        return self.head(self.how(self.base, x, None))


def functional(base, **options):
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(1)(base(inputs, **options)))


def frozen():
    base = make_base()
    base.layers[2].trainable = False
    return functional(base)


def time_distributed():
    inputs = keras.Input((2, 3))
    hidden = layers.TimeDistributed(layers.BatchNormalization(momentum=1.0))(layers.Dense(2)(inputs))
    return keras.Model(inputs, layers.Dense(1)(layers.Flatten()(hidden)))


class Centred(layers.Layer):
    """Takes off the mean of the batch in training, and a moving one else."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), trainable=False, initializer="ones")

    def call(self, x, training=False):
        if training:
            self.mean.assign(1.0 * self.mean + 0.0 * ops.mean(x, 0))
        return x - (ops.mean(x, 0) if training else self.mean)


class Norm(layers.BatchNormalization):
    def call(self, x, training=None, mask=None):
        if not training:
            return super().call(x, training=training, mask=mask)
        return super().call(x, training=training, mask=mask) * ops.sqrt(ops.var(x))


class Dropping(layers.Layer):
    """A dropout of one's own, which calls other layers too."""

    def __init__(self, draw, inner=None):
        super().__init__()
        self.draw, self.inner = draw, inner

    def call(self, x, training=None):
        x = self.draw(x) if training else x
        return x if self.inner is None else self.inner(x, training=training)


@keras.saving.register_keras_serializable()
class Cell(layers.SimpleRNNCell):
    def call(self, x, states, training=False):
        h, states = super().call(x, states, training=training)
        return (2.0 * h if training else h), states


class WithAuxiliaryLoss(Tuned):
    def call(self, x, training=False):
        hidden = self.base(x)
        if training:
            self.add_loss(0.1 * ops.mean(hidden**2))
        return self.head(hidden)


class WithOwnLoss(Tuned):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return mse(y, y_pred) * (2.0 if training else 1.0)


def stack(*hidden):
    return keras.Sequential([keras.Input((3,)), layers.Dense(2), *hidden, layers.Dense(1)])


def recurrent(layer):
    return keras.Sequential([keras.Input((2, 3)), layer, layers.Dense(1)])


def forwarded(cls=Tuned):
    return cls(lambda base, x, training: base(x, training=training))


def in_a_branch(x):
    return tf.cond(tf.reduce_sum(x) > -1e9, lambda: tf.nn.dropout(x, 0.5), lambda: x)


MODELS = {
    "forwarded": lambda: Tuned(lambda base, x, training: base(x, training=training)),
    "from the context": lambda: Tuned(lambda base, x, training: base(x)),
    "never": lambda: Tuned(lambda base, x, training: base(x, training=False)),
    "never, no argument": lambda: Silent(lambda base, x, training: base(x, training=False)),
    "always": lambda: Tuned(lambda base, x, training: base(x, training=True)),
    "always, no argument": lambda: Silent(lambda base, x, training: base(x, training=True)),
    "no argument": lambda: Silent(lambda base, x, training: base(x)),
    "as a number": lambda: Tuned(lambda base, x, training: base(x, training=int(bool(training)))),
    "twice": lambda: Tuned(lambda base, x, training: base(x, training=False) - 2.0 * base(x, training=training)),
    "functional": lambda: functional(make_base()),
    "functional, never": lambda: functional(make_base(), training=False),
    "frozen": frozen,
    "time steps": time_distributed,
    "layers of one's own": lambda: stack(Centred(), layers.Dense(2, "tanh"), Centred()),
    "a subclass of batch normalisation": lambda: stack(Norm(momentum=1.0)),
    "a function": lambda: stack(layers.Lambda(lambda x, training=None: 2.0 * x if training else x)),
    "a cell of one's own": lambda: recurrent(layers.RNN(Cell(2))),
    "both directions": lambda: recurrent(layers.Bidirectional(layers.RNN(Cell(2)))),
    "a loss in training only": lambda: forwarded(WithAuxiliaryLoss),
    "a loss of one's own": lambda: forwarded(WithOwnLoss),
}
# Of these the self-check too, which traces them in other ways, must be content.
CHECKED = ("twice", "a subclass of batch normalisation", "a cell of one's own", "a loss of one's own")
NOISES = {
    "tf": lambda x: tf.nn.dropout(x, 0.5),
    "keras": lambda x: keras.random.dropout(x, 0.5),
    "generator": lambda x: x + keras.random.normal(ops.shape(x), seed=keras.random.SeedGenerator(1)),
    "branch": in_a_branch,
    "function": tf.function(lambda x: tf.nn.dropout(x, 0.5), autograph=False),
}


def call_of(model):
    # As Keras's `train_step` does.
    return (lambda x: model(x, training=True)) if model._call_has_training_arg else model


@pytest.mark.parametrize("name", MODELS)
def test_batch_normalisation_trains_where_it_does_in_fit(name):
    compute_in("float64")
    model, rng = MODELS[name](), np.random.default_rng(0)
    has_steps = name in ("time steps", "a cell of one's own", "both directions")
    x, y = rng.normal(size=(6, 2, 3) if has_steps else (6, 3)), rng.normal(size=(6, 1))
    model(x)
    model.set_weights([rng.uniform(0.5, 1.5, weight.shape).astype(weight.dtype) for weight in model.get_weights()])
    model.compile(keras.optimizers.SGD(0.0), None if isinstance(model, WithOwnLoss) else "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)  # else `fit` traces the model twice
    before = model.get_weights()
    operator = HessianOperator(model, None, x, y, self_check=name in CHECKED)
    found = operator.to_dense()
    assert operator.loss_and_gradient()[0] == pytest.approx(model.fit(x, y, verbose=0).history["loss"][0], rel=1e-12)
    variables, call = model.trainable_variables, call_of(model)

    @tf.function(autograph=False)
    def gradient():
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, call(x))
        return tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(loss, [v.value for v in variables])], 0)

    assert relative_error(found, oracles.derivative(lambda: gradient().numpy(), variables)) <= 1e-8
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("mode", ["batch", "moving"])
def test_dropout_is_off_where_a_model_asks_for_it(mode):
    models = [Tuned(lambda base, x, training: base(x, training=True), rate) for rate in (0.0, 0.5)]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 1))
    for model in models:
        model(x)
    models[1].set_weights(models[0].get_weights())
    plain, noisy = (HessianOperator(model, "mse", x, y, batch_norm=mode).to_dense() for model in models)
    np.testing.assert_array_equal(plain, noisy)


def hessian_beside(draw):
    compute_in("float64")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 1))
    model = stack(Dropping(draw, Centred()), layers.BatchNormalization(), Centred())
    model.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in model.get_weights()])
    return HessianOperator(model, "mse", x, y).to_dense()


@pytest.fixture(scope="module")
def without_noise():
    return hessian_beside(lambda x: x)


@pytest.mark.parametrize("name", NOISES)
def test_noise_of_ones_own_is_off_and_all_else_as_in_fit(name, without_noise):
    """The layers inside and after the one that draws are called as in training."""
    warned = pytest.warns(UserWarning, match="dropping.* draws random") if name == "generator" else nullcontext()
    with warned:  # dropout is off, and what trains beside it as in `fit`
        np.testing.assert_array_equal(hessian_beside(NOISES[name]), without_noise)


class CallingTwice(keras.Model):
    """Has no `training`; its noise and its second batch normalisation are in training all the same."""

    def __init__(self, draw):
        super().__init__()
        self.dense, self.norm, self.head = layers.Dense(2), layers.BatchNormalization(), layers.Dense(1)
        self.dropping = Dropping(draw)

    def call(self, x):
        hidden = self.dropping(self.norm(self.dense(x)), training=True)
        return self.head(self.norm(ops.tanh(hidden), training=True))


def test_each_call_beside_noise_is_that_of_fit():
    compute_in("float64")
    rng, draws = np.random.default_rng(0), [lambda x: x, NOISES["generator"]]
    x, y, found = rng.normal(size=(6, 3)), rng.normal(size=(6, 1)), []
    for draw in draws:
        model = CallingTwice(draw)
        model(x)
        weights = np.random.default_rng(1)
        model.set_weights([weights.uniform(0.5, 1.5, weight.shape) for weight in model.get_weights()])
        found.append(HessianOperator(model, "mse", x, y).to_dense())
    np.testing.assert_array_equal(*found)


def test_what_does_more_than_noise_is_named():
    def choosing(x):
        return tf.nn.softmax(x + tf.random.normal(tf.shape(x), dtype=x.dtype))

    model = stack(Dropping(choosing, layers.Softmax()))
    with pytest.warns(UserWarning, match="dropping.* draws random numbers in training"):
        HessianOperator(model, "mse", np.ones((6, 3), "float32"), np.ones((6, 1), "float32"))


def hessian_of_linear(x):
    """That of the mean squared error of a Dense layer with one output, by the equations."""
    rows = np.concatenate([x.reshape(len(x), -1), np.ones((len(x), 1))], axis=1)
    return 2.0 * rows.T @ rows / len(x)


@pytest.mark.parametrize("asked", [None, True], ids=["by fit", "by the model"])
def test_random_crops_are_taken_from_the_middle(asked):
    inputs = keras.Input((8, 7, 2))
    x, y = np.random.default_rng(0).normal(size=(5, 8, 7, 2)), np.ones((5, 1))
    cropped = layers.RandomCrop(4, 4)(inputs, training=asked)
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(cropped)))
    expected = hessian_of_linear(x[:, 2:6, 1:5])
    np.testing.assert_allclose(HessianOperator(model, "mse", x, y).to_dense(), expected, rtol=1e-5, atol=1e-6)
    assert "call" not in vars(layers.RandomCrop)


@pytest.mark.parametrize("size", [(8, 3), (4, 8), (6, 4), (3, 6)])
def test_crops_that_draw_nothing_are_taken_as_in_training(size):
    """Keras cuts a fixed window where a side of the image is no larger than that of the crop."""
    inputs, crop = keras.Input((6, 6, 1)), layers.RandomCrop(*size)
    x, y = np.random.default_rng(0).normal(size=(5, 6, 6, 1)), np.ones((5, 1))
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(crop(inputs))))
    expected = hessian_of_linear(np.asarray(crop(x, training=True)))
    np.testing.assert_allclose(HessianOperator(model, "mse", x, y).to_dense(), expected, rtol=1e-5, atol=1e-6)


def test_augmentation_is_off_where_a_model_asks_for_it():
    inputs = keras.Input((4, 4, 1))
    flips = [layers.RandomFlip(), layers.RandomRotation(0.5), layers.RandomBrightness(0.5)]
    x, y = np.random.default_rng(0).normal(size=(6, 4, 4, 1)), np.ones((6, 1))
    hidden = inputs
    for flip in flips:
        hidden = flip(hidden, training=True)
    found = HessianOperator(keras.Model(inputs, layers.Dense(1)(layers.Flatten()(hidden))), "mse", x, y).to_dense()
    np.testing.assert_allclose(found, hessian_of_linear(x), rtol=1e-5, atol=1e-6)


def test_heads_in_training_only_are_measured():
    class Auxiliary(keras.Model):
        def __init__(self):
            super().__init__()
            self.heads = {"main": layers.Dense(2), "aux": layers.Dense(2)}

        def call(self, x, training=False):
            return {name: head(x) for name, head in self.heads.items() if training or name == "main"}

    rng = np.random.default_rng(0)
    x, y, model = rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), Auxiliary()
    model(x, training=True)
    model.compile("sgd", {"main": "mse", "aux": "mse"})
    loss = model.compute_loss(x, {"main": y, "aux": y}, model(x, training=True))
    operator = HessianOperator(model, None, x, {"main": y, "aux": y})
    assert operator.loss_and_gradient()[0] == pytest.approx(float(loss), rel=1e-6)


# --- second derivatives of losses


def concordance(y_true, y_pred):
    (mean, variance), (mean_p, variance_p) = ops.moments(y_true, [0]), ops.moments(y_pred, [0])
    covariance = ops.mean((y_true - mean) * (y_pred - mean_p), 0)
    return ops.mean(1 - 2 * covariance / (variance + variance_p + (mean - mean_p) ** 2))


def redundancy(y_true, y_pred):
    mean, variance = tf.nn.moments(y_pred, [0], keepdims=True)
    normalised = (y_pred - mean) / tf.sqrt(variance + 0.1)
    return tf.reduce_sum((tf.linalg.matmul(normalised, y_true, transpose_a=True) / 8 - np.eye(4)) ** 2)


moments = tf.nn.moments  # as `from tensorflow.nn import moments` does


def spread(y_true, y_pred):
    return tf.reduce_sum((moments(y_pred, 0)[1] - tf.reduce_mean(y_true, 0)) ** 2)


def features(*kinds, dtype="float64"):
    def make(dtype=dtype):
        network = keras.Sequential([keras.Input((4,)), *(kind(dtype) for kind in kinds)])
        rng = np.random.default_rng(2)
        network.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in network.get_weights()])
        network.trainable = False
        return lambda y_true, y_pred: ops.mean((network(y_true) - network(y_pred)) ** 2)

    return make


def of_batches():
    layer = layers.BatchNormalization(momentum=1.0)
    layer.build((None, 4))
    return lambda y_true, y_pred: ops.mean((layer(y_pred, training=True) - y_true) ** 2)


def dense(dtype):
    return layers.Dense(3, "tanh", dtype=dtype)


def layer_norm(dtype):
    return layers.LayerNormalization(dtype=dtype)


LOSSES = {
    "concordance": lambda: concordance,
    "redundancy": lambda: redundancy,
    "imported by name": lambda: spread,
    "layer normalisation": features(dense, layer_norm),
    "group normalisation": features(lambda dtype: layers.GroupNormalization(2, dtype=dtype)),
    "batch normalisation that predicts": features(lambda dtype: layers.BatchNormalization(dtype=dtype), dense),
    "batch normalisation that trains": of_batches,
    "a network in float32": features(dense, layer_norm, dtype="float32"),
}


@pytest.mark.filterwarnings("ignore:.*may have negative eigenvalues")
@pytest.mark.parametrize("name", LOSSES)
def test_gauss_newton_is_the_hessian_where_the_model_is_linear(name):
    compute_in("float64")
    rng = np.random.default_rng(0)
    x, y, loss = rng.normal(size=(8, 3)), rng.normal(size=(8, 4)), LOSSES[name]()
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4)])
    is_wide = "float32" not in name
    expected = oracles.hessian(model, loss if is_wide else LOSSES[name]("float64"), x, y)
    for operator in (HessianOperator, GaussNewtonOperator):
        found = operator(model, loss, x, y).to_dense()
        assert relative_error(found, expected) <= (1e-8 if is_wide else 1e-4)


@keras.saving.register_keras_serializable(package="tests")
class Even(keras.regularizers.Regularizer):
    def __call__(self, weights):
        return ops.sum(ops.moments(weights, [0])[1] ** 2)


def test_a_regulariser_of_moments():
    compute_in("float64")
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, kernel_regularizer=Even(), use_bias=False)])
    x, y = np.random.default_rng(0).normal(size=(6, 3)), np.zeros((6, 2))
    expected = oracles.hessian(model, mse, x, y)
    for operator in (HessianOperator, GaussNewtonOperator):
        assert relative_error(operator(model, "mse", x, y).to_dense(), expected) <= 1e-8


# --- what users have compiled


class Normalised(layers.Layer):
    def __init__(self):
        super().__init__()
        self.inner, self.norm = layers.Dense(2, "tanh"), layers.BatchNormalization(momentum=1.0)

    def build(self, shape):
        self.inner.build(shape)
        self.norm.build((None, 2))

    def call(self, x, training=None):
        return self.norm(self.inner(x), training=training)


class Compiled(Normalised):
    @tf.function
    def call(self, x, training=None):
        if tf.reduce_sum(x) > 1e9:  # which needs autograph
            x = 2.0 * x
        return self.norm(self.inner(x), training=training)


@tf.function
def compiled_spread(y_true, y_pred):
    return spread(y_true, y_pred)


@pytest.mark.parametrize(
    ("before", "operator"),
    [("nothing", HessianOperator), ("predict", HessianOperator), ("fit", GaussNewtonOperator)],
)
def test_traces_of_training_and_of_measurements_stay_apart(before, operator):
    compute_in("float64")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 1))
    plain, model = (keras.Sequential([keras.Input((3,)), kind(), layers.Dense(1)]) for kind in (Normalised, Compiled))
    model.set_weights(plain.get_weights())
    for one, loss in ((plain, spread), (model, compiled_spread)):
        one.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
        one.optimizer.build(one.trainable_variables)  # else `fit` traces the model twice
    if before != "nothing":
        (model.predict(x, verbose=0) if before == "predict" else model.fit(x, y, verbose=0))
    vector = rng.normal(size=model.count_params() - 4)
    found, expected = (operator(one, None, x, y) @ vector for one in (model, plain))
    assert relative_error(found, expected) <= 1e-12
    np.testing.assert_allclose(model(x), plain.predict(x, verbose=0), rtol=1e-12)
    np.testing.assert_allclose(model.fit(x, y, verbose=0).history["loss"], plain.fit(x, y, verbose=0).history["loss"])


# --- half precision


def mixed(dtype, last="float32"):
    return keras.Sequential([
        keras.Input((8,)),
        layers.Dense(16, "gelu", dtype=dtype),
        layers.LayerNormalization(dtype=dtype),
        layers.Dense(5, dtype=last or dtype),
    ])


def on_a_frozen_half(dtype):
    inputs = keras.Input((8,))
    body = layers.Dense(16, "gelu", dtype="float32" if dtype == "float32" else "float16", trainable=False)
    return keras.Model(inputs, layers.Dense(5, dtype=dtype)(body(layers.Dense(8, dtype=dtype)(inputs))))


def by_map(dtype):
    return mixed(keras.dtype_policies.DTypePolicyMap(default_policy=dtype))


# name -> the model by its policy, that policy, the loss
HALVES = {
    "float32 at the end": (mixed, "mixed_float16", "mse"),
    "float16 to the end": (lambda dtype: mixed(dtype, None), "mixed_float16", "mse"),
    "a frozen layer with float16 weights": (on_a_frozen_half, "mixed_float16", "mse"),
    "a map of policies": (by_map, "mixed_float16", "mse"),
    "a loss in float16": (mixed, "mixed_float16", keras.losses.MeanSquaredError(dtype="float16")),
    "bfloat16": (lambda dtype: mixed(dtype, None), "mixed_bfloat16", keras.losses.MeanSquaredError(dtype="bfloat16")),
}


def measured(operator, model, loss, x, y, first):
    """The operator by a layer, a product of it, the gradient and the loss."""
    found = operator(model, loss, x, y, variables=model.layers[first])
    value, gradient = found.loss_and_gradient()
    vector = np.random.default_rng(1).normal(size=found.shape[0])
    return found, found @ vector, np.concatenate([np.ravel(part) for part in gradient]), value


@pytest.fixture(scope="module")
def in_float32():
    """A function of a model's kind: the data, the weights, and what is measured of the model in float32."""

    @functools.cache
    def measure(make, first):
        keras.utils.set_random_seed(1234)
        model = make("float32")
        weights = [weight.astype("float16").astype("float32") for weight in model.get_weights()]
        weights[-2] = weights[-2] * 1e-3
        model.set_weights(weights)
        x = np.random.default_rng(0).normal(size=(512, 8)).astype("float32")
        y = np.asarray(model(x)) * 1.01
        kinds = (HessianOperator, GaussNewtonOperator)
        return x, y, weights, {operator: measured(operator, model, "mse", x, y, first) for operator in kinds}

    return measure


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_is_measured_in_float32(name, in_float32):
    make, policy, loss = HALVES[name]
    first = 1 if "frozen" in name else 0
    x, y, weights, references = in_float32(make if first else mixed, first)
    half = make(policy)
    half.set_weights(weights)
    kept = [layer.dtype_policy for layer in half.layers]
    for operator, (full, *expected, expected_loss) in references.items():
        found, *arrays, value = measured(operator, half, loss, x, y, first)
        for array, reference in zip(arrays, expected, strict=True):
            assert np.linalg.norm(reference) > 0.0
            assert relative_error(array, reference) <= 1e-4
        assert value == pytest.approx(expected_loss, rel=1e-4)
        assert (found.precision, full.precision) == ("float32", "model")
        assert "rows, in float32" in repr(found)
    assert extremal_eigenvalues(found, 4).precision == "float32"
    assert [layer.dtype_policy for layer in half.layers] == kept


class Cast(layers.Layer):
    def call(self, inputs):
        return ops.cast(ops.cast(inputs, "float16"), "float32")


@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_casts_to_float16_are_refused(operator):
    x, y = np.ones((6, 3), "float32"), np.ones((6, 1), "float32")
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), Cast(), layers.Dense(1)])
    with pytest.raises(ValueError, match="must leave their precision to dtype policies.*cast to float16 in 'seq"):
        operator(model, "mse", x, y).to_dense()
    linear = keras.Sequential([keras.Input((3,)), Cast(), layers.Dense(1)])  # of the data only
    with pytest.raises(ValueError, match="must leave their precision to dtype policies"):
        operator(linear, lambda a, b: ops.mean(ops.cast(b - a, "float16") ** 2), x, y).to_dense()
    assert operator(linear, "mse", x, y).to_dense().shape == (4, 4)


# --- threads


class Wait(layers.Layer):
    """Within the thread that measures, waits once for what other threads do meanwhile."""

    def __init__(self, reached, go_on):
        super().__init__()
        self.reached, self.go_on, self.waits_in = reached, go_on, None

    def call(self, inputs):
        if self.waits_in == threading.get_ident():
            self.waits_in = None
            self.reached.set()
            assert self.go_on.wait(60)
        return inputs


def measure_in_thread(model, wait, data):
    def measure():
        wait.waits_in = threading.get_ident()
        HessianOperator(model, "mse", *data).to_dense()

    thread = threading.Thread(target=measure)
    thread.start()
    return thread


def make_waiting(reached, go_on, dtype="mixed_float16"):
    wait = Wait(reached, go_on)
    inputs = keras.Input((2,))
    hidden = layers.Dense(3, dtype=dtype)(layers.Dropout(0.5)(inputs))
    hidden = layers.BatchNormalization(dtype=dtype)(wait(hidden))
    return keras.Model(inputs, layers.Dense(1)(layers.LayerNormalization()(hidden))), wait


def patched():
    classes = (layers.BatchNormalization, layers.Dropout, layers.Layer, layers.SpatialDropout1D)
    return [vars(kind).get(name) for kind in classes for name in ("call", "_dtype_policy")], tf.nn.moments


def test_other_threads_see_nothing_of_a_measurement():
    before = patched()
    reached, go_on = threading.Event(), threading.Event()
    model, wait = make_waiting(reached, go_on)
    data = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
    predicted = np.asarray(model(data[0]))
    thread = measure_in_thread(model, wait, data)
    assert reached.wait(60)
    try:
        np.testing.assert_array_equal(model(data[0]), predicted)
        assert np.asarray(model.layers[1](np.ones((9, 9)), training=True)).min() == 0.0
        assert [layer.compute_dtype for layer in model.layers[2:5]] == ["float16", "float32", "float16"]
        graph = tf.function(lambda: model(data[0], training=True)).get_concrete_function().graph
        assert sum(operation.type == "StopGradient" for operation in graph.get_operations()) == 2
        model.compile("sgd", "mse", jit_compile=False)
        model.fit(*data, verbose=0)
        assert np.abs(model.layers[4].moving_mean).max() > 0.0
    finally:
        go_on.set()
        thread.join()
    assert patched() == before


def test_threads_that_overlap_leave_nothing_behind():
    before = patched()
    first, second, done = threading.Event(), threading.Event(), threading.Event()
    data = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
    (a, wait_a), (b, wait_b) = make_waiting(first, second), make_waiting(second, done)
    one = measure_in_thread(a, wait_a, data)
    assert first.wait(60)
    two = measure_in_thread(b, wait_b, data)
    one.join()  # begun first and ended first
    done.set()
    two.join()
    assert patched() == before
    assert np.isfinite(extremal_eigenvalues(HessianOperator(a, "mse", *data), 4).lambda_max)
