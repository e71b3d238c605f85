"""Where Gauss-Newton splits a loss from a model: fixed endings, against the same weights without them."""

import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, losses, ops

from tfopt.curvature import GaussNewtonOperator, Objective
from tfopt.planning import fit_noisy_quadratic

K = 4


@pytest.fixture(autouse=True)
def _float64():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


def over_sum(e):
    return e / ops.sum(e, -1, keepdims=True)


def by_two_signs(z):
    return tf.where(z >= 0, 1 / (1 + tf.exp(-z)), tf.exp(z) / (1 + tf.exp(z)))


def nll(y, p):
    return -ops.sum(y * p, -1)


def of_both(y, p):
    return -ops.mean(y * ops.log(p[..., :K]) + (1 - y) * ops.log(p[..., K:]), -1)


def of_both_logarithms(y, p):
    return -ops.mean(y * p[..., :K] + (1 - y) * p[..., K:], -1)


def gamma(y, p):
    return ops.mean(y / p + ops.log(p), -1)


CE, BCE = losses.CategoricalCrossentropy(), losses.BinaryCrossentropy()
KL = lambda y, p: ops.sum(y * (ops.log(y + 1e-9) - p), -1)  # noqa: E731
# Kind of targets -> the loss as a function of the logits.
OF_LOGITS = {
    "classes": losses.CategoricalCrossentropy(from_logits=True),
    "bits": losses.BinaryCrossentropy(from_logits=True),
    "counts": lambda y, z: ops.mean(ops.exp(z) - y * z, -1),
    "amounts": lambda y, z: ops.mean(y * ops.exp(-z) + z, -1),
}
# name -> kind of targets, ending, loss of the outputs
FIXED = {
    "softmax + 0": ("classes", lambda z: ops.softmax(z) + 0.0, CE),
    "softmax over two axes": (
        "classes",
        lambda z: layers.Reshape((K,))(layers.Softmax(axis=(1, 2))(layers.Reshape((2, 2))(z))),
        CE,
    ),
    "clipped": ("classes", lambda z: ops.clip(ops.softmax(z), 1e-7, 1.0), CE),
    "masked": ("classes", lambda z: ops.softmax(z) * np.ones(K), CE),
    "by a temperature": ("classes", lambda z: ops.softmax(2 * z / 2.0), CE),
    "by hand": ("classes", lambda z: over_sum(ops.exp(z)), CE),
    "by hand, shifted": ("classes", lambda z: over_sum(ops.exp(z - ops.max(z, -1, keepdims=True))), CE),
    "by hand, stopped": (
        "classes",
        lambda z: over_sum(ops.exp(z - ops.stop_gradient(ops.max(z, -1, keepdims=True)))),
        CE,
    ),
    "taken apart": ("classes", lambda z: ops.concatenate([ops.softmax(z)[:, :1], ops.softmax(z)[:, 1:]], -1), CE),
    "focal": ("classes", lambda z: ops.softmax(z) + 0.0, losses.CategoricalFocalCrossentropy(gamma=0.0, alpha=1.0)),
    "log_softmax": ("classes", ops.log_softmax, nll),
    "log_softmax, kl": ("classes", ops.log_softmax, KL),
    "log_softmax by hand": ("classes", lambda z: z - ops.logsumexp(z, -1, keepdims=True), nll),
    "log of softmax": ("classes", lambda z: ops.log(ops.softmax(z)), nll),
    "exp of log_softmax": ("classes", lambda z: ops.exp(ops.log_softmax(z)), CE),
    "1 - sigmoid": ("bits", lambda z: 1 - ops.sigmoid(-z), BCE),
    "sigmoid by hand": ("bits", lambda z: 1 / (1 + ops.exp(-z)), BCE),
    "sigmoid by tanh": ("bits", lambda z: (ops.tanh(z / 2) + 1) / 2, BCE),
    "sigmoid by two signs": (
        "bits",
        lambda z: layers.Lambda(by_two_signs, output_shape=lambda shape: shape)(z),
        BCE,
    ),
    "both": ("bits", lambda z: ops.concatenate([ops.sigmoid(z), 1 - ops.sigmoid(z)], -1), of_both),
    "log_sigmoid": (
        "bits",
        lambda z: ops.concatenate([ops.log_sigmoid(z), ops.log_sigmoid(-z)], -1),
        of_both_logarithms,
    ),
    "poisson": ("counts", ops.exp, losses.Poisson()),
    "gamma": ("amounts", layers.Activation("exponential"), gamma),
}
# Of these the self-check too, which looks at the loss's own derivatives, must be content.
CHECKED = ("softmax + 0", "log_softmax, kl", "sigmoid by two signs", "both", "poisson", "gamma")


