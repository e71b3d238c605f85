"""Every model of the zoo: its size, its shape, and a few steps of every optimizer."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from optimizer_table import TABLE, WAYS_TO_STEP

from tfopt import models
from tfopt.bregman import BregmanTrainer
from tfopt.callbacks import (
    Convexity,
    GradientBreakdown,
    GradientNoiseScale,
    ResumableCheckpoint,
    WarmupLearningRate,
    WeightNorms,
)
from tfopt.datasets import EpochBatches
from tfopt.nqm import NoisyQuadratic

QUADRATIC = NoisyQuadratic([1.0, 0.3, 0.1], 1e-4, 2)
# Small enough to compile quickly, and everything that a builder can do at least once.
ZOO = {
    "mlp": lambda: models.mlp(6, (16, 16), 3, residual=True, seed=0),
    "mlp_normalized": lambda: models.mlp(6, (16,), 3, batch_normalization=True, use_bias=False, seed=0),
    "mlp_leaky": lambda: models.mlp(6, (16,), 3, negative_slope=0.1, weight_decay=1e-4, seed=0),
    "convnet": lambda: models.convnet((7, 7, 2), (4, 8), 3, hidden_units=8, seed=0),
    "convnet_normalized": lambda: models.convnet((7, 7, 2), (4,), 3, batch_normalization=True, seed=0),
    "resnet8": lambda: models.resnet((8, 8, 2), 8, 3, width=4, seed=0),
    "resnet8_plain": lambda: models.resnet((8, 8, 2), 8, 3, width=4, batch_normalization=False, seed=0),
    "milne_regression": lambda: models.milne_regression(weight_decay=0.01, seed=0),
    "noisy_quadratic": lambda: models.noisy_quadratic(QUADRATIC, seed=0),
}
LARGE = {
    "mlp50": lambda: models.mlp(6, (8,) * 50, 3, residual=True, seed=0),
    "resnet20": lambda: models.resnet((8, 8, 2), 20, 3, width=4, seed=0),
    "resnet32": lambda: models.resnet((8, 8, 2), 32, 3, width=4, batch_normalization=False, seed=0),
}


DENSE_CHAINS = {  # which can be trained without gradients; none above can: they have penalties, or joins
    "mlp": lambda: models.mlp(6, (16, 16), 3, seed=0),
    "mlp_leaky": lambda: models.mlp(6, (16,), 3, negative_slope=0.1, use_bias=False, seed=0),
    "milne_regression": lambda: models.milne_regression(weight_decay=0.0, seed=0),
}


def data_for(model):
    """Thirty-two rows, targets, and a loss."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, *model.input_shape[1:])).astype("float32")
    target = x.reshape(32, -1).sum(axis=1)
    if model.name == "noisy_quadratic":
        y, loss = np.zeros(32), models.output_as_loss
    elif model.output_shape[-1] == 1:
        y, loss = np.maximum(x, 0.0), "mse"
    else:
        y, loss = np.digitize(target, np.quantile(target, [1 / 3, 2 / 3])), "sparse_categorical_crossentropy"
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return x, y, loss


def outputs(model, x):
    """Without a trace, as `predict` makes it."""
    return np.asarray(model(x, training=False))


def train(model, optimizer, num_steps=12, jit_compile=False):
    x, y, loss = data_for(model)
    model.compile(optimizer, loss, jit_compile=jit_compile)
    optimizer.build(model.trainable_variables)  # else `fit` does, and traces its step twice
    # The whole data in one batch: the loss of an epoch is the loss before its step.
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    return model.fit(data, steps_per_epoch=1, epochs=num_steps, shuffle=False, verbose=0).history["loss"]


def gentle(name):
    """The row's optimizer at a rate at which the first steps lower the loss of any model."""
    return TABLE[name].make(learning_rate=min(0.01, TABLE[name].learning_rate))


# Each model with one way to step, and each way at least once: a step looks at one variable, whichever model has it.
STEPPED = [(model, WAYS_TO_STEP[place % len(WAYS_TO_STEP)]) for place, model in enumerate(ZOO)]


@pytest.mark.parametrize(("model", "optimizer"), STEPPED)
def test_every_optimizer_lowers_the_loss_of_every_model(model, optimizer):
    losses = train(ZOO[model](), gentle(optimizer))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def callbacks_for(x, y, loss, folder):
    """Every callback, but those that do nothing on one rank."""
    probe = (x[:16], y[:16])
    return [
        Convexity(probe, loss, num_matvecs=4, trace=True, density=True),
        GradientBreakdown(probe, loss, num_points=2),
        GradientNoiseScale(probe, loss, group_size=4),
        WeightNorms(),
        WarmupLearningRate(1, initial_fraction=0.5),
        ResumableCheckpoint(folder, verbose=0),
    ]


