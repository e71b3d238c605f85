"""Products with the Hessian and the Gauss-Newton matrix, against dense oracles in float64."""

import curvature_oracles as oracles
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.curvature import GaussNewtonOperator, HessianOperator, Probe

BOTH = pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
MODES = [*((kind, "batch") for kind in oracles.KINDS), ("batch_norm", "moving")]


def compute_in(dtype):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


@pytest.fixture(scope="module")
def truth():
    """Dense matrices by kind and mode, each computed once."""
    compute_in("float64")
    found = {}
    for kind, mode in MODES:
        model, x, y = oracles.make(kind)
        is_training = mode == "batch"
        variables = model.trainable_variables
        hessian = oracles.hessian(model, keras.losses.MeanSquaredError(), x, y, training=is_training)
        outputs = tf.function(lambda m=model, x=x, t=is_training: m(x, training=t), autograph=False)
        jacobian = oracles.jacobian(lambda f=outputs: f().numpy(), variables)
        decayed = [v.regularizer is not None for v in variables for _ in range(np.prod(v.shape))]
        found[kind, mode] = hessian, oracles.gauss_newton_of_mse(jacobian) + 2 * 0.25 * np.diag(decayed)
    compute_in("float32")
    return found


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("kind", "mode", "operator", "dtype", "tolerance"),
    [
        (*of, operator, dtype, tolerance)
        for of in MODES
        for operator in (HessianOperator, GaussNewtonOperator)
        for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-4))
        # The check of a Gauss-Newton matrix takes the same models apart as that of a Hessian, and these take long.
        if not (of[0] in ("lstm", "attention") and operator is GaussNewtonOperator and dtype == "float32")
    ],
)
def test_equals_the_dense_oracle(truth, kind, mode, operator, dtype, tolerance):
    model, x, y = oracles.make(kind, dtype)
    # In float32 the self-check, which computes in float64, must be content with all of them.
    matrix = operator(model, "mse", x, y, batch_norm=mode, self_check=dtype == "float32")
    assert matrix.dtype == np.dtype(dtype)
    whole = truth[kind, mode][operator is GaussNewtonOperator]
    if dtype == "float64":
        assert relative_error(matrix.to_dense(), whole) <= tolerance
    else:
        vector = np.random.default_rng(1).normal(size=len(whole))
        assert relative_error(matrix @ vector, whole @ vector) <= tolerance


@BOTH
def test_batches_add_up_to_the_whole(truth, operator):
    model, x, y = oracles.make("conv")
    matrix = operator(model, "mse", x, y, batch_size=4)  # 4 rows and 2
    assert relative_error(matrix.to_dense(), truth["conv", "batch"][operator is GaussNewtonOperator]) <= 1e-10
    vector = np.arange(matrix.shape[0], dtype="float64")
    alone = matrix @ vector
    with matrix.shared():
        np.testing.assert_allclose(matrix @ vector, alone, rtol=1e-13)


@BOTH
def test_blocks(truth, operator):
    model, x, y = oracles.make("dense")
    whole = truth["dense", "batch"][operator is GaussNewtonOperator]
    first, second = model.layers
    for variables, part in (
        (first, slice(0, 16)),
        (second.kernel, slice(16, 24)),
        ([second], slice(16, 26)),
        ([second.bias, first.kernel], [24, 25, *range(12)]),
    ):
        block = operator(model, "mse", x, y, variables=variables)
        places = np.arange(26)[part]
        assert relative_error(block.to_dense(), whole[np.ix_(places, places)]) <= 1e-10


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_block_beside_weights_that_are_regularised(operator, dtype):
    model, x, y = oracles.make("regularized")
    compute_in(dtype)
    whole = operator(model, "mse", x, y)
    last = model.layers[-1]
    block = operator(model, "mse", x, y, variables=last)
    size = block.shape[0]
    np.testing.assert_allclose(block.to_dense(), whole.to_dense()[-size:, -size:], rtol=1e-5, atol=1e-6)
    loss, _ = block.loss_and_gradient()
    assert loss == pytest.approx(whole.loss_and_gradient()[0], rel=1e-6)