def make_data(kind, rows=12):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3))
    targets = {
        "classes": np.eye(K)[rng.integers(0, K, rows)],
        "bits": rng.integers(0, 2, (rows, K)).astype("float64"),
        "counts": rng.poisson(2.0, (rows, K)).astype("float64"),
        "amounts": rng.gamma(2.0, 1.0, (rows, K)),
    }
    return x, targets[kind], rng


def make_bottom():
    inputs = keras.Input((3,))
    dense = layers.Dense(K, kernel_initializer=keras.initializers.RandomNormal(seed=1))
    hidden = layers.Dense(3, "tanh", kernel_initializer=keras.initializers.RandomNormal(seed=2))
    return inputs, dense(hidden(inputs))


def make_weighted_data(kind):
    x, y, rng = make_data(kind)
    return x, y, rng.uniform(0.5, 2.0, len(x))


@functools.cache
def matrix_of_logits(kind):
    inputs, z = make_bottom()
    model = keras.Model(inputs, z)
    return GaussNewtonOperator(model, OF_LOGITS[kind], *make_weighted_data(kind), self_check=False).to_dense()


@pytest.mark.parametrize("case", FIXED)
def test_fixed_endings_are_part_of_the_loss(case):
    kind, ending, loss = FIXED[case]
    inputs, z = make_bottom()
    model = keras.Model(inputs, ending(z))
    found = GaussNewtonOperator(model, loss, *make_weighted_data(kind), self_check=case in CHECKED)
    expected = matrix_of_logits(kind)
    assert np.linalg.norm(found.to_dense() - expected) <= 2e-6 * np.linalg.norm(expected)  # Keras clips at 1e-7
    assert found.split_at == "logits"
    assert "split at the logits" in repr(found)


LINKS = {"sigmoid": ops.sigmoid, "softplus": ops.softplus, "exp": ops.exp, "tanh": ops.tanh, "softmax": ops.softmax}


@pytest.mark.parametrize("link", LINKS)
def test_endings_without_logarithm_belong_to_the_model(link):
    """The squared error is convex in the outputs, and not in what they are made of."""
    x, y, _ = make_data("amounts")
    inputs, z = make_bottom()
    model = keras.Model(inputs, LINKS[link](z))
    found = GaussNewtonOperator(model, "mse", x, y)
    with tf.GradientTape() as tape:
        outputs = model(x)
    parts = tape.jacobian(outputs, [v.value for v in model.trainable_variables])
    jacobian = np.concatenate([np.reshape(part, (len(x) * K, -1)) for part in parts], axis=1)
    np.testing.assert_allclose(found.to_dense(), 2 / (len(x) * K) * jacobian.T @ jacobian, atol=1e-12)
    assert found.split_at == "outputs"


@pytest.mark.parametrize(
    "bound", [lambda z: 5 * ops.tanh(z), lambda z: ops.cumsum(ops.softplus(z), -1)], ids=["tanh", "ordered"]
)
def test_logits_that_were_bounded_stay_logits(bound):
    """tanh and softplus before the logits are no endings: the loss takes their exponential."""
    x, y, _ = make_data("classes")
    inputs, z = make_bottom()
    bounded = bound(z)
    expected = GaussNewtonOperator(keras.Model(inputs, bounded), OF_LOGITS["classes"], x, y)
    found = GaussNewtonOperator(keras.Model(inputs, ops.softmax(bounded)), CE, x, y)
    np.testing.assert_allclose(found.to_dense(), expected.to_dense(), atol=1e-12)
    assert (found.split_at, expected.split_at) == ("logits", "outputs")