def assert_measured(callbacks, logs, epochs):
    """Each has measured the start (breakdown the first step) and the end, and logs what it has found."""
    convexity, breakdown, noise, norms = callbacks[:4]
    assert convexity.history["step"] == noise.history["step"] == norms.history["step"] == list(range(epochs + 1))
    assert breakdown.history["step"] == list(range(1, epochs + 1))
    for name in ("convexity/curvature_along_gradient", "hessian/lambda_max", "hessian/trace", "weight_norms/max"):
        assert np.isfinite(logs[name]).all(), name
    for name in ("breakdown/relative_gradient_breakdown", "gradient_noise/covariance_trace"):
        assert np.greater(logs[name], 0).all(), name
    for bound, change in zip(logs["breakdown/descent_bound"], logs["breakdown/loss_change"], strict=True):
        assert np.isfinite([bound, change]).all()
    assert len(convexity.densities) == epochs + 1


# The others have parts of these: a ResNet joins its blocks as an MLP does, and has the filters of a convnet.
MEASURED = ("mlp_normalized", "mlp_leaky", "convnet_normalized", "resnet8", "milne_regression", "noisy_quadratic")


@pytest.mark.parametrize("model", MEASURED)
def test_every_callback_measures_every_model(model, tmp_path):
    model = ZOO[model]()
    x, y, loss = data_for(model)
    model.compile(gentle("fromage"), loss, jit_compile=False)
    callbacks = callbacks_for(x, y, loss, tmp_path)
    batches = EpochBatches(x, y, batch_size=len(x), seed=0)
    logs = model.fit(batches, epochs=2, shuffle=False, verbose=0, callbacks=callbacks).history
    assert_measured(callbacks, logs, 2)


@pytest.mark.parametrize("model", DENSE_CHAINS)
def test_every_callback_measures_dense_chains_trained_without_gradients(model, tmp_path):
    model = DENSE_CHAINS[model]()
    x, y, loss = data_for(model)
    trainer = BregmanTrainer(model, loss)
    before = trainer.evaluate(x, y)["loss"]
    callbacks = callbacks_for(x, y, loss, tmp_path)[:4]  # the others are for optimizers
    logs = trainer.fit(x, y, epochs=2, verbose=0, callbacks=callbacks).history
    assert_measured(callbacks, logs, 2)
    assert logs["loss"][-1] < before


@pytest.mark.parametrize("model", ZOO)
def test_what_is_no_dense_chain_is_refused_by_its_layer(model):
    model = ZOO[model]()
    with pytest.raises(ValueError, match=r"[Ll]ayer '\w+'"):
        BregmanTrainer(model, data_for(model)[2])


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        ("mlp50", "fromage"),
        pytest.param("resnet20", "lars", marks=pytest.mark.slow_by_nature),
        pytest.param("resnet32", "fromage", marks=pytest.mark.slow_by_nature),
    ],
)
def test_the_large_models_train_too(model, optimizer):
    losses = train(LARGE[model](), gentle(optimizer), num_steps=6)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("model", "dtype", "jit_compile"),
    [
        ("mlp", "mixed_float16", True),
        ("mlp", "float32", True),
        ("milne_regression", "mixed_float16", False),
        ("convnet_normalized", "mixed_float16", True),
        ("resnet8", "mixed_float16", False),  # compiling it takes long
    ],
)
def test_models_train_in_mixed_precision_and_under_xla(model, dtype, jit_compile):
    keras.config.set_dtype_policy(dtype)
    losses = train(ZOO[model](), gentle("fromage"), jit_compile=jit_compile)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (56, 853_018)])
def test_resnets_have_the_published_sizes(depth, parameters):
    """0.27, 0.46 and 0.85 million in Table 6 of the paper."""
    model = models.resnet(depth=depth)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == parameters
    kernels = [v for v in model.trainable_variables if v.path.endswith("kernel")]
    assert len(kernels) == depth
    assert model.output_shape == (None, 10)
    assert model.get_layer("mean").input.shape == (None, 8, 8, 64)


def test_resnet_shortcuts_carry_the_input_unchanged():
    """With the residual branches at zero the network is subsampling, zero channels, mean and the output layer."""
    model = models.resnet((8, 8, 1), 8, 3, width=4, batch_normalization=False, seed=0)
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype("float32")
    first = outputs(keras.Model(model.input, model.get_layer("first_relu").output), x)
    h = np.pad(first[:, ::2, ::2], ((0, 0),) * 3 + ((2, 2),))
    h = np.pad(h[:, ::2, ::2], ((0, 0),) * 3 + ((4, 4),)).mean(axis=(1, 2))
    kernel, bias = model.get_layer("outputs").get_weights()
    np.testing.assert_allclose(outputs(model, x), h @ kernel + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.list_models())