@BOTH
def test_the_weights_of_the_moment_are_used(operator):
    model, x, y = oracles.make("dense")
    matrix = operator(model, "mse", x, y)
    before = matrix.to_dense()
    original = model.get_weights()
    model.set_weights([2 * weight for weight in original])
    assert relative_error(matrix.to_dense(), before) > 0.1
    model.set_weights(original)
    np.testing.assert_array_equal(matrix.to_dense(), before)


@BOTH
def test_lists_tensors_and_scipy(operator):
    from scipy.sparse.linalg import eigsh

    model, x, y = oracles.make("dense")
    matrix = operator(model, "mse", x, y)
    dense = matrix.to_dense()
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=v.shape) for v in model.trainable_variables]
    flat = np.concatenate([part.reshape(-1) for part in parts])
    listed = matrix.matvec(parts)
    assert [tuple(part.shape) for part in listed] == [part.shape for part in parts]
    together = np.concatenate([np.asarray(part).reshape(-1) for part in listed])
    np.testing.assert_allclose(together, dense @ flat, rtol=1e-10)
    of_tensor = matrix @ tf.constant(flat)
    assert isinstance(of_tensor, tf.Tensor)
    np.testing.assert_allclose(of_tensor, dense @ flat, rtol=1e-10)
    np.testing.assert_allclose(matrix @ np.stack([flat, 2 * flat], axis=1), dense @ np.stack([flat, 2 * flat], axis=1))
    largest = eigsh(matrix.to_scipy(), k=1, which="LA", return_eigenvectors=False)[0]
    assert largest == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-8)


@BOTH
def test_over_other_rows(operator):
    x, y = (np.random.default_rng(0).standard_normal((24, k)).astype("float32") for k in (3, 1))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    first = operator(model, "mse", x[:8], y[:8])
    first.to_dense()
    second = first.over(Probe(x[8:], y[8:], batch_size=8))
    assert second.objective.num_rows == 16
    assert second.num_matvecs == 0
    np.testing.assert_allclose(second.to_dense(), operator(model, "mse", x[8:], y[8:]).to_dense(), atol=1e-5)
    np.testing.assert_allclose(first.to_dense(), operator(model, "mse", x[:8], y[:8]).to_dense(), atol=1e-6)
    assert first.objective.num_rows == 8
    assert second._products is first._products
    assert len(second._products) == 1  # nothing was compiled again


def test_loss_and_gradient():
    model, x, y = oracles.make("regularized")
    compute_in("float64")
    matrix = HessianOperator(model, "mse", x, y, batch_size=4)
    loss, gradient = matrix.loss_and_gradient()
    flat = np.concatenate([np.asarray(part).reshape(-1) for part in gradient])
    expected = oracles.gradient(model, keras.losses.MeanSquaredError(), x, y, model.trainable_variables, False)
    np.testing.assert_allclose(flat, expected, rtol=1e-12, atol=1e-14)
    model.compile("sgd", "mse")
    assert loss == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-12)


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_gauss_newton_is_the_fisher_matrix(kind, from_logits):
    """Split at the logits, whether or not the model ends in softmax or sigmoid."""
    compute_in("float64")
    body = [keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(3)]
    logits = keras.Sequential(body)
    ending = keras.Sequential([*body, keras.layers.Activation(kind)])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3))
    if kind == "softmax":
        y, loss = rng.integers(0, 3, 5), keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    else:
        y, loss = rng.integers(0, 2, (5, 3)), keras.losses.BinaryCrossentropy(from_logits=from_logits)
    matrix = GaussNewtonOperator(logits if from_logits else ending, loss, x, y).to_dense()
    jacobian = oracles.jacobian(lambda: np.asarray(logits(x)), logits.trainable_variables)
    fisher = getattr(oracles, f"fisher_of_{kind}")(jacobian, np.asarray(logits(x)))
    assert relative_error(matrix, fisher) <= 1e-9


