"""The certificate against Hessians from the equations, and what it does not cover."""

import keras
import multilinear_networks as networks
import numpy as np
import pytest

from tfopt.curvature import (
    HessianOperator,
    NotCoveredError,
    Objective,
    Probe,
    convexity_certificate,
    convexity_modulus,
)
from tfopt.models import milne_regression, mlp


def theta_of(weights, x, y, slope, decay, kind):
    """The modulus in the paper's units, as the paper has it."""
    depth = len(weights) - 1
    factor = depth * (depth + 1) if kind == "paper" else depth
    norm, radius = networks.spectral_norm(weights), np.linalg.norm(x, axis=1).max()
    return decay - np.sqrt(2) * factor * radius * np.sqrt(networks.losses(weights, x, y, slope)) * norm ** (depth - 1)


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_no_eigenvalue_is_below_the_modulus(slope, num_outputs):
    rng = np.random.default_rng(round(10 * slope) + num_outputs)
    certified, margins = 0, []
    for _ in range(100):
        num_hidden, width = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        scale = 10.0 ** rng.uniform(-1, 0.5)
        num_rows = int(rng.integers(1, 8))
        weights, x, y = networks.random_case(rng, num_hidden, width, 2, num_outputs, num_rows, scale)
        y *= rng.uniform(0, 1)
        decay = 10.0 ** rng.uniform(-1, 1)
        smallest = np.linalg.eigvalsh(networks.hessian(weights, x, y, slope, decay))[0]
        paper, sharp = (theta_of(weights, x, y, slope, decay, kind) for kind in ("paper", "sharp"))
        error = 2 * networks.losses(weights, x, y, slope) / num_outputs
        arguments = (decay / num_outputs, error, networks.spectral_norm(weights), np.linalg.norm(x, axis=1).max())
        for kind, theta in (("paper", paper), ("sharp", sharp)):
            ours = convexity_modulus(*arguments, num_hidden, num_outputs, kind)
            assert ours == pytest.approx(2 / num_outputs * theta, rel=1e-10, abs=1e-10)
        assert paper <= sharp <= smallest + 1e-9 * max(1.0, abs(sharp))
        certified += sharp > 0
        margins.append((smallest - sharp) / (decay - sharp) if decay > sharp else 0.0)
    assert 10 < certified < 90  # both sides of zero are seen
    assert min(margins) < 0.6  # and the bound is no empty one