@pytest.mark.self_checked
@pytest.mark.parametrize(
    ("loss", "ending"),
    [("mae", None), (nll, None), ("mae", ops.softmax), ("hinge", ops.tanh)],
    ids=["mae", "nll", "softmax", "tanh"],
)
def test_losses_that_are_linear_in_the_outputs_are_refused(loss, ending):
    x, y, _ = make_data("bits")
    inputs, z = make_bottom()
    model = keras.Model(inputs, z if ending is None else ending(z))
    with pytest.raises(RuntimeError, match="is zero, because the loss is linear in the model's outputs"):
        GaussNewtonOperator(model, loss, x, y).to_dense()
    assert not GaussNewtonOperator(model, loss, x, y, self_check=False).to_dense().any()


@pytest.mark.self_checked
def test_losses_that_are_not_convex_or_zero_on_the_rows_warn():
    x, y, _ = make_data("bits")
    inputs, z = make_bottom()
    with pytest.warns(UserWarning, match="may have negative eigenvalues: the loss is not convex in the outputs"):
        found = GaussNewtonOperator(keras.Model(inputs, ops.sigmoid(z)), "dice", x, y).to_dense()
    assert np.linalg.eigvalsh(found)[0] < -1e-3
    with pytest.warns(UserWarning, match="is zero on 8 rows, spread over the first batch"):
        assert not GaussNewtonOperator(keras.Model(inputs, z), "huber", x, 100 + y).to_dense().any()
    both = keras.Model(inputs, [z, z + 1])
    with pytest.warns(UserWarning, match="leaves out the outputs 1 "):
        found = GaussNewtonOperator(_compiled(both, ["mse", "mae"]), None, x, [y, y]).to_dense()
    expected = GaussNewtonOperator(keras.Model(inputs, z), "mse", x, y).to_dense()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def _compiled(model, loss, **options):
    model.compile(loss=loss, **options)
    return model


def test_each_output_is_split_for_itself():
    """In nested dictionaries, with weights of losses and rows, and an output that joins two kinds."""
    x, classes, rng = make_data("classes")
    bits, amounts = make_data("bits")[1], make_data("amounts")[1]
    inputs, z = make_bottom()
    other = layers.Dense(K)(layers.Dense(3, "tanh")(inputs))
    weight = rng.uniform(0.5, 2.0, len(x))

    def of_joint(y, joint):
        return 0.25 * (-ops.mean(y * ops.log(joint[:, :K]), -1) + ops.mean((joint[:, K:] - y) ** 2, -1))

    def of_joint_logits(y, joint):
        return 0.25 * (-ops.mean(y * ops.log_softmax(joint[:, :K]), -1) + ops.mean((joint[:, K:] - y) ** 2, -1))

    found = []
    for endings in (True, False):
        p, s = (ops.softmax(z) + 0.0, ops.sigmoid(other)) if endings else (z, other)
        outputs = {"a": {"p": p, "s": s}, "b": ops.softplus(z), "c": ops.concatenate([p, other], -1)}
        loss = {
            "a": {"p": CE if endings else OF_LOGITS["classes"], "s": BCE if endings else OF_LOGITS["bits"]},
            "b": "mse",
            "c": of_joint if endings else of_joint_logits,
        }
        y = {"a": {"p": classes, "s": bits}, "b": amounts, "c": classes}
        weights = {"a": {"p": 2.0, "s": 3.0}, "b": 0.5, "c": 1.5}
        model = _compiled(keras.Model(inputs, outputs), loss, loss_weights=weights)
        variables = sorted(model.trainable_variables, key=lambda variable: variable.path)
        found.append(GaussNewtonOperator(model, None, x, y, weight, variables=variables))
    np.testing.assert_allclose(found[0].to_dense(), found[1].to_dense(), atol=1e-7)
    assert (found[0].split_at, found[1].split_at) == ("logits and outputs", "outputs")


def test_planning_takes_the_same_matrix():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 3)), np.eye(K)[rng.integers(0, K, 64)]
    inputs, z = make_bottom()
    truth, found = (
        fit_noisy_quadratic(Objective(model, loss, (x, y)), None, num_runs=4, num_matvecs=4).curvature
        for model, loss in (
            (keras.Model(inputs, z), OF_LOGITS["classes"]),
            (keras.Model(inputs, ops.log_softmax(z)), nll),
        )
    )
    np.testing.assert_allclose(found, truth, rtol=1e-6)