def test_gauss_newton_of_mse_is_a_gaussians_fisher_matrix():
    """Of variance k / 2: J'J / (k / 2) in the mean over rows."""
    model, x, y = oracles.make("dense")
    jacobian = oracles.jacobian(lambda: np.asarray(model(x)), model.trainable_variables)
    width = y.shape[1]
    fisher = np.einsum("rka,rkb->ab", jacobian, jacobian) / len(x) / (width / 2)
    assert relative_error(GaussNewtonOperator(model, "mse", x, y).to_dense(), fisher) <= 1e-10


def make_two_outputs():
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((3,), name="b")}
    joined = keras.layers.Dense(4, activation="tanh")(keras.layers.Concatenate()([inputs["a"], inputs["b"]]))
    outputs = {"u": keras.layers.Dense(2, name="u")(joined), "v": keras.layers.Dense(1, name="v")(joined)}
    return keras.Model(inputs, outputs)


@BOTH
def test_several_inputs_outputs_and_weights(operator):
    compute_in("float64")
    model = make_two_outputs()
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(6, 2)), "b": rng.normal(size=(6, 3))}
    y = {"u": rng.normal(size=(6, 2)), "v": rng.normal(size=(6, 1))}
    weight = rng.uniform(0.5, 2.0, 6)
    model.compile("sgd", {"u": "mse", "v": "mse"}, loss_weights={"u": 0.3, "v": 2.0})
    matrix = operator(model, None, x, y, weight)
    if operator is HessianOperator:

        def loss(_, outputs):
            return sum(
                scale * tf.reduce_mean(weight * tf.reduce_mean((outputs[name] - y[name]) ** 2, axis=1))
                for name, scale in (("u", 0.3), ("v", 2.0))
            )

        expected = oracles.hessian(model, loss, x, y)
    else:
        parts = []
        for name, scale in (("u", 0.3), ("v", 2.0)):
            jacobian = oracles.jacobian(lambda name=name: np.asarray(model(x)[name]), model.trainable_variables)
            rooted = jacobian * np.sqrt(weight)[:, None, None]
            parts.append(scale * oracles.gauss_newton_of_mse(rooted))
        expected = sum(parts)
    assert relative_error(matrix.to_dense(), expected) <= 1e-9


# --- errors


def test_bad_vectors():
    model, x, y = oracles.make("dense")
    matrix = HessianOperator(model, "mse", x, y)
    with pytest.raises(ValueError, match=r"`vector` must have 26 entries.*Received: a ndarray of shape \(25,\)"):
        matrix @ np.ones(25)
    with pytest.raises(ValueError, match=r"`vector` must have the shapes \[\(3, 4\), \(4,\), \(4, 2\), \(2,\)\]"):
        matrix.matvec([np.ones((3, 4)), np.ones(4), np.ones((4, 2)), np.ones(3)])