def test_builders_begin_with_the_same_arguments(name):
    """The shape of an input, the sizes of the layers, the number of outputs; or the one thing that fixes the model."""
    parameters = inspect.signature(getattr(models, name)).parameters.values()
    first = [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY]
    fixed = {"milne_regression": [], "noisy_quadratic": ["problem"]}
    assert first == fixed.get(name, ["input_shape", first[1] if first[1:] else "", "num_outputs"])
    assert {"seed", "name"} <= {each.name for each in parameters}


def test_convnet_shapes_and_size():
    model = models.convnet()
    assert model.get_layer("flatten").output.shape == (None, 7 * 7 * 32)
    assert model.count_params() == (9 * 16 + 16) + (9 * 16 * 32 + 32) + (1568 * 64 + 64) + (640 + 10)


def test_milne_regression_is_the_papers_objective():
    model = models.milne_regression(initial_scale=2.0, seed=3)
    first, last = model.get_weights()
    assert first.shape == (1, 2)
    assert last.shape == (2, 1)
    x = np.random.default_rng(0).uniform(-1, 1, (100, 1)).astype("float32")
    model.compile("sgd", "mse")
    loss = model.evaluate(x, np.zeros_like(x), verbose=0, batch_size=100)
    output = np.maximum(x @ first, 0) @ last
    papers = np.mean(output**2) / 2 + 0.5 * (np.sum(first**2) + np.sum(last**2))
    assert loss == pytest.approx(2 * papers, rel=1e-5)


def test_initial_scale_is_the_standard_deviation():
    weights = np.concatenate([
        w.ravel() for w in models.milne_regression(hidden_units=5000, initial_scale=3.0, seed=0).get_weights()
    ])
    assert np.std(weights) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("model", ZOO)
def test_saved_models_come_back_the_same(model, tmp_path):
    original = ZOO[model]()
    original.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).standard_normal((3, *original.input_shape[1:])).astype("float32")
    np.testing.assert_array_equal(outputs(loaded, x), outputs(original, x))


@pytest.mark.parametrize("model", ZOO)
def test_seeds_make_models_reproducible(model):
    first, again = ZOO[model](), ZOO[model]()
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_registry():
    assert models.list_models() == ["convnet", "milne_regression", "mlp", "noisy_quadratic", "resnet"]
    for name, arguments in (
        ("mlp", {"input_shape": 4}),
        ("convnet", {}),
        ("resnet", {"depth": 8}),
        ("milne_regression", {}),
        ("noisy_quadratic", {"problem": QUADRATIC}),
    ):
        assert isinstance(models.get(name, **arguments), keras.Model)
    with pytest.raises(ValueError, match=r"`name` must be one of .* Received: name='resent'\. Did you mean 'resnet'"):
        models.get("resent")
    for name, meant in (("MLP", "mlp"), ("milne", "milne_regression"), ("conv_net", "convnet")):
        with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
            models.get(name)
    for name in ("transformer", None, ["mlp"]):
        with pytest.raises(ValueError, match=r"Received: name=[^.]*\.$"):
            models.get(name)


@pytest.mark.parametrize(
    ("build", "arguments", "error", "message"),
    [
        (models.resnet, {"depth": 18}, ValueError, r"`depth` must be 6 n \+ 2"),
        (models.resnet, {"depth": 2}, ValueError, "`depth` must be an integer >= 8"),
        (models.resnet, {"input_shape": (32, 32)}, ValueError, "`input_shape` must hold 3 positive integers"),
        (
            models.resnet,
            {"input_shape": 32},
            TypeError,
            "`input_shape` must hold 3 positive integers, and comes before `depth`",
        ),
        (models.resnet, {"width": 0}, ValueError, "`width` must be"),
        (models.resnet, {"batch_normalization": 1}, TypeError, "`batch_normalization` must be True or False"),
        (models.convnet, {"filters": ()}, ValueError, "`filters` must hold one or more positive integers"),
        (models.convnet, {"hidden_units": 0}, ValueError, "`hidden_units` must be"),
        (models.convnet, {"weight_decay": -1}, ValueError, "`weight_decay` must be"),
        (models.milne_regression, {"hidden_units": 0}, ValueError, "`hidden_units` must be"),
        (models.milne_regression, {"initial_scale": 0}, ValueError, "`initial_scale` must be"),
    ],
)
def test_bad_arguments(build, arguments, error, message):
    with pytest.raises(error, match=message):
        build(**arguments)