@pytest.mark.parametrize("kind", ["attention", "gate", "scaled by a weight", "expected value"])
def test_exponentials_before_weights_are_no_endings(kind):
    x, y, _ = make_data("amounts")
    inputs, z = make_bottom()
    gate = layers.Dense(K, "sigmoid")(inputs)
    outputs = {
        "attention": lambda: layers.Dense(K)(ops.softmax(z)),
        "gate": lambda: gate * layers.Dense(K)(inputs),
        "scaled by a weight": lambda: layers.EinsumDense("ab,b->ab", (K,))(ops.exp(z)),
        "expected value": lambda: ops.softmax(z) @ np.eye(K),
    }[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GaussNewtonOperator(keras.Model(inputs, outputs), "mse", x, y).split_at == "outputs"


def psnr(y, p):
    return 10 * ops.log(ops.mean((y - p) ** 2)) / np.log(10)


# Losses with a logarithm that does not undo the ending: name -> kind of targets, loss
NOT_PAIRED = {
    "cauchy": ("bits", lambda y, p: ops.mean(ops.log(1 + (y - p) ** 2), -1)),
    "psnr": ("bits", psnr),
    "msle": ("bits", "msle"),
    "of a square by hand": ("bits", lambda y, p: ops.mean(ops.log(1.01 + (p - 0.5) * (p - 0.5)), -1)),
    "ratio of sums": (
        "bits",
        lambda y, p: -ops.log((ops.sum(y * p, -1) + 1) / (ops.sum(y + p, -1) - ops.sum(y * p, -1) + 1)),
    ),
    "log of dice": ("bits", lambda y, p: -ops.log((2 * ops.sum(y * p, -1) + 1e-6) / (ops.sum(y + p, -1) + 1e-6))),
    "reverse KL": ("classes", lambda y, p: ops.sum(p * ops.log((p + 1e-7) / (y + 0.01)), -1)),
    "Jensen-Shannon": ("classes", lambda y, p: ops.sum(p * ops.log(p / (y + p)) - y * ops.log((y + p) / 2), -1)),
}


@pytest.mark.parametrize("loss", NOT_PAIRED)
@pytest.mark.parametrize("link", ["sigmoid", "softmax", "exp"])
@pytest.mark.filterwarnings("ignore:.*may have negative eigenvalues")  # some are convex nowhere
def test_a_logarithm_of_something_else_is_split_at_the_outputs(loss, link):
    kind, loss = NOT_PAIRED[loss]
    x, y, _ = make_data(kind)
    inputs, z = make_bottom()
    assert GaussNewtonOperator(keras.Model(inputs, LINKS[link](z)), loss, x, y).split_at == "outputs"


def test_msle_of_a_sigmoid_is_as_in_numpy():
    x, y, _ = make_data("bits")
    inputs, z = make_bottom()
    model = keras.Model(inputs, ops.sigmoid(z))
    with tf.GradientTape() as tape:
        outputs = model(x)
    parts = tape.jacobian(outputs, [v.value for v in model.trainable_variables])
    jacobian = np.concatenate([np.reshape(part, (len(x) * K, -1)) for part in parts], axis=1)
    p = outputs.numpy().reshape(-1)
    curvature = 2 * (1 - np.log1p(p) + np.log1p(y.reshape(-1))) / (1 + p) ** 2 / p.size
    found = GaussNewtonOperator(model, "msle", x, y).to_dense()
    np.testing.assert_allclose(found, jacobian.T @ (curvature[:, None] * jacobian), atol=1e-8)


def of_pairs(y, p):
    right = y * p + (1 - y) * (1 - p)
    return -ops.mean((1 - right) ** 2 * ops.log(right), -1)


PAIRED = {
    "focal by hand": ("bits", ops.sigmoid, of_pairs),
    "binary focal": ("bits", ops.sigmoid, losses.BinaryFocalCrossentropy()),
    "log1p(-p)": ("bits", ops.sigmoid, lambda y, p: -ops.mean(y * ops.log(p) + (1 - y) * ops.log1p(-p), -1)),
    "of a sum": ("classes", ops.softmax, lambda y, p: -ops.log(ops.sum(y * p, -1) + 1e-9)),
    "by the row's sum": ("classes", ops.softmax, lambda y, p: -ops.sum(y * ops.log(p / ops.sum(p, -1)[:, None]), -1)),
    "kl": ("classes", ops.softmax, losses.KLDivergence()),
    "signs": ("bits", ops.tanh, lambda y, p: -ops.mean(y * ops.log((1 + p) / 2) + (1 - y) * ops.log(0.5 - p / 2), -1)),
    "and an error": ("bits", ops.sigmoid, lambda y, p: ops.mean((y - p) ** 2, -1) + losses.binary_crossentropy(y, p)),
    "smoothed": ("classes", ops.softmax, losses.CategoricalCrossentropy(label_smoothing=0.1)),
    "gathered": ("classes", ops.softmax, lambda y, p: -tf.math.log(tf.gather(p, tf.argmax(y, -1), batch_dims=1))),
    "negative binomial": ("counts", ops.exp, lambda y, p: ops.mean((y + 2) * ops.log(p + 2) - y * ops.log(p), -1)),
}


HALF = np.array([1.0, 0.0, 1.0, 0.0])


def mask_of(y):
    return ops.cast(ops.sum(y, -1, keepdims=True) > 1, y.dtype)


def masked(y, p):
    m = mask_of(y)
    return -ops.mean(y * ops.log(p * m + 1 - m), -1)


def masked_by_one(y, p):
    m = mask_of(y)
    return -ops.mean(y * ops.log(p * m + (1 - m)) + (1 - y) * ops.log(m * (1 - p) + 1 - m), -1)


PAIRED |= {
    "product": ("bits", ops.sigmoid, lambda y, p: -ops.log(p[:, 0] * p[:, 1] + 1e-9)),
    "1 - product": (
        "bits",
        ops.sigmoid,
        lambda y, p: losses.binary_crossentropy(y[:, :1], p[:, :1]) - (1 - y[:, 1]) * ops.log(1 - p[:, 0] * p[:, 1]),
    ),
    "product of many": ("bits", ops.sigmoid, lambda y, p: -ops.log(ops.prod(y * p + (1 - y) * (1 - p), -1))),
    "powers": ("bits", ops.sigmoid, lambda y, p: -ops.log(ops.prod(p**y * (1 - p) ** (1 - y), -1))),
    "dot product": ("bits", ops.sigmoid, lambda y, p: -ops.log(tf.einsum("ab,ab->a", p[:, :2], p[:, 2:]))),
    "masked": ("bits", ops.sigmoid, masked),
    "masked by numbers": ("bits", ops.sigmoid, lambda y, p: -ops.sum(y * ops.log(p * HALF + (1 - HALF)), -1)),
    "masked by its complement": ("bits", ops.sigmoid, masked_by_one),
}


def mixture_of_logarithms(y, p):
    return -ops.logsumexp(ops.log(p[:, :2]) - ((y[:, :1] - p[:, 2:]) / 0.3) ** 2, -1)


def mixture(y, p):
    return -ops.log(ops.sum(p[:, :2] * ops.exp(-(((y[:, :1] - p[:, 2:]) / 0.3) ** 2)), -1))


def mixture_of_t(y, p):
    return -ops.log(ops.sum(p[:, :2] / (1 + ((y[:, :1] - p[:, 2:]) / 0.3) ** 2), -1))


@pytest.mark.filterwarnings("ignore:.*may have negative eigenvalues")
def test_mixtures_are_split_at_the_logits():
    x, y, _ = make_data("amounts")
    inputs, z = make_bottom()
    model = keras.Model(inputs, ops.concatenate([ops.softmax(z[:, :2]), z[:, 2:]], -1))
    found, of_logarithms, of_t = (
        GaussNewtonOperator(model, loss, x, y) for loss in (mixture, mixture_of_logarithms, mixture_of_t)
    )
    np.testing.assert_allclose(found.to_dense(), of_logarithms.to_dense(), atol=1e-9)
    assert {one.split_at for one in (found, of_logarithms, of_t)} == {"logits"}


def test_the_logarithm_of_a_product_is_a_sum_of_logarithms():
    """A hierarchical softmax: that of the classes times that of their kinds."""
    x, y, _ = make_data("classes")
    inputs, z = make_bottom()
    logits = [z[:, :2], z[:, 2:]]
    model = keras.Model(inputs, ops.concatenate([ops.softmax(part) for part in logits], -1))
    plain = keras.Model(inputs, z)

    def of_product(y, p):
        return -ops.log(ops.sum(y[:, :2] * p[:, :2], -1) * p[:, 3])

    def of_logits(y, z):
        return -ops.log(ops.sum(y[:, :2] * ops.softmax(z[:, :2]), -1)) - ops.log_softmax(z[:, 2:])[:, 1]

    y = np.eye(2)[np.argmax(y, -1) % 2]
    found = GaussNewtonOperator(model, of_product, x, y)
    np.testing.assert_allclose(found.to_dense(), GaussNewtonOperator(plain, of_logits, x, y).to_dense(), atol=1e-9)
    assert found.split_at == "logits"


@pytest.mark.self_checked
def test_a_sum_of_which_it_is_not_clear_warns():
    x, y, rng = make_data("bits")
    inputs, z = make_bottom()
    rest = rng.uniform(0.5, 1.0, K)
    found = GaussNewtonOperator(
        keras.Model(inputs, ops.sigmoid(z)), lambda y, p: -ops.mean(ops.log(p * HALF + rest), -1), x, y
    )
    with pytest.warns(UserWarning, match="may differ from the matrix of logits: it is split at the outputs"):
        found.matvec(np.ones(found.shape[0]))


@pytest.mark.parametrize("name", PAIRED)
def test_logarithms_that_undo_the_ending_are_split_at_the_logits(name):
    kind, ending, loss = PAIRED[name]
    x, y, _ = make_data(kind)
    inputs, z = make_bottom()
    assert GaussNewtonOperator(keras.Model(inputs, ending(z)), loss, x, y).split_at == "logits"


@pytest.mark.parametrize("ending", [layers.Softmax, lambda: ops.softmax], ids=["layer", "function"])
def test_each_loss_of_the_same_output_has_its_own_split(ending):
    x, y, _ = make_data("classes")
    inputs, z = make_bottom()
    p = ending()(z)
    both = GaussNewtonOperator(
        _compiled(keras.Model(inputs, [p, p]), ["categorical_crossentropy", "mse"]), None, x, [y, y]
    )
    parts = [GaussNewtonOperator(keras.Model(inputs, p), loss, x, y).to_dense() for loss in (CE, "mse")]
    np.testing.assert_allclose(both.to_dense(), sum(parts), atol=1e-9)
    assert both.split_at == "logits and outputs"


class _InLoop(layers.Layer):
    def call(self, z):
        return tf.map_fn(tf.nn.softmax, z)


class _InBranch(layers.Layer):
    def call(self, z):
        return tf.cond(tf.reduce_sum(z) < np.inf, lambda: tf.nn.softmax(z), lambda: z)


def loss_in_a_loop(y, p):
    return tf.map_fn(lambda row: -tf.reduce_sum(row[0] * tf.math.log(row[1])), (y, p), fn_output_signature=p.dtype)


@pytest.mark.self_checked
@pytest.mark.parametrize(
    ("ending", "loss", "name"),
    [(_InLoop, nll, "while"), (_InBranch, nll, "cond"), (layers.Softmax, loss_in_a_loop, "while")],
    ids=["loop", "branch", "loss"],
)
def test_what_is_hidden_in_loops_and_branches_warns(ending, loss, name):
    x, y, _ = make_data("classes")
    inputs, z = make_bottom()
    loss = (lambda y, p: -ops.sum(y * ops.log(p), -1)) if loss is nll else loss
    found = GaussNewtonOperator(keras.Model(inputs, ending()(z)), loss, x, y)
    with pytest.warns(UserWarning, match=f"may differ from the matrix of logits.*{name}"):
        found.matvec(np.ones(found.shape[0]))
    assert found.split_at == "outputs"