def test_the_output_is_linear_in_each_matrix():
    """Differentiated twice with respect to the same matrix it is zero, which the theorem rests on."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        weights, x, _ = networks.random_case(rng, 3, 3, 2, 2, 4, 1.0)
        slopes = networks.slopes_of(weights, x, 0.2)
        for place, weight in enumerate(weights):
            ahead, behind = (networks.outputs([w + s * (w is weight) for w in weights], x, slopes) for s in (1.0, -1.0))
            here = networks.outputs(weights, x, slopes)
            np.testing.assert_allclose(ahead + behind - 2 * here, 0.0, atol=1e-12 * np.abs(ahead).max(), err_msg=place)


def test_one_hidden_layer_may_have_biases():
    """With r -> sqrt(r^2 + 1): a bias is the weight of an input that is always 1."""
    rng = np.random.default_rng(3)
    model = mlp(2, (3,), 1, kernel_initializer="zeros", weight_decay=0.0, seed=0)
    penalty = keras.regularizers.L2(0.25)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            layer.kernel.regularizer = layer.bias.regularizer = penalty
    x, y = rng.normal(size=(5, 2)), rng.normal(size=(5, 1))
    hessian = HessianOperator(model, "mse", x, y)
    for _ in range(12):
        model.set_weights([rng.normal(size=w.shape) * 10.0 ** rng.uniform(-1, 0.5) for w in model.get_weights()])
        certificate = convexity_certificate(model, "mse", x, y)
        assert certificate.input_radius == pytest.approx(np.sqrt(np.linalg.norm(x, axis=1).max() ** 2 + 1))
        smallest = np.linalg.eigvalsh(hessian.to_dense())[0]
        assert certificate.theta_sharp <= smallest + 1e-4 * max(1.0, abs(smallest))


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_units_are_those_of_the_loss_that_keras_minimises(num_outputs):
    rng = np.random.default_rng(num_outputs)
    weights, x, y = networks.random_case(rng, 2, 3, 2, num_outputs, 9, 0.8)
    keras.config.set_dtype_policy("float64")
    model = mlp(2, (3, 3), num_outputs, use_bias=False, negative_slope=0.25, weight_decay=0.5)
    model.set_weights(weights)
    model.compile("sgd", "mse")
    certificate = convexity_certificate(model, None, x, y, batch_size=4)
    assert certificate.mean_squared_error == pytest.approx(2 / num_outputs * networks.losses(weights, x, y, 0.25))
    decay = num_outputs * 0.5
    for kind in ("paper", "sharp"):
        expected = 2 / num_outputs * theta_of(weights, x, y, 0.25, decay, kind)
        assert getattr(certificate, f"theta_{kind}") == pytest.approx(expected, rel=1e-6)
    hessian = HessianOperator(model, None, x, y).to_dense()
    expected = 2 / num_outputs * networks.hessian(weights, x, y, 0.25, decay)
    np.testing.assert_allclose(hessian, expected, atol=1e-6 * np.abs(expected).max())
    assert certificate.theta_sharp <= np.linalg.eigvalsh(hessian)[0]
    assert f"theta_sharp={certificate.theta_sharp:.4g}" in repr(certificate)


def test_membership_and_the_ball():
    model = milne_regression(seed=0)
    model.set_weights([np.array([[0.5, 0.25]]), np.array([[0.5], [0.5]])])
    certificate = convexity_certificate(model, "mse", np.ones((1, 1)), np.zeros((1, 1)))
    theta = certificate.theta_sharp
    assert certificate.contains(theta - 1e-6)
    assert not certificate.contains(theta)
    assert not certificate.contains(theta, "paper")
    deep = mlp(2, (2, 2), 1, use_bias=False, kernel_initializer="orthogonal", weight_decay=0.25, seed=1)
    x = np.array([[1.0, 0.0], [0.0, 2.0]])
    certificate = convexity_certificate(deep, "mse", x, deep.predict(x, verbose=0) + 0.01)
    assert certificate.num_hidden_layers == 2
    assert certificate.spectral_norm == pytest.approx(1.0, rel=1e-5)
    assert certificate.modulus(norm_bound=1.5) < certificate.modulus()
    limit = certificate.largest_mean_squared_error(0.1, "paper", norm_bound=1.5)
    inside = convexity_modulus(0.25, limit, 1.5, certificate.input_radius, 2, 1, "paper")
    assert inside == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"`norm_bound` must be a finite number >= 1"):
        certificate.modulus(norm_bound=0.5)
    with pytest.raises(ValueError, match="`theta` must be a finite number <= 0.5"):
        certificate.largest_mean_squared_error(0.6)
    with pytest.raises(ValueError, match="`kind` must be one of 'paper', 'sharp'"):
        certificate.modulus("other")


def test_without_hidden_layers_it_is_the_decay():
    linear = mlp(2, (), 2, weight_decay=0.25)
    linear.layers[-1].bias.regularizer = keras.regularizers.L2(0.25)
    certificate = convexity_certificate(linear, "mse", np.ones((3, 2)), np.ones((3, 2)))
    assert (certificate.theta_paper, certificate.theta_sharp) == (0.5, 0.5)
    assert certificate.largest_mean_squared_error() == float("inf")


def test_moduli_have_the_shape_of_their_arguments():
    for depth in (0, 2):
        found = convexity_modulus(1.0, 0.25, np.ones(5), np.ones((3, 1)), depth)
        assert found.shape == (3, 5)
    assert (convexity_modulus(1.0, [0.25, np.inf], 1.0, 1.0, 0) == 2.0).all()


def test_powers_that_overflow_certify_nothing():
    assert convexity_modulus(1.0, 1.0, 1e30, 1.0, 50) == -np.inf
    assert convexity_modulus(1.0, 0.0, 1e30, 1.0, 50) == -np.inf
    np.testing.assert_array_equal(convexity_modulus(1.0, np.array([0.0, 1.0]), 1.0, 1.0, 1), [2.0, 0.0])


def test_the_spectral_norm_is_never_too_small():
    rng = np.random.default_rng(0)
    model = mlp(60, (80, 40), 1, use_bias=False, weight_decay=0.1, seed=0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    kernels = [np.asarray(w, np.float64) for w in model.get_weights()]
    exact = max(np.sqrt(np.linalg.eigvalsh(k.T @ k)[-1]) for k in kernels)
    certificate = convexity_certificate(model, "mse", rng.normal(size=(4, 60)), np.ones((4, 1)))
    assert exact <= certificate.spectral_norm <= exact * (1 + 1e-9)


# --- what is covered, and what is not


def dense(units=2, penalty="l2", **options):
    return keras.layers.Dense(units, use_bias=False, kernel_regularizer=penalty, **options)


def chain(*layers):
    return keras.Sequential([keras.Input((2,)), *layers])


@pytest.mark.parametrize(
    "make",
    [
        lambda: chain(dense(activation="leaky_relu"), dense(1)),
        lambda: chain(dense(), keras.layers.ReLU(negative_slope=0.5), dense(1)),
        lambda: chain(dense(activation=keras.layers.LeakyReLU(negative_slope=0.1)), dense(1)),
        lambda: chain(dense(penalty=keras.regularizers.L1L2(0.0, 0.01)), dense(1)),
        lambda: chain(keras.layers.Flatten(), dense(activation="relu"), dense(), dense(1, activation="linear")),
        lambda: mlp((2, 1), (3,), 1, use_bias=False, weight_decay=0.01),
    ],
)
def test_covered(make):
    model = make()
    x = np.ones((3, *model.input_shape[1:]))
    for loss in ("mse", "mean_squared_error", keras.losses.MeanSquaredError(), ["mse"]):
        model.compile("sgd", loss)
        assert convexity_certificate(model, None, x, np.ones((3, 1))).theta_paper < 0.02
    assert convexity_certificate(model, keras.losses.mean_squared_error, x, np.ones((3, 1))).l2 == pytest.approx(0.01)


def joined():
    inputs = keras.Input((2,))
    hidden = dense(activation="relu")(inputs)
    return keras.Model(inputs, dense(1)(keras.layers.Add()([inputs, hidden])))


def twice():
    inputs, layer = keras.Input((2,)), dense(activation="relu")
    return keras.Model(inputs, dense(1)(layer(layer(inputs))))


def low_rank():
    model = chain(dense(), dense(1))
    model.layers[0].enable_lora(1)
    return model


class OwnLoss(keras.Sequential):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.abs(y - y_pred))


class Thirty(keras.layers.ReLU):
    def call(self, inputs):
        return 30 * super().call(inputs)


class Wave(keras.layers.Activation):
    def call(self, inputs):
        return keras.ops.sin(10 * inputs)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.last = dense(1)
        self.build((None, 2))

    def build(self, shape):
        self.last.build(shape)
        self.built = True

    def call(self, x):
        return self.last(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp(2, (2, 2), 1, weight_decay=0.1), "'hidden_1' has a bias, in a network of 2 hidden layers"),
        (lambda: mlp(2, (2,), 1, weight_decay=0.1), "bias of 'hidden_1' has no penalty"),
        (lambda: mlp(2, (2,), 1, use_bias=False), "kernel of 'hidden_1' has no penalty.*weight_decay does not count"),
        (lambda: chain(dense(name="one"), dense(1, penalty="l1")), "has L1 in place of an L2 penalty"),
        (lambda: chain(dense(), dense(1, penalty=keras.regularizers.L2(0.5))), "the L2 penalties differ"),
        (lambda: chain(dense(activation="tanh"), dense(1)), r"the activation of the layer 'dense.*\(Dense\) is tanh"),
        (lambda: chain(dense(), keras.layers.Activation("gelu"), dense(1)), r"\(Activation\) is gelu"),
        (lambda: chain(dense(), keras.layers.ReLU(max_value=6.0), dense(1)), r"\(ReLU\) is"),
        (lambda: chain(dense(), keras.layers.ReLU(negative_slope=2.0), dense(1)), r"\(ReLU\) is"),
        (lambda: chain(dense(), keras.layers.LeakyReLU(negative_slope=1.5), dense(1)), r"\(LeakyReLU\) is"),
        (lambda: chain(dense(), Thirty(), dense(1)), r"\(Thirty\) is Thirty"),
        (lambda: chain(dense(), Wave("relu"), dense(1)), r"\(Wave\) is Wave"),
        (lambda: chain(dense(), keras.layers.BatchNormalization(), dense(1)), "BatchNormalization"),
        (lambda: chain(dense(), keras.layers.Dropout(0.5), dense(1)), "Dropout"),
        (lambda: chain(dense(), dense(1, activation="relu")), "the output has an activation"),
        (lambda: chain(dense(), dense(1), keras.layers.ReLU()), "the output has an activation"),
        (lambda: chain(dense(activity_regularizer="l2"), dense(1)), "activity regulariser"),
        (lambda: keras.Sequential([keras.Input((3, 2)), dense(1)]), "along the last of 3 axes"),
        (low_rank, "low-rank or quantized"),
        (joined, r"joins 2 tensors"),
        (twice, "is used twice"),
        (Subclassed, "Subclassed is neither Sequential nor a functional model"),
    ],
)
def test_not_covered(make, message):
    model = make()
    shape = (3, 2) if isinstance(model, Subclassed) else (3, *model.input_shape[1:])
    with pytest.raises(NotCoveredError, match=message):
        convexity_certificate(model, "mse", np.ones(shape), np.ones((*shape[:-1], 1)))


@pytest.mark.parametrize("loss", ["mae", keras.losses.Huber(), keras.losses.MeanSquaredError("sum")])
def test_other_losses_are_not_covered(loss):
    with pytest.raises(NotCoveredError, match="the loss is"):
        convexity_certificate(milne_regression(), loss, np.ones((3, 1)), np.ones((3, 1)))


def test_a_loss_of_the_models_own_is_not_covered():
    model = OwnLoss([keras.Input((2,)), dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(NotCoveredError, match="computes its own loss"):
        convexity_certificate(model, None, np.ones((3, 2)), np.ones((3, 1)))


def test_weights_of_rows_and_losses_are_not_covered():
    model = milne_regression()
    probe = Probe(np.ones((3, 1)), np.ones((3, 1)), np.ones(3))
    with pytest.raises(NotCoveredError, match="the data have sample weights"):
        convexity_certificate(model, "mse", probe)
    model.compile("sgd", ["mse"], loss_weights=[2.0])
    with pytest.raises(NotCoveredError, match=r"the loss has the weights \[2.0\]"):
        convexity_certificate(model, None, np.ones((3, 1)), np.ones((3, 1)))


def test_what_is_not_in_the_loss_does_not_count():
    """Keras reads a layer's regulariser when it builds it; what is in the loss is the variable's."""
    model = chain(dense(penalty=None, activation="relu"), dense(1, penalty=None))
    for layer in model.layers:
        layer.kernel_regularizer = keras.regularizers.L2(5.0)
    with pytest.raises(NotCoveredError, match="has no penalty"):
        convexity_certificate(model, "mse", np.ones((3, 2)), np.ones((3, 1)))


def test_training_steps_and_losses_of_an_instance_are_not_covered():
    class OwnStep(keras.Sequential):
        def train_step(self, data):
            return {}

    data = (np.ones((3, 2)), np.ones((3, 1)))
    with pytest.raises(NotCoveredError, match="the model overrides `train_step`"):
        convexity_certificate(OwnStep([keras.Input((2,)), dense(1)]), "mse", data)
    model = chain(dense(1))
    model.compile("sgd", "mse")
    model.compute_loss = lambda *args, **kwargs: 0.0
    with pytest.raises(NotCoveredError, match="its own loss"):
        convexity_certificate(Objective(model, data=data))


def test_several_inputs_are_not_covered_and_weights_must_be_finite():
    inputs = keras.Input((2,), name="a")
    model = keras.Model({"a": inputs}, dense(1)(inputs))
    x = np.ones((3, 2))
    with (
        pytest.warns(UserWarning, match="doesn't match"),
        pytest.raises(NotCoveredError, match="the data have 2 inputs"),
    ):
        convexity_certificate(model, "mse", {"a": x, "b": x}, np.ones((3, 1)))
    model = chain(dense(1))
    model.set_weights([np.full((2, 1), np.nan)])
    with pytest.raises(ValueError, match="`model` must have finite weights"):
        convexity_certificate(model, "mse", x, np.ones((3, 1)))