def test_bad_models_and_losses():
    model, x, y = oracles.make("dense")
    deferred = keras.Sequential([keras.layers.Dense(2)])
    frozen = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, trainable=False)])
    half = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="float16")])
    uncompiled = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    stranger = keras.layers.Dense(2)
    stranger.build((None, 3))
    summed, unreduced = (keras.losses.MeanSquaredError(reduction=how) for how in ("sum", None))
    for arguments, options, error, message in (
        (("mlp", "mse", x, y), {}, TypeError, "`model` must be a Keras 3 model. Received: 'mlp'"),
        ((deferred, "mse", x, y), {}, ValueError, "`model` must have its variables: give it a keras.Input"),
        ((frozen, "mse", x, y), {}, ValueError, "`model` must have trainable variables"),
        ((half, "mse", x, y), {}, ValueError, "must keep its weights in float32 or float64"),
        ((uncompiled, None, x, y), {}, ValueError, "`loss` must be given"),
        ((model, "mse", x), {}, ValueError, "`y` must be given"),
        ((model, "mse", x, y), {"batch_norm": "mean"}, ValueError, "`batch_norm` must be one of 'batch', 'moving'"),
        ((model, "mse", x, y), {"self_check": 1}, TypeError, "`self_check` must be"),
        ((model, "mse", x, y), {"communicator": 1}, TypeError, "`communicator` must be"),
        ((model, "mse", x, y), {"variables": "kernel"}, TypeError, "`variables` must be Keras variables or layers"),
        ((model, "mse", x, y), {"variables": []}, ValueError, "`variables` must be trainable variables"),
        ((model, "mse", x, y), {"variables": stranger}, ValueError, "others: dense"),
        (
            (model, summed, x, y),
            {"batch_size": 4},
            ValueError,
            "`loss` must not depend",
        ),
        ((model, unreduced, x, y), {}, ValueError, "`loss` must reduce the rows"),
    ):
        with pytest.raises(error, match=message):
            HessianOperator(*arguments, **options)
    for target, weight in ((y, np.ones((6, 3, 4))), ({"a": y, "b": y}, None)):
        with pytest.raises(ValueError, match="must fit the model's outputs. Keras raised"):
            HessianOperator(model, "mse", x, target, weight)
    with pytest.raises(ValueError, match="must be given to the Probe"):
        HessianOperator(model, "mse", Probe(x, y), y)


class Scaled(keras.losses.Loss):
    """Somebody's own loss, which does not say in `get_config` what it was made of."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def call(self, y_true, y_pred):
        return self.scale * keras.ops.mean((y_true - y_pred) ** 2, -1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_losses_of_users_stay_what_they_are(truth, dtype):
    model, x, y = oracles.make("dense", dtype)
    whole = truth["dense", "batch"][0]
    for loss in (Scaled(7.0), lambda a, b: 7.0 * keras.ops.mean((a - b) ** 2, -1)):
        matrix = HessianOperator(model, loss, x, y)
        assert relative_error(matrix.to_dense(), 7 * whole) <= {"float64": 1e-10, "float32": 1e-4}[dtype]
        assert matrix.loss_and_gradient()[0] == pytest.approx(7 * np.mean((y - np.asarray(model(x))) ** 2), rel=1e-5)


def test_a_fixed_number_of_rows():
    model = keras.Sequential([
        keras.Input((3, 2), batch_size=12),
        keras.layers.LSTM(3, stateful=True),
        keras.layers.Dense(1),
    ])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3, 2)).astype("float32"), rng.normal(size=(12, 1))
    matrix = HessianOperator(model, "mse", x, y).to_dense()
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)


class OwnLoss(keras.Sequential):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return tf.reduce_mean((y - y_pred) ** 4)


class Penalized(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(tf.reduce_mean(inputs**2))
        return inputs


def test_losses_of_ones_own():
    compute_in("float64")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    model = OwnLoss([keras.Input((3,)), keras.layers.Dense(2, activation="tanh")])
    model.compile("sgd")
    expected = oracles.hessian(model, lambda a, b: tf.reduce_mean((a - b) ** 4), x, y)
    assert relative_error(HessianOperator(model, None, x, y).to_dense(), expected) <= 1e-9
    with pytest.raises(ValueError, match="OwnLoss overrides `compute_loss`"):
        GaussNewtonOperator(model, None, x, y).to_dense()
    added = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="tanh"), Penalized()])
    expected = oracles.hessian(added, lambda a, b: tf.reduce_mean((a - b) ** 2), x, y)
    assert relative_error(HessianOperator(added, "mse", x, y).to_dense(), expected) <= 1e-9
    with pytest.raises(ValueError, match="must not add losses in its layers.*no Gauss-Newton matrix"):
        GaussNewtonOperator(added, "mse", x, y).to_dense()
    added.compile("sgd")  # with nothing but the losses that it adds
    expected = oracles.hessian(added, lambda a, b: 0.0, x, y)
    assert relative_error(HessianOperator(added, None, x).to_dense(), expected) <= 1e-9
